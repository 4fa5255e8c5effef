"""The commands `coordinator backbone`: build, import, list and inspect the frozen models that studies adapt."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import err
from .model_tables import (
    bar,
    reading,
    show_backbone,
    show_backbones,
    show_built,
    show_checked,
    show_compressed,
    show_imported,
    show_moments,
    show_routing,
)
from .options import (
    PageOption,
    PlainTextsOption,
    PublicOption,
    StepsOption,
    StudyOption,
    TextOption,
    TokensOption,
)
from .public_rows import rows_of

if TYPE_CHECKING:
    from ...models.backbones.family import BackboneConfig

app = group("The frozen model that studies adapt.", "coordinator backbone build study.toml backbone")
_TOKENS = 8192  # of synthetic records, for a line on routing
_TIMES = 5.0


class Recipe(StrEnum):
    """Published models that are made of the file in a Python package."""

    SMOLLM2 = "smollm2"
    SMOLLM2_MOE = "smollm2-moe"


@app.command(
    "build",
    epilog=epilog(
        "coordinator backbone build study.toml backbone", "coordinator backbone build a.toml b.toml c.toml backbone"
    ),
)
def backbone_build(
    drafts: Annotated[list[Path], typer.Argument(help="One study.toml, or several that are to share the backbone.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    family: Annotated[
        str, typer.Option(help="Architecture, by the model_type of its checkpoints; docs/backbones.md has the table.")
    ] = "deepseek_v3",
    public: Annotated[
        Path | None,
        typer.Option(help="Of formulas or code: a table of public records with the study's columns, to train on."),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(help="With --public: tables that tell the model where a token stands, formulas or code."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="With --public: tokens to read in all; by default 5 million.")
    ] = None,
    layers: Annotated[int, typer.Option(min=2, max=1000, help="Decoder layers.")] = 2,
    hidden: Annotated[
        int | None, typer.Option(min=32, max=2**16, help="Width, a multiple of 32; by default 128, of text 96.")
    ] = None,
    experts: Annotated[int, typer.Option(min=2, max=4096, help="Routed experts of a layer that has any.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Build a small model for the records that study.toml describes, trained on synthetic or public ones alone.

    Records of fields need no table: they are drawn at random. Of several studies the model has all columns, and each
    record those of one study; columns of one name must be described alike. Formulas and code are learned from a public
    table, with an id of each row in a column of the study's unit and _id.
    """
    from ...models.backbones.family import BackboneConfig

    size = BackboneConfig(
        family=family, layers=layers, hidden=hidden or (128 if public is None else 96), experts=experts
    )
    if public is not None:
        if len(drafts) > 1:
            raise typer.BadParameter("--public takes one study.toml: only records of fields can share a backbone")
        return _build_of_public(drafts[0], public, directory, size, structure, tokens, as_json)
    if structure is not None or tokens is not None:
        raise typer.BadParameter("--structure and --tokens go with --public: synthetic records of fields have neither")
    from ...client_node.study import load_draft
    from ...models.backbones.pretraining import pretrain
    from ..routing.measuring import measure_records

    schemas = [load_draft(draft).record_schema() for draft in drafts]
    with bar("Pretraining on synthetic records") as progress:
        digest = pretrain(schemas, directory, backbone=size, progress=progress)
    show_built(directory, digest, measure_records(directory, tokens=_TOKENS), as_json)


