"""Holds the studies of a report against their hashes, and what sites charged under a hash against the study's text."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ReportInvalid
from ..ledger.charges import Books
from . import study_terms
from .schema import Report

MAX_PROBLEMS = 20  # that are named of one study


@dataclass(slots=True)
class Findings:
    """Findings about a report's studies, in words for people."""

    failures: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_studies(report: Report, books: Mapping[str, Books]) -> Findings:
    """Checks every study that the report lists or a site charged; `books` are those of the sites, by name."""
    found, listed = Findings(), {study.hash: study.text for study in report.studies}
    if len(listed) != len(report.studies):
        found.failures.append("studies: a hash occurs twice")
    charged = {booked.charge.study for book in books.values() for booked in book.booked.values()}
    found.failures += [f"study {key[:12]}: is charged and not listed" for key in sorted(charged - listed.keys())]
    for key, text in listed.items():
        where = f"study {key[:12]}"
        if text is None:
            found.notes.append(f"{where}: unknown: its text is not in the report, so none of its terms was checked")
        elif study_terms.hash_of(text) != key:
            found.failures.append(f"{where}: its text has another hash")
        elif study_terms.is_other_format(text):
            found.notes.append(f"{where}: its text has a format that is not read here; its terms were not checked")
        else:
            _check_charges(found, key, text, books)
    return found


def _check_charges(found: Findings, key: str, text: str, books: Mapping[str, Books]) -> None:
    where = f"study {key[:12]}"
    try:
        terms = study_terms.read(text)
    except ReportInvalid as err:
        found.failures.append(f"{where}: {err}")
        return
    problems: dict[str, None] = {}  # each once, in order
    count = 0
    for name, book in books.items():
        for booked in book.booked.values():
            if booked.charge.study == key:
                count += 1
                for problem in terms.contradictions(booked.charge, name, book.keys):
                    problems[f"{where}: site {name}: {problem}"] = None
    found.failures += list(problems)[:MAX_PROBLEMS]
    if not problems:
        charges = f"all {count} charges under it are its rounds" if count else "nothing here was charged under it"
        found.checked.append(f"{where} ({terms.draft.name}): its text has that hash; {charges}")
