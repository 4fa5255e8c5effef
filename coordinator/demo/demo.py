"""Runs `coordinator demo`: a whole federation on one machine, each party in a process of its own with its own keys.

Nothing is simulated on the private path: sites enrol with codes, approve the study by its hash and train in their
daemons behind TLS, and three aggregators add secret shares. Only the baselines are computed in this one process, which
is possible because the demo's records are public.
"""

import csv
import importlib.util
import itertools
import json
import re
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ...client_node.files import write_private
from ...client_node.policy import SitePolicy
from ...client_node.study import Study, StudyDraft, load_draft
from ...client_node.training.study_model import load_study_model
from ...models.records.kind import SHARE
from ...privacy.report.build import render_html
from ...privacy.report.schema import dump
from ...privacy.report.verify import verify_file
from ..errors import DemoFailed, RunFailed
from ..results.reports import budget_report
from ..store import Store
from ..store.states import RESUME, RunState
from ..studies.catalogue import load_study
from .figures import BUDGET, figures
from .processes import DemoFederation

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_ALONE = "demonstrate.py"  # of an example without a study
_PARTS = ("train", "heldout")
_COUNTS = {"train": "units", "heldout": "heldout_units"}  # of an example's `prepare`
_TELLS = "[policy]\ntells_decisions = true\n"  # all nodes here are of one person
_ANY_PORT = "0"  # of the operator's page
_SMOKE_TOKENS, _SMOKE_PUBLIC = 20_000, 1000  # tokens to read of public records, and their number
_SMOKE_WRITTEN = 12  # tokens
_SMOKE_CELLS, _SMOKE_SOUNDS = 1280, 256  # that teach an eye, and an ear
_ROWS, _SMOKE_ROWS = 512, 4  # that a site computes at once; which shapes of batches are sound is probed up to there
_SMOKE_ROUNDS, _SMOKE_RECORDS = 2, {"train": 40, "heldout": 10}  # of a site


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """The sites' tables and the backbone, which a demo makes once and keeps."""

    root: Path
    tables: dict[str, dict[str, Any]]  # site -> train, heldout (paths), units, ...
    rows: int = _ROWS  # that a site computes at once

    @property
    def backbone(self) -> Path:
        """Path of the pretrained backbone."""
        return self.root / "backbone"


def run_demo(
    example: str, directory: Path, *, rounds: int | None, is_smoke: bool, as_json: bool, keep: bool = False
) -> int:
    """Runs the demo to its end and prints the results; an unfinished one under `directory` is continued.

    Args:
        is_smoke: two rounds unless `rounds` is given, on the first records of each site and without an audit. It shows
            that all parts run; its figures mean nothing.
        keep: True to keep the federation and its page running until Ctrl-C, for people who look around; a demo that is
            done already is not run again.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    console.rule(f"[bold]confide demo: {example}")
    if (script := _EXAMPLES / example / _ALONE).exists():
        if keep:
            raise DemoFailed(f"{example} trains nothing together, so it has no federation to keep; leave out --keep")
        return _demonstrate(script, directory, console, rounds=rounds, is_smoke=is_smoke, as_json=as_json)
    draft = _draft(example, _SMOKE_ROUNDS if is_smoke and rounds is None else rounds)
    draft = _shortened(draft) if is_smoke else draft
    bench = _workbench(example, draft, directory, console, is_smoke=is_smoke)
    if keep and (done := _newest(directory, draft)) is not None and _outcome_file(done).exists():
        return _keep(done, console)
    federation = _next_federation(directory, draft, page=_ANY_PORT if keep else "none")
    outcome: dict[str, Any] | None = None
    try:
        run_id = _bring_up(federation, bench, draft, console)
        if keep:
            console.print(f"Watch it in a browser: {federation.link()}", soft_wrap=True, highlight=False)
        _follow(federation, run_id, console)
        outcome = _harvest(federation, bench, run_id, console, is_smoke=is_smoke)
    except KeyboardInterrupt:
        again = f"coordinator demo {example} --dir {directory}" + ("" if rounds is None else f" --rounds {rounds}")
        again += (" --smoke" if is_smoke else "") + (" --keep" if keep else "")
        console.print(f"\nStopped. Committed rounds, ledgers and keys are kept; go on with: {again}", soft_wrap=True)
        return 130
    finally:
        if not keep or outcome is None:
            federation.shut_down()
    outcome |= {
        "peak_memory_gib": round(federation.peak_memory / 2**30, 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_private(_outcome_file(federation), json.dumps(outcome, indent=2).encode())
    if as_json:
        print(json.dumps(outcome, indent=2))
    else:
        _show(outcome, console)
    if keep:
        return _look_around(federation, console)
    if not as_json:
        console.print(f"Look around in it: {_command(example, directory, is_smoke=is_smoke)} --keep", soft_wrap=True)
    return 0


def _keep(federation: DemoFederation, console: Console) -> int:
    """Starts the processes of a demo that is done, for people who look around."""
    federation.page = _ANY_PORT
    try:
        with console.status("Starting the federation that is done"):
            federation.bring_up()
    except BaseException:
        federation.shut_down()
        raise
    return _look_around(federation, console)


def _look_around(federation: DemoFederation, console: Console) -> int:
    """Names the operator's page, and keeps the federation until Ctrl-C."""
    try:
        with console.status("Opening the operator's page"):
            link = federation.link()
        console.print(f"The operator's page, let in once within five minutes: {link}", soft_wrap=True, highlight=False)
        console.print(
            f"Another link: coordinator page --home {federation.home}. Ctrl-C ends the federation.", soft_wrap=True
        )
        while True:
            federation.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("\nThe federation is ended; it stays in its folder.")
    finally:
        federation.shut_down()
    return 0


