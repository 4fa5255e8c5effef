"""Things for examples/search: stamps of a paint program, and emoji, with names in four languages.

Pictures are uint8 [side, side, 3]. Nothing here is a medical image.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.append(str(Path(__file__).resolve().parents[1] / "voices"))
from readings import things_of

LANGUAGES = ("en", "es", "fr", "ca")  # of names
SPOKEN = ("es", "fr", "ca")  # that the stamps are read aloud in
_ARTICLE = re.compile(r"((an?|the|un[ae]?|el|la|los|las|les?|els|des|du|de la)\s+|(de l|l|d)['’]\s*)(?=\S)")
_IMAGENET = Path(__file__).parent / "imagenet.txt"  # where each class's nouns stand in WordNet
_SHEET, _POINTS = (136, 128), 109  # pixels of a glyph, and the one size that the font has


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing: its name in each language, its picture, and who reads the name aloud."""

    name: str
    names: dict[str, str]  # by language
    picture: Image.Image | Path
    readings: dict[str, Path] = field(default_factory=dict)  # by language

    @property
    def bare(self) -> set[tuple[str, str]]:
        """Language and name without an article: by these, things are told apart."""
        return {(code, bare(name)) for code, name in self.names.items()}


def bare(name: str) -> str:
    """A name in small letters, without an article before it."""
    found = _ARTICLE.match(name.lower())
    return name.lower()[found.end() if found else 0 :]


def stamps(folder: Path) -> Iterator[Thing]:
    """Yields the stamps that have a picture and a name in every language."""
    for name, readings, texts in things_of(folder):
        picture = folder / f"{name}.png"
        first = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        names = {code: _tidy(text) for code, text in ({"en": first} | texts).items() if code in LANGUAGES}
        if picture.is_file() and len(names) == len(LANGUAGES) and all(names.values()):
            yield Thing(name, names, picture, {code: readings[code] for code in SPOKEN if code in readings})


def emoji(font: Path, annotations: Path) -> Iterator[Thing]:
    """Yields the emoji of a font that Unicode names in every language."""
    glyphs, names = ImageFont.truetype(str(font), _POINTS), dict[str, dict[str, str]]()
    for code in LANGUAGES:
        for each in ET.parse(annotations / f"{code}.xml").getroot().iter("annotation"):
            if each.get("type") == "tts" and (name := _tidy(each.text or "")):
                names.setdefault(each.get("cp", ""), {})[code] = name
    for sign, told in names.items():
        sheet = Image.new("RGBA", _SHEET)
        ImageDraw.Draw(sheet).text((0, 0), sign, font=glyphs, embedded_color=True)
        if len(told) == len(LANGUAGES) and sheet.getbbox() is not None:
            yield Thing(f"emoji-{'-'.join(f'{ord(each):x}' for each in sign)}", told, sheet)


def classes(wordnet: Path) -> list[list[str]]:
    """English names of ImageNet's classes, in their order: those of their places in WordNet 3.0's file of nouns."""
    names = dict[str, list[str]]()
    for line in wordnet.read_text(encoding="latin-1").splitlines():
        place, _, _, count, *rest = line.split(" ")
        if place:  # what begins with blanks is the licence
            names[place] = [rest[2 * n].replace("_", " ") for n in range(int(count, 16))]
    return [names[place] for place in _IMAGENET.read_text(encoding="ascii").split()]


def shrunk(picture: Image.Image | Path, side: int) -> np.ndarray:
    """Cuts a picture to what is drawn, puts it in the middle of a white square and shrinks that."""
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return shrunk(opened, side)
    drawn = picture.convert("RGBA")
    drawn = drawn.crop(drawn.getchannel("A").getbbox())
    longest = max(drawn.size)
    square = Image.new("RGBA", (longest, longest), (255, 255, 255, 0))
    square.paste(drawn, tuple((longest - own) // 2 for own in drawn.size))
    white = Image.new("RGBA", square.size, "white")
    white.alpha_composite(square)
    return np.asarray(white.convert("RGB").resize((side, side), Image.Resampling.BOX))


def apart(things: Iterable[Thing], held_out: Iterable[Thing]) -> list[Thing]:
    """Things that share no name in any language with those that are held out."""
    theirs = set().union(*(thing.bare for thing in held_out))
    return [thing for thing in things if not thing.bare & theirs]


def _tidy(text: str) -> str:
    return " ".join(text.split()).rstrip(".").strip()
