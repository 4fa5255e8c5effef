"""Makes three organisations' tables of their own Java, and a table of public Python, from what is installed.

    python examples/code/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv, a row a function with the id of its file, and DIRECTORY/public.csv,
on which a backbone is trained. All rows of a file are held out or none; a function that stands in several files, but
for names of types and numbers, is kept once, where it is met first. The Java is the source of OpenJDK, whose licence is
GPL-2 with classpath exception: it is read from the `src.zip` of a JDK on this machine, or of Debian's package
openjdk-21-source.
"""

import csv
import itertools
import os
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
from debian import unpacked
from functions import of_java, of_python
from splitting import draw, main

STDLIB = "standard library"
SITES = {  # the modules of an organisation
    "core": ("java.base",),
    "client": ("java.desktop",),
    "tools": (
        "java.management", "java.naming", "java.net.http", "java.rmi", "java.security.jgss", "java.xml", "jdk.compiler",
        "jdk.hotspot.agent", "jdk.internal.vm.ci", "jdk.javadoc", "jdk.jdeps", "jdk.jdi", "jdk.jfr", "jdk.jshell",
    ),
}  # fmt: skip
PUBLIC = (STDLIB, "networkx", "numpy", "scipy", "sklearn")
HELD_OUT = 0.04  # of the files
OF_A_FILE = 2  # functions
FEW = 300  # files, where few are enough
PUBLIC_ROWS = 10_000
SIGNS = (60, 700)  # of a function
JVMS = Path("/usr/lib/jvm")
PACKAGES = ("openjdk-21-source", "openjdk-17-source", "openjdk-25-source")
_TYPES = re.compile(r"\b(?:[A-Z]\w*|boolean|byte|char|double|float|int|long|short|[0-9][0-9a-zA-Z]*)\b")
_SKIPPED = ("site-packages", "test", "vendor", "idlelib", "lib2to3")  # in the name of a Python file
Row = tuple[str, str]  # file, function


def prepare(directory: Path, *, files: int | None = None) -> dict[str, Any]:
    """Writes the tables below `directory` and says what is in them.

    Args:
        files: of each organisation and of public code that are read; None: all.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "modules": names}}.

    Raises:
        FileNotFoundError: neither a JDK's sources nor a package of them is to be had, or a Python package is missing.
    """
    directory = Path(directory)
    seen: set[str] = set()
    report = {}
    with zipfile.ZipFile(java_sources(directory)) as archive:
        for site, modules in SITES.items():
            parts: dict[str, list[Row]] = {"train": [], "heldout": []}
            for row in functions(java_files(archive, modules), of_java, seen, most=OF_A_FILE, files=files):
                parts["heldout" if is_held_out(row[0]) else "train"].append(row)
            for part, rows in parts.items():
                write(directory / site / f"{part}.csv", rows, "java")
            units = {part: len({file for file, _ in rows}) for part, rows in parts.items()}
            report[site] = {
                **{part: str(directory / site / f"{part}.csv") for part in parts},
                "units": units["train"], "heldout_units": units["heldout"], "modules": ", ".join(modules),
            }  # fmt: skip
    public = functions(python_files(PUBLIC), of_python, seen, files=files)
    write(directory / "public.csv", itertools.islice(public, PUBLIC_ROWS), "python")
    return report


def prepare_few(directory: Path) -> dict[str, Any]:
    """Writes tables of few files, for a run that only shows that it runs; see `prepare`."""
    return prepare(directory, files=FEW)


def java_sources(directory: Path) -> Path:
    """Finds the archive of OpenJDK's sources: of a JDK here, or of a Debian package that is fetched into `directory`.

    Raises:
        FileNotFoundError: there is neither, with what to do.
    """
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    places = [home / part for home in homes for part in ("lib/src.zip", "src.zip")]
    places += [*sorted(JVMS.glob("*/lib/src.zip")), directory / "openjdk" / "src.zip"]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        for package in PACKAGES:
            if (archive := _fetched(package, directory / "openjdk")) is not None:
                return archive
    raise FileNotFoundError(
        "the sources of OpenJDK were not found: set JAVA_HOME to a JDK with lib/src.zip, or install one of "
        f"{', '.join(PACKAGES)} (Debian, Ubuntu) or java-21-openjdk-src (Fedora)"
    )


def is_held_out(file: str) -> bool:
    """True for one file in twenty-five, by its name."""
    return draw(f"code {file}".encode()) < HELD_OUT


def functions(
    sources: Iterable[tuple[str, Callable[[], str]]],
    read: Callable[[str], Iterator[str]],
    seen: set[str],
    *,
    most: int | None = None,
    files: int | None = None,
) -> Iterator[Row]:
    """Yields the functions of files with the files' names, without those whose form is in `seen`, which grows.

    Args:
        sources: files (name, what gives the text); they come in an order drawn by their names.
        most: functions of a file, drawn by its name; None: all.
        files: that are read; None: all.
    """
    ordered = sorted(sources, key=lambda file: file[0])
    random.Random("files").shuffle(ordered)
    for name, text in ordered[:files]:
        found = {form_of(each): each for each in read(text()) if SIGNS[0] <= len(each) <= SIGNS[1]}
        own = [form for form in found if form not in seen]
        random.Random(name).shuffle(own)
        seen |= set(own[:most])
        yield from ((name, found[form]) for form in own[:most])


def form_of(function: str) -> str:
    """Returns what copies of a function for other types have in common: all but the names of types, and numbers."""
    return _TYPES.sub("T", function)


def java_files(archive: zipfile.ZipFile, modules: Iterable[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yields the Java files of modules: name, and what gives the text."""
    wanted = tuple(f"{module}/" for module in modules)
    for name in archive.namelist():
        if name.startswith(wanted) and name.endswith(".java"):
            yield name, lambda name=name: archive.read(name).decode("utf-8", "replace")  # type: ignore[misc]


def python_files(packages: Iterable[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yields the Python files of installed packages: name, and what gives the text."""
    paths = sysconfig.get_paths()
    for package in packages:
        root = Path(paths["stdlib"]) if package == STDLIB else Path(paths["purelib"]) / package
        if not root.is_dir():
            raise FileNotFoundError(f"package {package} is not installed beside confide, which needs it")
        for path in root.rglob("*.py"):
            name = f"{package}/{path.relative_to(root)}"
            if not any(word in name for word in _SKIPPED):
                yield name, lambda path=path: path.read_text(encoding="utf-8", errors="replace")  # type: ignore[misc]


def write(path: Path, rows: Iterable[Row], language: str) -> None:
    """Writes functions as rows of a table, each with the id of its file and its language."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file_id", "language", "function"))
        table.writerows((name, language, function) for name, function in rows)


def _fetched(package: str, folder: Path) -> Path | None:
    """Fetches a Debian package of sources; returns its archive, or None if the package is not to be had."""
    with tempfile.TemporaryDirectory() as place:
        if not unpacked(package, Path(place, "package")):
            return None
        (archive,) = (path for path in Path(place).rglob("src.zip") if path.is_file() and not path.is_symlink())
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(archive, folder / "src.zip"))


if __name__ == "__main__":
    main(prepare, __doc__)
