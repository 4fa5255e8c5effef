"""Prints for the commands `client-node` and `coordinator`: messages and tables for people, JSON for programs."""

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.table import Table

from ..errors import NotAgreed
from ..spoken_hash import words

if TYPE_CHECKING:  # accounting, cryptography and httpx take their time to import
    from ...privacy.report.workload import Watch, Workload
    from ..health import Finding

_WORDS_A_LINE = 6
_SIGNS = {"ok": "OK", "warning": "warning", "failed": "FAILED"}
_HASH_DIGITS = 64
USAGE = 2
_UNBROKEN = 4096  # columns where nobody looks at a terminal: what a table needs, so that a program finds whole lines


class _Unbroken(Console):
    """A console that wraps for a terminal, or where COLUMNS is set, and never into a file or a pipe."""

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        is_told = "COLUMNS" in os.environ or self.file.isatty()
        return found if is_told else ConsoleDimensions(_UNBROKEN, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


out, err = _Unbroken(), _Unbroken(stderr=True)


def tell(text: str) -> None:
    """Prints text, which may come from elsewhere, unchanged on stderr: without markup and without wrapping."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def show_hash(name: str, study_hash: str) -> None:
    """Prints the words of a study's hash, six a line, to be read aloud, and the hash to be copied; nothing wraps."""
    spoken = words(study_hash)
    lines = [" ".join(spoken[i : i + _WORDS_A_LINE]) for i in range(0, len(spoken), _WORDS_A_LINE)]
    for line in (f"Study {name}", *lines, study_hash):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def command_at(home: Path, default: Path, command: str) -> str:
    """Completes a command that a hint tells people to type, by `--home` unless that is the `default`."""
    return command if home == default.resolve() else f"{command} --home {shlex.quote(str(home))}"


def is_at_terminal() -> bool:
    """True if there is a person who can be asked."""
    return sys.stdin.isatty()


def agree(question: str, *, yes: bool, option: str = "--yes") -> None:
    """Asks the person at the terminal before what cannot be undone.

    Args:
        yes: True if the person has agreed beforehand, by `option`.

    Raises:
        Exit: there is no terminal to ask at; wrong usage.
        NotAgreed: the answer is no.
    """
    if not yes:
        _require_terminal(question, option)
        if not typer.confirm(question, err=True):
            raise NotAgreed("nothing was changed")


def agree_by_name(what: str, name: str, *, yes: bool) -> None:
    """Asks the person at the terminal to type `name` before what nothing undoes; otherwise like `agree`."""
    if not yes:
        _require_terminal(what)
        if typer.prompt(f"{what} Type {name} to go on", err=True) != name:
            raise NotAgreed("nothing was changed")


def _require_terminal(question: str, option: str = "--yes") -> None:
    if not is_at_terminal():
        tell(f"{question} There is no terminal to ask at, so nothing was changed; a script says {option}")
        raise typer.Exit(USAGE)


def print_json(value: Any) -> None:
    """Prints one JSON value on stdout; infinities are written "inf", because JSON has no number for them."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def print_line(value: Any) -> None:
    """Prints one JSON value on a line of stdout, at once."""
    sys.stdout.write(json.dumps(_finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def show_change(facts: dict[str, Any], as_json: bool, sentence: str) -> None:
    """Prints what a command has changed: `facts` as JSON, or a sentence."""
    if as_json:
        return print_json(facts)
    out.print(sentence, highlight=False, markup=False, soft_wrap=True)


def show_link(link: str, as_json: bool) -> None:
    """Prints a link to a page, alone on stdout."""
    if as_json:
        return print_json({"link": link})
    tell("Open this in a browser on this machine; it works once, within five minutes:")
    print(link)


def table_of(title: str, rows: Sequence[dict[str, Any]], text: Callable[[Any], str] = str) -> Table | str:
    """Makes a table of rows of equal keys, each value formatted by `text`; without rows, a sentence that says so."""
    if not rows:
        return f"{title}: none yet"
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(text(value)) for value in row.values()))  # it holds text of studies and nodes
    return table


def print_rows(
    title: str, rows: Sequence[dict[str, Any]], text: Callable[[Any], str] = str, *, highlight: bool = True
) -> None:
    """Prints rows as a table. Where they do not fit, hashes and keys follow it, each whole on its line."""
    table = table_of(title, rows, text)
    whole = [name for name in rows[0] if any(is_whole(text(row[name])) for row in rows)] if rows else []
    if isinstance(table, str) or not whole or table.__rich_measure__(out, out.options).maximum <= out.width:
        return out.print(table, highlight=highlight)
    out.print(table_of(title, [{k: v for k, v in row.items() if k not in whole} for row in rows], text))
    for row in rows:
        for name in whole:
            line = f"{text(next(iter(row.values())))} {name}: {text(row[name])}"
            out.print(line, highlight=False, markup=False, soft_wrap=True)


def is_whole(text: str) -> bool:
    """True for text with a word as long as a hash, which must not be broken over lines."""
    return max(map(len, text.split()), default=0) >= _HASH_DIGITS


def show_page(
    what: str, value: Any, *, page: Callable[[], str], table: Callable[[], None], html: Path | None, as_json: bool
) -> None:
    """Shows one value: as a `page` in the file `html`, as JSON, or, if neither is asked for, as a `table`."""
    if html is not None:
        html.write_text(page(), encoding="utf-8")
        err.print(f"{what} written to {html}")
    if as_json:
        print_json(value)
    elif html is None:
        table()


def page_language(lang: str | None, html: Path | None) -> str:
    """The language of a report's page, before the report is made.

    Raises:
        BadParameter: there is no such language, or no page is asked for that could be in one.
    """
    from ...privacy.report.language import DEFAULT, languages

    if lang is not None and html is None:
        raise typer.BadParameter("a table and JSON are in no language; it needs --html", param_hint="--lang")
    if lang is not None and lang not in languages():
        raise typer.BadParameter(f"{lang!r} is none of {', '.join(languages())}", param_hint="--lang")
    return lang or DEFAULT


def show_verification(
    file: Path, issuer: str | None, sites: Sequence[str], as_json: bool, *, no_limit: bool = False
) -> bool:
    """Verifies a budget report and prints the findings; returns True if the report is right.

    What takes long is told on stderr before it begins, with a line of progress if stderr is a terminal.

    Args:
        sites: NAME=KEY texts with keys known from elsewhere.
        no_limit: True to verify it however long that takes.
    """
    from ...privacy.report.verify import known_keys, verify_file
    from ...privacy.report.workload import MAX_SECONDS

    limit = math.inf if no_limit else MAX_SECONDS
    with _told_of_work() as watch:
        found = verify_file(file, issuer=issuer, site_keys=known_keys(sites), max_seconds=limit, watch=watch)
    if as_json:
        print_json(found.to_dict())
        return found.ok
    for line in found.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print("Everything holds." if found.ok else "This report does not hold.")
    return found.ok


def show_findings(findings: "Sequence[Finding]", as_json: bool) -> bool:
    """Prints findings of a check-up, one a line with its remedy below; returns True if nothing has failed."""
    failed = sum(each.state == "failed" for each in findings)
    if as_json:
        print_json([asdict(each) for each in findings])
        return not failed
    lines = [
        line
        for each in findings
        for line in (
            f"{_SIGNS[each.state]:<8} {each.check}: {each.detail}",
            each.remedy and f"{'':<8} -> {each.remedy}",
        )
        if line
    ]
    warned = sum(each.state == "warning" for each in findings)
    for line in (*lines, f"{len(findings)} checked: {failed} failed, {warned} to be looked at."):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    return not failed


@contextmanager
def _told_of_work() -> "Iterator[Watch]":
    """Tells on stderr of work that takes long, and at a terminal how far it is."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:

        def watch(work: "Workload", done_s: float) -> None:
            if work.is_long and not bar.task_ids:
                tell(f"Verifying {work}")
                bar.add_task("Recomputing", total=work.seconds)
            elif work.is_long:
                bar.update(bar.task_ids[0], completed=done_s)

        yield watch


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
