import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from confide.models.space.contrast import locked_losses, ranks, recall
from confide.privacy.errors import UnitsCoupled
from confide.privacy.mechanism.independence import refuse_coupled_loss

ROWS, NAMES, WIDTH = 5, 9, 4


def unit(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64), dim=-1)


POINTS, GALLERY, OWN = unit(ROWS, 1), unit(NAMES, 2), torch.tensor([3, 0, 8, 3, 5])


def by_loop(points, gallery, own, scale, twins=None):
    """The definition, one row and one name after another."""
    found = []
    for row, point in enumerate(points.tolist()):
        total, right = 0.0, 0.0
        for name, other in enumerate(gallery.tolist()):
            mass = math.exp(scale * sum(a * b for a, b in zip(point, other, strict=True)))
            if name == own[row]:
                right = mass
            elif twins is not None and twins[row][name]:
                continue
            total += mass
        found.append(math.log(total) - math.log(right))
    return found


@pytest.mark.parametrize("scale", [1.0, 15.0, 60.0])
def test_a_loss_is_what_a_loop_over_the_gallery_gives(scale):
    found = locked_losses(POINTS, GALLERY, OWN, scale=scale)
    np.testing.assert_allclose(found, by_loop(POINTS, GALLERY, OWN, scale), rtol=1e-12, atol=1e-13)


def test_other_names_of_the_same_thing_count_neither_way():
    twins = torch.zeros(ROWS, NAMES, dtype=torch.bool)
    twins[0, [1, 3]] = twins[2, [0, 8]] = twins[4, 7] = True  # its own among them, which counts all the same
    found = locked_losses(POINTS, GALLERY, OWN, scale=10.0, twins_RG=twins)
    np.testing.assert_allclose(found, by_loop(POINTS, GALLERY, OWN, 10.0, twins.tolist()), rtol=1e-12)
    assert found[0] < locked_losses(POINTS, GALLERY, OWN, scale=10.0)[0]


def test_a_loss_against_a_public_gallery_ties_no_units_together():
    refuse_coupled_loss(lambda rows, own: locked_losses(rows, GALLERY, own, scale=10.0), POINTS, OWN)


@pytest.mark.parametrize("negatives", ["the other rows themselves", "the names of the other rows"])
def test_a_loss_whose_wrong_names_are_the_batch_s_stays_refused(negatives):
    def clip(rows, own):
        others = F.normalize(rows, dim=-1) if negatives == "the other rows themselves" else GALLERY[own]
        return locked_losses(rows, others, torch.arange(len(rows)), scale=10.0)

    with pytest.raises(UnitsCoupled, match="the term of row 0"):
        refuse_coupled_loss(clip, POINTS, OWN)


def test_ranks_count_what_scores_the_same_as_before():
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.7, 0.7, 0.2], [0.3, 0.3, 0.3], [0.1, 0.2, 0.9]])
    assert ranks(scores, torch.tensor([0, 1, 2, 2])).tolist() == [2, 2, 3, 1]


def test_a_score_that_is_no_number_is_never_first():
    scores = torch.tensor([[float("nan"), 0.1], [0.2, float("nan")]])
    assert ranks(scores, torch.tensor([0, 0])).tolist() == [2, 2]


def test_recall_is_the_mean_of_both_ways_thing_by_thing():
    left, right = unit(30, 3), unit(30, 4) + unit(30, 3)
    scores = (left @ right.T).tolist()
    for k in (1, 3, 10):
        want = []
        for thing in range(30):
            there = sum(score >= scores[thing][thing] for score in scores[thing]) <= k
            back = sum(row[thing] >= scores[thing][thing] for row in scores) <= k
            want.append((there + back) / 2)
        assert recall(left, right, k).tolist() == want


def test_points_that_are_all_the_same_are_not_found():
    same = torch.ones(10, 3)
    assert recall(same, same, 9).tolist() == [0.0] * 10
    assert recall(same, same, 10).tolist() == [1.0] * 10
