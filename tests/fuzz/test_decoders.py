"""Every decoder of bytes from outside takes what it should, and meets anything else with a refusal that has a type."""

import random
import zlib

import pytest

from .all_targets import every
from .mutating import mutated
from .target import Target

TARGETS = every()
CASES = 150  # of each; `make fuzz` runs 100,000

pytestmark = [
    pytest.mark.process,  # forms of answers are tried in a process of their own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_decoder_takes_its_own_and_refuses_others_with_words(target):
    assert all(target.outcome(seed) for seed in target.seeds), "an input that should be taken is refused"
    rng = random.Random(zlib.crc32(target.name.encode()))
    cases = min(CASES, target.most or CASES)
    taken = sum(target.outcome(mutated(rng.choice(target.seeds), target.seeds, rng)) for _ in range(cases))
    assert taken < cases or not target.refusals, "no mutation was refused: does this decoder look at its input?"


def test_a_decoder_that_fails_is_noticed():
    def read(data: bytes) -> int:
        return data[3]

    target = Target(name="too short", sender="a test", made=lambda: [b"abcd"], read=read, refusals=(ValueError,))
    rng = random.Random(0)
    short = next(data for data in iter(lambda: mutated(b"abcd", [b"abcd"], rng), None) if len(data) < 4)
    with pytest.raises(IndexError):
        target.outcome(short)


def test_names_of_targets_differ():
    assert len({target.name for target in TARGETS}) == len(TARGETS)
