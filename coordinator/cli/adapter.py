"""The commands `coordinator adapter`: export, merge, deploy, combine, carry, ask, serve and evaluate adapters."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import err
from ...client_node.cli.service import (
    AdaptersArgument,
    CertificateOption,
    Format,
    FormatOption,
    HostOption,
    KeyOption,
    PortOption,
    PrefixOption,
    RowsOption,
    SecondsOption,
    TokenOption,
    WaitingOption,
    serve_adapters,
)
from ..errors import Conflict
from .model_tables import (
    bar,
    reading,
    show_answers,
    show_carried,
    show_combined,
    show_deployed,
    show_evaluation,
    show_kept_routing,
    show_options,
    show_routing,
    show_suite,
    show_written,
)
from .options import (
    DEFAULT_HOME,
    HomeOption,
    OverrideOption,
    PageOption,
    PlainTextsOption,
    PublicOption,
    StepsOption,
    StudyOption,
    TextOption,
    TokensOption,
)
from .public_rows import rows_of


class Equality(StrEnum):
    """Ways to compare what a model writes with what is right."""

    MATHEMATICS = "mathematics"
    CODE = "code"


class Modality(StrEnum):
    """Kinds of things that a model reads."""

    TABLE = "table"
    TEXT = "text"
    CODE = "code"
    MATHEMATICS = "mathematics"
    PICTURES = "pictures"
    SOUNDS = "sounds"


class Target(StrEnum):
    """Ways to run a model where confide is not installed."""

    ONNX = "onnx"
    TORCH = "torch"
    TRITON = "triton"


class Rule(StrEnum):
    """Ways to say which adapter answers a request."""

    PROTOTYPES = "prototypes"
    ARROW = "arrow"
    FIXED = "fixed"


app = group("What was learned.", "coordinator adapter export RUN adapter")


@app.command("export", epilog=epilog("coordinator adapter export RUN adapter"))
def adapter_export(
    run: str,
    directory: Path,
    override_audit: OverrideOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a run's adapter as a PEFT directory with a model card; if it claims privacy, only after an audit."""
    from ..federation import opened_store
    from ..results.export import export_adapter

    with opened_store(home) as store:
        card = export_adapter(store, home, run, directory, override_audit=override_audit)
        show_written("Adapter", directory, card, as_json)


