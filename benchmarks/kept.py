"""Measures a private step from kept states beside one that computes all layers, on the example `diagnoses`.

    python examples/diagnoses/prepare.py data
    python benchmarks/kept.py BACKBONE data

BACKBONE is what `coordinator backbone import` wrote. Steps over Poisson samples of one site alternate in one process,
on one thread; figures are processor seconds, medians of some turns. A step from kept states reads them from disk. A
warm round of the site is one such step; noise, sealing and messages are not in it (`benchmarks/rounds.py`).
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import taken

from confide.client_node.data.kept_files import KeptStates
from confide.client_node.study.study import load_draft
from confide.client_node.training.kept_states import RecordStates
from confide.client_node.training.study_model import load_study_model
from confide.models.adapters import AdaptedModel
from confide.models.records.kind import Examples
from confide.privacy.mechanism.batches import BatchShapes, RowStates, probed_shapes
from confide.privacy.mechanism.sampling import SeededBytes
from confide.privacy.mechanism.site_round import ReleaseTerms, private_release

STUDY = Path(__file__).resolve().parents[1] / "examples" / "diagnoses" / "study.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--site", default="north")
    parser.add_argument("--records", type=int, help="the first ones only")
    parser.add_argument("--rate", type=float, help="of sampling; that of the study by default")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draft = load_draft(STUDY)
    model = load_study_model(draft, given.backbone)
    adapted = model.adapted
    adapted.load_state(0.02 * np.random.default_rng(0).normal(size=adapted.layout.dim))
    table = pd.read_csv(given.data / given.site / "train.csv", dtype=str, keep_default_na=False)[: given.records]
    columns = {name: table[name].to_numpy(dtype=object) for name in table}
    examples = Examples(*model.reader.examples(columns, None), np.arange(len(table)))
    shapes = probed_shapes(adapted, max_tokens=draft.data.max_tokens, max_rows=256, max_records=1)
    with tempfile.TemporaryDirectory() as home:
        found = measure(adapted, examples, shapes, given.rate or draft.privacy.sample_rate, Path(home), given.turns)
    print(json.dumps({"backbone": model.family.model_type, "records": len(table), **found}, indent=2))


def measure(
    adapted: AdaptedModel, examples: Examples, shapes: BatchShapes, rate: float, home: Path, turns: int
) -> dict[str, object]:
    place = KeptStates(home=home, study_hash="benchmark", most_bytes=2**34)
    states = RecordStates(adapted, examples, shapes, place.store(), facts={}, threads=1)
    filling = taken(lambda: states.fill(seconds=1e9))
    reopening = taken(lambda: RecordStates(adapted, examples, shapes, place.store(), facts={}, threads=1))
    terms = ReleaseTerms(
        mode="none", clip_norm=1.0, sample_rate=rate, site_noise_int=0, scale_bits=30, max_rows_per_batch=256,
        max_records_per_unit=1,
    )  # fmt: skip
    seconds: dict[str, list[float]] = {"all layers": [], "kept states": []}
    sums = {}
    for turn in range(turns):
        for name, entering in (("all layers", None), ("kept states", states.of)):
            source = SeededBytes(f"turn {turn}".encode())  # the same sample for both

            def step(entering: RowStates | None = entering, source: SeededBytes = source, name: str = name) -> None:
                sums[name] = private_release(
                    adapted, examples.ids, examples.targets, examples.units,
                    terms=terms, shapes=shapes, source=source, entering=entering,
                )  # fmt: skip

            seconds[name].append(taken(step))
    plain, kept = sums["all layers"], sums["kept states"]
    return {
        "step, all layers, s": statistics.median(seconds["all layers"]),
        "step, kept states, s": statistics.median(seconds["kept states"]),
        "ratio": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "ratios": [a / b for a, b in zip(*seconds.values(), strict=True)],
        "expected units of a step": rate * len(examples.ids),
        "difference of the sums": float(np.linalg.norm(plain - kept) / np.linalg.norm(plain)),
        "filling, once, s": filling,
        "reading all after a restart, s": reopening,
        "kept bytes": states.num_bytes,
    }


if __name__ == "__main__":
    main()
