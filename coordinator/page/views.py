"""The table of all pages and forms, each beside the command that does the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from . import comparing, drafts, overview, runs, studies
from .visits import Visit

Look = Callable[[Visit], Response]


@dataclass(frozen=True, slots=True)
class View:
    """A page, and the form on it if it has one.

    `command` is that of `coordinator` which shows the same, and takes the same role; `change` the one that the form
    carries out.
    """

    command: str
    look: Look
    change: str | None = None
    carry_out: Look | None = None


VIEWS: Mapping[str, View] = {
    "/": View("status", overview.show),
    "/runs": View("run list", runs.show_all),
    "/runs/{run}": View("run rounds", runs.show),
    "/runs/{run}/stop": View("run stop", runs.ask("stop"), "run stop", runs.stop),
    "/runs/{run}/resume": View("run resume", runs.ask("resume"), "run resume", runs.resume),
    "/runs/{run}/abandon": View("run abandon", runs.ask("abandon"), "run abandon", runs.abandon),
    "/compare": View("run metrics", comparing.show),
    "/studies": View("study list", studies.show_all),
    "/studies/new": View("study create", drafts.show, "study create", drafts.answer),
    "/studies/{study}": View("study show", studies.show),
    "/studies/{study}/study.json": View("study show", studies.download),
    "/studies/{study}/start": View("run start", studies.ask_start, "run start", studies.start),
}
