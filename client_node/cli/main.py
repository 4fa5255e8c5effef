"""The application `client-node`: enrolment, daemon and status. Exit codes are those of `application`."""

import sys
from typing import Annotated

import typer

from . import budget, data, site, study
from .application import REFUSED, JsonOption, application, epilog, until_stopped
from .options import DEFAULT_HOME, HomeOption
from .tables import show_decisions, show_enrolment, show_facts

app = application(
    "Take part in a federation: enrol, decide what may run, see what it cost.",
    "client-node enroll CODE",
    "client-node study list",
)
app.add_typer(study.app, name="study")
app.add_typer(site.app, name="site")
app.add_typer(data.app, name="data")
app.add_typer(budget.app, name="budget")


@app.command(
    epilog=epilog("client-node enroll CODE", "client-node enroll - --party-address agg.example.org:7000 < code.txt")
)
def enroll(
    code: Annotated[str, typer.Argument(help="The one-time code from the operator; - reads it from standard input.")],
    home: HomeOption = DEFAULT_HOME,
    party_address: Annotated[
        str | None, typer.Option(help="HOST:PORT at which the other aggregators reach this node, if it aggregates.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="URL|env",
            help="HTTP proxy to go out by, now and later: http://[USER:PASSWORD@]HOST:PORT, or env for HTTPS_PROXY.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the federation that issued CODE. Keys are made here and stay here."""
    from ..enrolment import enrol

    found = enrol(sys.stdin.read() if code == "-" else code, home, party_address=party_address, proxy=proxy)
    show_enrolment(found, home, as_json)


@app.command(epilog=epilog("client-node proxy", "client-node proxy http://proxy.example.org:3128"))
def proxy(
    setting: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|env|none|-]",
            help="http://[USER:PASSWORD@]HOST:PORT; env for HTTPS_PROXY; none; - reads it from standard input.",
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show or change the HTTP proxy by which this node reaches its coordinator; a daemon heeds it when it starts."""
    from ..enrolment import outbound, protocol

    if setting is None:
        found = protocol.Enrolment.load(home)
    else:
        setting = sys.stdin.read().strip() if setting == "-" else setting
        found = protocol.change_proxy(home, None if setting == "none" else setting)
    show_facts(
        "Way to the coordinator", {"coordinator": found.address, "proxy": outbound.shown_proxy(found.proxy)}, as_json
    )


@app.command(epilog=epilog("client-node run", codes=[REFUSED]))
def run(home: HomeOption = DEFAULT_HOME) -> None:
    """Serve the federation until stopped; only approved studies run."""
    from ..stopping import run_until

    stop = until_stopped("httpx", "httpx2", "httpcore", "flwr")

    def work() -> int:
        from .. import daemon  # seconds, on a slow machine; a stop is heeded meanwhile

        return daemon.run(home, stop)

    raise typer.Exit(run_until(stop, work))


@app.command(epilog=epilog("client-node status", "client-node status --json"))
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show who this node is and whether its daemon runs."""
    from .. import daemon

    show_facts("Node", daemon.status(home), as_json)


@app.command(epilog=epilog("client-node decisions"))
def decisions(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show who decided what here and when: approvals, revocations, caps, confirmed sites."""
    from ..policy import decision_log

    show_decisions(*decision_log.read(home), as_json)


if __name__ == "__main__":
    app()
