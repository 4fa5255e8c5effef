"""CrypTen over our links and with our triples, against plain torch on 64-bit integers; the parties are threads."""

import random

import numpy as np
import pytest
import torch

from confide.mpc.crypten import runtime
from confide.mpc.crypten.runtime import ArithmeticSharedTensor, BinarySharedTensor
from confide.mpc.crypten.triples import Replicated
from confide.mpc.errors import PartyLost, RuntimeUnsound


def plain(*shape, seed=1, bits=64):
    words = np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint64)
    return torch.from_numpy(words.view(np.int64))


def computed(kit, compute):
    """What `compute` opens at each party with replicated triples."""

    def party(links):
        runtime.start(links)
        with runtime.using(Replicated()):
            return compute()

    return kit.at_each(party)


def shared(kind, value):
    return kind(value, src=1, **({"precision": 0} if kind is ArithmeticSharedTensor else {}))


X, Y = plain(4, 5, seed=1), plain(4, 5, seed=2)
SMALL_X, SMALL_Y = plain(64, seed=3, bits=40), plain(64, seed=4, bits=40)
NEAR = torch.cat([SMALL_X[:4], SMALL_Y[4:]])  # partly equal to SMALL_X


@pytest.mark.parametrize(
    ("kind", "compute", "expected"),
    [
        (ArithmeticSharedTensor, lambda x, y: x + y, X + Y),
        (ArithmeticSharedTensor, lambda x, y: x * y, X * Y),
        (ArithmeticSharedTensor, lambda x, y: x * 3 - 1, X * 3 - 1),
        (ArithmeticSharedTensor, lambda x, y: runtime.crypten.mpc.primitives.beaver.square(x), X * X),
        (ArithmeticSharedTensor, lambda x, y: x.matmul(y.t()), X @ Y.T),
        (ArithmeticSharedTensor, lambda x, y: x * y[:1], X * Y[:1]),  # broadcast
        (BinarySharedTensor, lambda x, y: x ^ y, X ^ Y),
        (BinarySharedTensor, lambda x, y: x & y, X & Y),
        (BinarySharedTensor, lambda x, y: x | y, X | Y),
        (BinarySharedTensor, lambda x, y: ~x, ~X),
        (BinarySharedTensor, lambda x, y: x + y, X + Y),
        (BinarySharedTensor, lambda x, y: x < y, (X < Y).long()),
    ],
    ids=["add", "mul", "public", "square", "matmul", "broadcast", "xor", "and", "or", "not", "adder", "lt"],
)
def test_shares_compute_what_plain_integers_do(kit, kind, compute, expected):
    opened = computed(kit, lambda: compute(shared(kind, X), shared(kind, Y)).reveal())
    assert all(torch.equal(one, expected) for one in opened)


def test_conversions_between_the_two_sharings_are_exact(kit):
    def there_and_back():
        words = runtime.crypten.mpc.primitives.converters
        binary = words._A2B(shared(ArithmeticSharedTensor, X))
        return binary.reveal(), words._B2A(binary, precision=0).reveal()

    assert all(torch.equal(one, X) for opened in computed(kit, there_and_back) for one in opened)


def test_comparison_opens_only_its_result(kit):
    def compare():
        x, y = (
            runtime.crypten.mpc.MPCTensor.from_shares(shared(ArithmeticSharedTensor, v).share, precision=0)
            for v in (SMALL_X, NEAR)
        )
        return (x < y)._tensor.reveal()

    assert all(torch.equal(one, (SMALL_X < NEAR).long()) for one in computed(kit, compare))


def test_a_value_can_be_opened_to_one_party_alone(kit):
    opened = computed(kit, lambda: shared(ArithmeticSharedTensor, X).reveal(dst=2))
    assert opened[:2] == [None, None]
    assert torch.equal(opened[2], X)


@pytest.mark.parametrize("make", [Replicated])
def test_triples_multiply(kit, make):
    def draw():
        provider = make()
        with runtime.using(provider):
            a, b, c = provider.generate_additive_triple((300, 3), (3, 2), "matmul")
            r, r2 = provider.square((1000,))
            word_a, word_b, word_c = provider.generate_binary_triple((1000,), (1000,))
            bit, same_bit = provider.B2A_rng((1000,))
            return [t.reveal() for t in (a, b, c, r, r2, word_a, word_b, word_c, bit, same_bit)]

    a, b, c, r, r2, word_a, word_b, word_c, bit, same_bit = computed(kit, draw)[0]
    assert torch.equal(a @ b, c)
    assert torch.equal(r * r, r2)
    assert torch.equal(word_a & word_b, word_c)
    assert torch.equal(bit, same_bit)
    assert 380 < int(bit.sum()) < 620  # 7.5 standard deviations
    assert set(bit.tolist()) == {0, 1}


def test_each_party_holds_two_of_the_three_summands_of_a_replicated_value(kit):
    def party(links):
        runtime.start(links)
        return runtime.pairwise((100,))

    held = kit.at_each(party)
    assert all(torch.equal(held[i][1], held[(i + 1) % 3][0]) for i in range(3))
    assert all((held[i][0] != held[j][0]).all() for i in range(3) for j in range(i))


