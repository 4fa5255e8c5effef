"""Measures what one trunk for three tasks is worth beside three models of one task each, at equal cost in all.

    python benchmarks/tasks.py [--seeds 0 1 2 3 4] [--tokens 4e5 8e5 1.6e6 3.2e6] [--results tasks.jsonl]
    python benchmarks/tasks.py --quick                 # does it run? One seed, few tokens, few programs

The tasks are three views of a small program on x, as a ward's protocol or a tariff states one:

    code     take x , add 3 , then take it 2 times   ->  ( x + 3 ) * 2     passes if it computes the same at five x
    value    ( x + 3 ) * 2 , x = 4                   ->  14                passes if it is the number
    text     ( x + 3 ) * 2                           ->  a description     passes if a parser reads the same program

The joint model reads so many tokens of all three, each single model a third as many of its own task; so the three
single models have three times the parameters. A program is for training, for choosing a learning rate or for the test
by its SHA-256, in all tasks alike. A rate is chosen for each arm at each budget by itself, by the loss on programs and
with a seed that no figure is of. In the second table the training programs of code are few. Figures: docs/tasks.md.
"""

import argparse
import ast
import hashlib
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rows import Rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.decoding import writing

TASKS = ("code", "value", "text")
JOINT = "joint"
WAYS = {
    "+": ("add {}", "plus {}", "increase it by {}", "give {} more"),
    "-": ("subtract {}", "minus {}", "lower it by {}", "take {} off"),
    "*": ("multiply it by {}", "times {}", "take it {} times", "scale it by {}"),
}
MOST = 6  # of a number in a program
VALUES = range(-40, 260)
PAD, END, ASKED = "<pad>", "<end>", "<is>"
WORDS = tuple(
    dict.fromkeys(
        [PAD, END, ASKED, *(f"<{task}>" for task in TASKS), *"x()+-*,=", "take", "then", *map(str, range(MOST + 1))]
        + sorted({word for ways in WAYS.values() for way in ways for word in way.split() if word != "{}"})
        + [f"v{value}" for value in VALUES]
    )
)
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
TUNING_SEED = 100
PARTS = {"test": range(51), "choice": range(51, 77), "train": range(77, 256)}  # by the first byte of the digest
FEW = 60  # training programs of code in the second table
LONGEST = 30  # words that are written

Program = tuple[tuple[str, int], ...]


def cases(rng: random.Random, part: str) -> Iterator[tuple[Program, int]]:
    """Draws programs of a part, each with an x whose value has a word, without end."""
    while True:
        program = tuple((rng.choice("+-*"), rng.randint(1, MOST)) for _ in range(rng.choice((1, 2, 2, 3))))
        x = rng.randrange(5)
        if hashlib.sha256(repr(program).encode()).digest()[0] in PARTS[part] and value_of(program, x) in VALUES:
            yield program, x


def value_of(program: Program, x: int) -> int:
    """Runs a program."""
    for sign, number in program:
        x = x + number if sign == "+" else x - number if sign == "-" else x * number
    return x


def written_as_code(program: Program) -> list[str]:
    """Words of a program as an expression."""
    words = ["x"]
    for sign, number in program:
        words = [*(["(", *words, ")"] if len(words) > 1 else words), sign, str(number)]
    return words


def told(program: Program, rng: random.Random) -> list[str]:
    """Words of a program as a description."""
    words = ["take", "x"]
    for step, (sign, number) in enumerate(program):
        words += [",", *(["then"] if step else []), *rng.choice(WAYS[sign]).format(number).split()]
    return words


STEPS = {
    tuple(way.format(number).split()): (sign, number)
    for sign, ways in WAYS.items()
    for way in ways
    for number in range(1, MOST + 1)
}


def understood(words: Sequence[str]) -> Program | None:
    """Reads the program that a description states; None if it states none."""
    begin, *steps = " ".join(words).split(" , ")
    if begin != "take x":
        return None
    read = [STEPS.get(tuple(word for word in step.split() if word != "then")) for step in steps]
    return None if None in read else tuple(step for step in read if step)


