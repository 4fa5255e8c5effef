"""Says what matters about a study in sentences: its terms, who reads what, its cost at a site, what an approval means.

Commands and pages of sites show the same words.
"""

from typing import TYPE_CHECKING, Any

from ..models.rounding import rounded_up
from .login import login_name

if TYPE_CHECKING:  # accounting takes seconds to import
    from .approval.assessment import Outlook
    from .approval.study_decisions import Proposal
    from .study import Study


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


def proposal_lines(proposal: "Proposal", by: str | None) -> list[str]:
    """Says in a few sentences what an approval would mean: who reads what, its cost here, its runs, its end."""
    assessment, runs = proposal.assessment, proposal.runs
    study, quote = assessment.study, assessment.quote
    lines = [f"Study {study.name} {study.study_hash}"]
    if assessment.trains:
        lines.append(f"{readers(study)}. No record leaves it.")
        if assessment.remark:
            lines.append(assessment.remark)
    if assessment.aggregates:
        lines.append(f"This node adds up, unread, what {', '.join(study.site_names())} send.")
    if quote is not None:
        lines.append(
            f"Cost for each {study.draft.data.unit} here: epsilon {rounded_up(quote.guaranteed)} is guaranteed so far; "
            f"with this and all runs under way {rounded_up(quote.would_be)}; the cap is {quote.cap:g}. Planned alone: "
            f"{'nothing' if assessment.planned is None else rounded_up(assessment.planned)}."
        )
    elif assessment.trains:
        lines.append("Cost: no bound. Whoever sees the result may learn records from it.")
    if new := [f"{each.name} {each.spoken}" for each in proposal.peers if each.state == "new"]:
        lines.append(f"Never seen here, and known from now on: {', '.join(new)}.")
    lines += [f"{each.told()}." for each in proposal.peers if each.state == "followed"]
    for name, typed in proposal.accepted.items():
        lines.append(f"From now on {name} has the key {typed}, in place of the one known here.")
    begun = f", of which {' and '.join(proposal.under_way)} is under way" if proposal.under_way else ""
    until = f"until {proposal.until} (UTC)" if proposal.until else "without an end"
    lines.append(f"It covers {runs} run{'' if runs == 1 else 's'}{begun}, {until}.")
    lines.append(f"Approved by {by or f'{login_name()}, the login name; --by says another'}.")
    return lines


def said(value: Any) -> str:
    """Writes a value of `Study.facts` for people."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value)) or "-"
    return "-" if value is None else str(value)
