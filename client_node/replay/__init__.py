"""The study's own server step, which the coordinator takes and every site repeats.

`server_optimizer` computes the next state from a round's opened total, `broadcast` the vector that a round starts from,
`following` both of a study, and `bounds` how far a state can ever get. `FollowedRuns` keeps what a site has computed.

From a mean update to the next state, with a separate rate for the head at the end:

>>> import numpy as np
>>> from confide.client_node.replay import Checkpoint, server_optimizer
>>> optimizer = server_optimizer.ServerOptimizer(lr=0.5, head_lr=2.0, momentum=0.0)
>>> start = Checkpoint.beginning(np.zeros(3, np.float32))
>>> after = optimizer.step(start, np.array([1.0, -1.0, 1.0]), slice(2, 3))
>>> after.round, after.state.tolist()
(1, [-0.5, 0.5, -2.0])
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .followed_runs import FollowedRuns, Standing
else:
    __getattr__ = lazy(__name__, checkpoint="Checkpoint", followed_runs="FollowedRuns Standing")

__all__ = ["Checkpoint", "FollowedRuns", "Standing", "bounds", "broadcast", "following", "server_optimizer"]
