"""Writes the pages of docs/api from the docstrings: a page a room, with everything that its face names.

    python docs/generate_api.py [FOLDER]

Sources are read, never imported: griffe (ISC licence) follows names through the faces and parses docstrings, and the
Markdown is made here. Of the ready tools pdoc and Sphinx write HTML, which nobody reads in a repository; lazydocs and
pydoc-markdown have had no release for years; griffe2md knows no faces, and drops the comments behind fields, where this
project writes units and ranges. So code is shown as it stands in the source, without its bodies.

Pages hold no line numbers, addresses or dates: they change only if a face, a signature or a docstring does.
"""

import ast
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "api"
PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models", "kernels")
FOR_CALLERS = ("install", "moe", "routing", "experts", "formats", "collect", "lora", "embedding")
"""Files of `kernels`, which has no rooms, that are meant for callers; all others are backends behind `moe`."""
WITHOUT_PAGE = ("cli",)
"""Rooms that nobody imports: what they hold are commands, and `--help` tells of these."""
TITLES = {griffe.DocstringSectionKind.parameters: "Arguments", griffe.DocstringSectionKind.attributes: "Fields"}

Member = griffe.Object | griffe.Alias

INTRODUCTION = """\
# API

What may be imported, package by package: each room's face names it in `__all__`, and import-linter holds everybody to
that ([CONTRIBUTING.md](../../CONTRIBUTING.md)). Commands describe themselves: see `coordinator --help`.

Made by `make docs` from docstrings and signatures. Do not edit these pages: edit the docstrings.
"""


@dataclass(frozen=True, slots=True)
class Page:
    """A page that lists the public names of one module after another."""

    title: str
    module: Member
    named: list[Member]  # what comes first, each under its own name
    modules: list[Member]  # whole modules, whose public names follow
    shown: set[str] = field(default_factory=set)  # where things are defined that the page has shown already

    def text(self) -> str:
        """The whole page."""
        parts = [f"# {self.title}", *prose(self.module)]
        if self.module.filepath and not isinstance(self.module.filepath, list):
            parts.append(source_link(self.module))
        body = list(self._body())
        anchors = _anchors(body)
        listed = [*self.named, *self.modules]
        parts.append(table((f"[`{entry.name}`](#{anchors[entry.name]})", summary(entry)) for entry in listed))
        return "\n\n".join([*parts, *body]) + "\n"

    def _body(self) -> Iterator[str]:
        for entry in self.named:
            yield from self._entry(entry, level=2)
        for module in self.modules:
            yield f"## `{module.name}`"
            yield from prose(module)
            yield source_link(module)
            entries = [entry for entry in public(module) if entry.canonical_path not in self.shown]
            if constants := [header(entry) for entry in entries if entry.is_attribute]:
                yield code("\n".join(constants))
            for entry in entries:
                if not entry.is_attribute:
                    yield from self._entry(entry, level=3)

    def _entry(self, entry: Member, *, level: int) -> Iterator[str]:
        self.shown.add(entry.canonical_path)
        yield f"{'#' * level} `{entry.name}`"
        if level == 2:
            yield source_link(entry)
        yield code(header(entry))
        yield from prose(entry)
        if entry.is_class:
            for method in methods(entry):
                yield f"{'#' * (level + 1)} `{entry.name}.{method.name}`"
                yield code(header(method))
                yield from prose(method)


def pages() -> dict[str, str]:
    """The text of every page by its file's name."""
    logging.getLogger("griffe").setLevel(logging.ERROR)  # types stand in signatures, and docstrings do not repeat them
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    packages = {name: loader.load(name, try_relative_path=False) for name in PACKAGES}
    loader.resolve_aliases(implicit=False, external=False)
    written, index = {}, [INTRODUCTION.strip()]
    for name, package in packages.items():
        rooms = [room for room in _rooms(package) if room.name not in WITHOUT_PAGE]
        for room in rooms:
            entries = [room[entry] for entry in face(room)]
            named = [entry for entry in entries if not entry.is_module]
            modules = [entry for entry in entries if entry.is_module]
            written[f"{name}.{room.name}.md"] = Page(f"confide.{name}.{room.name}", room, named, modules).text()
        beside = [package[entry] for entry in face(package) if package[entry] not in _rooms(package)]
        if not face(package):
            beside = [package[entry] for entry in FOR_CALLERS]
        written[f"{name}.md"] = Page(f"confide.{name}", package, [], [*beside, package["errors"]]).text()
        index += [f"## [`confide.{name}`]({name}.md)", *filter(None, [summary(package)])]
        links = [(f"[`{room.name}`]({name}.{room.name}.md)", summary(room)) for room in rooms]
        links += [(f"[`{module.name}`]({name}.md#{module.name})", summary(module)) for module in beside]
        index.append(table([*links, (f"[`errors`]({name}.md#errors)", summary(package["errors"]))]))
    written["README.md"] = "\n\n".join(index) + "\n"
    return dict(sorted(written.items()))


def write(folder: Path) -> None:
    """Makes `folder` hold the pages and no other Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    written = pages()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.name not in written:
            path.unlink()


def face(module: Member) -> list[str]:
    """The names in a module's `__all__`, sorted; none if it has no `__all__`."""
    return sorted(str(name) for name in module.exports or ())


