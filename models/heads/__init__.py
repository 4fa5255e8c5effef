"""Heads on a backbone's last states: the pooled classifier, and the loss of each record.

`pooled` gives the states that `PooledHead` turns into numbers of a record, of which an objective in `objectives` makes
a label, a class, several labels, a point of a scale, or several of these. `record_losses` is the loss of a label,
`foretell` that of the words that a causal model is to write, and `completion_losses` the same for training. Each loss
is a function of one record alone, as clipping by unit needs it to be. `written` joins the targets of a head with those
of a text behind the record. `signature` says how the backbone reads a record, whatever is learned of it.

A coin flip costs log 2 nats; a sure answer costs little if it is right and much if it is wrong:

>>> import torch
>>> from confide.models.heads import record_losses
>>> losses = record_losses(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 1.0, 0.0]))
>>> [round(loss, 3) for loss in losses.tolist()]
[0.693, 0.018, 4.018]
"""

from .losses import completion_losses, foretell, record_losses, word_logits
from .pooling import PooledHead, pooled, pooled_and_last

__all__ = [
    "PooledHead",
    "completion_losses",
    "foretell",
    "objectives",
    "pooled",
    "pooled_and_last",
    "record_losses",
    "signature",
    "word_logits",
    "written",
]
