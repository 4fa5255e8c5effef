"""A new study: from a form whose fields explain themselves, or from the text of a study.toml.

The form changes an existing study's terms; the text can state any. A draft lies in no file.
"""

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import tomli_w
from starlette.responses import Response

from ...client_node.errors import StudyInvalid
from ...client_node.study import Study, StudyDraft
from ...client_node.study.terms import parse_draft
from ..errors import Conflict, StudyRefused
from ..federation import Pki
from ..federation.members import Member, members
from ..store import Store
from ..studies.catalogue import load_study, study_start
from ..studies.create import store_study
from ..studies.examine import Examination, backbone_folder, examine_cost, examine_draft, unreadable
from . import terms
from .visits import Visit

SOURCE = "study.toml"  # as messages name the draft
_PATIENCE_S = 5.0
_MOST_UNITS = 10**9
_LIST = re.compile(r"\[\n((?:    [^ \[\]{}\n][^\[\]{}\n]*\n)+)\]")  # as tomli_w writes one: strings hold no line end
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_ONE = threading.Lock()  # a backbone is large, and to solve for noise takes a core


@dataclass(frozen=True, slots=True)
class Field:
    """A setting that has a field of its own in the form."""

    key: str  # in study.toml
    label: str
    kind: Literal["text", "number", "names"]
    more: str = ""  # beside the setting's own explanation
    instead: str = ""  # of both

    @property
    def help(self) -> str:
        """Explains the setting."""
        own = terms.meaning(self.key)
        return self.instead or f"{own[:1].upper()}{own[1:]}. {self.more}".strip()