@app.command(
    "import",
    epilog=epilog(
        "coordinator backbone import models/Llama-3.2-1B backbone", "coordinator backbone import smollm2 backbone"
    ),
)
def backbone_import(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a published checkpoint; or smollm2, a small Llama from a Python package; or smollm2-moe, "
            "the same rewritten as a DeepSeek-V3 of experts."
        ),
    ],
    directory: Annotated[
        Path | None, typer.Argument(help="Folder to write; must not exist. Left out with --check.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the folder as if to import it, and write nothing.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the model, for its origin.")] = None,
    publisher: Annotated[str | None, typer.Option(help="Who published it.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, as an SPDX identifier.")] = None,
    url: Annotated[str | None, typer.Option(help="Where it was published.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take over a checkpoint that you already run, unconverted, for studies of free text.

    SOURCE is its folder; or smollm2, a small Llama in a Python package; or smollm2-moe, the same rewritten as a
    DeepSeek-V3 of experts. What is not needed, such as pickles and code, is left behind and named. A damaged source is
    refused, and nothing is written. Of the origin only that is written down which you say or the source states.
    """
    told = [option for option in (name, publisher, licence, url) if option is not None]
    recipe = Recipe(source) if source in list(Recipe) else None
    if directory is None and not check:
        raise typer.BadParameter("name a folder to write, or say --check")
    if directory is not None and check:
        raise typer.BadParameter("--check writes nothing: leave out the folder to write")
    if recipe and (check or told):
        raise typer.BadParameter(f"{source} is made of a package whose origin is known: it takes no such option")
    if recipe is not None and directory is not None:
        return _import_recipe(recipe, directory, as_json)
    from ...models.backbones.checkpoints import Claims
    from ...models.backbones.importing import check_checkpoint, import_checkpoint

    claims = Claims(name=name, publisher=publisher, licence=licence, url=url)
    with bar("Copying and checking", is_bytes=True) as progress:
        if directory is None:
            found = check_checkpoint(Path(source), progress=progress)
        else:
            imported = import_checkpoint(Path(source), directory, claims=claims, progress=progress)
    if directory is None:
        return show_checked(source, found, as_json)
    show_imported(directory, imported.description, imported.left, as_json)


@app.command("moments", epilog=epilog("coordinator backbone moments smollm2 texts.txt backbone --reads 24"))
def backbone_moments(
    backbone: Annotated[Path, typer.Argument(help="Folder of an imported checkpoint; it stays as it is.")],
    texts: Annotated[Path, typer.Argument(help="UTF-8 file of public texts, one a line.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    reads: Annotated[
        list[int] | None,
        typer.Option(
            help="A state that studies may read: 0 is the embedding's, n the one behind layer n. Left out, some of all."
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(help="What stands around a text, as in [data.document] of the studies to come.")
    ] = "{text}",
    max_tokens: Annotated[int, typer.Option(min=2, help="Longer texts are cut.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Take moments of a checkpoint's states from public texts, which a head needs to read documents.

    They say something about the texts, so take public ones of the kind that studies are about: the names of a
    classification, guidelines. Some thousands are enough. The new folder is a backbone of its own, with the
    checkpoint's files in it, linked where the disk can.
    """
    from ...models.backbones.moments import read_texts, take_moments

    with bar("Reading public texts") as progress:
        taken = take_moments(
            backbone, read_texts(texts), directory, template=template, reads=reads, max_tokens=max_tokens,
            progress=progress,
        )  # fmt: skip
    show_moments(directory, taken, as_json)


@app.command(
    "compress",
    epilog=epilog(
        "coordinator backbone compress backbone small --times 5",
        "coordinator backbone compress smollm2 small --texts public.txt",
    ),
)
def backbone_compress(
    backbone: Annotated[
        Path, typer.Argument(help="Folder of a backbone or an imported checkpoint; it stays as it is.")
    ],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    times: Annotated[
        float | None,
        typer.Option(help="How many times fewer parameters; by default 5, if no size is given either."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers that are kept; by default all.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width that is kept.")] = None,
    neurons: Annotated[int | None, typer.Option(min=1, help="Neurons of each dense MLP that are kept.")] = None,
    expert_neurons: Annotated[int | None, typer.Option(min=1, help="Neurons of each expert that are kept.")] = None,
    experts: Annotated[int | None, typer.Option(min=2, help="Routed experts of a layer that are kept.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Experts that a token is sent to; by default as many.")
    ] = None,
    texts: PlainTextsOption = None,
    study: StudyOption = None,
    public: PublicOption = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="With --texts: longer ones are cut.")] = 256,
    steps: StepsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a backbone smaller: cut out what counts least, and let the rest learn again what the whole computes.

    It learns on public tokens alone: on synthetic records; or, if it reads text, on --texts, or on --public with
    --study. Never give it a site's records: it cannot know whose a table is and refuses none, and nothing is charged
    here. Of records its loss is the share of what pooled states tell, of text nats a word, both on what it did not
    learn. The new folder is a backbone of its own; adapters follow by `coordinator adapter carry`.
    """
    from ...models.compression.compressing import compress
    from ...models.compression.distilling import DistillingConfig

    fixed = {
        "layers": layers, "hidden": hidden, "neurons": neurons, "expert_neurons": expert_neurons, "experts": experts,
        "top_k": top_k,
    }  # fmt: skip
    if times is None and not any(fixed.values()):
        times = _TIMES
    rows = rows_of(backbone, texts=texts, study=study, public=public, max_tokens=max_tokens)
    config = DistillingConfig() if steps is None else DistillingConfig(steps=steps)
    with bar("Learning on public tokens") as progress:
        found = compress(backbone, directory, times=times, fixed=fixed, rows=rows, config=config, progress=progress)
    show_compressed(directory, found, as_json)


def _build_of_public(
    draft: Path,
    public: Path,
    directory: Path,
    size: "BackboneConfig",
    structure: str | None,
    tokens: int | None,
    as_json: bool,
) -> None:
    from ...client_node.study import load_draft
    from ...models.backbones.text_pretraining import TextPretrainingConfig
    from ..studies.text_backbone import build_text_backbone

    config = replace(size, max_tokens=512)
    training = TextPretrainingConfig() if tokens is None else TextPretrainingConfig(tokens=tokens)
    with bar("Pretraining on public records") as progress:
        digest = build_text_backbone(
            load_draft(draft), public, directory, structure=structure, backbone=config,
            config=training, progress=progress,
        )  # fmt: skip
    show_built(directory, digest, None, as_json)


def _import_recipe(recipe: Recipe, directory: Path, as_json: bool) -> None:
    from ...models.backbones.importing import import_recipe
    from ...models.backbones.loading import describe

    with err.status("Converting, and comparing with the source"):
        difference = import_recipe(recipe.value, directory)
    show_imported(directory, describe(directory), (), as_json, logit_difference=difference)


@app.command("list", epilog=epilog("coordinator backbone list backbones"))
def backbone_list(
    folder: Annotated[Path, typer.Argument(help="Folder in which the backbones' folders lie.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show every backbone directly below a folder, and what is wrong with those that cannot be used.

    A federation keeps no list: backbones lie where you put them.
    """
    from ...models.backbones.loading import backbones_in

    show_backbones(folder, backbones_in(folder), as_json)


@app.command("show", epilog=epilog("coordinator backbone show backbone"))
def backbone_show(directory: Path, as_json: JsonOption = False) -> None:
    """Show what a backbone's folder holds: hash, family, targets, licence, origin, and how it routes synthetic records.

    For a backbone that reads text, see `coordinator backbone routing`: that takes longer.
    """
    from ...models.backbones.loading import describe
    from ...models.compression.compressing import made_of
    from ..routing.measuring import measure_records

    found = describe(directory)
    has_routing = found.reads == "records" and found.experts is not None
    routing = measure_records(directory, tokens=_TOKENS) if has_routing else None
    show_backbone(directory, found, routing, made_of(directory), as_json)


@app.command("routing", epilog=epilog("coordinator backbone routing backbone --text letter.txt"))
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
    from ..routing.measuring import measure

    with reading(tokens) as progress:
        found = measure(directory, text, tokens=tokens, progress=progress)
    show_routing(directory.resolve().name, found, html, as_json)
