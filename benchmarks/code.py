"""Measures what structure as an input, and a grammar in decoding, are each worth to a small model of code.

    python benchmarks/code.py [--seeds 0 1 2] [--tokens 1e6] [--size 96x2] [--java SRC_ZIP] [--results code.jsonl]
    python benchmarks/code.py --quick                  # does it run? One seed, few tokens, few programs

Both arms are the same network with the same parameters, trained from nothing on the same tokens of Python and Java, and
judged on packages and modules that were never trained on. Without structure all tables are there and say the same of
every token. Python is what is installed beside confide; Java is the source of OpenJDK 21 (GPL-2 with classpath
exception, trained on and not kept), which Debian has as openjdk-21-source: `apt-get download openjdk-21-source`, then
`dpkg-deb -x` and the `src.zip` in it. Without it Python alone is measured. A finished arm is read from the results, so
an interrupted run goes on. Figures: docs/code.md.
"""

import argparse
import hashlib
import itertools
import json
import random
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from silent import silence

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.decoding.grammar import Grammar
from confide.models.decoding.writing import write
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


def measure(data: dict, has_structure: bool, seed: int, tokens: int, size: str, count: int) -> dict:
    """Trains one arm and judges it on `count` held-out functions of each language."""
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
    seconds = time.perf_counter() - started
    return {
        "arm": "structure" if has_structure else "plain", "seed": seed, "size": size, "tokens": tokens,
        "parameters": sum(each.numel() for each in model.parameters()), "functions": len(rows), "count": count,
        "seconds": round(seconds),
        **{
            language: judged(
                model,
                encoder,
                encoded(encoder, data[language, False], language, HELD_OUT),
                encoded(encoder, recursive(data[language, False], language), language, HELD_OUT),
                count,
            )
            for language in languages
        },
    }  # fmt: skip


def recursive(functions: Sequence[str], language: str) -> list[str]:
    """Chooses the functions that call themselves."""
    return [each for each in functions if is_recursive(each, language)]


def judged(model: torch.nn.Module, encoder: CodeEncoder, rows: Sequence, again: Sequence, count: int) -> dict:
    """Shares of programs that do not parse, of wrong next tokens, and the loss."""
    shown = [encoder.shown(*row) for row in rows[:count]]
    found: dict = {}
    for name, guide in (("free", None), ("grammar", Grammar(encoder.texts, (encoder.end,)))):
        texts = write(model, shown, encoder.texts, ends=(encoder.end,), longest=LONGEST, guide=guide, temperature=0.7)
        found[f"invalid_{name}"] = float(
            np.mean([not encoder.parses(text, *row) for text, row in zip(texts, rows[:count], strict=True)])
        )
        found[f"unended_{name}"] = float(np.mean([not text.is_ended for text in texts]))
    own = next_tokens(model, encoder, again)
    found |= {f"recursive_{name}": own[name] for name in ("boundary", "indent")} | {"recursive": len(again)}
    return found | next_tokens(model, encoder, rows)


@torch.no_grad()
def next_tokens(model: torch.nn.Module, encoder: CodeEncoder, rows: Sequence) -> dict:
    """Shares of wrong next tokens where the program up to there is given, and the loss in nats.

    A line break counts as wrong in its indentation if another line break is more likely.
    """
    breaks = torch.tensor([word.startswith("\n") for word in encoder.texts])
    wrong: dict[str, list[bool]] = {"boundary": [], "indent": []}
    losses = []
    for ids, is_learned in rows:
        ids_RT = torch.from_numpy(ids[None])
        states = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state
        places = np.flatnonzero(is_learned) - 1
        logits, target = model.lm_head(states[0, places]), ids_RT[0, places + 1]
        losses += torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
        first, among = logits.argmax(-1), logits[:, : len(breaks)].masked_fill(~breaks, -torch.inf).argmax(-1)
        for token, best, best_break in zip(target.tolist(), first.tolist(), among.tolist(), strict=True):
            wrong["boundary"] += [best != token] if encoder.is_boundary(token) else []
            wrong["indent"] += [best_break != token] if breaks[token] else []
    return {"loss": mean(losses)} | {name: mean(each) for name, each in wrong.items()}


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if values else None


FIGURES = {
    "invalid_free": "do not parse", "invalid_grammar": "do not parse, with grammar", "boundary": "wrong at boundaries",
    "indent": "wrong indentation", "recursive_boundary": "wrong at boundaries, recursive",
    "recursive_indent": "wrong indentation, recursive", "loss": "loss",
}  # fmt: skip


def change(before: float, after: float) -> str:
    """Writes the change of a figure as a share of it."""
    return f"{after / before - 1:+.0%}" if before else "-"


def table(rows: Sequence[dict]) -> str:
    """Means over seeds of both arms by size and language, and the change, as Markdown."""
    lines = ["| | size | language | plain | structure | change | each seed |", "|---" * 7 + "|"]
    for size in dict.fromkeys(row["size"] for row in rows):
        arms = {arm: {row["seed"]: row for row in rows if (row["size"], row["arm"]) == (size, arm)} for arm in
                ("plain", "structure")}  # fmt: skip
        seeds = sorted(arms["plain"].keys() & arms["structure"].keys())
        for language, (key, name) in itertools.product(("python", "java"), FIGURES.items()):
            pairs = [[arms[arm][seed].get(language, {}).get(key) for arm in arms] for seed in seeds]
            if not pairs or any(None in pair for pair in pairs):
                continue
            plain, structure = np.mean(pairs, axis=0)
            each = ", ".join(change(*pair) for pair in pairs)
            figures = f"{plain:.3f} | {structure:.3f} | **{change(plain, structure)}** | {each}"
            lines.append(f"| {name} | {size} | {language} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=1e6, help="read in training")
    parser.add_argument("--count", type=int, default=200, help="held-out functions of a language that are written on")
    parser.add_argument("--size", choices=SIZES, default="96x2", help="width and layers")
    parser.add_argument("--java", type=Path, default=Path("/usr/lib/jvm/openjdk-21/lib/src.zip"))
    parser.add_argument("--results", type=Path, default=Path("code.jsonl"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.tokens, options.count = [0], 2e4, 4
    torch.set_num_threads(1)
    data = corpus(options.java if options.java.exists() else None)
    print({" ".join([name, "train" if part else "held out"]): len(each) for (name, part), each in data.items()})
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    texts = "\0".join(text for part in data.values() for text in part)
    setting = {
        "size": options.size, "tokens": int(options.tokens), "count": options.count,
        "corpus": hashlib.sha256(texts.encode()).hexdigest()[:16],
    }  # fmt: skip
    for seed, has_structure in itertools.product(options.seeds, (False, True)):
        key = {**setting, "arm": "structure" if has_structure else "plain", "seed": seed}
        if any(key.items() <= row.items() for row in known):
            continue
        row = setting | measure(data, has_structure, seed, int(options.tokens), options.size, options.count)
        known.append(row)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['arm']}, seed {seed}, {options.size}: {row['seconds']} s", file=sys.stderr, flush=True)
    print(table([row for row in known if setting.items() <= row.items()]))


if __name__ == "__main__":
    main()