def _command(example: str, directory: Path, *, is_smoke: bool) -> str:
    """Writes the command that runs a demo again."""
    where = "" if directory == Path("confide-demo").resolve() else f" --dir {directory}"
    return f"coordinator demo {example}{where}" + (" --smoke" if is_smoke else "")


def _outcome_file(federation: DemoFederation) -> Path:
    return federation.folder / "outcome.json"


def _demonstrate(
    script: Path, directory: Path, console: Console, *, rounds: int | None, is_smoke: bool, as_json: bool
) -> int:
    """Runs an example in which nothing is trained together, and shows what it found."""
    if rounds is not None:
        raise DemoFailed(f"{script.parent.name} trains nothing, so it has no rounds; leave out --rounds")
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("working", total=None)
        outcome = _load(script).demonstrate(
            directory,
            is_smoke=is_smoke,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(outcome, indent=2))
    else:
        width = max(map(len, outcome))
        for name, value in outcome.items():  # no table, which would fold a command that is to be copied
            line = f"{name.replace('_', ' '):{width}}  {value}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def _draft(example: str, rounds: int | None) -> StudyDraft:
    draft = load_draft(_example_file(example, "study.toml"))
    if rounds is None:
        return draft
    return draft.model_copy(update={"rounds": draft.rounds.model_copy(update={"rounds": rounds})})


def _shortened(draft: StudyDraft) -> StudyDraft:
    """Lets a model write little, if the records are of a kind that it writes."""
    name = draft.data.kind.name
    if "max_written" not in type(draft.data.terms).model_fields:
        return draft
    terms = draft.data.terms.model_copy(update={"max_written": _SMOKE_WRITTEN})
    return draft.model_copy(update={"data": draft.data.model_copy(update={name: terms})})


def _workbench(
    example: str, draft: StudyDraft, directory: Path, console: Console, *, is_smoke: bool = False
) -> Workbench:
    """Prepares data and backbone, or finds them prepared."""
    described = directory / "data" / ("tables-smoke.json" if is_smoke else "tables.json")
    if list(described.parent.glob("tables*.json")) not in ([], [described]):
        kind = "a whole demo" if is_smoke else "a smoke run"
        raise DemoFailed(f"{directory} holds the tables of {kind}; choose another folder with --dir")
    if not described.exists():
        console.print("Splitting public records into the sites' own tables")
        script = _load(_example_file(example, "prepare.py"))
        prepare = getattr(script, "prepare_few", script.prepare) if is_smoke else script.prepare
        tables = prepare(directory / "data")
        if is_smoke:
            for site, (part, count) in itertools.product(tables.values(), _SMOKE_RECORDS.items()):
                if Path(site[part]).is_file():  # an export has few patients already
                    site[_COUNTS[part]] = _keep_first(Path(site[part]), count)
            if (public := directory / "data" / "public.csv").exists():
                _keep_first(public, _SMOKE_PUBLIC)
        write_private(described, json.dumps(tables).encode())
    rows = max(_SMOKE_ROWS, draft.data.max_records_per_unit) if is_smoke else _ROWS
    bench = Workbench(root=directory, tables=json.loads(described.read_text()), rows=rows)
    if bench.tables.keys() != set(draft.participants.sites):
        raise DemoFailed(f"{directory} holds the tables of another example; choose another folder with --dir")
    if not bench.backbone.exists():
        _make_backbone(draft, bench.backbone, console, is_smoke=is_smoke)
    return bench


