"""Studies at a site: the list, one with all its terms, and what its people decide about it."""

import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from ...models.rounding import rounded_up
from .. import identity_keys
from ..approval import study_decisions, table_check
from ..approval.assessment import outlook
from ..approval.catalogue import cached_study
from ..approval.confirmed_sites import doubts
from ..approval.study_decisions import KnownStudy, Proposal
from ..errors import ApprovalRefused, SecondPersonMissing
from ..explanation import explain
from ..policy import decision_log, decisions, pending, site_policy
from ..spoken_hash import COUNT, parse, words
from ..study import Study
from ..telling import proposal_lines, readers
from .visits import A_PAGE, Visit

TYPED = 4  # words of a study's hash that a person types, at places that nobody knows before
_KEY = "key "  # before a party's name, in the names of a form's fields


@dataclass(frozen=True, slots=True)
class Terms:
    """An approval as a form asks for it."""

    runs: int
    until: dt.date | None
    unprotected: bool
    accepted: Mapping[str, str]  # fingerprints of new keys, by name
    by: str

    @classmethod
    def of(cls, form: Mapping[str, str]) -> "Terms":
        """Reads a form. Raises `ApprovalRefused` for what is no number or date, `PolicyInvalid` for what is no name."""
        runs, until = form.get("runs", "1").strip(), form.get("until", "").strip()
        if not (runs.isascii() and runs.isdigit() and 1 <= int(runs[:9]) <= decisions.MOST_RUNS):
            raise ApprovalRefused(f"an approval covers 1 to {decisions.MOST_RUNS} runs; nothing was done")
        try:
            last = dt.date.fromisoformat(until) if until else None
        except ValueError as err:
            raise ApprovalRefused(f"{until[:40]!r} is no date; write it as 2026-12-31; nothing was done") from err
        accepted = {
            name.removeprefix(_KEY): typed.strip().upper()
            for name, typed in form.items()
            if name.startswith(_KEY) and typed.strip()
        }
        by = form.get("by", "").strip()
        decision_log.person(by or None)  # before anything is written
        return cls(int(runs), last, form.get("unprotected") == "yes", accepted, by)

    def fields(self) -> dict[str, str]:
        """Writes what `of` reads."""
        found = {"runs": str(self.runs), "until": str(self.until or ""), "by": self.by}
        found |= {"unprotected": "yes"} if self.unprotected else {}
        return found | {f"{_KEY}{name}": typed for name, typed in self.accepted.items()}


def show_all(visit: Visit) -> Response:
    """Shows every study that this node knows, the newest first, those that wait for a decision before the others."""
    known = study_decisions.overview(visit.home)[::-1]
    known.sort(key=lambda each: not (each.roles and each.decision in (None, "expired")))
    rows, page, pages = visit.page_of(known, A_PAGE)
    return visit.render("studies.html", rows=rows, page=page, pages=pages)


def fetch(visit: Visit) -> Response:
    """Asks the coordinator for its studies, as `client-node study list` does."""
    found = study_decisions.fetch(visit.home)
    told = [f"turned away: {line}" for line in found.turned_away]
    if found.unreachable:
        told.append(f"{found.unreachable}; these are the studies that were fetched before")
    return visit.go("studies", notice="; ".join(told)[:2000] or "The coordinator was asked; these are its studies.")


def show(visit: Visit) -> Response:
    """Shows all that approving a study means, as `client-node study show` does; the table is not looked at."""
    study, known = _found(visit)
    cost = visit.node.of_ledger(f"outlook {study.study_hash}", lambda home: outlook(home, study, looks_at_table=False))
    first = pending.waiting(visit.home, "approve", study.study_hash)
    return visit.render(
        "study.html", study=study, known=known, cost=cost, facts=study.facts(), spoken=words(study.study_hash),
        readers=readers(study), first="" if first is None else first.told(),
        under_way=study_decisions.to_revoke(visit.home, study.study_hash)[1],
    )  # fmt: skip


def rules(visit: Visit) -> Response:
    """Shows each rule of this node on a study, as `client-node policy explain` does, but that on the backbone."""
    study, known = _found(visit)
    found = explain(visit.home, study.study_hash, looks_at_backbone=False)
    return visit.render("rules.html", study=study, known=known, found=found)


def check(visit: Visit) -> Response:
    """Checks the table for a study, as `client-node data check` does. What it counts stays on the page it answers."""
    study, known = _found(visit)
    found = table_check.check_table(visit.home, study=study.study_hash)
    return visit.render("check.html", study=study, known=known, found=found)


def confirm(visit: Visit) -> Response:
    """Confirms the key of a site by the fingerprint that its people read out, as `client-node site confirm` does.

    Raises:
        PolicyInvalid: it is no fingerprint, or the site was confirmed with another one.
        ApprovalRefused: the study gives the site another key. The fingerprint is recorded all the same: what people
            say to each other counts more than what came through the coordinator.
    """
    study, _ = _found(visit)
    name, typed = visit.form.get("site", ""), visit.form.get("fingerprint", "").strip().upper()
    decisions.confirm_sites(visit.home, {name: typed})
    alone = study.model_copy(update={"sites": tuple(each for each in study.sites if each.name == name)})
    if doubts(visit.home, alone):
        raise ApprovalRefused(
            f"{name} reads out another key than this study gives it: it is kept, and the study is not added up here; "
            f"if it was mistyped: client-node site remove {name}"
        )
    return visit.go("studies", study.study_hash, "approve", notice=f"The key of {name} is confirmed.")


