"""The `coordinator` command.

Exit codes: 0 done, 1 refused or failed (the message says what to do), 2 wrong usage, 3 verification failed, 130 stopped
by Ctrl-C.
"""

import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ...client_node.cli.tables import print_json, show_verification
from ...client_node.enrolment import Role
from ...client_node.errors import ClientNodeError
from ...models.errors import ModelError
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import Conflict, CoordinatorError
from ..federation import Pki, Register, Settings, create_home, load_settings
from ..store import Store
from ..store.states import RESUME, STOP, RunState
from ..store.tables import Run
from .tables import (
    audit_rows,
    backbone_row,
    cell,
    clock,
    err,
    estimate_texts,
    node_row,
    out,
    print_table,
    reading,
    reliability_row,
    round_row,
    run_row,
    show,
    show_routing,
)

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...models.adapters import ModelCard

app = typer.Typer(help="Run a federation: invite sites, start studies, read what they cost.", no_args_is_help=True)
site_app = typer.Typer(help="Who takes part.", no_args_is_help=True)
study_app = typer.Typer(help="What shall be learned, on which terms.", no_args_is_help=True)
run_app = typer.Typer(help="Executions of studies.", no_args_is_help=True)
budget_app = typer.Typer(help="What was spent on whose data.", no_args_is_help=True)
backbone_app = typer.Typer(help="The frozen model that studies adapt.", no_args_is_help=True)
adapter_app = typer.Typer(help="What was learned.", no_args_is_help=True)
audit_app = typer.Typer(help="Does the engine do what its epsilon claims?", no_args_is_help=True)
for name, group in (
    ("site", site_app),
    ("study", study_app),
    ("run", run_app),
    ("budget", budget_app),
    ("backbone", backbone_app),
    ("adapter", adapter_app),
    ("audit", audit_app),
):
    app.add_typer(group, name=name)

FAILED, UNVERIFIED, INTERRUPTED = 1, 3, 130

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="CONFIDE_COORDINATOR_HOME", help="Folder of the federation."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="UTF-8 file to read, at most 1 MiB; left out, the backbone's licence.")
]
TokensOption = Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to read at the most.")]
PageOption = Annotated[Path | None, typer.Option("--html", help="Write the figures as a web page to this file.")]
DEFAULT_HOME = Path.home() / ".confide" / "coordinator"
OverrideOption = Annotated[
    str | None, typer.Option(help="Write without an audit that passed, for this reason; the model card shows it.")
]
_FIRST_EXAMPLE = "thyroid"

_state = {"debug": False}


class Recipe(StrEnum):
    """Published models that can be imported."""

    SMOLLM2 = "smollm2"


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Common options."""
    os.umask(0o077)  # whatever a federation writes is its operator's alone
    _state["debug"] = debug


@contextmanager
def told() -> Iterator[None]:
    """Turns errors of ours into one message on stderr and an exit code."""
    try:
        yield
    except (CoordinatorError, ClientNodeError, ModelError, MpcError, PrivacyError, OSError) as problem:
        if _state["debug"]:
            raise
        err.print(f"[bold red]{type(problem).__name__}[/]: ", end="")
        err.print(str(problem), markup=False, highlight=False)
        raise typer.Exit(FAILED) from problem
    except KeyboardInterrupt as stop:
        raise typer.Exit(INTERRUPTED) from stop


@app.command()
def init(
    home: HomeOption = DEFAULT_HOME,
    federation: Annotated[str, typer.Option(help="Name of the federation, printed on reports.")] = "federation",
    host: Annotated[str, typer.Option(help="Name or address at which sites reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Public port of the gate.")] = 9443,
    listen: Annotated[str, typer.Option(help="Address on which the gate listens.")] = "127.0.0.1",
    superlink_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of Flower's SuperLink.")] = 9444,
) -> None:
    """Make the keys, certificates and database of a new federation."""
    with told():
        settings = Settings(
            federation=federation, address=f"{host}:{port}", listen=listen, port=port, superlink_port=superlink_port
        )
        create_home(home, settings)
        out.print(
            f"Federation [bold]{federation}[/] made in {home}. Next: coordinator serve, coordinator site invite NAME"
        )


@app.command()
def serve(home: HomeOption = DEFAULT_HOME) -> None:
    """Serve the federation until stopped; runs that were going on go on."""
    from ..gateway import Service

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with told():
        Service(home).serve(stop)


@app.command()
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show sites and runs at a glance."""
    with told(), opened(home) as store:
        nodes = {"sites": [node_row(node) for node in store.nodes()], "runs": [run_row(store, r) for r in store.runs()]}
        if as_json:
            return print_json({"federation": load_settings(home).federation, **nodes})
        print_table("Sites", nodes["sites"])
        print_table("Runs", nodes["runs"])


