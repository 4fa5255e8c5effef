"""Measures what a derivation, an exact engine and structure as an input each add to a small model of mathematics.

    python benchmarks/mathematics.py [--seeds 0 1 2] [--tokens 5e6] [--count 100] [--results mathematics.jsonl]
    python benchmarks/mathematics.py --quick           # does it run? One seed, few tokens, few problems

Every arm is the same network with the same parameters, trained from nothing on the same number of tokens of problems
that are drawn anew, and judged on the same held-out problems of eight families, by greedy text and by equality as
mathematics. Without structure all tables are there and say the same of every token. A finished arm is read from the
results, so an interrupted run goes on. Figures: docs/mathematics.md.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rows import Rows
from silent import silence

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.decoding import arithmetic, writing
from confide.models.records.formulas import FormulaEncoder, FormulaTerms
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "derivations"))
from chains import FAMILIES, Problem, problems

SIZES = {"96x2": (96, 2), "64x2": (64, 2)}  # width x layers
LONGEST = 320  # tokens of a text


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to teach mathematics."""

    has_lines: bool  # a derivation before the answer
    has_structure: bool
    has_engine: bool  # values behind numeric expressions are computed, not learned

    @property
    def name(self) -> str:
        """The arm as a row of the table."""
        parts = ["derivation" if self.has_lines else "answer alone"]
        parts += ["structure"] if self.has_structure else []
        parts += ["engine"] if self.has_engine else []
        return ", ".join(parts)


ARMS = tuple(
    Arm(has_lines, has_structure, has_engine)
    for has_lines, has_engine, has_structure in itertools.product((False, True), repeat=3)
    if has_lines or not has_engine  # an answer alone has nothing to compute
)


def measure(arm: Arm, seed: int, tokens: int, count: int, size: str) -> dict:
    """Trains one arm and judges it on `count` held-out problems of each family."""
    hidden, layers = SIZES[size]
    tokenizer = character_tokenizer(COMMANDS)
    model = build_text(tokenizer, "formulas", BackboneConfig(hidden=hidden, layers=layers, max_tokens=512, seed=seed))
    terms = FormulaTerms(
        question="question", derivation="derivation" if arm.has_lines else None, answer="answer", engine=arm.has_engine
    )
    encoder = FormulaEncoder(terms, tokenizer, LONGEST)
    if not arm.has_structure:
        silence(model, encoder.texts)
    rows = drawn(encoder, 1 + seed, tokens, has_lines=arm.has_lines)
    started = time.process_time()
    fit_text(model, rows, TextPretrainingConfig(tokens=tokens, seed=1 + seed), lambda done, total: None)
    seconds = time.process_time() - started
    asked = [next_of(family, count) for family in FAMILIES]
    found = judged(model, encoder, asked, with_engine=arm.has_engine)
    without = judged(model, encoder, asked, with_engine=False) if arm.has_engine else found
    return {
        "arm": arm.name, "seed": seed, "size": size, "tokens": tokens, "rows": len(rows),
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "seconds": round(seconds),
        "right": found["right"], "by_family": found["by_family"], "written": found["written"],
        "right_without_engine": without["right"],
    }  # fmt: skip


def drawn(
    encoder: FormulaEncoder, seed: int, tokens: int, *, has_lines: bool = True, held_out: bool = False
) -> list[tuple[list[int], list[bool]]]:
    """Draws new problems until they have so many tokens."""
    rows: list[tuple[list[int], list[bool]]] = []
    source, read = problems(seed, held_out=held_out), 0
    while read < tokens:
        some = list(itertools.islice(source, 1000))
        ids, is_learned = encoder.encode(
            [each.question for each in some],
            [each.derivation if has_lines else "" for each in some],
            [each.answer for each in some],
        )
        lengths = (ids > 0).sum(1)
        read += int(lengths.sum())
        rows += [(ids[place, :n].tolist(), is_learned[place, :n].tolist()) for place, n in enumerate(lengths)]
    return rows


def next_of(family: str, count: int) -> list[Problem]:
    """Draws the held-out problems of a family."""
    return list(itertools.islice(problems(77, held_out=True, family=family), count))


def judged(
    model: torch.nn.Module, encoder: FormulaEncoder, asked: Sequence[list[Problem]], *, with_engine: bool
) -> dict:
    """Shares of right answers, and the mean number of characters written."""
    guide = arithmetic.Arithmetic(encoder.texts) if with_engine else None
    flat = [each for family in asked for each in family]
    prompts = [encoder.prompt(each.question) for each in flat]
    written = writing.write(model, prompts, encoder.texts, ends=(encoder.end,), longest=LONGEST, guide=guide)
    texts = [each.text for each in written]
    right = [encoder.is_answered(text, each.answer) for text, each in zip(texts, flat, strict=True)]
    by_family = np.array(right).reshape(len(asked), -1).mean(1)
    return {
        "right": float(np.mean(right)),
        "by_family": dict(zip(FAMILIES, by_family.round(4).tolist(), strict=True)),
        "written": round(float(np.mean([len(text) for text in texts])), 1),
    }


def table(rows: Sequence[dict]) -> str:
    """The mean over seeds of each arm and size, as Markdown."""
    lines = ["| arm | size | right, mean of seeds | each seed | without the engine | " + " | ".join(FAMILIES) + " |"]
    lines.append("|---" * (5 + len(FAMILIES)) + "|")
    for size, arm in dict.fromkeys((row["size"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["size"], row["arm"]) == (size, arm)]
        each = ", ".join(f"{row['right']:.3f}" for row in own)
        mean = {key: float(np.mean([row[key] for row in own])) for key in ("right", "right_without_engine")}
        families = [f"{np.mean([row['by_family'][name] for row in own]):.2f}" for name in FAMILIES]
        figures = [f"{mean['right']:.3f}", each, f"{mean['right_without_engine']:.3f}", *families]
        lines.append(f"| {arm} | {size} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=5e6, help="read in training")
    parser.add_argument("--count", type=int, default=100, help="held-out problems of a family")
    parser.add_argument("--size", choices=SIZES, default="96x2", help="width and layers")
    parser.add_argument("--arm", nargs="+", default=[""], help="only arms with one of these words in their names")
    parser.add_argument("--results", type=Path, default=Path("mathematics.jsonl"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.tokens, options.count = [0], 2e4, 2
    torch.set_num_threads(1)
    known = Rows(options.results)
    for seed, arm in itertools.product(options.seeds, ARMS):
        key = {"arm": arm.name, "seed": seed, "size": options.size, "tokens": int(options.tokens)}
        if known.of(key) or not any(word in arm.name for word in options.arm):
            continue
        row = measure(arm, seed, int(options.tokens), options.count, options.size)
        known.add(row, f"{row['right']:.3f}")
    print(table(known.of({"tokens": int(options.tokens)})))


if __name__ == "__main__":
    main()
