"""Loads a checkpoint in every way, one after another, and prints the private memory that each took as JSON.

    python peak_of_loading.py DIRECTORY SMALL HASH

SMALL is loaded first, since what libraries set up once is not the checkpoint's. `later` quantises to int8 after the
whole model was loaded.
"""

import json
import runpy
import sys
from pathlib import Path

import torch

from confide.kernels.formats import Int8Row, NF4Block64
from confide.kernels.install import quantise
from confide.kernels.linear import packed_stacks
from confide.models.backbones.checkpoints import load_model

measuring = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "measuring.py"))


def quantised_later(directory, *, expected_hash=None):
    model = load_model(directory, expected_hash=expected_hash)
    quantise(model, Int8Row.quantised)
    return model


WAYS = {
    "int8": lambda directory, **kwargs: load_model(directory, pack=Int8Row.quantised, **kwargs),
    "nf4": lambda directory, **kwargs: load_model(directory, pack=NF4Block64.quantised, **kwargs),
    "all nf4": lambda directory, **kwargs: load_model(
        directory, pack=NF4Block64.quantised, pack_linear=NF4Block64.quantised, **kwargs
    ),
    "later": quantised_later,
}


def took(load, directory, expected_hash):
    """MiB at the most, and those of the packed experts."""
    before = measuring["allocated_mib"]()
    with measuring["Peak"]() as peak:
        model = load(directory, expected_hash=expected_hash)
    stacks = [stack for module in model.modules() for stack in packed_stacks(module)]
    return {"peak": peak.mib - before, "packed": sum(stack.nbytes for stack in stacks) / 2**20}


directory, small, expected_hash = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
for load in WAYS.values():
    load(small)
print(json.dumps({name: took(load, directory, expected_hash) for name, load in WAYS.items()}))
