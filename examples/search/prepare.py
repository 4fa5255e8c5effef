"""Makes a table of public things to build a space of, and an archive of things that are held out, to search.

    python examples/search/prepare.py DIRECTORY [--seed 1] [--held-out 100] [--imported] [--few] [--packages FOLDER]

These are stamps of a paint program and emoji, and no medical images. Writes DIRECTORY/public.csv with DIRECTORY/files,
from which `coordinator space build` builds a space, and DIRECTORY/archive with a picture, a reading in three languages
and a text of each held-out stamp. No public thing is called by the name of one that is held out, in any language.

With --imported they are for an eye and an ear that were trained before: pictures of 224 x 224 pixels in place of 32 x
32, the classes that the eye was taught with their names (not those that a held-out thing bears), and fewer names that
the synthesiser says.

Data come from Debian packages, fetched and not installed: tuxpaint-stamps-default (GPL-2, for examples and tests only:
pictures, names, people who read them aloud), fonts-noto-color-emoji (OFL), unicode-cldr-core (the emoji's names) and,
with --imported, wordnet-base (the classes' names). A synthesiser (espeak-ng, GPL-3, by the package espeakng-loader)
says public names too.
"""

import argparse
import csv
import itertools
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from confide.models.space import encoders
from confide.models.space.public import COLUMNS, FILES

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "voices"))
from debian import unpacked
from readings import as_wav, read, require_packages, spoken
from things import LANGUAGES, SPOKEN, Thing, apart, bare, classes, emoji, shrunk, stamps

SIDE = 32  # pixels of a picture
HELD_OUT, FEW_HELD_OUT, FEW = 100, 8, 24  # stamps that are held out; and of a run that only shows that it runs
SIGNS = "symbols/"  # stamps of letters, coins and road signs: nobody knows a letter that was never shown
SEEN_OFTEN = 2  # a stamp's picture stands so often in the table, where an emoji's stands once
READ_OFTEN = 4  # a reading stands so often, where what the synthesiser says stands once
SAID = 2  # times that the synthesiser says a stamp's name in a language, each in another voice; an emoji's, once
LONGEST = 60  # letters of a name that is said
PACKAGES = {  # by the file that shows that one is there
    "usr/share/tuxpaint/stamps": "tuxpaint-stamps-default",
    "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf": "fonts-noto-color-emoji",
    "usr/share/unicode/cldr/common/annotations": "unicode-cldr-core",
}
WORDNET = {"usr/share/wordnet/data.noun": "wordnet-base"}
Row = tuple[str, str, str]