def _keep_first(table: Path, records: int) -> int:
    """Cuts a table to its first records; returns the number of units, whose ids stand in the first column."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.reader(file), records + 1))
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return len({row[0] for row in rows[1:]})


def _make_backbone(draft: StudyDraft, directory: Path, console: Console, *, is_smoke: bool) -> None:
    if draft.data.kind.makes_vocabulary:
        _build_backbone_of_public(draft, directory, console, is_smoke=is_smoke)
        return
    if draft.data.kind.reads == "text":
        _import_backbone(draft, directory, console)
        return
    from ...models.backbones.pretraining import pretrain

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("Pretraining the backbone on synthetic records", total=None)
        pretrain(
            draft.record_schema(),
            directory,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print("Backbone pretrained on synthetic records (kept for the next time)")


def _build_backbone_of_public(draft: StudyDraft, directory: Path, console: Console, *, is_smoke: bool) -> None:
    """Trains a small backbone on the example's public records, with tables of structure if there is a reader."""
    from ...models.backbones.text_pretraining import TextPretrainingConfig
    from ...models.structure.readers import READERS
    from ..studies.text_backbone import build_text_backbone

    config = TextPretrainingConfig()
    if is_smoke:
        eye, ear = replace(config.eye, cells=_SMOKE_CELLS), replace(config.ear, sounds=_SMOKE_SOUNDS)
        config = replace(config, tokens=_SMOKE_TOKENS, eye=eye, ear=ear)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"Pretraining the backbone on public {draft.data.kind.name}", total=None)
        build_text_backbone(
            draft,
            directory.with_name("data") / "public.csv",
            directory,
            structure=draft.data.kind.name if draft.data.kind.name in READERS else None,
            config=config,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(f"Backbone pretrained on public {draft.data.kind.name} (kept for the next time)")


def _import_backbone(draft: StudyDraft, directory: Path, console: Console) -> None:
    """Imports SmolLM2, and takes moments from the example's public texts if a head is to read documents."""
    from ...models.backbones.importing import import_recipe
    from ...models.backbones.moments import take_moments

    has_head = draft.data.kind.head == "pooled"
    imported = directory.with_name("smollm2") if has_head else directory
    if not imported.exists():
        with console.status("Writing SmolLM2-135M-Instruct, and comparing it with its source"):
            import_recipe("smollm2", imported)
    if has_head:
        texts = _load(_example_file(draft.name, "prepare.py")).public_texts()
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"Taking moments of {len(texts):,} public texts", total=len(texts))
            take_moments(
                imported,
                texts,
                directory,
                reads=draft.adapter.reads,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
    console.print("Backbone imported: SmolLM2-135M-Instruct (kept for the next time)")


def _next_federation(directory: Path, draft: StudyDraft, page: str) -> DemoFederation:
    """Chooses the newest federation if it is unfinished, else a new one beside it: ledgers are never deleted."""
    last = _newest(directory, draft)
    if last is not None and last.is_founded and not _outcome_file(last).exists():
        last.page = page
        return last
    number = 1 if last is None else int(last.folder.name.rpartition("-")[2]) + 1
    sites, aggregators = draft.participants.sites, draft.participants.aggregators
    return DemoFederation(directory / f"federation-{number}", sites, aggregators, page=page)


def _newest(directory: Path, draft: StudyDraft) -> DemoFederation | None:
    """Finds the newest federation of a demo."""
    folders = [path for path in directory.glob("federation-*") if re.fullmatch(r"federation-\d+", path.name)]
    newest = max((int(path.name.rpartition("-")[2]) for path in folders), default=0)
    if not newest:
        return None
    sites, aggregators = draft.participants.sites, draft.participants.aggregators
    return DemoFederation(directory / f"federation-{newest}", sites, aggregators)


def _bring_up(federation: DemoFederation, bench: Workbench, draft: StudyDraft, console: Console) -> str:
    """Founds the federation if it is new, starts all processes, and returns the run to follow."""
    if not federation.is_founded:
        nodes = len(federation.nodes)
        with console.status(
            f"Founding a federation: {nodes} nodes make keys, enrol with one-time codes, approve the study"
        ):
            study_toml = federation.folder / "study.toml"
            write_private(study_toml, _study_text(draft, bench).encode())
            policies = dict.fromkeys(federation.aggregators, _TELLS)
            policies |= {site: _site_toml(bench, draft, site) for site in federation.sites}
            study_hash = federation.found(f"{draft.name} demo", policies, study_toml)
        console.print(f"Federation founded; every node approved study [bold]{study_hash[:16]}[/]")
    with console.status("Starting the nodes' daemons"):
        federation.bring_up()
    with closing(Store.open(federation.home)) as store:
        runs = store.runs()
        if not runs:
            name = store.studies()[-1].name
            return federation.operator("run", "start", name).strip()
        if RESUME.allows(runs[-1].state):
            federation.operator("run", "resume", runs[-1].id)
        return runs[-1].id


def _follow(federation: DemoFederation, run_id: str, console: Console) -> None:
    from ..run.progress import watch

    console.print(
        f"Run [bold]{run_id}[/]: {len(federation.sites)} sites, {len(federation.aggregators)} aggregators, "
        "each a process with its own keys"
    )
    with closing(Store.open(federation.home)) as store:
        ended = watch(store, run_id, console, check=federation.check)
    if ended.state != RunState.DONE:
        raise RunFailed(
            f"run {run_id} is {ended.state} after {ended.rounds} rounds: {ended.error}. Logs: {federation.folder}/logs"
        )


def _harvest(
    federation: DemoFederation, bench: Workbench, run_id: str, console: Console, *, is_smoke: bool
) -> dict[str, Any]:
    """Collects the report and the adapter, and measures their quality."""
    from ..results import export
    from ..results.privacy_audit import audit_run

    folder, home = federation.folder, federation.home
    with closing(Store.open(federation.home)) as store:
        study = load_study(store.study(store.run(run_id).study))
        audited, has_guarantee = None, study.draft.privacy.mode != "none"
        if has_guarantee and not is_smoke:
            with console.status("Trying to prove the claimed epsilon wrong: an audit of the training step"):
                audited = dump(audit_run(store, home, run_id))
        adapter = folder / "adapter"
        if not adapter.exists():
            unaudited = "a smoke run, which is not audited" if is_smoke else None
            export.export_adapter(store, home, run_id, adapter, override_audit=unaudited)
        judge = _quality if study.draft.data.judged == "labels" else _answer_quality
        quality = judge(store, bench, study, run_id, home, console)
        quality |= _ladder(bench, study, folder / "ladder", quality, console)
        with console.status("Writing and verifying the privacy report"):
            report = budget_report(store, home, study.study_hash)
            report_json, report_html = folder / "report.json", folder / "report.html"
            write_private(report_json, json.dumps(report, indent=1).encode())
            write_private(report_html, render_html(report).encode())
            verification = verify_file(report_json)
            if not verification.ok:
                raise DemoFailed("the report does not verify: " + "; ".join(verification.failures))
        rounds = store.rounds(run_id)
        seconds = sorted(row.seconds for row in rounds)
        spent = export.largest_epsilon(store, study, colluding=1) if has_guarantee else None
        return {
            "epsilon": spent and spent.pld,
            "epsilon_rdp": spent and spent.rdp,
            "epsilon_guaranteed": spent and spent.guaranteed,
            "unit": study.draft.data.unit,
            "delta": study.draft.privacy.delta if has_guarantee else None,
            **quality,
            "audit": audited,
            "rounds": len(rounds),
            "seconds_per_round": round(seconds[len(seconds) // 2], 3),
            "bytes_per_site_round": max(row.bytes_per_site for row in rounds),
            "units": {site: bench.tables[site]["units"] for site in federation.sites},
            "report_json": str(report_json),
            "report_html": str(report_html),
            "adapter": str(adapter),
            "backbone": str(bench.backbone),
            "study": study.study_hash,
            "run": run_id,
        }


def _quality(store: Store, bench: Workbench, study: Study, run_id: str, home: Path, console: Console) -> dict[str, Any]:
    """Measures the run's adapter, by the sites' evaluation and on all held-out records, beside the baselines."""
    from ..comparison.federated import untrained
    from ..results import export
    from ..results.metrics import measurement
    from ..results.trained import trained_model
    from .baselines import references
    from .membership_attack import Attacked, Pool, attack

    sites = study.site_names()
    train, held_out = ([_records(bench, study, site, part) for site in sites] for part in _PARTS)
    with console.status("Measuring the references in this process (the demo's records are public)"):
        model, pool = trained_model(store, home, run_id), Pool.read(study, train, held_out)
        found = export.evaluate(model, study, held_out)
        attacked = [Attacked("the run's adapter", study.draft.privacy.mode, pool.confidences(model.adapted))]
        compared = references(
            study, bench.backbone, train, held_out,
            max_rows=bench.rows,
            on_nonprivate=lambda model: attacked.append(
                Attacked("the same study trained without noise", "none", pool.confidences(model))
            ),
        )  # fmt: skip
    with console.status("Attacking both adapters: who was in the training records?"):
        attacks = attack(store, run_id, study, pool, untrained(study.draft, bench.backbone), attacked)
    metrics = measurement(store, run_id).metrics if study.draft.evaluation else None
    measured, tied = (metrics.auc, metrics.auc_tied) if metrics else (None, None)
    return {
        "auc_private": found["auc"]["value"],
        "auc_private_interval": [found["auc"]["low"], found["auc"]["high"]],
        "auc_measured": measured and measured.value,
        "auc_measured_interval": measured and [measured.low, measured.high],
        "auc_measured_binning": tied and tied / 2,
        "accuracy_private": found["accuracy"]["value"],
        **compared,
        "membership": [dump(facts) for facts in attacks],
    }


def _answer_quality(
    store: Store, bench: Workbench, study: Study, run_id: str, home: Path, console: Console
) -> dict[str, Any]:
    """Measures the answers of the run's adapter, beside the sites' evaluation and the baselines, and attacks it."""
    from ..results import export
    from ..results.metrics import measurement
    from ..results.trained import trained_model
    from .baselines import answer_references
    from .membership_attack import Attacked, TextPool, attack_by_loss

    train, held_out = ([_records(bench, study, site, part) for site in study.site_names()] for part in _PARTS)
    with console.status("Answering with the adapter (the demo's records are public)"):
        model = trained_model(store, home, run_id)
        pool = TextPool.read(model, study, train, held_out)
        after = export.evaluate(model, study, held_out)
        attacked = [Attacked("the run's adapter", study.draft.privacy.mode, pool.confidences(model.adapted))]
    with console.status("Training the same study without noise in this process, on as many texts again as the rounds"):
        untouched = load_study_model(study.draft, bench.backbone, expected_hash=study.backbone_hash)
        before = pool.confidences(untouched.adapted)
        compared = answer_references(study, untouched, train, held_out, max_rows=bench.rows)
        bare = Attacked("the same study trained without noise", "none", pool.confidences(untouched.adapted))
        attacks = attack_by_loss(store, run_id, study, pool, before, [*attacked, bare])
    measured = measurement(store, run_id).metrics.prevalence if study.draft.evaluation else None
    right = SHARE[study.draft.data.judged]
    others = [name for name in after if name not in ("records", right)]
    return {
        "judged": study.draft.data.judged,
        f"{right}_private": after[right]["value"],
        f"{right}_private_interval": [after[right]["low"], after[right]["high"]],
        f"{right}_measured": measured and measured.value,
        f"{right}_measured_interval": measured and [measured.low, measured.high],
        **{f"{name}_private": after[name]["value"] for name in others},
        **compared,
        "membership": [dump(facts) for facts in attacks],
    }


def _ladder(bench: Workbench, study: Study, out: Path, quality: dict[str, Any], console: Console) -> dict[str, Any]:
    """Compares the adapters with simpler models of the same records; nothing where none can answer."""
    from ..comparison import compare_with_run

    train, held_out = ([_records(bench, study, site, part) for site in study.site_names()] for part in _PARTS)
    with console.status("Climbing the ladder: what simpler models make of the same records"):
        found = compare_with_run(study, bench.backbone, train, held_out, out, quality)
    if found is None:
        return {}
    return {
        "ladder": [asdict(row) for row in found.rows if row.left_out is None],
        "ladder_html": str(out / "ladder.html"),
    }


def _show(outcome: dict[str, Any], console: Console) -> None:
    table = Table(title="What came out", title_justify="left", show_header=False, box=None)
    for row in figures(outcome):
        table.add_row(*row)
    console.print(table)
    for label in ("report_html", "report_json", "ladder_html", "adapter", "backbone"):
        if label not in outcome:
            continue
        console.print(f"{label.replace('_', ' '):12s} {outcome[label]}", soft_wrap=True, highlight=False)
    console.print(f"Check the report anywhere: coordinator budget verify {outcome['report_json']}", soft_wrap=True)


def _study_text(draft: StudyDraft, bench: Workbench) -> str:
    """The example's study.toml with the demo's backbone and number of rounds, and how little a smoke run writes."""
    text = _example_file(draft.name, "study.toml").read_text(encoding="utf-8")
    if draft.data != _draft(draft.name, None).data:  # see `_shortened`; the example may leave it to the default
        text = re.sub(r"(?m)^max_written = .*\n", "", text, count=1)
        header, written = rf"(?m)^\[data\.{draft.data.kind.name}\]\n", draft.data.terms.model_dump()["max_written"]
        text = re.sub(header, rf"\g<0>max_written = {written}\n", text, count=1)
    text = re.sub(r'(?m)^backbone = "[^"]*"', f"backbone = {json.dumps(str(bench.backbone))}", text, count=1)
    return re.sub(r"(?m)^rounds = \d+", f"rounds = {draft.rounds.rounds}", text, count=1)


def _site_toml(bench: Workbench, draft: StudyDraft, site: str) -> str:
    """The site.toml that a site's engineer would write."""
    return f"""# What may run at {site}, on which records, at what cost.
{_data(bench, draft, site)}
[budget]
epsilon = {BUDGET}
delta = {draft.privacy.delta or 1e-5}
collusion = {draft.privacy.collusion}

[backbone]
directory = {json.dumps(str(bench.backbone))}

[limits]
threads = 1
max_rows_per_batch = {bench.rows}

{_TELLS}"""


def _data(bench: Workbench, draft: StudyDraft, site: str) -> str:
    """The `[data]` of a site.toml: as the example describes its records, or of its two tables."""
    if (described := bench.tables[site].get("records")) is not None:
        return Path(described).read_text(encoding="utf-8")
    return f"""[data]
path = {json.dumps(bench.tables[site]["train"])}
heldout_path = {json.dumps(bench.tables[site]["heldout"])}
{_files_line(bench, site)}\
name = "{draft.name}-{site}"
unit = "{draft.data.unit}"
unit_column = "{_unit_column(draft)}"
"""


def _files_line(bench: Workbench, site: str) -> str:
    folder = bench.tables[site].get("files")
    return "" if folder is None else f"files = {json.dumps(folder)}\n"


def _unit_column(draft: StudyDraft) -> str:
    """Name of the unit column in the examples' tables."""
    return f"{draft.data.unit}_id"


def _records(bench: Workbench, study: Study, site: str, part: str) -> SitePolicy:
    from ..studies.held_out import described_policies, held_out_policy

    if (described := bench.tables[site].get("records")) is not None:
        return described_policies(Path(described))[_PARTS.index(part)]
    return held_out_policy(Path(bench.tables[site][part]), study, _unit_column(study.draft))


def _example_file(example: str, name: str) -> Path:
    path = _EXAMPLES / example / name
    if not path.exists():
        known = sorted({path.parent.name for own in ("study.toml", _ALONE) for path in _EXAMPLES.glob(f"*/{own}")})
        raise DemoFailed(
            f"there is no example {example!r} ({', '.join(known) or 'the demo needs a checkout of the sources'})"
        )
    return path


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"confide_example_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise DemoFailed(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
