"""Many sites in common batches: the releases of each by itself, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from confide.privacy.errors import BatchMalformed, SourceRefused
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.many_sites import SiteTable, many_releases
from confide.privacy.mechanism.sampling import SeededBytes
from confide.privacy.mechanism.site_round import ReleaseTerms, round_release

from ...models.tiny import random_ids
from ..loops import PLAIN, adapted_tiny, given, kept_states, labels_for

SIZES = (15, 2, 12, 0, 9)  # records of each site; one has none


def tables(adapted, terms, *, keeps=False):
    """Sites with other records, units of two records, weights and seeds of their own."""
    found = []
    for number, rows in enumerate(SIZES):
        ids = random_ids(max(rows, 1), seed=number).numpy()[:rows]
        labels = labels_for(rows).numpy()
        kept = kept_states(adapted, ids, labels) if keeps and rows else {}
        own = replace(terms, weight=(1.0, 0.5)[number % 2])
        found.append(
            SiteTable(
                ids=ids, targets=labels, unit_of_row=np.arange(rows) // 2, terms=own,
                source=SeededBytes(bytes([number])), entering=given(kept) if keeps else None,
            )
        )  # fmt: skip
    return found


def alone(adapted, state, table, shapes, number):
    return round_release(
        adapted, state, table.ids, table.targets, table.unit_of_row, terms=table.terms, shapes=shapes,
        source=SeededBytes(bytes([number])), entering=table.entering,
    )  # fmt: skip


@pytest.mark.parametrize("layers", [None, (1,)], ids=["all layers", "from kept states"])
@pytest.mark.parametrize(
    "changes", [{}, {"clipping": "adaptive"}, {"sample_rate": 0.7, "max_norm": 0.7}], ids=["fixed", "adaptive", "drawn"]
)
def test_each_release_is_that_of_the_site_by_itself(layers, changes):
    adapted = adapted_tiny(layers=layers)
    terms = ReleaseTerms(**{**PLAIN, **changes})
    shapes = probed_shapes(adapted, max_tokens=random_ids(1).shape[1], max_rows=16, max_records=2)
    assert shapes.rows_of_length, "this machine computes rows of a batch independently"
    state = np.random.default_rng(0).normal(0, 0.1, adapted.layout.dim + ("clipping" in changes)).astype(np.float32)
    sites = tables(adapted, terms, keeps=layers is not None)
    together = many_releases(adapted, state, sites, shapes=shapes)
    apart = [alone(adapted, state, site, shapes, number) for number, site in enumerate(sites)]
    assert [one.tobytes() for one in together] == [one.tobytes() for one in apart]
    assert sum(bool(one.any()) for one in together) >= 3  # there is something to compare


def test_noise_is_each_sites_own():
    adapted = adapted_tiny()
    sites = tables(adapted, ReleaseTerms(**PLAIN))
    noised = replace(sites[0].terms, mode="distributed", site_noise_int=1 << 20)
    same = SiteTable(ids=sites[0].ids, targets=sites[0].targets, unit_of_row=sites[0].unit_of_row, terms=noised)
    first, second = many_releases(adapted, adapted.state(), [same, same])
    without = round_release(adapted, adapted.state(), same.ids, same.targets, same.unit_of_row, terms=sites[0].terms)
    spread = (first - without).std(), (second - without).std(), (first - second).std() / 2**0.5
    assert spread == pytest.approx((2**20,) * 3, rel=0.2)


def test_sites_of_other_terms_are_refused():
    adapted = adapted_tiny()
    sites = tables(adapted, ReleaseTerms(**PLAIN))
    for changes in ({"clip_norm": 0.5}, {"clip_norm": None}, {"clipping": "adaptive"}):
        other = replace(sites[1], terms=replace(sites[1].terms, **changes))
        with pytest.raises(BatchMalformed):
            many_releases(adapted, adapted.state(), [sites[0], other])
    noised = replace(sites[0].terms, mode="distributed", site_noise_int=1 << 20)
    with pytest.raises(SourceRefused):
        many_releases(adapted, adapted.state(), [replace(sites[0], terms=noised)])
    with pytest.raises(BatchMalformed, match="padded"):
        many_releases(adapted, adapted.state(), [sites[0], replace(sites[1], ids=sites[1].ids[:, :-1])])