def prepare(
    directory: Path, packages: Path, *, seed: int, held_out: int, few: int | None = None, imported: bool = False
) -> None:
    """Writes the table, its files and the archive below `directory`.

    Args:
        packages: folder into which packages are fetched that are not installed.
        seed: says which stamps are held out.
        held_out: number of these.
        few: take that many public stamps and emoji, and no more; None: all.
        imported: for an imported eye and ear.

    Raises:
        FileNotFoundError: a package is not there and cannot be fetched, with what to do.
    """
    require_packages()
    drawn, font, annotations = (found(place, packages) for place in PACKAGES)
    kept, others = split(list(stamps(drawn)), seed, held_out)
    public = [apart(some, kept)[:few] for some in (others, emoji(font, annotations))]
    (directory / FILES).mkdir(parents=True, exist_ok=True)
    with (directory / "public.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        rng = random.Random(f"voices {seed}")
        for number, thing in enumerate(itertools.chain(*public)):
            table.writerows(rows_of(thing, directory / FILES, f"{number:05}", rng, imported=imported))
        if imported:
            table.writerows(class_rows(found(*WORDNET, packages), kept))
    half = directory / "archive-half"  # who stops this half-way must not be left with half an archive
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    for number, thing in enumerate(kept):
        write_held_out(thing, half, f"{number:03}", side_of(imported=imported))
    shutil.rmtree(directory / "archive", ignore_errors=True)
    half.rename(directory / "archive")


def split(known: Sequence[Thing], seed: int, held_out: int) -> tuple[list[Thing], list[Thing]]:
    """Draws stamps of things to hold out, of those that are read in all three languages, no two by the same name."""
    order, kept, theirs = list(known), list[Thing](), set[tuple[str, str]]()
    random.Random(f"held out {seed}").shuffle(order)
    for thing in order:
        is_thing = len(thing.readings) == len(SPOKEN) and not thing.name.startswith(SIGNS)
        if len(kept) < held_out and is_thing and not thing.bare & theirs:
            kept.append(thing)
            theirs |= thing.bare
    names = {thing.name for thing in kept}
    return kept, [thing for thing in known if thing.name not in names]


def side_of(*, imported: bool) -> int:
    """Pixels of a picture on each side."""
    return encoders.SIDE if imported else SIDE


def class_rows(wordnet: Path, held_out: Sequence[Thing]) -> Iterator[Row]:
    """Yields the rows of the classes that an imported eye was taught, without a name that a held-out thing bears."""
    theirs = {name for thing in held_out for _, name in thing.bare}
    for number, names in enumerate(classes(wordnet)):
        kept = [name for name in names if bare(name) not in theirs]
        yield from [(f"class-{number}", name, "") for name in kept]
        if kept:
            yield f"class-{number}", "", f"{number}.class"


def rows_of(thing: Thing, files: Path, number: str, rng: random.Random, *, imported: bool) -> Iterator[Row]:
    """Writes a public thing's files and yields its rows."""
    for name in sorted(set(thing.names.values())):
        yield thing.name, name, ""
    Image.fromarray(shrunk(thing.picture, side_of(imported=imported))).save(files / f"{number}.png")
    yield from [(thing.name, "", f"{number}.png")] * (SEEN_OFTEN if thing.readings else 1)
    # What an imported ear makes of a voice is known before, so one voice does, and one language of an emoji's names.
    voices = SAID if thing.readings and not imported else 1
    said = LANGUAGES if thing.readings or not imported else (rng.choice(LANGUAGES),)
    for code in LANGUAGES:
        name = thing.names[code]
        if code in thing.readings:
            (files / f"{number}-{code}.wav").write_bytes(as_wav(read(thing.readings[code])))
            yield from [(thing.name, name, f"{number}-{code}.wav")] * READ_OFTEN
        for voice in range(voices if code in said else 0):
            wave = spoken(name, "en-us" if code == "en" else code, rng) if len(name) <= LONGEST else None
            if wave is not None:
                (files / f"{number}-{code}-{voice}.wav").write_bytes(as_wav(wave))
                yield thing.name, name, f"{number}-{code}-{voice}.wav"


def write_held_out(thing: Thing, archive: Path, number: str, side: int) -> None:
    """Writes a held-out thing into an archive: a picture, readings, and a text of a name in every language."""
    Image.fromarray(shrunk(thing.picture, side)).save(archive / f"{number}.png")
    for code in LANGUAGES:
        (archive / f"{number}-{code}.txt").write_text(thing.names[code] + "\n", encoding="utf-8")
        if code in SPOKEN:
            (archive / f"{number}-{code}.wav").write_bytes(as_wav(read(thing.readings[code])))


def found(place: str, packages: Path) -> Path:
    """Finds a file or folder of a package: of the installed one, or of one that is fetched into `packages`.

    Raises:
        FileNotFoundError: there is neither, with what to do.
    """
    package = (PACKAGES | WORDNET)[place]
    fetched = packages / package
    for root in (Path("/"), fetched):
        if (root / place).exists():
            return root / place
    if shutil.which("apt-get") and shutil.which("dpkg-deb") and unpacked(package, fetched):
        return fetched / place
    raise FileNotFoundError(f"{place} was not found: install {package} (Debian, Ubuntu), or unpack it in {fetched}")


def main() -> None:
    """Reads the arguments and prepares the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="says which stamps are held out")
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--imported", action="store_true", help="for an imported eye and ear")
    parser.add_argument("--few", action="store_true", help="few things, to see that it runs")
    parser.add_argument("--packages", type=Path, help="where fetched packages are kept; by default beside DIRECTORY")
    args = parser.parse_args()
    held_out, few = (FEW_HELD_OUT, FEW) if args.few else (args.held_out, None)
    try:
        prepare(
            args.directory,
            args.packages or args.directory.parent / "packages",
            seed=args.seed,
            held_out=held_out,
            few=few,
            imported=args.imported,
        )
    except FileNotFoundError as err:
        sys.exit(str(err))


if __name__ == "__main__":
    main()
