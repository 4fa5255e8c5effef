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

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from programs import HELD_OUT, LONGEST, corpus, digest, encoded, options, recursive, trained
from rows import Rows

from confide.models.decoding.grammar import Grammar
from confide.models.decoding.writing import write
from confide.models.records.code import CodeEncoder


def measure(data: dict, has_structure: bool, seed: int, tokens: int, size: str, count: int) -> dict:
    """Trains one arm and judges it on `count` held-out functions of each language."""
    model, encoder, rows, seconds = trained(data, seed=seed, tokens=tokens, size=size, has_structure=has_structure)
    return {
        "arm": "structure" if has_structure else "plain", "seed": seed, "size": size, "tokens": tokens,
        "parameters": sum(each.numel() for each in model.parameters()), "functions": len(rows), "count": count,
        "seconds": seconds,
        **{
            language: judged(
                model,
                encoder,
                encoded(encoder, data[language, False], language, HELD_OUT),
                encoded(encoder, recursive(data[language, False], language), language, HELD_OUT),
                count,
            )
            for language in sorted({language for language, _ in data})
        },
    }  # fmt: skip


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
    parser = options(__doc__, "code.jsonl")
    parser.add_argument("--count", type=int, default=200, help="held-out functions of a language that are written on")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.tokens, asked.count = [0], 2e4, 4
    torch.set_num_threads(1)
    data = corpus(asked.java if asked.java.exists() else None)
    print({" ".join([name, "train" if part else "held out"]): len(each) for (name, part), each in data.items()})
    known = Rows(asked.results)
    setting = {
        "size": asked.size, "tokens": int(asked.tokens), "count": asked.count,
        "corpus": digest(data),
    }  # fmt: skip
    for seed, has_structure in itertools.product(asked.seeds, (False, True)):
        key = {**setting, "arm": "structure" if has_structure else "plain", "seed": seed}
        if not known.of(key):
            known.add(setting | measure(data, has_structure, seed, int(asked.tokens), asked.size, asked.count))
    print(table(known.of(setting)))


if __name__ == "__main__":
    main()