def public(module: Member) -> Iterator[Member]:
    """What a module offers, in its own order: what `__all__` names, or what it defines without a leading underscore."""
    for name, member in module.members.items():
        if module.exports is not None:
            is_offered = name in face(module)
        elif member.is_alias or member.is_module:
            is_offered = False
        else:  # a variable in small letters, such as a logger, is the module's own
            is_offered = name[0].isupper() or (not member.is_attribute and not name.startswith("_"))
        if is_offered:
            yield member


def methods(entry: Member) -> Iterator[Member]:
    """The documented functions and properties of a class, in its own order."""
    for name, member in entry.members.items():
        is_callable = not member.is_alias and (member.is_function or "property" in member.labels)
        if is_callable and not name.startswith("_") and member.docstring:
            yield member


def header(entry: Member) -> str:
    """The source of a definition without its body: a signature, a class with its fields, a constant."""
    source = entry.source
    node = ast.parse(source).body[0]
    lines = source.splitlines()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _without_body(node, lines)
    if not isinstance(node, ast.ClassDef):
        return source
    decorators = [line for decorator in node.decorator_list for line in _lines(decorator, lines)]
    fields: list[str] = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign | ast.Assign):
            target = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
            if not ast.unparse(target).startswith(("_", "model_config")):  # the latter is a word to pydantic
                fields += _lines(part, lines)
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            fields.append(_without_body(part, lines))
    opening = _without_body(node, lines)
    return "\n".join([*(f"@{line.lstrip('@')}" for line in decorators), opening, *fields])


def prose(entry: Member) -> Iterator[str]:
    """A docstring as Markdown, paragraph by paragraph."""
    if not entry.docstring:
        return
    for section in entry.docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            yield from (_block(block) for block in _blocks(section.value))
        elif section.kind is griffe.DocstringSectionKind.examples:
            yield from (code(text, "pycon") if kind.value == "examples" else text for kind, text in section.value)
        elif section.kind is griffe.DocstringSectionKind.admonition:
            yield f"**{section.title}**"
            yield escaped(section.value.contents)
        else:
            yield f"**{TITLES.get(section.kind, section.kind.value.capitalize())}**"
            yield "\n".join(_item(item) for item in section.value)


def summary(entry: Member) -> str:
    """The first sentence of a docstring, fit for a cell of a table."""
    text = " ".join(entry.docstring.value.split("\n\n")[0].split()) if entry.docstring else ""
    sentence = re.match(r".*?\.(?=\s|$)", text)
    return escaped(sentence[0] if sentence else text).replace("|", "\\|")


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns without titles."""
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def code(text: str, language: str = "python") -> str:
    """A fenced block."""
    return f"```{language}\n{text}\n```"


def escaped(text: str) -> str:
    """Text in which Markdown sees no emphasis and no tags, code between backticks left alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<!\n)(?<!^)\*|<(?=\w)", r"\\\g<0>", part) for part in parts
    )


def source_link(entry: Member) -> str:
    """Where the source is, as a link from docs/api."""
    path = Path(str(entry.filepath)).relative_to(ROOT).as_posix()
    return f"Source: [{path}](../../{path})"


def _anchors(parts: list[str]) -> dict[str, str]:
    """The anchor that GitHub gives each heading of the second level, by the heading's name."""
    anchors: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for heading in (part for part in parts if part.startswith("#")):
        marks, name = heading.replace("`", "").split(" ")
        slug = name.lower().replace(".", "")
        if marks == "##":
            anchors[name] = f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1
    return anchors


def _rooms(package: Member) -> list[Member]:
    """The sub-folders of a package that have a face, by name."""
    found = [package[name] for name in sorted(package.members) if package[name].is_module]
    return [module for module in found if not module.is_alias and module.is_init_module and module.exports]


def _lines(node: ast.stmt | ast.expr, lines: list[str]) -> list[str]:
    """The whole lines of a node, comments behind it included."""
    return lines[node.lineno - 1 : node.end_lineno]


def _without_body(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]) -> str:
    """The head of a definition, with its decorators if it is a function, and `...` for all that follows."""
    is_class = isinstance(node, ast.ClassDef)
    first = node.lineno if is_class or not node.decorator_list else node.decorator_list[0].lineno
    body = node.body[0]
    before = lines[first - 1 : body.lineno - 1]
    if body.lineno == node.lineno or not before:  # all on one line
        before = [*before, lines[body.lineno - 1].encode()[: body.col_offset].decode().rstrip()]
    while before[-1].strip().startswith(("#", "@")) or not before[-1].strip():
        before.pop()
    return "\n".join(before)


def _blocks(text: str) -> list[str]:
    """Paragraphs of a docstring; what is indented stays with the lines around it."""
    return [block.rstrip() for block in re.split(r"\n\s*\n(?!    )", text.strip("\n")) if block.strip()]


def _block(text: str) -> str:
    """A paragraph: a session, a drawing or indented lines as code, anything else as prose."""
    if text.lstrip().startswith(">>>"):
        return code(text, "pycon")
    if re.search("[├└│─]", text):
        return code(text, "text")
    if "\n\n    " in text or text.startswith("    "):
        prose_lines, _, block = text.partition("\n\n")
        return "\n\n".join([escaped(prose_lines), block]) if block else text
    return escaped(text)


def _item(item: griffe.DocstringElement) -> str:
    """A line of a list: an argument, an error, what is returned."""
    name = getattr(item, "name", "") or str(item.annotation or "")
    description = " ".join(item.description.split())
    return f"- `{name}`: {escaped(description)}" if name else f"- {escaped(description)}"


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES)
