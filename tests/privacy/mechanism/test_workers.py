import copy
from collections.abc import Sequence

import numpy as np
import pytest

from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.privacy.errors import ClipperMisused
from confide.privacy.mechanism import site_round
from confide.privacy.mechanism.noise import discrete_gaussian
from confide.privacy.mechanism.sampling import SeededBytes
from confide.privacy.mechanism.site_round import LocalSteps, ReleaseTerms, partial_sum, private_release, round_release
from confide.privacy.mechanism.workers import Alone, Part, SumPart, Vector, shared_out

from ...models.tiny import random_ids, tiny_deepseek
from ..loops import BITS, PLAIN, C, adapted_tiny, clipped_loop, labels_for

ADAPTIVE = {"clipping": "adaptive"}
STEPS = {"local": LocalSteps(steps=3, lr=0.5, head_lr=2.0, batch_units=4.0)}
UNITS = np.array([7, 1, 7, 2, 3, 4, 7, 5, 1, 6, 8, 9])
AGREE = 1e-6  # in real units: float32 passes over other microbatches, and half a ring unit of rounding on either side


class Copies:
    """A group whose others are copies of the model in this process."""

    def __init__(self, adapted: AdaptedModel, size: int, terms: ReleaseTerms) -> None:
        self.size, self._terms = size, terms
        self._models = [copy.deepcopy(adapted) for _ in range(size - 1)]
        self.given: list[Part] = []
        for model in self._models:  # what they train from has to come with the part
            model.load_state(np.zeros(model.layout.dim))

    def begin(self, parts: Sequence[Part]) -> None:
        self.given = list(parts)

    def finish(self) -> list[Vector]:
        return [
            partial_sum(model, part, terms=self._terms)
            for model, part in zip(self._models, self.given, strict=True)
            if isinstance(part, SumPart)
        ]


class NoisyCopies(Copies):
    def finish(self) -> list[Vector]:
        return [
            total + discrete_gaussian(self._terms.site_noise_int, len(total)) * 2.0**-BITS for total in super().finish()
        ]


class AveragedCopies(Copies):
    def finish(self) -> list[Vector]:
        return [total / self.size for total in super().finish()]


def released(adapted, terms, group, *, rows=12, source=None):
    ids, labels = random_ids(rows).numpy(), labels_for(rows).numpy()
    state = adapted.state()
    if terms.clipping == "adaptive":
        state = np.append(state, np.float32(0.3))
    kwargs = {} if source is None else {"source": source}
    vector = round_release(adapted, state, ids, labels, UNITS[:rows], terms=terms, group=group, **kwargs)
    adapted.load_state(state[: adapted.layout.dim])
    return vector * 2.0**-BITS


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, ADAPTIVE, STEPS, ADAPTIVE | STEPS, {"max_norm": 0.1, "weight": 0.5, "trained_rank": 2}]
)
@pytest.mark.parametrize("size", [2, 3])
def test_a_crew_releases_what_one_process_does(size: int, changes: dict[str, object]):
    adapted, terms = adapted_tiny(), ReleaseTerms(**{**PLAIN, **changes})
    want = released(adapted, terms, Alone())
    assert np.abs(want).max() > 1000 * AGREE
    assert np.abs(released(adapted, terms, Copies(adapted, size, terms)) - want).max() < AGREE


def test_a_crew_of_a_model_that_writes_text_releases_what_one_process_does():
    config = AdapterConfig(rank=4, alpha=8.0, targets=("o_proj", "experts"), seed="s", freeze_a=False)
    adapted, terms = attach(tiny_deepseek(), config), ReleaseTerms(**PLAIN)
    state = np.random.default_rng(0).normal(0, 0.2, adapted.layout.dim).astype("<f4")
    ids, is_completion = random_ids(5).numpy(), np.zeros((5, 12), dtype=bool)
    is_completion[:, 4:9] = True
    one, three = (  # two units for three processes
        round_release(adapted, state, ids, is_completion, [0, 1, 1, 0, 0], terms=terms, group=group) * 2.0**-BITS
        for group in (Alone(), Copies(adapted, 3, terms))
    )
    assert np.abs(one).max() > 1000 * AGREE
    assert np.abs(three - one).max() < AGREE


def test_a_crew_s_sum_is_that_of_a_loop_over_units():
    adapted, terms = adapted_tiny(), ReleaseTerms(**PLAIN)
    total = clipped_loop(adapted, random_ids(12), labels_for(12), UNITS, C)[0]
    want = np.concatenate([total[name].numpy().ravel() for name in adapted.layout.names])
    assert np.abs(released(adapted, terms, Copies(adapted, 2, terms)) - want).max() < AGREE