def test_products_of_replicated_triples_are_blinded(kit):
    """Lowest bits of all shares, but the last of each product, are jointly uniform: else a product's shares would be
    functions of the factors', and show them when a result is opened. 1e-9 at 405 for 255 degrees of freedom, 103 for
    31."""

    def party(links):
        runtime.start(links)
        provider = Replicated()
        drawn = [
            provider.generate_additive_triple((50_000,), (50_000,), "mul"),
            provider.generate_binary_triple((50_000,), (50_000,)),
            provider.square((50_000,)),
        ]
        return [[one.share & 1 for one in parts] for parts in drawn]

    at = kit.at_each(party)
    for kind, limit in ((0, 405), (1, 405), (2, 103)):
        free = [bits for parts in at for bits in parts[kind]][:-1]
        combination = sum(bits << place for place, bits in enumerate(free))
        counts = torch.bincount(combination, minlength=2 ** len(free)).double()
        expected = 50_000 / len(counts)
        assert float(((counts - expected) ** 2 / expected).sum()) < limit


def test_outside_the_block_of_a_provider_nothing_is_multiplied(kit):
    def party(links):
        runtime.start(links)
        with runtime.using(Replicated()):
            x = shared(ArithmeticSharedTensor, X)
            product = (x * x).reveal()
        with pytest.raises(RuntimeUnsound, match="no provider"):
            _ = x * x
        return product

    assert all(torch.equal(one, X * X) for one in kit.at_each(party))


def test_crypten_draws_from_our_streams_alone(kit, monkeypatch):
    """Whatever it computes: all it is given are `Prg`, and the generators of torch, numpy and Python stand still."""
    drawn = set()
    chosen = runtime._prg
    monkeypatch.setattr(runtime, "_prg", lambda *args: drawn.add(type(chosen(*args))) or chosen(*args))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def all_of_it():
        x, y = shared(ArithmeticSharedTensor, SMALL_X), shared(ArithmeticSharedTensor, SMALL_Y)
        mpc = runtime.crypten.mpc.MPCTensor.from_shares((x * y + x).share, precision=0)
        ArithmeticSharedTensor.PRSS((2,))
        BinarySharedTensor.rand(3, bits=7)
        return (mpc < 7)._tensor.reveal()

    assert all(isinstance(one, torch.Tensor) for one in computed(kit, all_of_it))
    assert drawn == {runtime.Prg}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert {type(held) for held in runtime.crypten.generators.values()} == {runtime._Generators}


def test_truncation_is_refused(kit):
    with pytest.raises(RuntimeUnsound, match="wrap_rng"):
        _ = Replicated().wrap_rng


@pytest.mark.parametrize("bend", [lambda data: data[:-8], lambda data: data + bytes(8), lambda data: b""])
def test_a_message_of_another_size_is_a_lost_party(kit, bend):
    class Bent:
        """Links that hand on another size from party 2."""

        def __init__(self, links):
            self.aggregator_id, self._links = links.aggregator_id, links

        def exchange(self, step, outgoing, limit):
            received = dict(self._links.exchange(step, outgoing, limit))
            return received if step == "SEED" or 2 not in received else received | {2: bend(received[2])}

        def all_gather(self, step, data, limit):
            gathered = self._links.all_gather(step, data, limit)
            return [*gathered[:2], bend(gathered[2])]

    def party(to):
        def run(links):
            runtime.start(Bent(links))
            return ArithmeticSharedTensor.from_shares(torch.zeros(5, dtype=torch.long), precision=0).reveal(dst=to)

        return run

    assert all(isinstance(one, PartyLost) for one in kit.at_each(party(None)))
    assert isinstance(kit.at_each(party(0))[0], PartyLost)


def test_parties_at_different_tensors_are_lost(kit):
    def party(links):
        runtime.start(links)
        size = 4 if links.aggregator_id == 1 else 5
        return ArithmeticSharedTensor.from_shares(torch.zeros(size, dtype=torch.long), precision=0).reveal()

    assert all(isinstance(one, PartyLost) for one in kit.at_each(party))


def test_a_party_that_dies_during_a_conversion_is_lost_and_nothing_is_tried_again(kit):
    """CrypTen catches RuntimeError there and would start a second algorithm."""

    def party(links):
        runtime.start(links)
        if links.aggregator_id == 2:
            links.close()
            raise PartyLost("gone")
        with runtime.using(Replicated()):
            return runtime.crypten.mpc.primitives.converters._A2B(shared(ArithmeticSharedTensor, X))

    assert all(isinstance(one, PartyLost) and not isinstance(one, RuntimeError) for one in kit.at_each(party))


def test_floats_are_never_sent(kit):
    def party(links):
        runtime.start(links)
        return ArithmeticSharedTensor.from_shares(torch.zeros(3), precision=0).reveal()

    assert all(isinstance(one, RuntimeUnsound) for one in kit.at_each(party))


def test_a_thread_that_started_no_party_computes_nothing():
    with pytest.raises(RuntimeUnsound, match="no party"):
        ArithmeticSharedTensor.PRZS((3,))