def computed(words: Sequence[str], x: int) -> int | None:
    """Computes an expression of numbers, x, +, - and *; None if it is none. Nothing else is ever run."""

    def of(node: ast.AST) -> int:
        match node:
            case ast.Expression():
                return of(node.body)
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id="x"):
                return x
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return of(left) + of(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return of(left) - of(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return of(left) * of(right)
        raise ValueError("not of this language")

    try:
        return of(ast.parse(" ".join(words), mode="eval"))
    except (SyntaxError, ValueError):
        return None


def example(task: str, program: Program, x: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Makes a question and its answer of a program."""
    if task == "code":
        return [f"<{task}>", *told(program, rng), ASKED], written_as_code(program)
    if task == "text":
        return [f"<{task}>", *written_as_code(program), ASKED], told(program, rng)
    return [f"<{task}>", *written_as_code(program), ",", "x", "=", str(x), ASKED], [f"v{value_of(program, x)}"]


def passes(task: str, answer: Sequence[str], program: Program, x: int) -> bool:
    """True if an answer is right."""
    if task == "code":
        return all(computed(answer, place) == value_of(program, place) for place in (0, 1, 2, 7, 11))
    return understood(answer) == program if task == "text" else list(answer) == [f"v{value_of(program, x)}"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Makes the tokenizer of the words above."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END)


def drawn(tasks: Sequence[str], tokens: int, seed: int, few: int | None) -> list[tuple[list[int], list[bool]]]:
    """Draws rows of the tasks in turn until they have so many tokens: (ids, which are learned).

    Args:
        few: different programs of code; None: as many as come.
    """
    number = {word: place for place, word in enumerate(WORDS)}
    rng, rows, read = random.Random(1 + seed), [], 0
    source = {task: cases(rng, "train") for task in tasks}
    if few is not None and "code" in tasks:
        source["code"] = itertools.cycle(itertools.islice(cases(random.Random(1 + seed), "train"), few))
    for task in itertools.cycle(tasks):
        if read >= tokens:
            return rows
        question, answer = example(task, *next(source[task]), rng)
        row = [number[word] for word in (*question, *answer, END)]
        rows.append((row, [False] * len(question) + [True] * (len(row) - len(question))))
        read += len(row)
    raise AssertionError("tasks come without end")


def trained(tasks: Sequence[str], tokens: int, seed: int, rate: float, few: int | None) -> torch.nn.Module:
    """Trains a model of these tasks from nothing."""
    model = build_text(tokenizer(), None, BackboneConfig(hidden=64, layers=2, max_tokens=64, seed=seed))
    config = TextPretrainingConfig(tokens=tokens, lr=rate, seed=seed + 1)
    fit_text(model, drawn(tasks, tokens, seed, few), config, lambda done, total: None)
    return model


def judged(model: torch.nn.Module, task: str, part: str, count: int) -> float:
    """Share of programs of a part that pass, by greedy answers."""
    number, rng = {word: place for place, word in enumerate(WORDS)}, random.Random(777)
    asked = list(itertools.islice(cases(rng, part), count))
    prompts = [[number[word] for word in example(task, program, x, rng)[0]] for program, x in asked]
    texts = [f" {word}" for word in WORDS]
    written = writing.write(model, prompts, texts, ends=(number[END],), longest=LONGEST)
    answers = [each.text.split() for each in written]
    return sum(passes(task, answer, *case) for answer, case in zip(answers, asked, strict=True)) / count


@torch.no_grad()
def loss_of(model: torch.nn.Module, task: str, part: str, count: int) -> float:
    """Mean loss, in nats a word, of the answers to programs of a part."""
    number, rng = {word: place for place, word in enumerate(WORDS)}, random.Random(777)
    losses = []
    for program, x in itertools.islice(cases(rng, part), count):
        question, answer = example(task, program, x, rng)
        ids = torch.tensor([[number[word] for word in (*question, *answer, END)]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(question) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, len(question) :]).item())
    return statistics.mean(losses)


def arm_tasks(arm: str) -> tuple[str, ...]:
    """Tasks of an arm."""
    return TASKS if arm == JOINT else (arm,)


def measure(arm: str, tokens: int, seed: int, rate: float, few: int | None, part: str, count: int) -> dict:
    """Trains and judges one arm."""
    started = time.process_time()
    model = trained(arm_tasks(arm), tokens if arm == JOINT else tokens // len(TASKS), seed, rate, few)
    seconds = time.process_time() - started
    found = {task: judged(model, task, part, count) for task in arm_tasks(arm)}
    key = {"arm": arm, "seed": seed, "tokens": tokens, "few": few, "part": part, "rate": rate, "count": count}
    loss = statistics.mean(loss_of(model, task, part, count) for task in arm_tasks(arm))
    return key | {"seconds": round(seconds), "loss": loss, "passed": found}


def best_rate(rows: Rows, arm: str, tokens: int, few: int | None, count: int, rates: Sequence[float]) -> float:
    """Chooses an arm's rate by its loss on programs that are in no test."""
    found = []
    for rate in rates:
        key = {"arm": arm, "seed": TUNING_SEED, "tokens": tokens, "few": few, "part": "choice", "rate": rate}
        if not rows.of(key):
            row = measure(arm, tokens, TUNING_SEED, rate, few, "choice", count)
            rows.add(row, f"{tokens:,} tokens, rate {rate:g}, loss {row['loss']:.3f}")
        found.append((rows.of(key)[0]["loss"], rate))
    return min(found)[1]


def table(rows: Sequence[dict], budgets: Sequence[int], few: int | None) -> str:
    """Pass rates by budget: of each task the single model's, then the joint one's, means over seeds."""

    def mean(arm: str, task: str, tokens: int) -> list[float]:
        return [row["passed"][task] for row in rows if (row["arm"], row["tokens"], row["few"]) == (arm, tokens, few)]

    lines = [
        "| tokens in all | seeds | " + " | ".join(TASKS) + " | mean | joint / single |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens in budgets:
        pairs = [(mean(task, task, tokens), mean(JOINT, task, tokens)) for task in TASKS]
        if not all(single and joint for single, joint in pairs):
            continue
        cells = [f"{statistics.mean(single):.3f}, {statistics.mean(joint):.3f}" for single, joint in pairs]
        single, joint = (statistics.mean(statistics.mean(pair[side]) for pair in pairs) for side in (0, 1))
        cells += [f"{single:.3f}, {joint:.3f}", f"{joint / single:.2f}" if single else "-"]
        lines.append(f"| {tokens:,} | {len(pairs[0][0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures all arms that no row is there of, and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tokens", type=float, nargs="+", default=[4e5, 8e5, 1.6e6, 3.2e6], help="of all tasks")
    parser.add_argument("--count", type=int, default=500, help="programs of a test")
    parser.add_argument("--results", type=Path, default=Path("tasks.jsonl"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    budgets, rates = [int(tokens) for tokens in args.tokens], RATES
    if args.quick:
        args.seeds, args.count, budgets, rates = [0], 20, [6000], RATES[:1]
    torch.set_num_threads(1)
    rows = Rows(args.results)
    for few in (None, FEW):
        at = budgets[min(1, len(budgets) - 1)]
        for seed in args.seeds:
            for tokens in budgets if few is None else [at]:
                for arm in (JOINT, *TASKS):
                    rate = best_rate(rows, arm, tokens, few, args.count, rates)
                    key = {"arm": arm, "seed": seed, "tokens": tokens, "few": few, "part": "test", "rate": rate}
                    if not rows.of(key | {"count": args.count}):
                        row = measure(arm, tokens, seed, rate, few, "test", args.count)
                        rows.add(row, f"{tokens:,} tokens, {json.dumps(row['passed'])}")
        found = [row for row in rows.of({"part": "test", "count": args.count}) if row["seed"] in args.seeds]
        title = f"{FEW} programs of code alone" if few else "As many programs as come"
        print(f"\n{title}: single, joint\n\n{table(found, budgets, few)}")


if __name__ == "__main__":
    sys.exit(main())