FIELDS: Mapping[str, tuple[Field, ...]] = {
    "The study": (
        Field("name", "Name", "text", instead="Small letters, digits, dots, dashes. Only its hash identifies a study."),
        Field("description", "Description", "text", instead="For those who approve the study."),
    ),
    "Privacy": (
        Field("privacy.target_epsilon", "Target ε", "number",
              instead="What a whole run may cost each person; the noise is solved for it. Or state the noise itself."),
        Field("privacy.noise_multiplier", "Noise multiplier", "number",
              instead="Noise over the clip, in a sum, for who knows the colluding sites' noise. Empty with a target."),
        Field("privacy.delta", "δ", "number", instead="At most one in the persons of every site."),
        Field("privacy.collusion", "Colluding sites", "number", "More of them take more noise."),
        Field("privacy.clip_norm", "Clip", "number", "A smaller one takes less noise and cuts more."),
        Field("privacy.sample_rate", "Sampling rate", "number", "A smaller one costs less ε a round."),
    ),
    "Rounds": (
        Field("rounds.rounds", "Rounds", "number", "Each costs ε."),
        Field("rounds.batch_units", "Units a round", "number",
              instead="The sampling rate times all units of all sites. Public: it divides the sum, nobody counts."),
        Field("rounds.min_sites", "Fewest sites", "number"),
        Field("privacy.max_dropouts", "Dropouts", "number", "Every site then adds noise for them."),
    ),
    "Learning rates": (
        Field("optimizer.lr", "Of the adapters", "number", instead="Left out, a rule chooses it by the noise."),
        Field("optimizer.head_lr", "Of the head", "number", instead="Left out, a rule chooses it by the noise."),
    ),
    "Participants": (
        Field("participants.sites", "Sites", "names", instead="That train; names with commas between them."),
        Field("participants.aggregators", "Aggregators", "names",
              instead="Exactly three; a site may be one of them, too."),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """A draft as it was typed. Of the two, `text` is the one that counts unless it is None."""

    base: Study | None
    text: str | None
    values: Mapping[str, str]  # of the fields
    units: str = ""
    accepted: str = ""  # digest of the questions that were answered by yes
    accept_unused_experts: bool = False


def show(visit: Visit) -> Response:
    """Shows the form, filled in with the terms of the study that the address names, or its text."""
    base = _base(visit.store, visit.asked("from"))
    table = _table(visit, base) if base else {}
    is_text = base is None or visit.asked("as") == "text"
    wish = Wish(base, _toml(table) if is_text else None, _values(table))
    return _page(visit, wish, _priced(visit, wish) if base else None)


def answer(visit: Visit) -> Response:
    """Checks a draft, or creates the study as `coordinator study create` does."""
    wish, do = _wish(visit), visit.form.get("do", "check")
    if do == "text":
        written = _toml(_changed(_table(visit, wish.base), wish.values)) if wish.text is None else wish.text
        wish = replace(wish, text=written)
        return _page(visit, wish, _priced(visit, wish))
    if do == "price":
        return _page(visit, wish, _priced(visit, wish))
    found = _examined(visit, wish)
    if do != "create":
        return _page(visit, wish, found, is_checked=True)
    is_open = bool(found.questions) and wish.accepted != _digest(found.questions)
    if found.problems or is_open:
        return _page(visit, wish, found, is_checked=True, is_refused=True)
    study = store_study(visit.store, Pki.load(visit.home), visit.home, found)
    notice = "The study is made. Tell its words to every site by telephone: they approve it by them."
    return visit.go("studies", study.study_hash, notice=notice)


def _page(
    visit: Visit, wish: Wish, found: Examination | None, *, is_checked: bool = False, is_refused: bool = False
) -> Response:
    known = [each for each in members(visit.store) if each.state == "enrolled"]
    return visit.render(
        "study_new.html", wish=wish, found=found, is_checked=is_checked,
        is_refused=is_refused, fields=FIELDS, studies=visit.store.studies()[::-1][:100],
        digest=_digest(found.questions) if found else "",
        enrolled={role: _named(known, role) for role in ("train", "aggregate")},
    )  # fmt: skip


def _named(known: list[Member], role: str) -> str:
    names = [each.name for each in known if role in each.roles.split(",")]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _wish(visit: Visit) -> Wish:
    form = visit.form
    base = _base(visit.store, form.get("base", ""))
    return Wish(
        base=base,
        text=form.get("text", "") if base is None or "text" in form else None,
        values={each.key: form.get(each.key, "").strip() for own in FIELDS.values() for each in own},
        units=form.get("units", "").strip(),
        accepted=form.get("accepted", ""),
        accept_unused_experts=form.get("accept_unused_experts") == "yes",
    )


def _base(store: Store, study: str) -> Study | None:
    """Finds the study to start from. Raises `NotFound`."""
    return load_study(store.study(study)) if study else None


def _table(visit: Visit, base: Study | None) -> dict[str, Any]:
    """Writes a study's draft as the table of a study.toml, with the operator's own folder of the backbone."""
    if base is None:
        return {}
    table = base.draft.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    table["model"]["backbone"] = str(study_start(visit.home, base).backbone)
    if "target_epsilon" in table["privacy"]:
        table["privacy"].pop("noise_multiplier", None)  # it was solved for the target
    return table


def _toml(table: Mapping[str, Any]) -> str:
    """Writes a table as TOML, each list of plain values on one line."""
    return _LIST.sub(lambda found: "[" + ", ".join(line.strip(" ,") for line in found[1].splitlines()) + "]",
                     tomli_w.dumps(table))  # fmt: skip


def _values(table: Mapping[str, Any]) -> dict[str, str]:
    return {each.key: _written(_found(table, each.key)) for own in FIELDS.values() for each in own}


def _found(table: Mapping[str, Any], key: str) -> Any:
    top, _, name = key.rpartition(".")
    own: Mapping[str, Any] = table.get(top, {}) if top else table
    return own.get(name, _default(key) if table else None)


def _default(key: str) -> Any:
    value = terms.default(key)
    return value or None  # 0 stands for none in these fields


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def _changed(table: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Puts what was typed into the table; an empty field leaves its setting out."""
    table = {name: dict(value) if isinstance(value, dict) else value for name, value in table.items()}
    for each in (each for own in FIELDS.values() for each in own):
        top, _, name = each.key.rpartition(".")
        own = table.setdefault(top, {}) if top else table
        typed = values[each.key]
        if typed:
            own[name] = _read(each, typed)
        else:
            own.pop(name, None)
    return table


def _read(field: Field, typed: str) -> Any:
    """Reads a field; text that is no number stays text, of which the draft's own rules say what is wrong."""
    if field.kind == "names":
        return [name for name in re.split(r"[,\s]+", typed) if name]
    if field.kind == "text":
        return typed
    if re.fullmatch(r"[+-]?[0-9]{1,15}", typed):
        return int(typed)
    return float(typed) if _NUMBER.fullmatch(typed) else typed


def _draft(visit: Visit, wish: Wish) -> StudyDraft:
    if wish.text is not None:
        return parse_draft(wish.text, SOURCE)
    return parse_draft(_changed(_table(visit, wish.base), wish.values), SOURCE)


def _priced(visit: Visit, wish: Wish) -> Examination:
    """Computes what a draft would cost, without a look at its backbone."""
    trained = wish.base.dim - wish.base.draft.state_dim(0) if wish.base and wish.text is None else None
    try:
        with _alone():
            return examine_cost(_draft(visit, wish), trained, units=_units(wish))
    except StudyInvalid as err:
        return unreadable(err)


def _examined(visit: Visit, wish: Wish) -> Examination:
    try:
        draft, units = _draft(visit, wish), _units(wish)
    except StudyInvalid as err:
        return unreadable(err)
    with _alone():
        try:
            folder = backbone_folder(visit.home, draft, wish.base)
        except StudyRefused as err:
            found = examine_cost(draft, units=units)
            return replace(found, problems=(*found.problems, err))
        return examine_draft(
            visit.store, draft, folder, SOURCE, units=units, accept_unused_experts=wish.accept_unused_experts
        )


def _units(wish: Wish) -> int | None:
    if not wish.units:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", wish.units) or not 1 <= int(wish.units) <= _MOST_UNITS:
        raise StudyInvalid(SOURCE, (f"persons at all sites is {wish.units[:20]!r}; it must be a whole number above 0",))
    return int(wish.units)


def _digest(questions: tuple[str, ...]) -> str:
    """Names the questions that somebody was shown, so that only those are answered."""
    return hashlib.sha256("\n".join(questions).encode()).hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    if not _ONE.acquire(timeout=_PATIENCE_S):
        raise Conflict("another draft is examined just now; try again in a moment")
    try:
        yield
    finally:
        _ONE.release()