def test_a_wrong_scale_is_seen():
    adapted, terms = adapted_tiny(), ReleaseTerms(**PLAIN)
    wrong = released(adapted, terms, AveragedCopies(adapted, 2, terms))
    assert np.abs(wrong - released(adapted, terms, Alone())).max() > 1000 * AGREE


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_process_without_units_passes_as_often_as_the_others(rows: int, monkeypatch: pytest.MonkeyPatch):
    adapted, terms = adapted_tiny(), ReleaseTerms(**PLAIN)
    want = released(adapted, terms, Alone(), rows=rows)
    passes = []
    for name in ("losses_of", "_pass_idly"):
        run = getattr(site_round, name)
        monkeypatch.setattr(site_round, name, lambda model, *rest, run=run: passes.append(model) or run(model, *rest))
    group = Copies(adapted, 3, terms)
    assert np.abs(released(adapted, terms, group, rows=rows) - want).max() < AGREE
    assert [passes.count(model) for model in (adapted, *group._models)] == [int(rows > 0)] * 3


@pytest.mark.parametrize("changes", [{}, ADAPTIVE])
def test_an_idle_pass_adds_exactly_nothing(changes: dict[str, object]):
    adapted, terms = adapted_tiny(freeze_a=False), ReleaseTerms(**{**PLAIN, **changes})
    nobody = {"ids": random_ids(0).numpy(), "targets": np.zeros(0, np.int64), "sizes": np.zeros(0, np.int64)}
    total = partial_sum(adapted, SumPart(state=adapted.state(), passes=3, **nobody), terms=terms)
    assert len(total) == adapted.layout.dim + ("clipping" in changes)
    assert not total.any()
    assert all(parameter.grad is None for parameter in adapted.parameters())


def deviation(vector: Vector, group: Copies, sigma: int) -> float:
    """How far the squared length of what was added is from a Gaussian's, in standard deviations of a chi-square."""
    adapted = group._models[0]
    noise_square = float(np.sum((vector * 2.0**BITS / sigma) ** 2))
    return (noise_square - adapted.layout.dim) / (2 * adapted.layout.dim) ** 0.5


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_noise_is_added_once_whatever_the_number_of_processes(mode: str):
    sigma = 1 << 30  # 64 in real units: all 12 clipped gradients together, at most 0.6 long, are nothing beside it
    terms = ReleaseTerms(**{**PLAIN, "mode": mode, "site_noise_int": sigma})
    adapted = adapted_tiny()
    group, noisy = Copies(adapted, 2, terms), NoisyCopies(adapted, 2, terms)
    assert abs(deviation(released(adapted, terms, group), group, sigma)) < 7  # chance of more: below 1e-9
    # Twice the variance is sqrt(dim / 2) standard deviations off.
    assert deviation(released(adapted, terms, noisy), noisy, sigma) > 7


def test_who_takes_part_is_drawn_once_and_every_unit_is_whole():
    adapted, terms = adapted_tiny(), ReleaseTerms(**{**PLAIN, "sample_rate": 0.6})
    ids, labels = random_ids(12).numpy(), labels_for(12).numpy()
    rows_of = {unit: ids[unit == UNITS].tobytes() for unit in UNITS}
    group = Copies(adapted, 2, terms)
    for seed in range(4):
        one, two = (
            private_release(adapted, ids, labels, UNITS, terms=terms, source=SeededBytes(bytes([seed])), group=each)
            for each in (Alone(), group)
        )
        assert np.abs(one - two).max() * 2.0**-BITS < AGREE
        [part] = group.given
        ends = np.cumsum(part.sizes)
        units = [part.ids[start:end].tobytes() for start, end in zip(ends - part.sizes, ends, strict=True)]
        assert set(units) <= set(rows_of.values())
        assert len(units) == len(set(units))


def test_units_are_shared_out_whole_and_evenly():
    rng = np.random.default_rng(0)
    rows_of_unit = [np.arange(size) + 100 * unit for unit, size in enumerate(rng.integers(1, 6, 40))]
    shares = shared_out(rows_of_unit, 3)
    kept = sorted(int(rows[0]) // 100 for share in shares for rows in share)
    assert kept == list(range(40))
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= 5  # one unit
    assert [list(map(tuple, share)) for share in shared_out(rows_of_unit, 1)] == [list(map(tuple, rows_of_unit))]


def test_a_sum_of_another_length_is_refused():
    adapted, terms = adapted_tiny("head"), ReleaseTerms(**PLAIN)

    class Short(Copies):
        def finish(self) -> list[Vector]:
            return [total[1:] for total in super().finish()]

    with pytest.raises(ClipperMisused, match="from another process"):
        released(adapted, terms, Short(adapted, 2, terms))
