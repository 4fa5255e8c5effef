"""Encodes the trained vector that all sites start from, and keeps the rounding error for the next round."""

import numpy as np

from ..study import StateFormat
from .checkpoint import Checkpoint


def broadcast(form: StateFormat, checkpoint: Checkpoint) -> tuple[bytes, np.ndarray | None]:
    """Encodes a round's start; returns its bytes and the residual for the next checkpoint, None if nothing is lost.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847): the rounding error is added to the
    next round's vector. So over any number of rounds the sum of these vectors is the sum of the states but for one last
    residual. Both results are functions of the checkpoint alone: every site comes to the same bytes.
    """
    if form.kind == "float32":
        return form.encode(checkpoint.state), None
    wanted = checkpoint.state if checkpoint.residual is None else checkpoint.state + checkpoint.residual
    sent = form.encode(wanted)
    return sent, wanted - form.decode(sent)
