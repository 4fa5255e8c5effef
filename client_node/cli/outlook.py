"""Says in a sentence what matters about a study at a site: who reads what, what it costs here, how long it takes."""

from typing import TYPE_CHECKING

from ...models.rounding import rounded_up

if TYPE_CHECKING:  # accounting takes seconds to import
    from ..approval.assessment import Outlook
    from ..study import Study


def outlook_lines(outlook: "Outlook") -> list[str]:
    """Says in a sentence who reads what, what a run costs here, and how long it takes; then what is odd about it."""
    study, quote = outlook.study, outlook.quote
    rounds = study.draft.rounds
    length = f"takes {rounds.rounds} rounds, each as long as its slowest site and at most {rounds.deadline_s:g} s"
    if outlook.trains:
        cost = f"what it costs here is not known ({outlook.unknown})"
        if study.draft.privacy.mode == "none":
            cost = "nothing bounds what it costs"
        elif quote is not None and outlook.planned is not None:
            cost = (
                f"a run costs each {study.draft.data.unit} here epsilon {rounded_up(outlook.planned)} by itself, and "
                f"brings what is guaranteed from {rounded_up(quote.guaranteed)} to {rounded_up(quote.would_be)} under "
                f"a cap of {quote.cap:g}"
            )
        said = f"{readers(study)}; {cost}; it {length}."
    elif outlook.aggregates:
        said = f"This node adds up, unread, what {', '.join(study.site_names())} send; it {length}."
    else:
        said = f"This node has no part in it; it {length}."
    return [said, *([outlook.remark] if outlook.remark else [])]


def readers(study: "Study") -> str:
    """Says who can read what of the updates that a site sends."""
    noise = "with noise" if study.draft.privacy.mode != "none" else "WITHOUT NOISE"
    parties, fewest = ", ".join(party.name for party in study.aggregators), study.draft.fewest_told
    return (
        f"Coordinator, aggregators and other sites read sums over {fewest} sites or more, {noise}, and only "
        f"{parties} together could open what this site sends"
    )
