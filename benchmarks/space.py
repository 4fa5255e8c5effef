"""Measures how often a name, a picture and a reading of one thing that was held out whole find each other first.

    python benchmarks/space.py [--dir bench-space] [--seeds 1 2 3] [--steps N] [--imported] [--reader e5] [--in-batch]
                               [--plain]
    python benchmarks/space.py --svg FILE        # recall@k of spaces that are there, drawn
    python benchmarks/space.py --quick           # does it run? Few things, few steps

For each seed other stamps are held out, the example's public things are prepared and a space is built of them. Recall@1
and @10 are measured both ways among the held-out things: means over all seeds' things, and a 95 % interval by drawing
things again. Beside it: chance; and with --plain a way without any training, by which a picture or a sound takes the
names of the public one that is nearest by pixels or by spectrum, compared by the backbone's own states. With --in-batch
spaces are built once more whose wrong names are those of the batch alone (CLIP). What is there is measured again, not
built. With --imported the eye and the ear are those that were trained before (`space.encoders`), and with --reader
e5 names are read by multilingual E5 in place of SmolLM2. Figures: docs/search.md.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from confide.client_node.data import archive
from confide.models.backbones.importing import import_recipe
from confide.models.space import encoders
from confide.models.space.contrast import recall
from confide.models.space.embedding import Embedder
from confide.models.space.public import FILES, build_space, read_table, things_of
from confide.models.space.space import Space, load_space
from confide.models.space.states import FrozenReader
from confide.models.space.training import SpaceTrainingConfig
from confide.models.structure import pictures, sounds

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "search"))
from demonstrate import SMOKE, points_of, prepared, recalls
from prepare import WORDNET
from prepare import found as package_file
from reader import write_reader
from things import bare, classes

DRAWS, MOST_K = 10_000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("bench-space"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=SpaceTrainingConfig().steps)
    parser.add_argument("--imported", action="store_true", help="by an eye and an ear that were trained before")
    parser.add_argument("--reader", choices=("smollm2", "e5"), default="smollm2", help="of names")
    parser.add_argument("--in-batch", action="store_true", help="spaces whose wrong names are the batch's, too")
    parser.add_argument("--plain", action="store_true", help="also by the nearest public picture or sound")
    parser.add_argument("--svg", type=Path, help="draws recall@1 to recall@20 into this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.imported and args.plain:
        parser.error("--plain compares pixels and spectra of a space's own eye and ear")
    torch.set_num_threads(1)
    folder = args.dir / "quick" if args.quick else args.dir
    backbone = folder / args.reader
    if not backbone.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_reader(backbone) if args.reader == "e5" else import_recipe("smollm2", backbone)
    ways = {"space": {}} | ({"in-batch": {"gallery": 0, "sounds": 0}} if args.in_batch else {})
    found: dict[str, dict[str, list[Tensor]]] = {}
    drawn: list[dict[str, Tensor]] = []
    for seed in [1] if args.quick else args.seeds:
        things = folder / f"seed-{seed}{'-imported' if args.imported else ''}" / "things"
        options = ["--few"] if args.quick else ["--packages", str(folder / "packages")]
        options += ["--imported"] if args.imported else []
        prepared(things, "--seed", str(seed), *options)
        for way, settings in ways.items():
            own = "" if args.reader == "smollm2" else f"-{args.reader}"
            space = things.parent / (f"{way}{own}" if args.quick else f"{way}{own}-{args.steps}")
            if not space.exists():
                start = time.process_time()
                config = {"steps": args.steps, "seed": seed} | settings
                few = {"steps": SMOKE.steps, "batch": SMOKE.batch} if args.quick else {}
                eye, ear = (encoders.EFFICIENTNET, encoders.WHISPER) if args.imported else (None, None)
                config = SpaceTrainingConfig(**config | few)
                build_space(things / "public.csv", space, backbone, config=config, eye=eye, ear=ear)
                print(f"{way}, seed {seed}: {(time.process_time() - start) / 60:.1f} minutes of one core", flush=True)
            index = archive.indexed(things / "archive", Embedder(space, backbone), None).index
            points = points_of(index)
            figures = recalls(points)
            if args.imported and not args.quick:
                seen = figures["picture and name, recall@1"]
                figures["picture and name, recall@1, of no class"] = seen[of_no_class(things, folder / "packages")]
            add(found.setdefault(way, {}), figures)
            drawn += [points] if way == "space" else []
        if args.plain:
            add(found.setdefault("plain", {}), plainly(things, things.parent / space.name, backbone))
        show(found, len(points["picture"]))
    if args.svg is not None:
        args.svg.write_text(curves(drawn), encoding="utf-8")


def add(found: dict[str, list[Tensor]], more: dict[str, Tensor]) -> None:
    for name, rows in more.items():
        found.setdefault(name, []).append(rows)


def show(found: dict[str, dict[str, list[Tensor]]], things: int) -> None:
    rng = np.random.default_rng(1)
    for way, figures in found.items():
        for name, seeds in figures.items():
            rows = torch.cat(seeds).numpy()
            means = rows[rng.integers(0, len(rows), (DRAWS, len(rows)))].mean(1)
            low, high = np.quantile(means, [0.025, 0.975])
            chance = int(name.partition("@")[2].partition(",")[0]) / things
            each = " ".join(f"{float(seed.mean()):.3f}" for seed in seeds)
            print(
                f"| {way} | {name} | {rows.mean():.3f} | {low:.3f} to {high:.3f} | {each} | {chance:.3f} |", flush=True
            )


def of_no_class(things: Path, packages: Path) -> list[bool]:
    """Says of each held-out thing whether no class that the imported eye was taught has its English name."""
    taught = {bare(name) for names in classes(package_file(*WORDNET, packages)) for name in names}
    texts = sorted((things / "archive").glob("*-en.txt"))
    return [bare(text.read_text(encoding="utf-8").strip()) not in taught for text in texts]


def plainly(things: Path, space_folder: Path, backbone: Path) -> dict[str, Tensor]:
    """Recall of names by the names of the public picture or sound that is nearest, of which nothing is learned."""
    space = load_space(space_folder)[0]
    reader = FrozenReader(backbone, space.sizes.reads)
    public = things_of(read_table(things / "public.csv"), things / FILES, space.sizes, reader)
    kept = space.of_names

    def told(states_RE: Tensor) -> Tensor:
        return F.normalize(kept.coordinates(states_RE), dim=-1)

    held_out = things / "archive"
    files = {end: [path.read_bytes() for path in sorted(held_out.glob(f"*{end}"))] for end in (".png", "-es.wav")}
    asked = {
        code: told(reader.states([path.read_text().strip() for path in sorted(held_out.glob(f"*-{code}.txt"))]))
        for code in ("en", "es")
    }
    pixels = pictures.decode_colours(files[".png"], space.sizes.pictures.size)
    seen = what(public.shown, nearest(pixels, public.pictures_KHWC))
    waves = sounds.decode(files["-es.wav"], space.sizes.sounds)
    heard = what(public.said, nearest(spectra(space, waves), spectra(space, public.sounds_KS)))
    by_thing = torch.stack([told(public.states_GE[list(public.names_of[thing])]).mean(0) for thing in seen])
    pairs = {
        "picture and English name": (F.normalize(by_thing, dim=-1), asked["en"]),
        "Spanish name and speech": (asked["es"], told(public.states_GE[heard])),
    }
    return {f"{name}, recall@{k}": recall(*pair, k) for name, pair in pairs.items() for k in (1, 10)}


def nearest(asked: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of the nearest one among `known`, for each that is asked."""
    left, right = (torch.from_numpy(rows.reshape(len(rows), -1)).float() for rows in (asked, known))
    return torch.cdist(left, right).argmin(1).numpy()