@app.command("merge", epilog=epilog("coordinator adapter merge RUN model"))
def adapter_merge(
    run: str,
    directory: Path,
    override_audit: OverrideOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the backbone with a run's adapter in its weights, as one checkpoint; conditions are those of `export`."""
    from ..federation import opened_store
    from ..results.export import merge_adapter

    with opened_store(home) as store:
        card = merge_adapter(store, home, run, directory, override_audit=override_audit)
        show_written("Merged model", directory, card, as_json)


@app.command(
    "deploy",
    epilog=epilog(
        "coordinator adapter deploy RUN folder --target onnx",
        "coordinator adapter deploy RUN folder --target torch --format float32",
    ),
)
def adapter_deploy(
    run: str,
    directory: Path,
    target: Annotated[
        Target,
        typer.Option(
            help="onnx: one graph for ONNX Runtime; torch: a checkpoint for PyTorch; triton: that graph in the folder "
            "of a Triton server."
        ),
    ],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How weights are held; left out, int8, but float32 for torch and for a head on a model without routed "
            "experts.",
        ),
    ] = None,
    override_audit: OverrideOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model as a folder that runs where confide is not installed; conditions are those of `export`.

    It holds the backbone with the adapter in its weights, what it may tell of a person, and ask.py, which asks it.
    `coordinator adapter choose` says which target suits a use. For onnx and triton: pip install 'confide[deploy]'.
    """
    from ..federation import opened_store
    from ..results.deployment import deploy_adapter

    with opened_store(home) as store, err.status("Writing the model"):
        found = deploy_adapter(
            store, home, run, directory, target.value, None if form is None else form.value,
            override_audit=override_audit,
        )  # fmt: skip
    show_deployed(directory, found, as_json)


@app.command(
    "choose",
    epilog=epilog(
        "coordinator adapter choose",
        "coordinator adapter choose RUN --latency 5 --memory 300",
        "coordinator adapter choose --modality code --clients 8",
    ),
)
def adapter_choose(
    run: Annotated[str | None, typer.Argument(help="Whose model it is; left out, one of a million parameters.")] = None,
    modality: Annotated[
        Modality | None, typer.Option(help="What it reads; left out, what the run's study reads, or it asks.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(min=0.001, help="Milliseconds that a record, or a word of an answer, may take.")
    ] = None,
    memory: Annotated[float | None, typer.Option(min=1, help="Megabytes of memory that there are.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Who ask at a time.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Say how a model should run for a use, and why: as a graph, in PyTorch, in a Triton server, or served by confide.

    It asks for what is left out if no option is given. Times and sizes are estimates; ask.py --time measures.
    """
    if not all(value is None or math.isfinite(value) for value in (latency, memory)):
        raise typer.BadParameter("--latency and --memory take finite numbers")
    if (modality, latency, memory, clients) == (None,) * 4 and not as_json:
        modality, latency, memory, clients = asked_use(run)
    if run is None:
        from ...models.deployment.choosing import Use, choose

        if modality is None:
            raise Conflict("say what it reads with --modality, or name a run")
        found = choose(Use(modality.value, latency, memory, clients or 1))
    else:
        from ..federation import opened_store
        from ..results.deployment import options_for

        with opened_store(home) as store:
            found = options_for(
                store, home, run, None if modality is None else modality.value, milliseconds=latency,
                megabytes=memory, clients=clients or 1,
            )  # fmt: skip
    show_options(found, run, as_json)


@app.command("combine", epilog=epilog("coordinator adapter combine one two together --weights 1,2 --rank 4"))
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
    from ...models.adapters.combining import combine

    found = combine(directories, out_directory, weights=parse_weights(weights), rank=rank)
    show_combined(out_directory, found, is_exact=rank is None, as_json=as_json)


