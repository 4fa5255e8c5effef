"""The command `health` of both programs: asks the monitor of a process on this machine."""

from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption
from .console import print_json, tell

PortArgument = Annotated[int, typer.Argument(min=1, max=65535, help="The port that the process got by --monitor.")]
ReadyOption = Annotated[
    bool, typer.Option("--ready", help="Ask whether it can do its work just now, not only whether it lives.")
]


def health(port: PortArgument, ready: ReadyOption = False, as_json: JsonOption = False) -> None:
    """Ask whether the process with that monitor lives. Exit code 3: it does not, or is not ready."""
    from ..supervision import asking

    page: asking.Page = "readyz" if ready else "healthz"
    verdict = asking.ask(port, page)
    if as_json:
        print_json({"ok": verdict.is_well, "reason": " ".join(verdict.reasons)})
    elif verdict.is_well:
        print("ready" if ready else "alive")
    else:
        tell(" ".join(verdict.reasons))
    raise typer.Exit(0 if verdict.is_well else PROBLEMS)
