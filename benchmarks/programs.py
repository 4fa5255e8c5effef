"""Reads functions of installed Python packages and of OpenJDK for benchmarks, and trains small models on them.

Packages and modules are either trained on or held out. The Java is the source of OpenJDK 21 (GPL-2 with classpath
exception, trained on and not kept), which Debian has as openjdk-21-source: `apt-get download openjdk-21-source`, then
`dpkg-deb -x` and the `src.zip` in it. Without it there is Python alone.
"""

import argparse
import hashlib
import itertools
import random
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from silent import silence

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.records.code import CodeEncoder, CodeTerms
from confide.models.records.vocabularies import code_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "code"))
from functions import is_recursive, of_java, of_python

SIZES = {"96x2": (96, 2), "128x2": (128, 2)}  # width x layers
TRAIN, HELD_OUT = 4000, 400  # functions of a language
TOKENS = (24, 158)  # of a function
SHOWN, LONGEST = 16, 192
STDLIB = Path(sysconfig.get_paths()["stdlib"])
SITE = Path(sysconfig.get_paths()["purelib"])
PYTHON = {
    True: [
        *(
            STDLIB / name
            for name in ("asyncio", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml")
        ),
        *(SITE / name for name in ("networkx", "numpy", "pip", "scipy", "setuptools", "sklearn")),
    ],
    False: [SITE / name for name in ("alembic", "flwr", "httpx", "opacus", "peft", "rich", "sqlalchemy")],
}
JAVA = {
    True: ("java.base/java/", "java.desktop/javax/swing/", "java.xml/com/sun/org", "jdk.compiler/"),
    False: ("java.logging/", "java.naming/", "java.net.http/", "java.sql", "jdk.jdi/", "jdk.jfr/", "jdk.jshell/"),
}


def python_functions(is_train: bool) -> Iterator[str]:
    """Functions of installed packages, in an order drawn anew."""
    files = []
    for folder in PYTHON[is_train]:
        own = [path for path in sorted(folder.rglob("*.py")) if not is_test(path.relative_to(folder))]
        if not own:
            raise FileNotFoundError(f"{folder} has no programs: install what it belongs to")
        files += own
    random.Random(0).shuffle(files)
    for path in files:
        yield from of_python(path.read_text(encoding="utf-8", errors="replace"))


def is_test(path: Path) -> bool:
    """True if a file is a test, or one of a folder of tests."""
    return any(part.lower().startswith(("test", "_test", "conftest")) for part in path.parts)


def java_functions(archive: Path, is_train: bool) -> Iterator[str]:
    """Methods of modules of OpenJDK, in an order drawn anew."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in sorted(file.namelist()) if name.endswith(".java") and name.startswith(JAVA[is_train])]
        random.Random(0).shuffle(names)
        for name in names:
            yield from of_java(file.read(name).decode("utf-8", "replace"))


def corpus(java: Path | None) -> dict[tuple[str, bool], list[str]]:
    """Different functions by language and part, more of them than are used, since some are too long."""
    found: dict[tuple[str, bool], list[str]] = {}
    seen: set[str] = set()
    for is_train in (True, False):
        sources = {"python": python_functions(is_train)}
        if java is not None:
            sources["java"] = java_functions(java, is_train)
        for language, functions in sources.items():
            some = [each for each in itertools.islice(functions, 4 * TRAIN) if not (each in seen or seen.add(each))]
            random.Random(1).shuffle(some)
            found[language, is_train] = some
    return found


def encoded(encoder: CodeEncoder, functions: Sequence[str], language: str, count: int) -> list:
    """The first functions that are neither too short nor too long: (ids, is_learned)."""
    rows = []
    for function in functions:
        ids, is_learned = encoder.encode([function], [language])
        if TOKENS[0] <= ids.shape[1] - 3 <= TOKENS[1]:
            rows.append((ids[0], is_learned[0]))
        if len(rows) == count:
            break
    return rows


def recursive(functions: Sequence[str], language: str) -> list[str]:
    """Chooses the functions that call themselves."""
    return [each for each in functions if is_recursive(each, language)]


def trained(
    data: dict, *, seed: int, tokens: int, size: str, has_structure: bool = True
) -> tuple[torch.nn.Module, CodeEncoder, list, int]:
    """Trains a model from nothing on the first functions of each language: (model, encoder, rows, seconds).

    Without structure all tables are there and say the same of every token.
    """
    hidden, layers = SIZES[size]
    languages = tuple(sorted({language for language, _ in data}))
    tokenizer = code_tokenizer(text for language in languages for text in data[language, True][:TRAIN])
    terms = CodeTerms(code="function", languages=languages, language="language", shown=SHOWN, max_written=LONGEST)
    encoder = CodeEncoder(terms, tokenizer, TOKENS[1] + 8)
    model = build_text(tokenizer, "code", BackboneConfig(hidden=hidden, layers=layers, max_tokens=256, seed=seed))
    if not has_structure:
        silence(model, encoder.texts)
    rows = [row for language in languages for row in encoded(encoder, data[language, True], language, TRAIN)]
    started = time.perf_counter()
    config = TextPretrainingConfig(tokens=tokens, seed=seed + 1)
    fit_text(model, [(ids.tolist(), is_learned.tolist()) for ids, is_learned in rows], config, lambda done, total: None)
    return model, encoder, rows, round(time.perf_counter() - started)


def digest(data: dict) -> str:
    """Names the functions that were found, so that no figure of others is taken for one of these."""
    texts = "\0".join(text for part in data.values() for text in part)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def options(description: str | None, results: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of code have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=1e6, help="read in training from nothing")
    parser.add_argument("--size", choices=SIZES, default="96x2", help="width and layers")
    parser.add_argument("--java", type=Path, default=Path("/usr/lib/jvm/openjdk-21/lib/src.zip"))
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--quick", action="store_true")
    return parser
