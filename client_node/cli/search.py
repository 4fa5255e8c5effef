"""The command `client-node search`: finds pictures, sounds and texts of this site's own archive."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .application import JsonOption
from .console import err, print_json, print_rows, tell


def search(
    folder: Annotated[Path, typer.Argument(help="Folder of PNG, WAV and TXT files, with all folders below it.")],
    question: Annotated[str, typer.Argument(help="A text; or a file, by a name that ends in .png or .wav.")],
    space: Annotated[Path, typer.Option(help="Folder that `coordinator space build` wrote.")],
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the backbone that the space was built with; it reads texts.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="File that keeps what was computed of the archive. As confidential as the archive itself."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Files to show of each kind.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Find what is most like a text, a picture or a sound in this site's own archive; nothing leaves this machine.

    Pictures, sounds and texts are ranked each by themselves. With --index only new and changed files are read by the
    space; without it all are, each time.
    """
    from ...models.space.embedding import Embedder
    from ...models.strict import one_line
    from ..data import archive

    if not folder.is_dir():
        raise typer.BadParameter(f"{one_line(str(folder))} is no folder", param_hint="FOLDER")
    embedder = Embedder(space, backbone)
    asked = archive.question(question, embedder)
    known = None if index is None else archive.read_index(index)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("reading the archive", total=None)
        found = archive.indexed(
            folder, embedder, known, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if index is not None and (known is None or known.entries != found.index.entries):
        archive.write_index(found.index, index)
    rows = [asdict(each) | {"likeness": round(each.likeness, 4)} for each in archive.nearest(found.index, asked, count)]
    if as_json:
        facts = {"files": len(found.index.entries), "embedded": found.embedded, "left_out": found.left_out}
        return print_json(facts | {"found": rows})
    print_rows("Most like it", rows, highlight=False)
    if found.left_out:
        tell(f"{len(found.left_out)} files were left out; --json says which, and why")
