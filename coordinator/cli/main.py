"""The application `coordinator`: set-up, server, status and demo. Exit codes are in `client_node.cli.application`."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli import health
from ...client_node.cli.application import (
    PROBLEMS,
    JsonOption,
    LogForm,
    LogFormOption,
    MonitorOption,
    application,
    epilog,
)
from ...client_node.cli.console import show_link
from ..errors import CoordinatorError
from . import (
    adapter,
    audit,
    backbone,
    backup,
    budget,
    ca,
    certificate,
    doctor,
    keys,
    operator,
    run,
    simulating,
    site,
    space,
    study,
)
from .guard import guard, options
from .options import DEFAULT_HOME, CaOption, CertificateKeyOption, CertificateOption, DatabaseOption, HomeOption
from .serving import PAGE, page_place, serve_federation
from .tables import here, show_made, show_status

app = application(
    "Run a federation: invite sites, start studies, read what they cost.",
    "coordinator init --host fed.example.org",
    "coordinator site invite svi",
    errors=[CoordinatorError],
    options=options,
)
app.add_typer(site.app, name="site")
app.add_typer(ca.app, name="ca")
app.add_typer(certificate.app, name="certificate")
app.add_typer(study.app, name="study")
app.add_typer(run.app, name="run")
app.add_typer(budget.app, name="budget")
app.add_typer(backbone.app, name="backbone")
app.add_typer(adapter.app, name="adapter")
app.add_typer(space.app, name="space")
app.add_typer(audit.app, name="audit")
app.add_typer(operator.app, name="operator")
app.add_typer(keys.app, name="keys")
app.command("health", epilog=epilog("coordinator health 9445", codes=[PROBLEMS]))(health.health)
app.command("doctor", epilog=epilog("coordinator doctor", "coordinator doctor --json"))(doctor.doctor)

app.command(
    "simulate",
    epilog=epilog(
        "coordinator simulate study.toml records --sites 200 --split iid",
        "coordinator simulate study.json records --secret-sharing",
        "coordinator simulate study.toml records --sweep adapter.rank=4,8",
    ),
)(simulating.simulate)
app.command("backup", epilog=epilog("coordinator backup federation.backup --passphrase-file passphrase"))(backup.backup)
app.command(
    "restore",
    epilog=epilog("coordinator restore federation.backup --home new", "coordinator restore federation.backup --check"),
)(backup.restore)

_FIRST_EXAMPLE = "thyroid"


@app.command(
    epilog=epilog(
        'coordinator init --federation "Thyroid 2026" --host fed.example.org',
        "coordinator init --site svi --out parcel --then-serve",
        "coordinator init --certificate chain.pem --key key.pem --ca ca.pem",
    )
)
def init(
    home: HomeOption = DEFAULT_HOME,
    federation: Annotated[str, typer.Option(help="Name of the federation, printed on reports.")] = "federation",
    host: Annotated[str, typer.Option(help="Name or address at which sites reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Public port of the gate.")] = 9443,
    listen: Annotated[str, typer.Option(help="Address on which the gate listens.")] = "127.0.0.1",
    superlink_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of Flower's SuperLink.")] = 9444,
    strangers_per_address: Annotated[
        int, typer.Option(min=2, max=128, help="Connections of one address that have shown no enrolled key yet.")
    ] = 32,
    sites: Annotated[
        list[str] | None, typer.Option("--site", metavar="NAME", help="Invite it at once, to train; may be repeated.")
    ] = None,
    aggregators: Annotated[
        list[str] | None, typer.Option("--aggregator", metavar="NAME", help="Invite it, to aggregate; may be repeated.")
    ] = None,
    parcel: Annotated[
        Path | None, typer.Option("--out", help="Folder for the join files of those who are invited.")
    ] = None,
    database: DatabaseOption = None,
    certificate: CertificateOption = None,
    key: CertificateKeyOption = None,
    ca_file: CaOption = None,
    then_serve: Annotated[bool, typer.Option("--then-serve", help="Then serve, as `coordinator serve` does.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the keys, certificates and database of a new federation, in a folder that is new or empty."""
    from ..federation import Settings, create_home, members, opened_store

    guests = [(name, ["train"]) for name in sites or ()] + [(name, ["aggregate"]) for name in aggregators or ()]
    members.parse_guests(guests)
    if (parcel is None) == bool(guests):
        raise typer.BadParameter("join files need a folder, and the folder needs sites", param_hint="--out")
    given = None
    if certificate is not None and key is not None and ca_file is not None:
        given = certificate, key, ca_file
    elif certificate or key or ca_file:
        raise typer.BadParameter("it takes all three: --certificate, --key and --ca", param_hint="--certificate")
    if parcel is not None:
        try:
            parcel.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise typer.BadParameter(f"{parcel} cannot be a folder: {err.strerror}", param_hint="--out") from err
    settings = Settings(
        federation=federation, address=f"{host}:{port}", listen=listen, port=port, superlink_port=superlink_port,
        strangers_per_address=strangers_per_address,
    )  # fmt: skip
    create_home(home, settings, database, given)
    steps = [] if then_serve else [here(home, "serve")]
    if parcel is None:
        show_made(settings, home, as_json, steps=[*steps, here(home, "site invite NAME")])
    else:
        with opened_store(home) as store:
            invited = members.invite(store, home, guests)
        show_made(settings, home, as_json, steps=steps, files=members.write_invitations(invited, home, parcel))
    if then_serve:
        serve_federation(home, page=page_place(PAGE))