def what(rows: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Things that files of these numbers show, or names that they say."""
    return np.array([rows[rows[:, 0] == file][0, 1] for file in files])


def spectra(space: Space, waves: np.ndarray) -> np.ndarray:
    ear = space.of_sounds.ear
    parts = torch.from_numpy(waves).split(256)
    return torch.cat([F.avg_pool2d(ear.spectra(part)[:, None], 4).flatten(1) for part in parts]).numpy()


def curves(drawn: list[dict[str, Tensor]]) -> str:
    """Draws recall@k of the three pairs, and of chance, as an SVG."""
    ks, height, left, bottom, step = range(1, MOST_K + 1), 220, 50, 250, 24
    things = len(drawn[0]["picture"])
    lines = {
        f"{a.split()[0]} and {b}": [
            float(torch.cat([recall(points[a], points[b], k) for points in drawn]).mean()) for k in ks
        ]
        for a, b in (("name read", "speech"), ("picture", "name"), ("picture", "speech"))
    } | {"chance": [k / things for k in ks]}
    right = left + step * (MOST_K - 1)
    parts = [
        '<svg viewBox="0 0 720 300" role="img" xmlns="http://www.w3.org/2000/svg"><style>svg{background:#fff;'
        "font:13px sans-serif}text{fill:#333}path{fill:none;stroke-width:2}.grid{stroke:#ddd}</style>",
        "<title>Share of held-out things that are found among the first k</title>",
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - height * share
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{share}</text>')
    for k in (1, 5, 10, 15, 20):
        parts.append(f'<text x="{left + step * (k - 1)}" y="{bottom + 20}" text-anchor="middle">{k}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle">first k of {things}</text>')
    for (name, shares), colour in zip(lines.items(), ("#0b6e4f", "#8a3ffc", "#b45309", "#777"), strict=True):
        places = " ".join(f"{left + step * n},{bottom - height * share:.1f}" for n, share in enumerate(shares))
        y = bottom - height * shares[-1] + 4
        parts.append(f'<path stroke="{colour}" d="M{places}"/>')
        parts.append(f'<text x="{right + 8}" y="{y:.1f}" style="fill:{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
