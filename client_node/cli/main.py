"""The application `client-node`: enrolment, daemon and status. Exit codes are those of `application`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import backup, budget, ca, chart, data, doctor, health, keys, policy, search, service, setup, site, study
from .application import PROBLEMS, REFUSED, JsonOption, LogForm, LogFormOption, MonitorOption, application, epilog
from .console import agree, show_link, tell
from .options import DEFAULT_HOME, ByOption, HomeOption, YesOption
from .serving import PAGE, serve_node
from .tables import show_decisions, show_enrolment, show_facts, show_traffic, show_verified_decisions, show_witnessed

app = application(
    "Take part in a federation: enrol, decide what may run, see what it cost.",
    "client-node enroll CODE",
    "client-node study list",
)
app.add_typer(study.app, name="study")
app.add_typer(site.app, name="site")
app.add_typer(policy.app, name="policy")
app.add_typer(data.app, name="data")
app.add_typer(budget.app, name="budget")
app.add_typer(chart.app, name="chart")
app.add_typer(keys.app, name="keys")
app.add_typer(ca.app, name="ca")
app.command(
    "init",
    epilog=epilog(
        "client-node init patients.csv",
        "client-node init patients.csv --study study.toml",
        "client-node init visits.sql --url sqlite:////data/hospital.db",
        "client-node init export --study study.toml",
    ),
)(setup.init)
app.command("serve", epilog=epilog("client-node serve diagnoses", "client-node serve one two --port 9000"))(
    service.serve
)
app.command(
    "search",
    epilog=epilog(
        'client-node search archive "a bird" --space space --backbone smollm2',
        "client-node search archive bird.png --space space --index bird.index",
    ),
)(search.search)
app.command("health", epilog=epilog("client-node health 9446", codes=[PROBLEMS]))(health.health)
app.command("backup", epilog=epilog("client-node backup node.backup --passphrase-file passphrase"))(backup.backup)
app.command(
    "restore", epilog=epilog("client-node restore node.backup --home new", "client-node restore node.backup --check")
)(backup.restore)
app.command("doctor", epilog=epilog("client-node doctor", "client-node doctor --json"))(doctor.doctor)


@app.command(
    epilog=epilog(
        "client-node enroll north.join --table patients.csv",
        "client-node enroll - --party-address agg.example.org:7000 < code.txt",
        "client-node enroll north.join --again",
    )
)
def enroll(
    code: Annotated[
        str, typer.Argument(help="The one-time code from the operator, or NAME.join; - reads it from standard input.")
    ],
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
    again: Annotated[
        bool, typer.Option("--again", help="Come back to a federation that this node has left, with its keys.")
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(help="A table, QUERY.sql or FHIR export to describe in the same step, as `init` does."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="With --table: path of a study.toml to match columns with.")] = None,
    unit_column: Annotated[str | None, typer.Option(help="With --table: says whose record a row is.")] = None,
    backbone: Annotated[str, typer.Option(help="With --table: folder that the operator sent.")] = "backbone",
    url: setup.UrlOption = None,
    password_file: setup.PasswordFileOption = None,
    password_env: setup.PasswordEnvOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join the federation that issued CODE. Keys are made here and stay here.

    With --table a first site.toml is written, too; if that fails, the node has enrolled, and `init` does it.
    """
    from ..approval.confirmed_sites import fingerprint
    from ..enrolment import NodeIdentity, enrol, join_file
    from ..succession import rotation

    if code.endswith(join_file.SUFFIX):
        join = join_file.read_join_file(Path(code))
        found = enrol(
            join.code, home, party_address=party_address, proxy=proxy, again=again, complete=rotation.complete
        )
        tell(f"The code in {code} is used; delete the file.")
    else:
        code = sys.stdin.read() if code == "-" else code
        found = enrol(code, home, party_address=party_address, proxy=proxy, again=again, complete=rotation.complete)
    if table is not None:
        wanted = setup.Wanted(
            study, unit_column, backbone=backbone, url=url, password_file=password_file, password_env=password_env
        )
        setup.describe(home, table, wanted, yes=yes, quiet=as_json)
    show_enrolment(found, home, as_json, fingerprint(NodeIdentity.load(home).identity_hex))


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


@app.command(epilog=epilog("client-node run", "client-node run --monitor 9446 --page none", codes=[REFUSED]))
def run(
    home: HomeOption = DEFAULT_HOME,
    monitor: MonitorOption = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="PORT|none",
            envvar="CONFIDE_PAGE",
            help=f"Port of this site's page on 127.0.0.1, 0 for a free one; by default {PAGE}, unless it is taken.",
        ),
    ] = None,
    log_format: LogFormOption = LogForm.TEXT,
) -> None:
    """Serve the federation until stopped; only approved studies run. `client-node page` opens its page."""
    serve_node(home, monitor=monitor, form=log_format, page=page)


@app.command(epilog=epilog("client-node page", "client-node page --json"))
def page(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Print a link to this site's page that lets one browser in, within five minutes.

    What is decided on the page stands in the decision log under the login that ran this command.
    """
    from ..page import links

    show_link(links.make(home), as_json)


@app.command(epilog=epilog("client-node status", "client-node status --json"))
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show who this node is and whether its daemon runs."""
    from .. import daemon

    show_facts("Node", daemon.status(home), as_json)


@app.command(epilog=epilog("client-node traffic", "client-node traffic --json"))
def traffic(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what came from the coordinator and what left this node, by day and kind of message."""
    from ..traffic import Traffic

    show_traffic(Traffic(home).days(), as_json)


@app.command(epilog=epilog("client-node decisions", "client-node decisions --verify", codes=[PROBLEMS]))
def decisions(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no line was changed or left out; exit code 3 if one was.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show who decided what here and when: approvals, revocations, caps, confirmed sites."""
    from ..policy import decision_log

    if not verify:
        return show_decisions(*decision_log.read(home), as_json)
    found = decision_log.verify(home)
    show_verified_decisions(found, as_json)
    raise typer.Exit(PROBLEMS if found.problems else 0)


@app.command(epilog=epilog("client-node witness", "client-node witness --json", "client-node witness --forget"))
def witness(
    forget: Annotated[
        bool, typer.Option("--forget", help="Begin anew with the coordinator's audit log; stands in the decision log.")
    ] = False,
    yes: YesOption = False,
    by: ByOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show which entry of the coordinator's audit log this node countersigned last, and whether it has refused one."""
    from .. import witness as witnessing

    if forget:
        agree("The node could not tell any more that entries before were rewritten. Forget what it signed?", yes=yes)
        witnessing.forget(home, by=by)
    show_witnessed(witnessing.load(home), as_json)


if __name__ == "__main__":
    app()
