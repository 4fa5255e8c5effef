import hashlib

import numpy as np
import pytest
import torch

from confide.models.errors import BackboneMismatch
from confide.models.heads.pooling import PooledHead, pooled
from confide.models.heads.signature import shown, signatures

from ..tiny import tiny_deepseek

IDS = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0], [4, 4, 4, 0]])


@pytest.fixture(scope="module")
def model():
    return tiny_deepseek()


@pytest.fixture(scope="module")
def head():
    generator = torch.Generator().manual_seed(1)
    whiten = torch.randn(64, 64, generator=generator)
    return PooledHead(torch.randn(64, generator=generator), whiten + whiten.T)


@torch.no_grad()
def test_a_signature_of_full_length_is_the_whitened_state_cut_to_length_one(model, head):
    white = (pooled(model, IDS) - head.center) @ head.whiten
    torch.testing.assert_close(signatures(model, head, IDS, 64), torch.nn.functional.normalize(white, dim=1))


@torch.no_grad()
def test_shorter_signatures_are_turned_by_directions_that_all_share(model, head):
    whole, short = signatures(model, head, IDS, 64), signatures(model, head, IDS, 48)
    assert short.shape == (3, 48)
    torch.testing.assert_close(short.norm(dim=1), torch.ones(3))
    # Fitted by a linear map, as a projection is one: 64 unknowns a number, so more records than that.
    many = torch.randint(1, 64, (200, 6), generator=torch.Generator().manual_seed(2))
    a, b = signatures(model, head, many, 64).double(), signatures(model, head, many, 48).double()
    lengths = (a @ torch.linalg.lstsq(a, b).solution).norm(dim=1)
    assert 0.5 < lengths.min() <= lengths.max() < 1.1
    assert float((whole[0] @ whole[2]) - (short[0] @ short[2])) == pytest.approx(0, abs=0.4)
    torch.testing.assert_close(signatures(model, head, IDS, 48), short, rtol=0, atol=0)


@torch.no_grad()
def test_the_directions_are_the_same_on_every_machine(model):
    ones = PooledHead(torch.zeros(64), torch.eye(64))
    found = signatures(model, ones, IDS[:1], 8)[0]
    state = pooled(model, IDS[:1])[0].double().numpy()
    digest = hashlib.shake_256(b"confide signature 1 64 8").digest(4 * 64 * 8)
    words = [int.from_bytes(digest[place : place + 4], "little") for place in range(0, len(digest), 4)]
    basis = np.linalg.qr(np.array([word / 2**31 - 1 for word in words]).reshape(64, 8))[0]
    want = state @ basis
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(want / np.linalg.norm(want)), atol=1e-5)


def test_a_signature_is_no_longer_than_what_a_head_reads(model, head):
    with pytest.raises(BackboneMismatch, match="64 numbers of a record to a head"):
        signatures(model, head, IDS, 65)


def test_of_a_record_only_what_a_request_would_have_is_shown():
    ids = np.array([4, 5, 6, 7, 0, 0])
    assert shown(ids, np.asarray(1)).tolist() == [4, 5, 6, 7]
    assert shown(ids, np.array([False, False, True, True, False, False])).tolist() == [4, 5]
    assert shown(ids, np.array([False, True, False, True, False, False])).tolist() == [4]  # a conversation's first turn
    assert shown(ids, np.array([True] * 6)).tolist() == [4]  # never nothing
    assert shown(ids, np.zeros(6, bool)).tolist() == [4, 5, 6, 7]
    assert shown(np.zeros(3, np.int64), np.asarray(0)).tolist() == [0]
