"""What one record adds to the loss. A unit's loss is the mean over its own records, the batch's the sum over units."""

import torch.nn.functional as F
from torch import Tensor


def record_losses(logits_R: Tensor, labels_R: Tensor) -> Tensor:
    """[R] binary cross-entropy of each record's logit; nothing is divided by how many there are."""
    return F.binary_cross_entropy_with_logits(logits_R, labels_R.to(logits_R), reduction="none")
