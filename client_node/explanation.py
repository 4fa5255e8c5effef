"""Explains a node's policy to its people: each rule's verdict on a study, and the place at which the rule is written.

The verdicts are those of the functions that admit a message and prepare a run. Only the places are looked up for people
alone. A study that no rule allows may not run: the default is shown like any other rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..models.errors import ModelError
from ..privacy.errors import PrivacyError
from .approval import admission, charges
from .approval.budget_planning import ASSUMED_DIM
from .approval.catalogue import find_study
from .approval.run_reservations import RunReservations
from .enrolment import Enrolment
from .errors import ChargeRefused, ClientNodeError, ModelUnusable, PolicyInvalid, SiteAway, SiteNotReady
from .policy import load_policy, pending, site_policy
from .policy.places import Places
from .ruling import Ruling
from .spoken_hash import parse
from .study import Study, cost, load_draft
from .succession import own_keys
from .usage import Usage

Verdict = Literal["allows", "forbids", "waits"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of this node on a study, for its people."""

    rule: str
    verdict: Verdict  # waits: it allows at a later time by itself, or once a second person agrees
    where: str  # file, line and key, or the decision
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """All rules of this node on a study, in the order in which a message meets them."""

    study: str  # its name
    hash: str | None  # None for a draft
    run: str | None  # under way, which the rules were asked about; None for one more run
    rules: tuple[Rule, ...]

    @property
    def may_run(self) -> bool:
        """True if every rule allows it."""
        return not self.against

    @property
    def against(self) -> tuple[Rule, ...]:
        """The rules that do not allow it."""
        return tuple(each for each in self.rules if each.verdict != "allows")

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        run = f"run {self.run} of study" if self.run else "study"
        if self.may_run:
            return f"{run} {self.study} may run here."
        first = self.against[0]
        more = f", and {len(self.against) - 1} more" if len(self.against) > 1 else ""
        return f"{run} {self.study} may not run here, because of {first.rule} ({first.where}): {first.why}{more}."


def explain(home: Path, text: str, *, run: str | None = None, looks_at_backbone: bool = True) -> Explanation:
    """Explains whether a study may run at the node whose folder is `home`. Nothing is written.

    Args:
        text: name, hash or words of a study that has reached this node, or the path of a study.toml.
        run: a run of the study; None for one that is under way, or else for one more.
        looks_at_backbone: False to leave the rule on the backbone out, which reads all its weights.

    Raises:
        StudyUnknown: no study is meant, or several are.
        StudyInvalid: the draft breaks its schema.
        NotEnrolled: this node belongs to no federation.
    """
    if text.endswith(".toml"):
        draft = cost.solve_noise(load_draft(Path(text)), ASSUMED_DIM)
        study = cost.provisional(draft, ASSUMED_DIM)
        return Explanation(study.name, None, None, _told(home, study, lambda: _of_draft(home, study)))
    study = find_study(home, _hash_or_name(text))
    asked = run or next(iter(RunReservations(home).of_study(study.study_hash)), None)
    rules = _told(home, study, lambda: of_run(home, study, asked, looks_at_backbone=looks_at_backbone))
    return Explanation(study.name, study.study_hash, asked, rules)


def of_run(home: Path, study: Study, run: str | None, *, looks_at_backbone: bool = True) -> list[Ruling]:
    """Lists the rulings on preparing a run and on its next round: those of admission first, then those of the site."""
    usage = Usage(home)
    found = [*admission.rulings_on(home, study, run), *usage.rulings(run=run), *usage.bytes_rulings()]
    name = Enrolment.load(home).name
    if study.has_site(name, own_keys.of_home(home).key_in(study.identities(), name)):
        backbone = [_backbone(home, study)] if looks_at_backbone else []
        found += [_start(study), *backbone, _people(home), _budget(home, study, run)]
    return found


def effective(home: Path) -> list[dict[str, Any]]:
    """Lists every setting of the node's policy with its value and the place that it comes from.

    Raises:
        PolicyInvalid: site.toml or decisions.json is unreadable or invalid.
    """
    policy, places = site_policy.load_node_policy(home), Places(home)
    rows = [
        {"setting": key, "value": value, "from": places.of_key(key)}
        for key, value in _flat(policy.model_dump(exclude={"studies"}))
    ]
    studies = policy.studies
    for study_hash in sorted({*studies.approved, *studies.unprotected}):
        bare = ", also without privacy" if study_hash in studies.unprotected else ""
        value = f"approved for {studies.runs_of(study_hash)} runs{bare}"
        rows.append({"setting": f"study {study_hash}", "value": value, "from": places.of_study("studies", study_hash)})
    if not (studies.approved or studies.unprotected):
        rows.append({"setting": "studies", "value": "none is approved", "from": "default: nothing is approved"})
    return rows


