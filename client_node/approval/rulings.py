"""Rules on a message about a study at this node, rule by rule: admission raises the first refusal, `explain` shows all.

What is here needs no open ledger. Whether the budget pays for a run is ruled on in `charges`, as the run is prepared.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ..enrolment import Enrolment
from ..errors import PartnerRefused, SiteNotConfirmed
from ..policy import decisions, site_policy
from ..ruling import Ruling, require
from ..study import Study
from ..succession import own_keys, partners
from . import peers
from .confirmed_sites import doubts, fingerprint


def of_approval(home: Path, study_hash: str) -> Ruling:
    """Rules on the approval of a study, which need not have reached this node."""
    return site_policy.approval_ruling(
        site_policy.approvals(home), study_hash, decisions=decisions.load_decisions(home)
    )


def of_study(home: Path, study: Study) -> list[Ruling]:
    """Rules on every term of a study, in the order in which a message meets the rules.

    Raises:
        PolicyInvalid: site.toml or decisions.json is unreadable or invalid.
    """
    return [each for group in _groups(home, study) for each in group()]


def of_draft(home: Path, study: Study) -> list[Ruling]:
    """Rules on a draft's `cost.provisional` study, which has no hash and no keys yet: nobody can have approved it."""
    name = Enrolment.load(home).name
    why = "a draft is no study yet; people approve the hash of the study that is created from it"
    found = [Ruling("approval", False, "studies", why)]
    if name in study.site_names():
        found += site_policy.rulings(site_policy.load_policy(home), study)
    is_named = name in study.identities()
    part = f"it names {name}" if is_named else f"it has no part for this node ({name})"
    found.append(Ruling("part", is_named, "enrolment", part, PartnerRefused))
    return found + [each for each in _allowed(home, study) if each.rule != "model"]


def require_study(home: Path, study: Study) -> None:
    """Raises the first refusal of `of_study`; rules after it are not looked at."""
    require((each for group in _groups(home, study) for each in group()), about=title(study))


def of_run(home: Path, study_hash: str, run: str | None) -> Ruling:
    """Rules on whether the approval covers `run`; None for one more run."""
    allowed = site_policy.approvals(home).runs_of(study_hash)
    made = decisions.load_decisions(home)
    if why := decisions.no_room(made, study_hash, run, allowed=allowed):
        return Ruling("runs", False, "studies.runs", why)
    used = len(made.runs_used(study_hash))
    return Ruling("runs", True, "studies.runs", f"{used} of {allowed} run{'' if allowed == 1 else 's'} used")


def title(study: Study) -> str:
    """Names a study in a refusal."""
    return f"study {study.name} ({study.study_hash[:12]})"


def _groups(home: Path, study: Study) -> Iterable[Callable[[], list[Ruling]]]:
    looks = (_terms, _part, _allowed, _confirmed, _known)
    return [partial(look, home, study) for look in looks]


def _terms(home: Path, study: Study) -> list[Ruling]:
    trains = Enrolment.load(home).name in study.site_names()
    terms = site_policy.rulings(site_policy.load_policy(home), study) if trains else []
    return [of_approval(home, study.study_hash), *terms]


def _part(home: Path, study: Study) -> list[Ruling]:
    """Rules on the node's own part: a study may not give its name to another key."""
    name = Enrolment.load(home).name
    own = own_keys.of_home(home).key_in(study.identities(), name)
    roles = (("trains", study.has_site(name, own)), ("adds up", study.has_aggregator(name, own)))
    if parts := [role for role, has_part in roles if has_part]:
        return [Ruling("part", True, "enrolment", f"{name}, with this node's key, {' and '.join(parts)}")]
    why = f"it has no part for this node ({name})"
    if name in study.identities():
        why = f"it gives {name} another key than this node's ({own[:16]}...): somebody else would take part"
    return [Ruling("part", False, "enrolment", why, PartnerRefused)]


def _allowed(home: Path, study: Study) -> list[Ruling]:
    """Rules on the backbone and the partners that the policy allows; a list that is not there allows all."""
    listed = site_policy.load_node_policy(home).policy
    own = Enrolment.load(home).name  # whose key another rule looks at
    found = []
    model = f"backbone {study.backbone_hash[:12] or 'of a draft, which has no hash yet'}"
    if listed.models is None:
        found.append(Ruling("model", True, "policy.models", f"{model}: the one that an approval names"))
    else:
        is_listed = study.backbone_hash in listed.models
        why = f"{model} is {'' if is_listed else 'not '}listed in policy.models"
        found.append(Ruling("model", is_listed, "policy.models", why, PartnerRefused))
    for rule, allowed, parties in (
        ("sites", listed.sites, study.sites), ("aggregators", listed.aggregators, study.aggregators),
    ):  # fmt: skip
        key = f"policy.{rule}"
        if allowed is None:
            found.append(Ruling(rule, True, key, "those that an approval names"))
            continue
        followed = partners.load(home)
        others = [
            party.name
            for party in parties
            if party.name != own
            and party.name not in allowed
            and not any(
                f"{party.name}={fingerprint(led)}" in allowed
                for led in partners.keys_up_to(followed, party.name, party.identity)
            )
        ]
        why = f"{', '.join(others)}: not listed in {key}, or with another key" if others else "all are listed"
        found.append(Ruling(rule, not others, key, why, PartnerRefused))
    return found


def _confirmed(home: Path, study: Study) -> list[Ruling]:
    """Rules on the keys that this node's people have confirmed, if it aggregates in the study."""
    name = Enrolment.load(home).name
    if not study.has_aggregator(name, own_keys.of_home(home).key_in(study.identities(), name)):
        return []
    found = doubts(home, study)
    why = f"not added up here: {'; '.join(found)}" if found else "every site's key was confirmed here"
    return [Ruling("confirmed", not found, "sites", why, SiteNotConfirmed)]


def _known(home: Path, study: Study) -> list[Ruling]:
    """Rules on the keys of all other parties against those that earlier studies gave to the same names."""
    return [
        Ruling("identity", each.state != "changed", "peers", each.told(), PartnerRefused)
        for each in peers.compare(home, study)
    ]