def ask(visit: Visit) -> Response:
    """Asks for how many runs and how long a study shall be approved."""
    study, known = _found(visit)
    under_way = study_decisions.to_revoke(visit.home, study.study_hash)[1]
    return visit.render(
        "approve.html", study=study, known=known, under_way=under_way, most=decisions.MOST_RUNS,
        replaced=study_decisions.replaced_peers(visit.home, study), key=_KEY,
        unconfirmed=study_decisions.unconfirmed_sites(visit.home, study), by_command=_by_command(visit, study),
    )  # fmt: skip


def assess(visit: Visit) -> Response:
    """Shows what the approval that was asked for would mean, or all that speaks against it; nothing is written."""
    study, _ = _found(visit)
    terms = Terms.of(visit.form)
    return _ask_for_words(visit, study, terms, _proposed(visit, study, terms))


def approve(visit: Visit) -> Response:
    """Approves a study, as `client-node study approve` does, if the words of its hash that were asked for were typed.

    Raises:
        SecondPersonMissing: this site takes two people, whom only commands tell apart.
        ApprovalRefused: something speaks against it.
    """
    study, _ = _found(visit)
    if command := _by_command(visit, study):
        raise SecondPersonMissing(
            "nothing is decided: at this site an approval takes two people, who are told apart by their logins, and "
            f"the page's process has neither's; each of them types, under an account of their own: {command}"
        )
    terms = Terms.of(visit.form)
    proposal = _proposed(visit, study, terms)
    if visit.form.get("seen") != _digest(proposal, terms, visit.login):
        return _ask_for_words(visit, study, terms, proposal, changed=True)
    if not _is_typed(visit.form.get("typed", ""), study.study_hash, _places(visit, study)):
        return _ask_for_words(visit, study, terms, proposal, mistyped=True)
    study_decisions.approve_study(visit.home, proposal, by=terms.by or None)
    runs = "1 run" if proposal.runs == 1 else f"{proposal.runs} runs"
    return visit.go("studies", study.study_hash, notice=f"Study {study.name} is approved for {runs}.")


def ask_revoke(visit: Visit) -> Response:
    """Says what it means to refuse a study, or to withdraw its approval."""
    study, known = _found(visit)
    _, under_way = study_decisions.to_revoke(visit.home, study.study_hash)
    return visit.render("revoke.html", study=study, known=known, under_way=under_way)


def revoke(visit: Visit) -> Response:
    """Refuses a study or withdraws its approval, as `client-node study revoke` does.

    Raises:
        ApprovalRefused: a run is under way, and the study's name was not typed.
    """
    study, known = _found(visit)
    _, under_way = study_decisions.to_revoke(visit.home, study.study_hash)
    if under_way and visit.form.get("typed", "").strip() != study.name:
        raise ApprovalRefused("the study's name was not typed as it is, so nothing was done")
    study_decisions.revoke_study(visit.home, study.study_hash)
    identity_keys.settle(visit.home)  # the study may have been the last that an earlier key was kept for
    done = "is withdrawn" if known.decision == "approved" else "is refused"
    return visit.go("studies", study.study_hash, notice=f"Study {study.name} {done}: it may not run here.")


def _found(visit: Visit) -> tuple[Study, KnownStudy]:
    study = cached_study(visit.home, visit.part("hash"))
    known = next(each for each in study_decisions.overview(visit.home) if each.study.study_hash == study.study_hash)
    return study, known


def _proposed(visit: Visit, study: Study, terms: Terms) -> Proposal:
    return study_decisions.propose(
        visit.home, study.study_hash, unprotected=terms.unprotected, runs=terms.runs, until=terms.until,
        accepted=terms.accepted,
    )  # fmt: skip


def _ask_for_words(
    visit: Visit, study: Study, terms: Terms, proposal: Proposal, *, changed: bool = False, mistyped: bool = False
) -> Response:
    quote = proposal.assessment.quote
    return visit.render(
        "proposal.html", study=study, lines=proposal_lines(proposal, terms.by or visit.login)[1:],
        fields=terms.fields(), seen=_digest(proposal, terms, visit.login), spoken=words(study.study_hash),
        asked=_listed(_places(visit, study)), quote=quote, after="" if quote is None else rounded_up(quote.would_be),
        changed=changed, mistyped=mistyped, by_command=_by_command(visit, study), status=409 if mistyped else 200,
    )  # fmt: skip


def _digest(proposal: Proposal, terms: Terms, login: str) -> str:
    """Digests what a person reads before they agree, so that nobody agrees to what was changed meanwhile."""
    told = [*proposal_lines(proposal, terms.by or login), proposal.terms]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _places(visit: Visit, study: Study) -> list[int]:
    """Draws the places of the words to type, from 0, by this session's key.

    Whoever writes studies may search for one with some words of another: 2**44 tries find four that are known before.
    """
    key = visit.session.form_key.encode()

    def drawn(place: int) -> bytes:
        return hmac.digest(key, f"{study.study_hash} {place}".encode(), "sha256")

    return sorted(sorted(range(COUNT), key=drawn)[:TYPED])


def _listed(places: list[int]) -> str:
    *first, last = (str(place + 1) for place in places)
    return f"{', '.join(first)} and {last}"


def _is_typed(text: str, study_hash: str, places: list[int]) -> bool:
    """True for the words of a hash at those places, all of them, or the hash itself."""
    spoken = words(study_hash)
    if text.lower().split() == [spoken[place] for place in places]:
        return True
    try:
        return parse(text) == study_hash
    except ValueError:
        return False


def _by_command(visit: Visit, study: Study) -> str:
    """Writes the command by which two people approve, where the policy asks for two; "" where it takes one."""
    if not site_policy.load_node_policy(visit.home).policy.four_eyes:
        return ""
    return f"client-node study approve {study.study_hash}"
