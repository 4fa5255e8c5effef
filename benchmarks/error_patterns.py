"""Measures what a small model of code learns from mutants: copies of functions with one common error each.

    python benchmarks/error_patterns.py [--seeds 0 1 2] [--tokens 1e6] [--steps 900] [--arms control rank ...]
        [--java SRC_ZIP] [--results error_patterns.jsonl]
    python benchmarks/error_patterns.py --quick        # does it run? One seed, few tokens, few pairs

A model with structure is trained from nothing as in benchmarks/code.py, and then goes on under one of several losses,
on functions that it has not read, always with 24 rows a step forward and back: the control reads twice as many
functions where another arm reads each with a mutant. Judged on packages and modules that were never trained on: is the
function more likely than its mutant? A finished arm is read from the results, so an interrupted run goes on. Figures:
docs/code.md.
"""

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from programs import HELD_OUT, TOKENS, TRAIN, corpus, digest, options, trained
from rows import Rows
from torch.nn import functional as F

from confide.models.evaluation.mutants import PATTERNS, mutants
from confide.models.records.code import CodeEncoder

ROWS = 24  # of a step, a mutant being one
RATE = 1e-3  # of AdamW, with linear decay
UNSEEN = ("negation", "swapped arguments")  # patterns that one arm never meets
BETA = 0.1  # of the preference loss against a frozen reference


@dataclass(frozen=True)
class Row:
    """A program as tokens."""

    ids: list[int]
    begin: int  # of what is learned


@dataclass(frozen=True)
class Wrong:
    """A mutant of a function."""

    pattern: str
    row: Row
    place: int  # of the first token that is another one
    token: int  # that stands there


@dataclass(frozen=True)
class Function:
    """A function with all its mutants."""

    row: Row
    language: str
    wrong: list[Wrong]


def functions(
    encoder: CodeEncoder, texts: Sequence[str], language: str, count: int, known: set[tuple[int, ...]]
) -> list[Function]:
    """Encodes the first functions that are neither known, too short nor too long, and their mutants."""
    found: list[Function] = []
    for text in texts:
        row = encoded(encoder, text, language)
        if row is None or not TOKENS[0] <= len(row.ids) - 3 <= TOKENS[1] or tuple(row.ids) in known:
            continue
        some = []
        for pattern, mutant in mutants(language, text):
            if (wrong := encoded(encoder, mutant, language)) is not None:
                place = next(at for at, (a, b) in enumerate(zip(row.ids, wrong.ids, strict=False)) if a != b)
                some.append(Wrong(pattern, wrong, place, wrong.ids[place]))
        found.append(Function(row, language, some))
        if len(found) == count:
            break
    return found


def encoded(encoder: CodeEncoder, text: str, language: str) -> Row | None:
    """Encodes a program; None if it is too long."""
    ids, is_learned = encoder.encode([text], [language])
    return Row(ids[0].tolist(), int(is_learned[0].argmax())) if int(ids[0, -1]) == encoder.end else None


def chosen(function: Function, draw: random.Random, patterns: Sequence[str] = PATTERNS) -> list[Wrong]:
    """Draws one mutant of each pattern."""
    own: dict[str, list[Wrong]] = {}
    for wrong in function.wrong:
        own.setdefault(wrong.pattern, []).append(wrong)
    return [draw.choice(own[pattern]) for pattern in patterns if pattern in own]


