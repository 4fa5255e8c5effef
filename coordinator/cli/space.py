"""The commands `coordinator space`: builds a space in which a name, a picture and a sound of one thing lie near."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import show_change
from .model_tables import bar

app = group(
    "One space for names, pictures and sounds, made of public things alone.",
    "coordinator space build public.csv space --backbone smollm2",
)


@app.command("build", epilog=epilog("coordinator space build public.csv space --backbone smollm2"))
def space_build(
    table: Annotated[
        Path, typer.Argument(help="CSV of thing, name, file: public things; their PNG and WAV files lie in `files`.")
    ],
    directory: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    backbone: Annotated[
        Path,
        typer.Option(help="Folder of an imported model or of a text encoder, which reads names and stays as it is."),
    ],
    eye: Annotated[
        str | None, typer.Option(help="efficientnet-lite0: sees pictures of 224 x 224 as ImageNet taught it.")
    ] = None,
    ear: Annotated[
        str | None, typer.Option(help="whisper-base, or the folder of a Whisper checkpoint; without, one is trained.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; by default 1400, some 10 minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and the order.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a space on public names, pictures and sounds, for `client-node search` at the sites.

    Never give it a site's records: nothing is charged and nothing is noised here. docs/search.md has the table's form.
    """
    from ...models.space.public import build_space
    from ...models.space.training import SpaceTrainingConfig

    config = SpaceTrainingConfig(seed=seed) if steps is None else SpaceTrainingConfig(steps=steps, seed=seed)
    with bar("Training on public things") as progress:
        built = build_space(table, directory, backbone, config=config, eye=eye, ear=ear, progress=progress)
    sentence = (
        f"Space of {built.names:,} names, {built.pictures:,} pictures and {built.sounds:,} sounds written to "
        f"{directory}. Give it to every site, and the backbone with it."
    )
    show_change({"directory": str(directory)} | asdict(built), as_json, sentence)
