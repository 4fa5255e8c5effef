"""A study's terms for people: in sentences, and as tables with the meaning of each setting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from ...client_node.study import Study, StudyDraft
from ...client_node.study import terms as of_drafts
from ...client_node.web.rendering import small
from ...models.strict import StrictModel

_TABLES: Mapping[str, type[StrictModel]] = {
    "Privacy": of_drafts.PrivacyTerms,
    "Adapter": of_drafts.AdapterTerms,
    "Rounds": of_drafts.RoundTerms,
    "Optimizer": of_drafts.OptimizerTerms,
    "Aggregation": of_drafts.AggregationTerms,
    "Prototype of the records": of_drafts.PrototypeTerms,
    "Evaluation on held-out records": of_drafts.EvaluationTerms,
}
_WHOLE = 60  # characters; a longer value of one word is a hash or a key


@dataclass(frozen=True, slots=True)
class Term:
    """One setting of a study."""

    name: str
    value: str
    meaning: str  # empty if the name says it
    is_whole: bool  # a hash or key, which is never broken into words


def tables(study: Study) -> dict[str, list[Term]]:
    """Lists everything that a person approves with a study, under headings."""
    return {
        title: [_term(name, value, _TABLES.get(title)) for name, value in facts.items()]
        for title, facts in study.facts().items()
    }


def in_words(study: Study) -> Iterator[str]:
    """Says in sentences what a study does, and what protects a person's records."""
    draft = study.draft
    privacy, unit, sites = draft.privacy, draft.data.unit, study.site_names()
    alone = not draft.adapter.targets
    trained = "a head alone" if alone else "adapters" if draft.adapter.head == "lm" else "adapters and a head"
    yield (
        f"{len(sites)} sites train {trained} of {study.dim:,} numbers on a frozen backbone, in {draft.rounds.rounds} "
        f"rounds. No record leaves a site."
    )
    yield (
        f"In each round every {unit} takes part with probability {privacy.sample_rate:g}, and moves a site's sum by at "
        f"most {privacy.clip_norm:g} (L2){', at the start: the clip adapts' if privacy.clipping == 'adaptive' else ''}."
    )
    parties = ", ".join(party.name for party in study.aggregators)
    yield (
        f"Only sums over {draft.fewest_told} sites or more are opened. What one site sends could be opened only by "
        f"{parties} together."
    )
    if privacy.mode == "none":
        yield "No noise is added: whoever sees the result may learn records from it."
    elif privacy.mode == "local":
        yield f"Each site adds noise of its own, {privacy.noise_multiplier:g} times the clip, which protects it alone."
    else:
        yield (
            f"The sites' noise together is {privacy.noise_multiplier:g} times the clip or more, even for who knows the "
            f"noise of {privacy.collusion} of them."
        )
    if draft.evaluation is not None:
        yield (
            "After the last round one histogram of scores on records that the sites hold out is opened, "
            f"{'with noise, and charged' if privacy.mode != 'none' else 'without noise'}."
        )
    if draft.prototype is not None:
        yield (
            "One mean of how the backbone reads the records is opened, "
            f"{'with noise, and charged' if privacy.mode != 'none' else 'without noise'}."
        )


def meaning(key: str) -> str:
    """Explains a setting of study.toml in words, as `privacy.delta`; empty if its name says it."""
    return _setting(key).description or ""


def default(key: str) -> Any:
    """Returns the value of a setting that a study.toml leaves out; None if it must state it."""
    setting = _setting(key)
    return None if setting.is_required() else setting.default


def _setting(key: str) -> FieldInfo:
    table, _, name = key.rpartition(".")
    owner: Any = StudyDraft.model_fields[table].annotation if table else StudyDraft
    found: FieldInfo = owner.model_fields[name]
    return found


def said(value: Any) -> str:
    """Writes a setting's value for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return small(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {said(each)}" for name, each in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value)) or "–"
    return "–" if value is None or value == "" else str(value)


def _term(name: str, value: Any, owner: type[StrictModel] | None) -> Term:
    field = owner.model_fields.get(name) if owner is not None else None
    text = said(value)
    is_whole = len(text) > _WHOLE and " " not in text
    return Term(name.replace("_", " "), text, (field.description or "") if field else "", is_whole)
