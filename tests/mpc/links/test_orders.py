import dataclasses

import numpy as np
import pytest

from confide.mpc.errors import InvalidField
from confide.mpc.links.orders import OpenedTotal, host_and_port
from confide.mpc.sharing.ring import Ring

KEY = "ab" * 32


@pytest.fixture(scope="module")
def order(kit):
    return kit.Round(1, Ring(32, 20), 3, 5, np.random.default_rng(0)).order(0)


@pytest.mark.parametrize(
    "change",
    [
        {"study": "t"},
        {"run": "q"},
        {"round": 2},
        {"state": KEY},
        {"attempt": 1},
        {"cohort": (("a", KEY),)},
        {"dim": 6},
        {"ring_bits": 64},
        {"scale_bits": 19},
        {"min_sites": 3, "min_untopped": 3},
        {"min_untopped": 3},
        {"rows": 64, "norm_bound": 1},
        {"rows": 64, "norm_bound": 2},
        {"rows": 64, "norm_bound": 1, "topup_bound": 1},
        {"tag_count": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_covers_every_common_field(order, change):
    assert dataclasses.replace(order, **change).digest() != order.digest()


def test_top_up_is_for_the_order_s_very_cohort_and_no_update(order):
    smaller = dataclasses.replace(order, cohort=order.cohort[:2])
    contexts = [order.context("site0"), order.topup_context("site0"), smaller.topup_context("site0")]
    assert len({bytes(context) for context in contexts}) == 3
    again = dataclasses.replace(order, cohort=order.cohort[::-1])  # the order of names does not count
    assert again.topup_context("site0") == order.topup_context("site0")


def test_shares_are_bound_to_the_order_s_rows_and_tags(order):
    context = dataclasses.replace(order, rows=70, norm_bound=1, tag_count=2).topup_context("site0")
    assert (context.rows, context.tag_count) == (70, 2)


def test_digest_leaves_out_what_is_private(order):
    assert dataclasses.replace(order, private_key=bytes(32)).digest() == order.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"min_sites": 1},  # the sum over one site is its update
        {"min_sites": 3},  # more than may be summed as they are
        {"min_untopped": 4097},
        {"cohort": (("a", KEY), ("a", "cd" * 32))},
        {"cohort": (("a", KEY), ("b", KEY))},
        {"cohort": (("a", KEY.upper()),)},
        {"cohort": (("a\nb", KEY),)},
        {"cohort": [("a", KEY)]},
        {"private_key": bytes(31)},
        {"rows": 63, "norm_bound": 1},
        {"rows": 1025, "norm_bound": 1},
        {"rows": 64},
        {"tag_count": -1},
        {"round": -1},
        {"state": KEY.upper()},
        {"state": KEY + "\n"},
        {"dim": 2**27 + 1},
    ],
)
def test_order_outside_its_ranges_is_refused(order, change):
    with pytest.raises(InvalidField):
        dataclasses.replace(order, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"aggregator_id": 3},
        {"addresses": ("a:1", "b:2")},
        {"addresses": ("a:1", "b:2", "c")},
        {"pins": ("x" * 20_000,) * 3},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"journal": "text"},
        {"listen": ":1"},
        {"shards": 0},
        {"shards": 65},
        {"shards": True},
    ],
)
def test_configuration_outside_its_ranges_is_refused(kit, tmp_path, change):
    config = kit.configs(tmp_path, 1)[0]
    with pytest.raises(InvalidField):
        dataclasses.replace(config, **change)


def test_secrets_do_not_show(order):
    assert "private_key" not in repr(order)
    assert "secret" not in repr(OpenedTotal(kept=("a",), set_digest=bytes(32), total=b"secret", tag_share=b"secret"))


@pytest.mark.parametrize(("address", "expected"), [("a.example:80", ("a.example", 80)), ("[::1]:9", ("::1", 9))])
def test_addresses_are_split(address, expected):
    assert host_and_port(address) == expected


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:¹", 7, None])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InvalidField):
        host_and_port(address)