@app.command(
    "carry",
    epilog=epilog("coordinator adapter carry adapter backbone small adapter-small"),
)
def adapter_carry(
    adapter: Annotated[Path, typer.Argument(help="Exported adapter; it stays as it is.")],
    backbone: Annotated[Path, typer.Argument(help="Folder of the backbone that it is for.")],
    smaller: Annotated[Path, typer.Argument(help="What `coordinator backbone compress` made of that.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    texts: PlainTextsOption = None,
    study: StudyOption = None,
    public: PublicOption = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="With --texts: longer ones are cut.")] = 256,
    steps: StepsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry an adapter over to a smaller backbone that was made of its own; epsilon stays as it is.

    Its factors are cut as the weights were, and learn what the adapter did, on public tokens alone: on synthetic
    records if it has a head; or, if it writes text, on --texts, or on --public with --study. These should look like
    what it will be asked. Never give it a site's records: it cannot know whose a table is and refuses none, and nothing
    is charged here.
    """
    from ...models.adapters.carrying import carry
    from ...models.compression.distilling import DistillingConfig

    rows = rows_of(backbone, texts=texts, study=study, public=public, max_tokens=max_tokens)
    config = None if steps is None else DistillingConfig(steps=steps)
    with bar("Learning on public tokens") as progress:
        found = carry(adapter, backbone, smaller, directory, rows=rows, config=config, progress=progress)
    show_carried(directory, found, as_json)


@app.command(
    "ask",
    epilog=epilog(
        "coordinator adapter ask backbone one two --requests requests.csv",
        "coordinator adapter ask backbone one --requests a.csv --study s.toml",
    ),
)
def adapter_ask(
    backbone: Annotated[Path, typer.Argument(help="Folder of the backbone that the adapters are for.")],
    directories: Annotated[list[Path], typer.Argument(help="Exported adapters of it, one or more.")],
    requests: Annotated[
        Path,
        typer.Option(
            help="Table with columns of the backbone's schema, what is left out being missing; or, for a backbone that "
            "reads text, a request a line."
        ),
    ],
    by: Annotated[
        Rule,
        typer.Option(
            help="prototypes: whose records the backbone reads alike, itself where none; arrow: whose directions "
            "react, module by module; fixed: the same for all."
        ),
    ] = Rule.PROTOTYPES,
    weights: Annotated[
        str | None, typer.Option(help="With --by fixed: a number for each adapter, e.g. 1,0.5; left out, their mean.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="With --by prototypes: likeness at which the backbone alone is as good.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="Of text: what the studies show around it, with one name in braces.")
    ] = "{text}",
    max_tokens: Annotated[int, typer.Option(min=2, help="Of text: longer requests are cut.")] = 4096,
    longest: Annotated[int, typer.Option(min=1, max=4096, help="Tokens that are written.")] = 64,
    then: Annotated[
        str | None,
        typer.Option(help="Where heads answer, write a text too, behind the request and this: a study's text task."),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="Of pictures or sounds: study.toml, which says what a record is. The table names PNG files in the "
            "folder pictures beside it, or WAV files in the folder sounds."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer requests with the adapters of several studies, chosen or mixed for each request. Trains nothing.

    Prototypes come from studies with a table [prototype]. What is the backbone's share counts as 0 in what heads give:
    even odds, or the middle of a scale. For one person in several of the studies their epsilons add up, and it says to
    what; asking costs nothing more, however often.
    """
    from ...client_node.study import load_draft
    from ...models.adapters.composing import FLOOR
    from ..results.asking import ask

    if weights is not None and by is not Rule.FIXED:
        raise typer.BadParameter("--weights goes with --by fixed")
    if floor is not None and by is not Rule.PROTOTYPES:
        raise typer.BadParameter("--floor goes with --by prototypes")
    with bar("Answering") as progress:
        found = ask(
            backbone, directories, requests, rule=by.value, weights=parse_weights(weights),
            floor=FLOOR if floor is None else floor, template=template, max_tokens=max_tokens, longest=longest,
            then=then, study=None if study is None else load_draft(study), progress=progress,
        )  # fmt: skip
    show_answers(found, as_json)


@app.command(
    "serve",
    epilog=epilog("coordinator adapter serve backbone one two", "coordinator adapter serve backbone one --port 9000"),
)
def adapter_serve(
    backbone: Annotated[Path, typer.Argument(help="Folder of the backbone that the adapters are for.")],
    adapters: AdaptersArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    token_file: TokenOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    form: FormatOption = Format.FLOAT32,
    prefix: PrefixOption = None,
    rows: RowsOption = 16,
    waiting: WaitingOption = 128,
    seconds: SecondsOption = 120.0,
) -> None:
    """Serve adapters on a backbone that reads text, over OpenAI's API, until stopped.

    A tool that speaks that API names an adapter as its model. Nothing that is asked or answered is logged or kept.
    """
    from ...models.serving.server import Address, Bounds

    address = Address(host=host, port=port, token_file=token_file, certificate=certificate, key=key)
    bounds = Bounds(rows=rows, waiting=waiting, seconds=seconds)
    serve_adapters(backbone, adapters, address, bounds, form, prefix or ())


@app.command(
    "evaluate",
    epilog=epilog(
        "coordinator adapter evaluate RUN --data held-out.csv --unit-column id",
        "coordinator adapter evaluate RUN --suite tasks --equality mathematics",
    ),
)
def adapter_evaluate(
    run: str,
    data: Annotated[
        list[Path] | None, typer.Option(help="Held-out CSV or Parquet file; may be given several times.")
    ] = None,
    unit_column: Annotated[str | None, typer.Option(help="Column of it that names the unit.")] = None,
    suite: Annotated[
        Path | None,
        typer.Option(
            help="Instead: folder with tasks of lm-evaluation-harness (YAML and local files), asked over the served "
            "API, so without a study's guide of what is written. It runs with your rights, as a program does."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --suite: records of each task.")] = None,
    equality: Annotated[
        Equality | None,
        typer.Option(help="mathematics: compare what is written as formulas in x, too; code: not possible, says why."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Score held-out records that lie on this machine, with 95 % intervals.

    AUC, accuracy and calibration of a study that classifies, exact match and perplexity of one that writes completions,
    right answers of formulas; of code, programs that parse, and that are likelier than a copy with one error.
    The figures depend on those records: publish them only if the records are public or their release is accounted for.
    """
    from ..federation import opened_store
    from ..results.held_out import evaluate_run, evaluate_suite

    if (suite is None) == (data is None or unit_column is None) or (data is None) != (unit_column is None):
        raise typer.BadParameter("give --data with --unit-column, or --suite")
    if limit is not None and suite is None:
        raise typer.BadParameter("--limit goes with --suite")
    if equality is Equality.CODE:
        raise Conflict(
            "confide runs no code that a model has written: unit tests of it need a sandbox without network, files and "
            "memory of this machine, which a Python process cannot make of itself. Studies of [data.code] count "
            "programs that parse, without --equality; run tests of what was written in a virtual machine"
        )
    with opened_store(home) as store:
        if suite is not None:
            with bar("Asking") as progress:
                measured = evaluate_suite(
                    store, home, run, suite, limit=limit, by_mathematics=equality is not None, progress=progress
                )
            return show_suite(measured, as_json)
        found = evaluate_run(store, home, run, data or (), unit_column or "", by_mathematics=equality is not None)
        show_evaluation(found, as_json)


@app.command("routing", epilog=epilog("coordinator adapter routing RUN --html routing.html"))
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
    from ..federation import opened_store
    from ..routing.measuring import measure, reader_of_run

    with opened_store(home) as store:
        directory, model = reader_of_run(store, home, run)
    with reading(tokens) as progress:
        found = measure(directory, text, tokens=tokens, model=model, progress=progress)
    show_routing(run, found, html, as_json)


@app.command("map", epilog=epilog("coordinator adapter map RUN"))
def adapter_map(
    run: str,
    tokens: TokensOption = 1024,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Keep a heat map of a run's routing, before training and with its adapter, for the adapter's page.

    Both read the same public tokens: synthetic records, or the licence that comes with the backbone.
    """
    from ..federation import opened_store
    from ..routing.measuring import keep

    with opened_store(home) as store, bar("Reading public tokens") as progress:
        found = keep(store, home, run, tokens=tokens, progress=progress)
    show_kept_routing(run, found, as_json)


def parse_weights(text: str | None) -> list[float] | None:
    """Parses the weights of the command line, separated by commas."""
    try:
        return None if text is None else [float(weight) for weight in text.split(",")]
    except ValueError:
        raise Conflict("--weights takes numbers with commas between them, e.g. 1,2; nothing was written") from None


def asked_use(run: str | None) -> tuple[Modality | None, float | None, float | None, int | None]:
    """Asks for what a model is wanted; an empty answer is any."""
    modality = None
    if run is None:
        kinds = click.Choice([each.value for each in Modality])
        modality = Modality(typer.prompt("What does it read", type=kinds))
    latency = typer.prompt("How many milliseconds may a record or a word take (empty: any)", "", show_default=False)
    memory = typer.prompt("How many megabytes of memory are there (empty: any)", "", show_default=False)
    clients = typer.prompt("How many ask at a time", 1, type=click.IntRange(min=1))
    return modality, _positive(latency), _positive(memory), clients


def _positive(text: str) -> float | None:
    try:
        number = float(text) if text.strip() else None
    except ValueError:
        number = -1.0
    if number is not None and not 0 < number < math.inf:
        raise Conflict(f"{text!r} is no number above 0; nothing was chosen")
    return number
