"""Memory of the accountant: a study of many rounds asks for one more release each time."""

import pytest

from confide.privacy.accounting import composition


@pytest.mark.slow
def test_of_equal_pairs_only_the_newest_counts_are_kept_and_earlier_ones_come_out_the_same() -> None:
    composition._kept.cache_clear()
    composition.pld_bound.cache_clear()
    found = [composition.pld_bound(((3.0, 0.5, count), (4.0, 0.5, 1)), 1e-5) for count in range(1, 10)]
    kept = composition._kept(((3.0, 0.5), (4.0, 0.5)), 0)
    assert [merged[0][2] for merged in kept] == [6, 7, 8, 9]
    assert composition._kept.cache_info().currsize < 20  # the tree's places, not one for each count
    composition.pld_bound.cache_clear()
    assert composition.pld_bound(((3.0, 0.5, 5), (4.0, 0.5, 1)), 1e-5) == found[4]
