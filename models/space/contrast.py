"""Contrastive losses against a gallery that is public, and how often a gallery's own name is found first.

In-batch negatives (CLIP, arXiv:2103.00020) make the loss of one record move with all others, so that clipping for each
person would bound nothing; `refuse_coupled_loss` refuses them. Here negatives are public names (locked training, LiT,
arXiv:2111.07991): the loss of a row is a function of that row and of what is public.

Legend: `R` rows (pictures or sounds), `G` names in the gallery, `D` width of the space.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def locked_losses(
    points_RD: Tensor,
    gallery_GD: Tensor,
    own_R: Tensor,
    *,
    scale: Tensor | float,
    twins_RG: Tensor | None = None,
) -> Tensor:
    """[R], nats by which each row's own name is missed among the names of a gallery.

    Args:
        points_RD: of unit length.
        gallery_GD: of unit length, the same for every row.
        own_R: int64, the place of each row's name in the gallery.
        scale: what cosines are multiplied by.
        twins_RG: bool, names that are right for a row as well and count neither way; None: there are none.
    """
    logits_RG = scale * (points_RD @ gallery_GD.T)
    if twins_RG is not None:
        is_own_RG = F.one_hot(own_R, len(gallery_GD)).bool()
        logits_RG = logits_RG.masked_fill(twins_RG & ~is_own_RG, float("-inf"))
    return F.cross_entropy(logits_RG, own_R, reduction="none")


def ranks(scores_RG: Tensor, own_R: Tensor) -> Tensor:
    """int64 [R], the rank of each row's own among the columns, from 1; what scores the same counts as before it."""
    own_R1 = scores_RG.gather(1, own_R[:, None])
    # Not `sum(scores >= own)`: of a score that is no number nothing is known, so it counts as before it, too.
    return scores_RG.shape[1] - (scores_RG < own_R1).sum(1)


def recall(left_RD: Tensor, right_RD: Tensor, k: int) -> Tensor:
    """float64 [R], for each thing how often it is found among the first k: by its left side, and by its right side.

    Each is 0, 1/2 or 1, so that the mean is recall@k both ways, and things can be drawn again for its interval.
    """
    scores = left_RD @ right_RD.T
    own = torch.arange(len(scores))
    found: Tensor = torch.stack([ranks(way, own) <= k for way in (scores, scores.T)]).double().mean(0)
    return found
