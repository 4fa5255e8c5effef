"""Computes the cost of a study from its terms alone: the releases that a run of it opens, and their epsilon.

No site's policy or ledger is used: a site's spent and remaining budget is known to the site alone. The cost of a draft
is that of a `provisional` study, which has no keys and no backbone yet.
"""

from collections import Counter
from datetime import date

from ...mpc.sharing import Ring
from ...mpc.sharing.ring import plan_ring
from ...mpc.sharing.sketch import largest_bound
from ...privacy.accounting import Release, epsilon_pld, solve_noise_multiplier
from ...privacy.errors import InvalidPrivacyParameter
from ..errors import StudyInvalid
from .study import AggregatorParty, Participant, PlannedRound, Start, Study
from .terms import StudyDraft


def release(study: Study, planned: PlannedRound, *, sites: int) -> Release:
    """Returns the release of a round over `sites` sites, for an accountant; with top-up, over these or more."""
    is_topped = study.draft.privacy.dropouts == "top-up"
    return Release(
        mode=study.draft.privacy.mode,
        site_noise_int=study.site_noise(planned),
        scale_bits=planned.scale_bits,
        clip_norm=planned.clip_norm,
        dim=planned.dim,
        sample_rate=planned.sample_rate,
        sites=sites,
        planned_sites=len(study.sites) if is_topped else 0,
        noise_collusion=study.draft.privacy.collusion if is_topped else 0,
        steps=planned.steps,
    )


def planned_releases(study: Study, *, sites: int | None = None) -> list[tuple[Release, int]]:
    """Lists the releases of a whole run, for an accountant: each kind of release with its number.

    Args:
        sites: number of sites in each sum; None: the fewest that may be summed.
    """
    summed = study.quorum if sites is None else sites
    releases = [(release(study, study.planned_round(1), sites=summed), study.draft.rounds.rounds)]
    return [*releases, *((kind, 1) for kind in _closing(study, summed))]


def releases_of_run(study: Study) -> Counter[Release]:
    """Counts the releases of a whole run in the worst case, equal releases together."""
    total: Counter[Release] = Counter()
    for kind, count in planned_releases(study):
        total[kind] += count
    return total


def releases_of_draft(draft: StudyDraft, dim: int) -> Counter[Release]:
    """Counts the releases of a run of the draft, each sum over the fewest sites allowed."""
    return releases_of_run(provisional(draft, dim))


def whole_cost(study: Study) -> float:
    """Computes the epsilon of a whole run and nothing else, by PLD at the study's own delta and collusion."""
    return epsilon_pld(releases_of_run(study), study.draft.privacy.delta, study.draft.privacy.collusion)


def solve_noise(draft: StudyDraft, dim: int) -> StudyDraft:
    """Solves for the smallest noise multiplier that keeps the draft's `target_epsilon`; no change without a target.

    The target holds for the whole run, what follows the last update included, at the study's own delta and collusion,
    with the fewest sites in every sum, at a site that releases nothing else.

    Raises:
        StudyInvalid: no noise multiplier reaches the target.
    """
    privacy = draft.privacy
    if privacy.target_epsilon is None or privacy.noise_multiplier:
        return draft
    try:
        solved = solve_noise_multiplier(
            lambda multiplier: releases_of_draft(with_noise(draft, multiplier), dim),
            privacy.target_epsilon,
            privacy.delta,
            privacy.collusion,
        )
    except InvalidPrivacyParameter as err:
        remedy = "plan fewer rounds"
        study = provisional(draft, dim)
        alone = Counter(_closing(study, study.quorum))
        if alone and epsilon_pld(alone, privacy.delta, privacy.collusion) > privacy.target_epsilon:
            keys = " and ".join(f"{purpose}.noise_multiplier" for purpose in draft.closing)
            alone_cost = "alone costs" if len(draft.closing) == 1 else "alone cost"
            remedy = f"raise {keys}: the {' and the '.join(draft.closing)} {alone_cost} more, whatever the rounds cost"
        problem = f"privacy.target_epsilon is {privacy.target_epsilon:g}: {err}; raise it, or {remedy}"
        raise StudyInvalid(f"study {draft.name}", (problem,)) from err
    return with_noise(draft, solved)


def with_noise(draft: StudyDraft, noise_multiplier: float) -> StudyDraft:
    """Copies the draft with another noise multiplier."""
    return draft.model_copy(update={"privacy": draft.privacy.model_copy(update={"noise_multiplier": noise_multiplier})})


def with_rounds(draft: StudyDraft, rounds: int) -> StudyDraft:
    """Copies the draft with another number of rounds."""
    return draft.model_copy(update={"rounds": draft.rounds.model_copy(update={"rounds": rounds})})


def ring_of(draft: StudyDraft, dim: int) -> Ring:
    """Plans the ring in which sums over all sites of such a study are opened.

    `largest_total` bounds an entry of the sum; rounding can add one ring unit for each site. If norms are checked, the
    ring also has room for the check.

    Raises:
        NoRing: 64 bits are too few.
    """
    sites = len(draft.participants.sites)

    def has_room(ring: Ring) -> bool:
        bound = _in_ring(draft, dim, ring).longest_units
        return bound is None or bound <= largest_bound(ring.bits)

    return plan_ring(sites, draft.largest_total / sites, dim, draft.privacy.sensitivity, has_room)


def provisional(
    draft: StudyDraft,
    dim: int,
    *,
    ring: Ring | None = None,
    start: str | None = None,
    head_size: int = 0,
    backbone_hash: str = "",
) -> Study:
    """Makes a study of `draft` without keys or checks: for its cost, or for rounds in one process; never signed or run.

    Args:
        ring: of its sums; None to plan one.
        start: SHA-256 of the state in round 0; None for its cost alone.
        head_size: as in `Study.from_draft`.
    """
    study = _in_ring(draft, dim, ring or ring_of(draft, dim))
    begins = None if start is None else Start(state=start, head_size=head_size)
    return study.model_copy(update={"start": begins, "backbone_hash": backbone_hash})


def _in_ring(draft: StudyDraft, dim: int, ring: Ring) -> Study:
    return Study.model_construct(
        draft=draft,
        backbone_hash="",
        sites=tuple(Participant.model_construct(name=name, identity="") for name in draft.participants.sites),
        aggregators=tuple(
            AggregatorParty.model_construct(name=name, identity="", address="", certificate="")
            for name in draft.participants.aggregators
        ),
        coordinator="",
        created=date.min,
        scale_bits=ring.scale_bits,
        ring_bits=64 if ring.bits == 64 else 32,
        dim=dim,
    )


def _closing(study: Study, sites: int) -> list[Release]:
    """Lists the releases of a run beside its updates, in their order, each sum over so many sites."""
    return [release(study, study.closing_round(purpose), sites=sites) for purpose in study.draft.closing]