def _hash_or_name(text: str) -> str:
    try:
        return parse(text)
    except ValueError:
        return text


def _told(home: Path, study: Study, look: Callable[[], list[Ruling]]) -> tuple[Rule, ...]:
    try:
        found, places = look(), Places(home)  # in this order: the first refuses a file that is not text
    except PolicyInvalid as err:
        return (Rule("policy", "forbids", Path(err.source).name, " ".join(str(err).split())),)
    return tuple(_rule(home, places, study, each) for each in found)


def _rule(home: Path, places: Places, study: Study, ruling: Ruling) -> Rule:
    where = _OTHER_FILES.get(ruling.key)
    if where is None:
        is_decided = ruling.key in ("studies", "studies.unprotected", "studies.runs")
        where = places.of_study(ruling.key, study.study_hash) if is_decided else places.of_key(ruling.key)
    verdict: Verdict = "allows" if ruling.allows else "forbids"
    why = ruling.why
    if not ruling.allows and ruling.error is SiteAway:
        verdict = "waits"
    if ruling.rule == "approval" and not ruling.allows:
        first = pending.waiting(home, "approve", study.study_hash)
        if first is not None:
            verdict, where = "waits", pending.FILE
            why = f"waits for a second person; {first.told()}"
    if ruling.rule == "budget" and not ruling.allows and (first := pending.waiting(home, "cap", "budget")):
        why = f"{why}; a new cap waits for a second person: {first.told()}"
    return Rule(ruling.rule, verdict, where, why)


_OTHER_FILES = {
    "enrolment": "enrolment.json",
    "sites": "decisions.json: site confirm",
    "peers": "peers.json",
    "study": "the study itself",
    "ledger": "ledger.db",
}


def _of_draft(home: Path, study: Study) -> list[Ruling]:
    found = admission.rulings_on_draft(home, study)
    if Enrolment.load(home).name in study.site_names():
        found.append(_budget(home, study, None))
    return found


def _start(study: Study) -> Ruling:
    try:
        study.require_start()
    except ClientNodeError as err:
        return Ruling("start", False, "study", str(err), type(err))
    return Ruling("start", True, "study", "it states the start of its runs")


def _backbone(home: Path, study: Study) -> Ruling:
    from ..models.backbones import loading  # with torch, which no other rule needs

    folder, key = load_policy(home).backbone.directory, "backbone.directory"
    try:
        here = loading.backbone_hash(folder)
    except (ModelError, OSError) as err:
        return Ruling("backbone", False, key, f"{folder} cannot be read: {err}", ModelUnusable)
    is_same = here == study.backbone_hash
    why = f"{folder} has the hash {here[:12]}, the study names {study.backbone_hash[:12]}"
    return Ruling("backbone", is_same, key, why, ModelUnusable)


def _people(home: Path) -> Ruling:
    """Rules on the people of the tables by the marks that preparing a run notes: they have at most one account."""
    policy, key = load_policy(home), "data.name"
    try:
        objections = charges.known_elsewhere(home, policy)
    except (PrivacyError, ClientNodeError) as err:
        return Ruling("people", False, key, f"nothing is charged: {err}", ChargeRefused)
    why = "; ".join(objections) or f"nobody in the tables is known under another account than {policy.account}"
    return Ruling("people", not objections, key, why, ChargeRefused)


def _budget(home: Path, study: Study, run: str | None) -> Ruling:
    """Rules on the cost as `charges.require_run` does before a run begins, and finds the round at which it ends."""
    policy = load_policy(home)
    if study.draft.privacy.mode == "none":
        return Ruling("budget", True, "budget.epsilon", "nothing is charged: without privacy no budget bounds it")
    try:
        return charges.budget_ruling(home, study, policy, run=run)
    except (PrivacyError, ClientNodeError) as err:
        return Ruling("budget", False, "ledger", str(err), SiteNotReady)


def _flat(table: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{above}{name}.")
        else:
            plain = "" if isinstance(value, Mapping) else value
            found.append((above + name, str(plain) if isinstance(plain, Path) else plain))
    return found
