import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client_node.study.terms import StudyDraft

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "earn.py"


@pytest.fixture(scope="module")
def earn():
    spec = importlib.util.spec_from_file_location("earn", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def draft(earn):
    return StudyDraft.model_validate(earn.TERMS)


@pytest.fixture(scope="module")
def model(earn):
    return earn.letter_model()


def test_a_name_is_its_letters_and_an_end(earn):
    assert earn.encode(["ab", "z-a"])[:, :5].tolist() == [[2, 3, 1, 0, 0], [27, 29, 2, 1, 0]]
    assert earn.encode(["a" * 40])[0].tolist() == [2] * earn.MAX_LETTERS + [1]


def test_what_the_head_reads_ends_with_the_state_at_the_end_of_the_name(earn, model):
    ids = torch.from_numpy(earn.encode(["anna", "otto-maria"]))
    with torch.no_grad():
        got = earn.read(model, ids)
        for row, own in zip(got, ids, strict=True):
            states = model.model(input_ids=own[own > 0][None], output_hidden_states=True)
            first, last = states.hidden_states[0][0], states.last_hidden_state[0]
            want = torch.cat([first.mean(0) / 0.05, last.mean(0), last[-1]])
            torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)  # batched and alone add up differently


def test_head_and_named_projections_alone_are_trained(earn, model, draft):
    width = 3 * model.config.hidden_size
    bench = earn.Bench(draft, model.state_dict(), torch.zeros(width), torch.eye(width), [], {}, None)
    names = earn.adapted_model(bench, draft).layout.names
    assert names[0] == "head.weight"
    assert all(name.split(".")[-2] in draft.adapter.targets for name in names[1:])


@pytest.mark.parametrize("terms", ["study", "head at its best"])
def test_the_rounds_cost_less_than_3_even_if_one_site_colludes(earn, draft, terms):
    if terms != "study":
        draft = earn._with(draft, "privacy", **earn.HEAD_AT_ITS_BEST)
    by_pld, by_rdp = earn.epsilon(draft, 20_000)
    assert by_pld < by_rdp < 3


def test_the_head_is_given_no_more_noise_and_no_fewer_rounds_than_the_adapters(earn, draft):
    best = earn._with(draft, "privacy", **earn.HEAD_AT_ITS_BEST).privacy
    assert best.noise_multiplier / best.sample_rate < draft.privacy.noise_multiplier / draft.privacy.sample_rate


def test_a_name_has_the_groups_of_letters_that_stand_in_it(earn):
    row = earn.groups_of(["anna"], ["a", "b", "^a", "nn", "na", "a$", "nna", "xyz"])[0]
    np.testing.assert_allclose(row, np.array([1, 0, 1, 1, 1, 1, 1, 0, 1]) / 7**0.5, rtol=1e-6)