@app.command(
    epilog=epilog(
        "coordinator serve --monitor 9445",
        "coordinator serve --page 192.0.2.7:443 --page-cert c.pem --page-key k",
    )
)
def serve(
    home: HomeOption = DEFAULT_HOME,
    monitor: MonitorOption = None,
    page: Annotated[
        str,
        typer.Option(
            metavar="PORT", help="Port of the operator's page on this machine; ADDRESS:PORT with TLS; or none."
        ),
    ] = PAGE,
    page_certificate: Annotated[
        Path | None, typer.Option("--page-cert", help="Certificate of the page with its chain, PEM.")
    ] = None,
    page_key: Annotated[Path | None, typer.Option(help="Key of that certificate, PEM.")] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait while another server leads; take over when it ends or dies.")
    ] = False,
    log_format: LogFormOption = LogForm.TEXT,
) -> None:
    """Serve the federation until stopped; runs that were going on go on. `coordinator page` opens its page."""
    place = page_place(page, page_certificate, page_key)
    serve_federation(home, monitor=monitor, form=log_format, page=place, stands_by=standby)


@app.command(epilog=epilog("coordinator page", "coordinator page --json"))
def page(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Print a link to the operator's page that lets one browser in, within five minutes."""
    from ..federation import opened_store
    from ..oversight import links

    with opened_store(home) as store:
        show_link(links.make(store, home), as_json)


@app.command(epilog=epilog("coordinator status --json"))
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show at a glance whether the server runs, who is online, what runs do, and what needs a person."""
    from ..federation import opened_store
    from ..run.glance import look

    with opened_store(home) as store:
        show_status(look(store, home), as_json)


@app.command(epilog=epilog("coordinator demo", "coordinator demo thyroid --rounds 10"))
def demo(
    example: Annotated[str, typer.Argument(help="Name of the example.")] = _FIRST_EXAMPLE,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where everything of the demo lies; by default in confide-demo.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Fewer or more rounds than the example says.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds on a few records, no audit: only shows that it runs.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it running until Ctrl-C, with its page to look around in.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a whole federation on this machine: real processes, keys, TLS, privacy, secret sharing."""
    from ..demo import run_demo

    if directory is None:
        own = "" if example == _FIRST_EXAMPLE and not smoke else f"{example}{'-smoke' if smoke else ''}"
        directory = Path("confide-demo", own)
    raise typer.Exit(run_demo(example, directory.resolve(), rounds=rounds, is_smoke=smoke, as_json=as_json, keep=keep))


guard(app)  # the last line: commands that come after it would be open to everybody
