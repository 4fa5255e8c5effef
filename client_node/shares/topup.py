"""Makes a site's top-up: the noise that it adds to its update when other sites are missing, and nothing else.

Each site's first noise is sized for all planned sites. If some are missing at a round's deadline, the set to be summed
is fixed first. Then every site of it seals a top-up for exactly this set, so that the noise of the honest ones is again
that of the study. Only then may a total be opened; the aggregators enforce that.

A site accepts only shrinking sets: after a top-up for one set it gives only the same one for this set, or a new one for
a smaller set inside it (a site may fail before its top-up has come). At most one of these is ever opened.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...mpc.errors import EnvelopeRejected
from ...mpc.links import mapped
from ...mpc.sharing.position import Position
from ...mpc.sharing.sealing import signed_position
from ...mpc.sharing.shares import set_name
from ...privacy.mechanism.noise import discrete_gaussian
from ..errors import MessageInvalid, SetFixed, StateRefused
from ..study import Study
from ..wire.messages import TopUpPlan, start_hash
from .outbox import Envelopes, Files, Outbox
from .seal import Sealer


def top_up(
    study: Study,
    plan: TopUpPlan,
    *,
    outbox: Outbox,
    site: str,
    signer: Ed25519PrivateKey,
    position: Callable[[], Position],
) -> Files:
    """Returns this site's sealed top-up for the set of `plan`; the stored one if it was asked for before.

    It depends on no record and needs no separate charge: more noise can only make the sum reveal less.

    Args:
        position: gives that of the site's ledger at its charge for the round; called if there is an update.

    Raises:
        MessageInvalid: the plan does not fit the study, or this site has sent no update to which it could add noise.
        StateRefused: the plan names another start of the round than the one that the update was sealed to.
        SetFixed: this site has given a top-up for a set that does not contain the one of the plan.
    """
    _require_set(study, plan, site)
    update = outbox.get(plan.run, plan.round)
    if update is None:
        raise MessageInvalid(f"{site} has sent no update in round {plan.round} of run {plan.run} to add noise to")
    _require_same_start(study, plan, site, signer, update)
    fixed = outbox.topped_set(plan.run, plan.round)
    if fixed is not None and not set(plan.cohort) <= set(fixed):
        raise SetFixed(
            f"{site} added its noise in round {plan.round} for a sum over {', '.join(fixed)}: it adds none for a sum "
            "over others"
        )
    stored = outbox.topup(plan.run, plan.round, set_name(plan.cohort))
    if stored is None:
        noise = _sealed_noise(study, plan, site, signer, position())
        return outbox.put_topup(plan.run, plan.round, plan.cohort, noise)
    outbox.fix(plan.run, plan.round, plan.cohort)
    return stored


def _require_set(study: Study, plan: TopUpPlan, site: str) -> None:
    if not study.quorum <= len(plan.cohort) < study.draft.min_untopped:
        raise MessageInvalid(f"study {study.name} has no top-up for a sum over {len(plan.cohort)} sites")
    if list(plan.cohort) != sorted({*plan.cohort} & {*study.site_names()}):
        raise MessageInvalid(f"round {plan.round}: the set is not made of sites of study {study.name}, once and sorted")
    if site not in plan.cohort:
        raise MessageInvalid(f"round {plan.round}: {site} is not in the set that it is asked to add noise for")


def _require_same_start(study: Study, plan: TopUpPlan, site: str, signer: Ed25519PrivateKey, update: Files) -> None:
    """Refuses a plan that would bind the top-up to another state, or key of tags, than this site's update.

    Such a top-up would never be added, and it would stand in the place of the right one for its set.
    """
    state = start_hash(plan.state, plan.tag_key)
    context = study.share_context(study.planned_round(plan.round), run=plan.run, site=site, state=state)
    try:
        signed_position(mapped(update[0]), context, signer.public_key().public_bytes_raw())
    except EnvelopeRejected as err:
        raise StateRefused(
            f"{site} has sealed its update of round {plan.round} to another start than the one to add noise for"
        ) from err


def _sealed_noise(study: Study, plan: TopUpPlan, site: str, signer: Ed25519PrivateKey, position: Position) -> Envelopes:
    sealer, planned = Sealer.of_plan(study, plan, site=site, signer=signer), study.planned_round(plan.round)
    noise = discrete_gaussian(study.topup_noise(planned, len(plan.cohort)), planned.dim)
    return sealer.seal(noise, state=plan.state, position=position, topup_for=set_name(plan.cohort))
