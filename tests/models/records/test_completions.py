"""Exact match, perplexity and the judge of texts with several learned runs, against a loop over whole logits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from confide.models.adapters import AdapterConfig, attach
from confide.models.evaluation.metrics import exact_match, perplexity
from confide.models.records.completions import last_runs
from confide.models.records.kind import Examples
from confide.models.records.text import FreeText, TextTerms
from confide.privacy.mechanism.batches import used_tokens

from ..tiny import random_ids, tiny_deepseek

TERMS = TextTerms(prompt="Of: {text}", completion=" {topic}")
RUNS = (  # learned places of each row: several runs, one, one at the end, a single token
    [(2, 4), (6, 9)],
    [(3, 5)],
    [(1, 2), (4, 5), (10, 12)],
    [(7, 8)],
    [(1, 12)],
)


def loop_of_runs(row):
    """The places of the last run of a row, found one after another."""
    places: list[int] = []
    for place, is_learned in enumerate(row):
        if is_learned:
            places = [*places, place] if places and places[-1] == place - 1 else [place]
    return places


@given(arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 9))))
def test_the_last_run_is_found_as_by_a_loop(is_learned):
    found = last_runs(is_learned)
    assert found.shape == is_learned.shape
    assert [np.flatnonzero(row).tolist() for row in found] == [loop_of_runs(row) for row in is_learned]


@pytest.fixture(scope="module")
def adapted():
    config = AdapterConfig(rank=2, alpha=2.0, targets=("o_proj",), seed="runs")
    found = attach(tiny_deepseek(), config, head=None)
    found.load_state(np.random.default_rng(0).normal(0, 0.5, found.layout.dim))
    return found


@pytest.fixture(scope="module")
def examples(adapted):
    """Rows of which some end as the model would end them, so that exact ones and others are there."""
    ids = random_ids(len(RUNS), length=12).numpy()
    is_learned = np.zeros(ids.shape, dtype=bool)
    for row, own in enumerate(RUNS):
        for start, end in own:
            is_learned[row, start:end] = True
    for row in (0, 3):  # what greedy decoding writes, in the last run alone
        start, end = RUNS[row][-1]
        for place in range(start, end):
            with torch.no_grad():
                logits = adapted.model(input_ids=torch.from_numpy(ids[row : row + 1, :place])).logits
            ids[row, place] = int(logits[0, -1].argmax())
    return Examples(ids, is_learned, np.array([0, 0, 1, 2, 3]))


def by_hand(adapted, ids, is_learned):
    """(exact, loss of all learned tokens, their number, mean loss of the last run) of one record, from all logits."""
    with torch.no_grad():
        logits = adapted.model(input_ids=torch.from_numpy(ids[None])).logits[0].double()
    losses = {
        place: -float(torch.log_softmax(logits[place - 1], -1)[ids[place]]) for place in np.flatnonzero(is_learned)
    }
    last = loop_of_runs(is_learned)
    exact = all(int(logits[place - 1].argmax()) == ids[place] for place in last)
    return exact, sum(losses.values()), len(losses), float(np.mean([losses[place] for place in last]))


def test_evaluate_counts_the_last_run_as_exact_and_all_runs_in_perplexity(adapted, examples):
    rows = [by_hand(adapted, *row) for row in zip(examples.ids, examples.targets, strict=True)]
    exact = [row[0] for row in rows]
    assert exact == [True, False, False, True, False]
    losses = [rows[0][1] + rows[1][1], *(row[1] for row in rows[2:])]  # the first two are of one unit
    tokens = [rows[0][2] + rows[1][2], *(row[2] for row in rows[2:])]
    found = FreeText().evaluate(TERMS, None, adapted, [examples])
    assert found["records"] == 5
    assert found["exact_match"]["value"] == exact_match(exact).value == 0.4
    assert found["perplexity"]["value"] == pytest.approx(perplexity(np.array(losses), np.array(tokens)).value, rel=1e-5)


def test_the_judge_sees_the_last_run_alone(adapted, examples):
    for ids, is_learned in zip(examples.ids, examples.targets, strict=True):
        exact, _, _, loss = by_hand(adapted, ids, is_learned)
        with torch.no_grad():
            label, score = FreeText().judge(TERMS, None, adapted, ids, is_learned)
        assert label == exact
        assert score == pytest.approx(-loss - np.log(-np.expm1(-loss)), abs=1e-4)


def test_the_loss_of_a_record_is_the_mean_over_all_its_runs(adapted, examples):
    with torch.no_grad():
        losses = adapted.losses(torch.from_numpy(examples.ids), torch.from_numpy(examples.targets)).tolist()
    rows = [by_hand(adapted, *row) for row in zip(examples.ids, examples.targets, strict=True)]
    assert losses == pytest.approx([loss / tokens for _, loss, tokens, _ in rows], rel=1e-5)
    assert used_tokens(examples.ids, examples.targets).tolist() == [9, 5, 12, 8, 12]
