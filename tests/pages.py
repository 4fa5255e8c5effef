"""Checks that hold for each web page of ours: the structure that a screen reader needs, and contrast by its style."""

import html.parser
import re
from dataclasses import dataclass, field
from itertools import pairwise

VOID = frozenset({"meta", "br", "line", "path", "circle", "rect"})
HEADINGS = ("h1", "h2", "h3", "h4")


@dataclass
class Element:
    tag: str
    attributes: dict
    parent: "Element | None" = None
    children: list = field(default_factory=list)
    text: str = ""

    def all(self, *tags: str) -> list["Element"]:
        found = [self] if self.tag in tags else []
        return found + [each for child in self.children for each in child.all(*tags)]

    def words(self) -> str:
        return " ".join([self.text, *(child.words() for child in self.children)]).strip()

    def is_in(self, kind: str) -> bool:
        at = self
        while at is not None:
            if kind in at.attributes.get("class", "").split():
                return True
            at = at.parent
        return False


class _Builder(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = self.at = Element("document", {})

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Element(tag, dict(attrs), self.at))

    def handle_endtag(self, tag):
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.text += data


def parsed(page: str) -> Element:
    builder = _Builder()
    builder.feed(page)
    assert builder.at is builder.root
    return builder.root


def assert_is_told_to_everybody(page: str, language: str) -> None:
    """One h1, no level left out, a language, tables with a caption and scopes, regions that a keyboard reaches."""
    root = parsed(page)
    (document,) = root.all("html")
    assert document.attributes["lang"] == language
    levels = [HEADINGS.index(each.tag) for each in root.all(*HEADINGS)]
    assert levels[0] == 0
    assert levels.count(0) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables = root.all("table")
    assert tables
    for table in tables:
        captions = table.all("caption")
        assert [each.words() != "" for each in captions] == [True]
        assert table.children[0].tag == "caption"
        _assert_headers(table)
    for cell in root.all("th"):
        assert cell.attributes.get("scope") in ("col", "row"), cell.words()
        assert cell.words(), "a heading without words"
    for region in [each for each in root.all("div") if each.is_in("scroll") and "scroll" in each.attributes["class"]]:
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["role"] == "region"
        assert region.attributes["aria-label"]
    for picture in root.all("svg"):
        assert picture.attributes["role"] == "img"
        assert picture.attributes["aria-label"]
        assert picture.all("desc")[0].text


def _assert_headers(table: Element) -> None:
    """Every row of a body begins with its heading; rows that span the table are remarks on the row above."""
    for body in table.all("tbody"):
        for row in body.all("tr"):
            is_remark = [each.tag for each in row.children] == ["td"] and "colspan" in row.children[0].attributes
            assert is_remark or row.children[0].tag == "th", row.words()


def colours(style: str) -> dict[str, dict[str, str]]:
    """The colour variables of a style, by mode."""
    dark = "".join(re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n\}", style, re.DOTALL))
    light = style.replace(dark, "")
    found = {}
    for mode, text in (("light", light), ("dark", dark)):
        blocks = "".join(re.findall(r":root \{(.*?)\}", text, re.DOTALL))
        found[mode] = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{3,8})", blocks))
    return found


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, by WCAG 2.2."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    assert len(digits) == 6, f"{colour} is no opaque colour"
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def assert_can_be_read(page: str) -> None:
    """Every colour of text stands out by 4.5 from every background, every line of a chart by 3, in both modes."""
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|\brgba?\(|\bhsl", rules), "a colour that is no variable"
    texts = set(re.findall(r"(?<![-\w])color:\s*var\(--([\w-]+)\)", rules))
    texts |= set(re.findall(r"\.(?:[\w-]+-name|tick|axis|label|svg text) \{ fill: var\(--([\w-]+)\)", rules))
    texts |= set(re.findall(r"svg text \{[^}]*fill: var\(--([\w-]+)\)", rules))
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", rules)) - {"desk"}  # on the desk lies the paper alone
    grounds -= set(re.findall(r"\.meter[^{]*\{[^}]*background: var\(--([\w-]+)\)", rules))  # which holds no text
    lines = set(re.findall(r"stroke: var\(--([\w-]+)\)", rules)) - {"line", "paper"}  # the grid is for who can see it
    assert {"ink", "soft", "faint"} <= texts
    assert {"paper", "wash"} <= grounds
    for mode, found in colours(style).items():
        assert found.keys() >= texts | grounds | lines, mode
        for ground in grounds:
            for name, least in [*((name, 4.5) for name in texts), *((name, 3.0) for name in lines)]:
                ratio = contrast(found[name], found[ground])
                assert ratio >= least, f"{mode}: {name} on {ground} is {ratio:.2f}:1"
