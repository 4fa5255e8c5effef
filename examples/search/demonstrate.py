"""Builds a space of public stamps and emoji, and searches an archive of stamps that it never saw, heard or read.

    coordinator demo search                   # into confide-demo/search: a space, an index, and a page to open
    coordinator demo search --smoke           # few things, few steps: does it run?

These are stamps and emoji, and no medical images. Nobody's records are used: the space is public, and so is the
archive, which stands for a hospital's own.
"""

import html
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from confide.client_node.data import archive
from confide.models.backbones.importing import import_recipe
from confide.models.space import encoders
from confide.models.space.contrast import recall
from confide.models.space.embedding import Embedder
from confide.models.space.public import build_space
from confide.models.space.training import SpaceTrainingConfig

sys.path.append(str(Path(__file__).resolve().parent))
import reader

PREPARE = Path(__file__).resolve().parent / "prepare.py"
LANGUAGES, SPOKEN = ("en", "es", "fr", "ca"), ("es", "fr", "ca")
SMOKE = SpaceTrainingConfig(steps=20, batch=16, gallery=64)
SHOWN = 12  # questions on the page
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Names, and what was found</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
section{{padding:1rem 0;border-top:1px solid #ccc}}img{{width:64px;height:64px;margin-right:8px;border:3px solid #fff}}
img.own{{border-color:#1a7f37}}@media(prefers-color-scheme:dark){{body{{background:#161616;color:#eee}}}}</style>
<h1>Names, and what was found</h1><p>{summary}</p>{sections}
"""


def demonstrate(
    directory: Path, *, is_smoke: bool, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Prepares data, builds a space, indexes the archive and writes the page `search.html`; returns the figures."""
    directory.mkdir(parents=True, exist_ok=True)
    # Without their packages, or to see that it runs, the space trains an eye and an ear of its own.
    is_imported = not is_smoke and all(map(encoders.is_installed, (encoders.EFFICIENTNET, encoders.WHISPER)))
    reads_all = is_imported and importlib.util.find_spec(reader.PACKAGE) is not None
    end = "-few" if is_smoke else "-imported" if is_imported else ""  # so that no run takes over from one of another
    things = directory / f"things{end}"
    space, kept = (directory / f"{name}{end}{'-e5' if reads_all else ''}" for name in ("space", "archive.index"))
    prepared(things, *(["--few"] if is_smoke else ["--imported"] if is_imported else []))
    backbone = directory / ("e5" if reads_all else "smollm2")
    if not backbone.exists():
        reader.write_reader(backbone) if reads_all else import_recipe("smollm2", backbone)
    if not space.exists():
        config = SMOKE if is_smoke else SpaceTrainingConfig()
        eye, ear = (encoders.EFFICIENTNET, encoders.WHISPER) if is_imported else (None, None)
        build_space(things / "public.csv", space, backbone, config=config, eye=eye, ear=ear, progress=progress)
    folder = things / "archive"
    embedder = Embedder(space, backbone)
    index = archive.indexed(folder, embedder, archive.read_index(kept)).index
    archive.write_index(index, kept)
    points = points_of(index)
    found = {name: round(float(rows.mean()), 3) for name, rows in recalls(points).items()}
    page = directory / "search.html"
    page.write_text(page_of(folder, index, points, found), encoding="utf-8")
    return {
        "eye_and_ear": "imported" if is_imported else "trained with the space", "names_read_by": backbone.name,
        "held_out_things": len(points["picture"]), "chance_at_1": round(1 / len(points["picture"]), 3), **found,
        "space": embedder.hash, "page": str(page),
        "try": f"client-node search {folder} 'a small bird' --space {space} --backbone {backbone} --index {kept}",
    }  # fmt: skip


def prepared(directory: Path, *options: str) -> None:
    """Runs `prepare.py` in a process of its own, unless its archive is there: the synthesiser is loaded nowhere else.

    Raises:
        OSError: it failed; what it said stands above.
    """
    if (
        not (directory / "archive").exists()
        and subprocess.run((sys.executable, str(PREPARE), str(directory), *options)).returncode
    ):
        raise OSError("the things could not be prepared; what was said of that stands above")


def points_of(index: archive.Index) -> dict[str, Tensor]:
    """Points [things, D] of held-out things: pictures, names and readings, these two in each language and their means.

    `name` is the mean of all languages, `name read` and `speech` of those that are read aloud. A mean of several points
    lies on no sphere any more, so it is brought back to unit length.
    """
    rows = {entry.name: point for entry, point in zip(index.entries, index.points_ND, strict=True)}
    things = sorted(name.removesuffix(".png") for name in rows if name.endswith(".png"))
    found = {"picture": torch.stack([rows[f"{thing}.png"] for thing in things])}
    for kind, end, languages in (("name", "txt", LANGUAGES), ("speech", "wav", SPOKEN)):
        for code in languages:
            found[f"{kind} {code}"] = torch.stack([rows[f"{thing}-{code}.{end}"] for thing in things])
        found[kind] = _mean([found[f"{kind} {code}"] for code in languages])
    return found | {"name read": _mean([found[f"name {code}"] for code in SPOKEN])}


def recalls(points: dict[str, Tensor]) -> dict[str, Tensor]:
    """Recall@1 and @10 of each held-out thing, both ways, for each pair of kinds."""
    pairs = {
        "picture and name": ("picture", "name"), "name and speech": ("name read", "speech"),
        "picture and speech": ("picture", "speech"), "picture and English name": ("picture", "name en"),
        "Spanish name and speech": ("name es", "speech es"),
    }  # fmt: skip
    return {
        f"{name}, recall@{k}": recall(points[left], points[right], k)
        for name, (left, right) in pairs.items()
        for k in (1, 10)
    }


def page_of(folder: Path, index: archive.Index, points: dict[str, Tensor], found: dict[str, float]) -> str:
    """Writes a page of English names of held-out things, each with the five pictures that lie nearest."""
    sections = []
    for place, (picture, name) in enumerate(zip(_pictures(index), points["name en"], strict=True)):
        if place == SHOWN:
            break
        asked = (folder / picture.replace(".png", "-en.txt")).read_text(encoding="utf-8").strip()
        near = [each.name for each in archive.nearest(index, name, 5) if each.kind == "picture"]
        images = "".join(
            f'<img src="{html.escape(str(Path(folder.parent.name, folder.name, own)))}" alt="{html.escape(own)}"'
            f"{' class=own' if own == picture else ''}>"
            for own in near
        )
        sections.append(f"<section><p>{html.escape(asked)}</p>{images}</section>\n")
    summary = (
        f"The five pictures nearest to a name; a green frame marks the thing's own. {html.escape(json.dumps(found))}"
    )
    return PAGE.format(summary=summary, sections="".join(sections))


def _mean(points: Sequence[Tensor]) -> Tensor:
    return F.normalize(torch.stack(list(points)).mean(0), dim=-1)


def _pictures(index: archive.Index) -> Sequence[str]:
    return sorted(entry.name for entry in index.entries if entry.kind == "picture")


def main() -> None:
    """Builds and searches in the folder that the command line names, and prints the figures."""
    if len(sys.argv) != 2:
        sys.exit("python examples/search/demonstrate.py DIRECTORY")
    for name, value in demonstrate(Path(sys.argv[1]), is_smoke=False).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
