"""What reads the last states: the pooled classifier, and the losses of a record."""

from .losses import foretell, record_losses
from .pooling import PooledHead, pooled

__all__ = ["PooledHead", "foretell", "pooled", "record_losses"]