@dataclass
class Likelihoods:
    """Logarithms of likelihoods of some rows."""

    every: torch.Tensor  # [rows, longest - 1, words], of each word behind a token
    told: torch.Tensor  # [rows, longest - 1], of the tokens that are there; 0 where nothing is learned
    is_learned: torch.Tensor  # bool [rows, longest - 1]

    def loss(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Computes the mean loss of a learned token of some rows."""
        return -self.told[rows].sum() / self.is_learned[rows].sum()


def log_likelihoods(model: torch.nn.Module, rows: Sequence[Row]) -> Likelihoods:
    """Runs the model on rows."""
    lengths, begins = (
        torch.tensor([size(row) for row in rows]) for size in (lambda row: len(row.ids), lambda row: row.begin)
    )
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for own, row in zip(ids, rows, strict=True):
        own[: len(row.ids)] = torch.tensor(row.ids)
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    every = F.log_softmax(model.lm_head(states[:, :-1]), -1)
    place = torch.arange(1, ids.shape[1])
    is_learned = (place < lengths[:, None]) & (place >= begins[:, None])
    return Likelihoods(every, every.gather(2, ids[:, 1:, None])[..., 0] * is_learned, is_learned)


@dataclass
class Step:
    """A batch with the models that a loss is computed of."""

    model: torch.nn.Module
    reference: torch.nn.Module  # the model as it was, frozen
    batch: list[Function]
    patterns: Sequence[str]
    draw: random.Random


Loss = Callable[[Step], torch.Tensor]


def control(step: Step) -> torch.Tensor:
    """Computes the loss of the functions alone."""
    return log_likelihoods(step.model, [each.row for each in step.batch]).loss()


def in_pairs(loss: Callable[[torch.Tensor, Step, list[Row]], torch.Tensor], weight: float) -> Loss:
    """Makes a loss of half as many functions, each with a mutant: of how much more likely the function is."""

    def whole(step: Step) -> torch.Tensor:
        half = step.batch[: len(step.batch) // 2]
        found = [chosen(each, step.draw, step.patterns) for each in half]
        paired = [(each.row, step.draw.choice(some).row) for each, some in zip(half, found, strict=True) if some]
        alone = [each.row for each, some in zip(half, found, strict=True) if not some]
        rows = [*(right for right, _ in paired), *(wrong for _, wrong in paired), *alone]
        likelihoods = log_likelihoods(step.model, rows)
        is_mutant = torch.zeros(len(rows), dtype=torch.bool)
        is_mutant[len(paired) : 2 * len(paired)] = True
        right, wrong = likelihoods.told[: 2 * len(paired)].sum(1).chunk(2)
        return likelihoods.loss(~is_mutant) + weight * loss(right - wrong, step, rows[: 2 * len(paired)]).mean()

    return whole


def rank(gap: torch.Tensor, step: Step, rows: list[Row]) -> torch.Tensor:
    """Computes the logistic loss of the gap (Zhao et al. 2023, SLiC-HF, arXiv:2305.10425)."""
    del step, rows
    return F.softplus(-gap)


def preference(gap: torch.Tensor, step: Step, rows: list[Row]) -> torch.Tensor:
    """Computes the loss of direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

    The reference is the model as it was, which runs forward for it.
    """
    with torch.no_grad():
        right, wrong = log_likelihoods(step.reference, rows).told.sum(1).chunk(2)
    return F.softplus(-BETA * (gap - right + wrong))


def at_places(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: float) -> Loss:
    """Makes a loss of the functions alone, at each token where a mutant begins to differ: no mutant is read."""

    def whole(step: Step) -> torch.Tensor:
        likelihoods = log_likelihoods(step.model, [each.row for each in step.batch])
        places = {
            (row, wrong.place, wrong.token)
            for row, each in enumerate(step.batch)
            for wrong in each.wrong
            if wrong.pattern in step.patterns
        }
        if not places:
            return likelihoods.loss()
        row, place, token = torch.tensor(sorted(places)).T
        right, wrong = likelihoods.told[row, place - 1], likelihoods.every[row, place - 1, token]
        return likelihoods.loss() + weight * loss(right, wrong).mean()

    return whole


def choice(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Computes the cross-entropy of the choice between the right token and the wrong one."""
    return F.softplus(wrong - right)


def unlikelihood(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Computes the cost of a wrong token that is likely (Welleck et al. 2020, arXiv:1908.04319)."""
    del right
    return -torch.log1p(-wrong.exp().clamp(max=0.999))


SEEN = tuple(pattern for pattern in PATTERNS if pattern not in UNSEEN)
ARMS: dict[str, tuple[Loss, Sequence[str]]] = {
    "control": (control, PATTERNS),
    "rank": (in_pairs(rank, 0.5), PATTERNS),
    "preference": (in_pairs(preference, 4.0), PATTERNS),
    "unlikelihood": (at_places(unlikelihood, 2.0), PATTERNS),
    "choice": (at_places(choice, 2.0), PATTERNS),
    "choice, two patterns unseen": (at_places(choice, 2.0), SEEN),
}


def fit(start: torch.nn.Module, rows: Sequence[Function], arm: str, steps: int, seed: int) -> torch.nn.Module:
    """Goes on from a model under one loss."""
    loss, patterns = ARMS[arm]
    model, draw = copy.deepcopy(start).train(), random.Random(f"{seed} {arm}")
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
    order: list[Function] = []
    for number in range(steps):
        if len(order) < ROWS:
            order = random.Random(f"{seed} {number}").sample(list(rows), len(rows))
        batch, order = order[:ROWS], order[ROWS:]
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(0.03, 1 - number / steps)
        optimizer.zero_grad()
        loss(Step(model, start, batch, patterns, draw)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def judged(model: torch.nn.Module, rows: Sequence[Function]) -> dict:
    """Computes the share of mutants that are less likely than their function, by pattern, and the functions' loss."""
    is_preferred: dict[str, list[bool]] = {pattern: [] for pattern in PATTERNS}
    nats = tokens = 0.0
    draw = random.Random(0)
    for each in rows:
        wrong = chosen(each, draw)
        told = log_likelihoods(model, [each.row, *(one.row for one in wrong)]).told
        right, *others = told.double().sum(1).tolist()
        for one, other in zip(wrong, others, strict=True):
            is_preferred[one.pattern].append(right > other)
        nats, tokens = nats - right, tokens + len(each.row.ids) - each.row.begin
    every = [one for own in is_preferred.values() for one in own]
    return {
        "loss": nats / tokens, "preferred": float(np.mean(every)), "pairs": len(every),
        **{pattern: float(np.mean(own)) for pattern, own in is_preferred.items() if own},
    }  # fmt: skip


def table(rows: Sequence[dict]) -> str:
    """Writes means over seeds and languages by arm, as Markdown."""
    lines = [f"| | preferred | each seed | {' | '.join(PATTERNS)} | loss |", "|---" * (len(PATTERNS) + 4) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        languages = [language for language in ("python", "java") if language in own[0]]
        mean = {
            key: np.mean([row[language][key] for row in own for language in languages if key in row[language]])
            for key in ("preferred", *PATTERNS, "loss")
        }
        each = ", ".join(f"{np.mean([row[language]['preferred'] for language in languages]):.3f}" for row in own)
        figures = " | ".join(f"{mean[pattern]:.3f}" for pattern in PATTERNS)
        lines.append(f"| {arm} | **{mean['preferred']:.3f}** | {each} | {figures} | {mean['loss']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = options(__doc__, "error_patterns.jsonl")
    parser.add_argument("--steps", type=int, default=900, help=f"of {ROWS} rows, under each loss")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    asked = parser.parse_args()
    count, held_out = TRAIN, HELD_OUT
    if asked.quick:
        asked.seeds, asked.tokens, asked.steps, count, held_out = [0], 2e4, 3, 40, 8
    torch.set_num_threads(1)
    data = corpus(asked.java if asked.java.exists() else None)
    known = Rows(asked.results)
    setting = {
        "size": asked.size, "tokens": int(asked.tokens), "steps": asked.steps, "count": count, "corpus": digest(data),
    }  # fmt: skip
    languages = sorted({language for language, _ in data})
    for seed in asked.seeds:
        keys = [{**setting, "arm": arm, "seed": seed} for arm in ("before", *asked.arms)]
        missing = [key for key in keys if not known.of(key)]
        if not missing:
            continue
        start, encoder, read, _ = trained(data, seed=seed, tokens=int(asked.tokens), size=asked.size)
        read_ids = {tuple(ids.tolist()) for ids, _ in read}
        own, others = (
            {language: functions(encoder, data[language, part], language, most, read_ids) for language in languages}
            for part, most in ((True, count), (False, held_out))
        )
        rows = [each for some in own.values() for each in some]
        for key in missing:
            started = time.perf_counter()
            model = start if key["arm"] == "before" else fit(start, rows, key["arm"], asked.steps, seed)
            seconds = round(time.perf_counter() - started)
            row = key | {"functions": len(rows), "mutants": sum(len(each.wrong) for each in rows), "seconds": seconds}
            known.add(row | {language: judged(model, some) for language, some in others.items()})
    print(table(known.of(setting)))


if __name__ == "__main__":
    main()