@site_app.command("invite")
def site_invite(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, _ and -.")],
    role: Annotated[list[str] | None, typer.Option(help="train or aggregate; may be given twice.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a one-time code with which NAME can enrol; it is shown once and kept nowhere."""
    with told(), opened(home) as store:
        roles = parse_roles(role or ["train"])
        if not _NAME.fullmatch(name):
            raise Conflict(
                f"{name!r} is no name for a site; use up to 63 of a-z, 0-9, _ and -, beginning with one of a-z, 0-9"
            )
        code = Register(store, Pki.load(home)).invite(name, roles, load_settings(home).address)
        if as_json:
            return print_json({"name": name, "roles": list(roles), "code": code})
        err.print(f"One-time code for {name} (valid for a week), to be told in private:")
        print(code)


@site_app.command("list")
def site_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every site, its roles and state."""
    with told(), opened(home) as store:
        show("Sites", [node_row(node) for node in store.nodes()], as_json)


@site_app.command("revoke")
def site_revoke(name: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Turn a site out: its next request is refused."""
    with told(), opened(home) as store:
        Register(store, Pki.load(home)).revoke(name)
        out.print(f"{name} is revoked; a running server refuses it from now on.")


@backbone_app.command("build")
def backbone_build(draft: Path, directory: Path, as_json: JsonOption = False) -> None:
    """Build a small DeepSeek-V3 for the records that study.toml describes, trained on synthetic ones alone."""
    from rich.progress import Progress

    from ...client_node.study import load_draft
    from ...models.backbones.pretraining import pretrain

    with told(), Progress(console=err, transient=True) as progress:
        bar = progress.add_task("Pretraining on synthetic records", total=None)
        digest = pretrain(
            load_draft(draft).record_schema(),
            directory,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
        if as_json:
            return print_json({"directory": str(directory), "hash": digest})
        out.print(f"Backbone written to {directory}. Give it to every site; studies name it by its hash:")
        print(digest)


@backbone_app.command("import")
def backbone_import(
    recipe: Annotated[Recipe, typer.Argument(help="Which published model.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Write a published model as a DeepSeek-V3 checkpoint that computes the same, for studies of free text."""
    from ...models.backbones.smollm2 import import_smollm2

    recipes = {Recipe.SMOLLM2: import_smollm2}
    with told():
        with err.status("Converting, and comparing with the source"):
            imported = recipes[recipe](directory)
        if as_json:
            facts = {"hash": imported.hash, "logit_difference": imported.logit_difference}
            return print_json({"directory": str(directory), **facts})
        out.print(
            f"Checkpoint written to {directory}; its logits are the source's within {imported.logit_difference:.1g}. "
            "Licence and origin: coordinator backbone show DIRECTORY. Its hash:"
        )
        print(imported.hash)


@backbone_app.command("list")
def backbone_list(
    folder: Annotated[Path, typer.Argument(help="Folder in which the backbones' folders lie.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show every backbone directly below a folder, and what is wrong with those that cannot be used.

    A federation keeps no list: backbones lie where you put them.
    """
    from dataclasses import asdict

    from ...models.backbones.loading import backbones_in
    from ...models.errors import InvalidBackbone

    with told():
        found = backbones_in(folder)
        if as_json:
            facts = {
                name: {"problem": str(of)} if isinstance(of, InvalidBackbone) else asdict(of)
                for name, of in found.items()
            }
            return print_json([{"directory": str(folder / name), **of} for name, of in facts.items()])
        good = {name: of for name, of in found.items() if not isinstance(of, InvalidBackbone)}
        print_table(f"Backbones in {escape(str(folder))}", [backbone_row(name, of) for name, of in good.items()])
        for name in sorted(found.keys() - good.keys()):
            err.print(f"Cannot be used: {found[name]}", markup=False, highlight=False)


@backbone_app.command("show")
def backbone_show(directory: Path, as_json: JsonOption = False) -> None:
    """Show what a backbone's folder holds: hash, licence, origin, parameters, and those that one token meets."""
    from dataclasses import asdict

    from ...models.backbones.loading import describe

    with told():
        found = describe(directory)
        if as_json:
            return print_json({"directory": str(directory), **asdict(found)})
        origin = found.origin.to_dict() if found.origin else {"licence": "not stated", "origin": "not stated"}
        rows = {
            "hash": found.hash,
            "reads": found.reads,
            "parameters": f"{found.size.parameters:,}",
            "active per token": f"{found.size.active_parameters:,}",
            "weights": f"{found.size.weight_bytes / 1e6:,.1f} MB",
            **origin,
        }
        shown = [{"": name.replace("_", " "), "value": value} for name, value in rows.items()]
        print_table(escape(str(directory)), shown)


@backbone_app.command("routing")
def backbone_routing(
    directory: Path,
    text: TextOption = None,
    tokens: TokensOption = 1024,
    html: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how evenly a backbone's routers spread what it reads over experts: a text, or synthetic records.

    The figures depend on what is read: publish them only if that is public.
    """
    from ..results.router_statistics import measure

    with told():
        with reading(tokens) as progress:
            found = measure(directory, text, tokens=tokens, progress=progress)
        show_routing(directory.resolve().name, found, html, as_json)


@study_app.command("create")
def study_create(draft: Path, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make study.toml an immutable study of enrolled sites, and print the hash that sites approve."""
    from ...client_node.study.cost import whole_cost
    from ..studies.create import create_study

    with told(), opened(home) as store:
        study = create_study(store, Pki.load(home), home, draft)
        privacy = study.draft.privacy
        cost = None if privacy.mode == "none" else whole_cost(study)
        lr, head_lr = study.draft.optimizer.rates
        if as_json:
            terms = {
                name: getattr(privacy, name) for name in ("noise_multiplier", "target_epsilon", "delta", "collusion")
            }
            facts = {"name": study.name, "hash": study.study_hash, "dim": study.dim, "lr": lr, "head_lr": head_lr}
            return print_json({**facts, **terms, "epsilon": cost})
        if cost is not None:
            aimed = f", solved for a target of {privacy.target_epsilon:g}" if privacy.target_epsilon else ""
            out.print(
                f"Noise multiplier {privacy.noise_multiplier:g}{aimed}: a whole run costs epsilon {cost:.3f} at delta "
                f"{privacy.delta:g} with {privacy.collusion} colluding.",
                highlight=False,
            )
        out.print(
            f"Study [bold]{study.name}[/] trains {study.dim:,} numbers with lr {lr:g} and head_lr {head_lr:g}. "
            "Sites approve it by its hash:"
        )
        print(study.study_hash)


@study_app.command("list")
def study_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every study."""
    with told(), opened(home) as store:
        rows = [{"name": row.name, "hash": row.hash, "created": clock(row.created_at)} for row in store.studies()]
        show("Studies", rows, as_json)


@study_app.command("show")
def study_show(study: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Print a study as sites see it, in JSON."""
    with told(), opened(home) as store:
        print_json(json.loads(store.study(study).canonical))


@run_app.command("start")
def run_start(study: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Start a run of a study; `coordinator serve` drives it."""
    with told(), opened(home) as store:
        run_id = start_run(store, study)
        if as_json:
            return print_json({"run": run_id})
        err.print("The run is started; watch it with: coordinator run watch RUN")
        print(run_id)


@run_app.command("list")
def run_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every run."""
    with told(), opened(home) as store:
        show("Runs", [run_row(store, run) for run in store.runs()], as_json)


@run_app.command("rounds")
def run_rounds(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what a run has opened so far: whose updates each sum holds, who is missing, whose vector was too long."""
    from ..studies.catalogue import load_study

    with told(), opened(home) as store:
        study = load_study(store.study(store.run(run).study))
        left_out = store.left_out(run)
        rows = [
            round_row(row, study.planned_round(row.number).purpose, study.site_names(), left_out)
            for row in store.opened(run)
        ]
        if as_json:
            return print_json({"rounds": rows, "too_long": left_out})
        print_table(run, [{name.replace("_", " "): cell(value) for name, value in row.items()} for row in rows])
        for number in sorted(left_out.keys() - {row["round"] for row in rows}):
            out.print(
                f"Round {number} has not been opened: the vectors of {', '.join(left_out[number])} were too long."
            )


@run_app.command("watch")
def run_watch(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Follow a run until it ends; leaving does not stop it."""
    from ..run.progress import watch

    with told(), opened(home) as store:
        ended = watch(store, run, err)
        if ended.error:
            err.print(ended.error, markup=False, highlight=False)
        raise typer.Exit(0 if ended.state == RunState.DONE else FAILED)


@run_app.command("stop")
def run_stop(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Stop a run after the question in progress; committed rounds stay."""
    with told(), opened(home) as store:
        store.move_run(run, STOP)
        out.print(f"Run {run} stops; go on with it later by: coordinator run resume {run}")


@run_app.command("resume")
def run_resume(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Go on with a stopped or failed run from its last committed round."""
    with told(), opened(home) as store:
        store.move_run(run, RESUME)
        out.print(f"Run {run} goes on from round {store.last_round(run).number + 1}.")


@run_app.command("metrics")
def run_metrics(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show how good a run's model is on records that its sites hold out, as far as noise and chance let one tell.

    The figures come from one noised histogram that the sites charged; they may be published.
    """
    from dataclasses import asdict

    from ..results.metrics import measurement

    with told(), opened(home) as store:
        found = measurement(store, run)
        if as_json:
            return print_json(asdict(found))
        names = {
            name: name.replace("_", " ") for name in ("auc", "accuracy", "prevalence", "calibration_error", "records")
        }
        if found.judged == "completions":
            names = {"prevalence": "exact match", "calibration_error": "calibration error", "records": "records"}
        rows = [
            {"metric": words, "value": value, "95 % interval": interval}
            for name, words in names.items()
            for value, interval in [estimate_texts(getattr(found.metrics, name))]
        ]
        print_table(f"{run}, held-out records of {', '.join(found.sites)}", rows)
        print_table(
            "What the model says, and what is so", [reliability_row(each) for each in found.metrics.reliability]
        )
        if found.metrics.auc_tied is not None and found.judged == "labels":
            out.print(
                f"Scores are rounded to bins: their own AUC is within {found.metrics.auc_tied / 2:.4f} of this one."
            )
        if found.epsilon is not None:
            out.print(
                f"Noise of std {found.noise_std:.3g} in every count. Cost for every {found.unit}: epsilon "
                f"{found.epsilon:.3f} by itself, {found.epsilon_added:.3f} on top of the run's updates, at delta "
                f"{found.delta:g} with {found.collusion} colluding."
            )


@budget_app.command("report")
def budget_report(
    home: HomeOption = DEFAULT_HOME,
    study: Annotated[str | None, typer.Option(help="Only sites of this study.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a web page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report what was spent at every site, from the signed ledgers, for people (--html) or programs (--json)."""
    from ...privacy.report.build import render_html
    from ..results.reports import budget_report as build

    with told(), opened(home) as store:
        report = build(store, home, study)
        if html is not None:
            html.write_text(render_html(report), encoding="utf-8")
            err.print(f"Report written to {html}")
        if as_json:
            return print_json(report)
        if html is None:
            from ..results.reports import summary

            print_table("Spent", summary(report))


@budget_app.command("export")
def budget_export(
    site: str,
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the ledger that SITE has sent here to one file, so that a site that lost its own can import it."""
    from ...privacy.ledger import backup
    from ..errors import NotFound
    from ..store import LedgerReplica

    with told(), opened(home) as store:
        nodes = {node.name: node for node in store.nodes()}
        entries = LedgerReplica(store).entries(site) if site in nodes else []
        if not entries:
            raise NotFound(f"no ledger of {site} is here; a site sends it when a run begins")
        head = backup.write(file, entries, nodes[site].identity or "")
        if as_json:
            return print_json({"file": str(file), "site": site, "entries": head.seq + 1, "head": head.hash})
        out.print(f"{head.seq + 1} entries of {site} written to {file}. There: client-node budget import FILE")


@budget_app.command("verify")
def budget_verify(
    file: Path,
    issuer: Annotated[str | None, typer.Option(help="The issuer's key in hex, known from elsewhere.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=KEY known from elsewhere; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a report from its entries, on any machine, without the federation's stores."""
    with told():
        raise typer.Exit(0 if show_verification(file, issuer, site or (), as_json) else UNVERIFIED)


@audit_app.command("privacy")
def audit_privacy(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Try to prove the epsilon of a run's training step wrong, on canaries on this machine; about a minute.

    Exit code 3 if the claim does not stand. Every audit is kept and enters reports.
    """
    from ..results.privacy_audit import audit_run

    with told(), opened(home) as store:
        with err.status("Auditing the sites' training step on this run's model"):
            facts = audit_run(store, home, run)
        if as_json:
            print_json(facts.model_dump(mode="json") | {"passed": facts.passed})
        else:
            print_table(f"Audit of {run}, round {facts.round}", audit_rows(facts))
            out.print("The claim stands." if facts.passed else "[bold red]The claim does not stand.[/]")
        raise typer.Exit(0 if facts.passed else UNVERIFIED)


@adapter_app.command("export")
def adapter_export(
    run: str,
    directory: Path,
    override_audit: OverrideOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a run's adapter as a PEFT directory with a model card; if it claims privacy, only after an audit."""
    from ..results.export import export_adapter

    _publish("Adapter", export_adapter, run, directory, override_audit, home, as_json)


@adapter_app.command("merge")
def adapter_merge(
    run: str,
    directory: Path,
    override_audit: OverrideOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the backbone with a run's adapter in its weights, as one checkpoint; conditions are those of `export`."""
    from ..results.export import merge_adapter

    _publish("Merged model", merge_adapter, run, directory, override_audit, home, as_json)


def _publish(
    what: str,
    write: "Callable[..., ModelCard]",
    run: str,
    directory: Path,
    override_audit: str | None,
    home: Path,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    with told(), opened(home) as store:
        if override_audit is not None and not override_audit.strip():
            raise Conflict("--override-audit needs a reason in words; nothing was written")
        card = write(store, home, run, directory, override_audit=override_audit)
        if as_json:
            return print_json({"directory": str(directory), **asdict(card)})
        out.print(f"{what} after round {card.rounds} written to {directory}")


@adapter_app.command("combine")
def adapter_combine(
    directories: Annotated[list[Path], typer.Argument(help="Exported adapters of one backbone, two or more.")],
    out_directory: Annotated[Path, typer.Argument(help="Written anew; must not exist.")],
    weights: Annotated[
        str | None, typer.Option(help="Positive numbers, one for each adapter, e.g. 1,2; only ratios count.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut the sum to this rank; left out, it is exact and ranks add up.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the weighted mean of several adapters, of whatever ranks, as one adapter with a card."""
    from ...models.adapters import combine

    with told():
        try:
            parsed = None if weights is None else [float(weight) for weight in weights.split(",")]
        except ValueError:
            raise Conflict("--weights takes numbers with commas between them, e.g. 1,2; nothing was written") from None
        found = combine(directories, out_directory, weights=parsed, rank=rank)
        if as_json:
            return print_json(
                {
                    "directory": str(out_directory),
                    "rank": found.adapter.rank,
                    "relative_error": found.relative_error,
                    "error_of": dict(found.error_of),
                }
            )
        lost = "exact" if rank is None else f"relative error {found.relative_error:.3g} (Frobenius)"
        out.print(f"Adapter of rank {found.adapter.rank}, {lost}, written to {out_directory}")
        if found.adapter.head is None:
            out.print("It has no head: not all of them have one")


@adapter_app.command("evaluate")
def adapter_evaluate(
    run: str,
    data: Annotated[list[Path], typer.Option(help="Held-out CSV or Parquet file; may be given several times.")],
    unit_column: Annotated[str, typer.Option(help="Column that names the unit.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Score held-out records that lie on this machine, with 95 % intervals.

    AUC, accuracy and calibration of a study that classifies, exact match and perplexity of one that writes completions.
    The figures depend on those records: publish them only if the records are public or their release is accounted for.
    """
    from ..results.export import evaluate, held_out_policy
    from ..results.trained import trained_model
    from ..studies.catalogue import load_study

    with told(), opened(home) as store:
        study = load_study(store.study(store.run(run).study))
        found = evaluate(
            trained_model(store, home, run), study, [held_out_policy(path, study, unit_column) for path in data]
        )
        if as_json:
            return print_json(found)
        for metric in (name for name in found if name != "records"):
            value, low, high = (found[metric][bound] for bound in ("value", "low", "high"))
            out.print(f"{metric.replace('_', ' '):17s} {value:.4f}  [{low:.4f}, {high:.4f}]")


@adapter_app.command("routing")
def adapter_routing(
    run: str,
    text: TextOption = None,
    tokens: TokensOption = 1024,
    html: PageOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show the same as `backbone routing` with a run's adapter in place: what training did to it.

    The figures depend on what is read: publish them only if that is public.
    """
    from ..results.router_statistics import measure
    from ..results.trained import trained_model
    from ..studies.catalogue import load_study, study_start

    with told(), opened(home) as store:
        folder = study_start(home, load_study(store.study(store.run(run).study))).backbone
        model = trained_model(store, home, run).adapted.model
        with reading(tokens) as progress:
            found = measure(folder, text, tokens=tokens, model=model, progress=progress)
        show_routing(run, found, html, as_json)


@app.command()
def demo(
    example: Annotated[str, typer.Argument(help="Name of the example.")] = _FIRST_EXAMPLE,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where everything of the demo lies; by default in confide-demo.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Fewer or more rounds than the example says.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds on a few records, no audit: only shows that it runs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a whole federation on this machine: real processes, keys, TLS, privacy, secret sharing."""
    from ..demo import run_demo

    if directory is None:
        own = "" if example == _FIRST_EXAMPLE and not smoke else f"{example}{'-smoke' if smoke else ''}"
        directory = Path("confide-demo", own)
    with told():
        raise typer.Exit(run_demo(example, directory.resolve(), rounds=rounds, is_smoke=smoke, as_json=as_json))


@contextmanager
def opened(home: Path) -> Iterator[Store]:
    """The store of the federation in `home`."""
    load_settings(home)
    store = Store.open(home)
    try:
        store.require_schema()
        yield store
    finally:
        store.close()


def start_run(store: Store, study: str) -> str:
    """Adds a pending run of the newest study of that name or hash and returns its id."""
    row = store.study(study)
    run_id = f"{row.name}-{secrets.token_hex(4)}"
    with store.session() as session:
        session.add(Run(id=run_id, study=row.hash, state=RunState.PENDING, created_at=time.time()))
        store.log_action(session, f"run {run_id} of study {row.hash} started")
    return run_id


def parse_roles(words: list[str]) -> tuple[Role, ...]:
    """Roles named on the command line, in one order."""
    unknown = sorted(set(words) - {"train", "aggregate"})
    if unknown:
        raise Conflict(f"{', '.join(unknown)} is no role; the roles are train and aggregate")
    return tuple(role for role in ("train", "aggregate") if role in words)
