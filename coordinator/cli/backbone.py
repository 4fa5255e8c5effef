"""The commands `coordinator backbone`: build, import, list and inspect the frozen models that studies adapt."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import err
from .model_tables import bar, reading, show_backbone, show_backbones, show_built, show_imported, show_routing
from .options import PageOption, TextOption, TokensOption

app = group("The frozen model that studies adapt.", "coordinator backbone build study.toml backbone")
_TOKENS = 8192  # of synthetic records, for a line on routing


class Recipe(StrEnum):
    """Published models that can be imported."""

    SMOLLM2 = "smollm2"


@app.command("build", epilog=epilog("coordinator backbone build study.toml backbone"))
def backbone_build(
    draft: Path,
    directory: Path,
    family: Annotated[
        str, typer.Option(help="Architecture, by the model_type of its checkpoints; docs/backbones.md has the table.")
    ] = "deepseek_v3",
    as_json: JsonOption = False,
) -> None:
    """Build a small model for the records that study.toml describes, trained on synthetic ones alone."""
    from ...client_node.study import load_draft
    from ...models.backbones.family import BackboneConfig
    from ...models.backbones.pretraining import pretrain
    from ..results.router_statistics import measure_records

    schema, config = load_draft(draft).record_schema(), BackboneConfig(family=family)
    with bar("Pretraining on synthetic records") as progress:
        digest = pretrain(schema, directory, backbone=config, progress=progress)
    show_built(directory, digest, measure_records(directory, tokens=_TOKENS), as_json)


@app.command("import", epilog=epilog("coordinator backbone import smollm2 backbone"))
def backbone_import(
    recipe: Annotated[Recipe, typer.Argument(help="Which published model.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Write a published model as a DeepSeek-V3 checkpoint that computes the same, for studies of free text."""
    from ...models.backbones.smollm2 import import_smollm2

    recipes = {Recipe.SMOLLM2: import_smollm2}
    with err.status("Converting, and comparing with the source"):
        imported = recipes[recipe](directory)
    show_imported(directory, imported.hash, imported.logit_difference, as_json)


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
    """Show what a backbone's folder holds: hash, licence, origin, parameters, and how it routes synthetic records.

    For a backbone that reads text, see `coordinator backbone routing`: that takes longer.
    """
    from ...models.backbones.loading import describe
    from ..results.router_statistics import measure_records

    found = describe(directory)
    routing = measure_records(directory, tokens=_TOKENS) if found.reads == "records" else None
    show_backbone(directory, found, routing, as_json)


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
    from ..results.router_statistics import measure

    with reading(tokens) as progress:
        found = measure(directory, text, tokens=tokens, progress=progress)
    show_routing(directory.resolve().name, found, html, as_json)
