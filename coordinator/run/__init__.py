"""One run: its rounds from top to bottom, what it sends and relays, the server optimizer, its driver and progress.

`driver.drive` takes a run's lease and calls `rounds.drive_run`, which is the place to read: a round in the order in
which it happens. Its steps are one file each: `broadcast` is what sites are sent, `collection` what they seal for it,
`relay` moves sealed shares, `aggregation` opens their sum, `server_optimizer` makes the next state of it. All of them
put their `questions` to nodes out of one `context`. `control` begins, stops and resumes a run, `progress` shows one to
people while it goes on, `overview` tells how far all have come.

From a mean update to the next state, with a rate of its own for the head at the end:

>>> import numpy as np
>>> from confide.coordinator.run import server_optimizer
>>> from confide.coordinator.store import Checkpoint
>>> optimizer = server_optimizer.ServerOptimizer(lr=0.5, head_lr=2.0, momentum=0.0)
>>> start = Checkpoint.beginning(np.zeros(3, np.float32))
>>> after = optimizer.step(start, np.array([1.0, -1.0, 1.0]), slice(2, 3))
>>> after.round, after.state.tolist()
(1, [-0.5, 0.5, -2.0])
"""

__all__ = ["broadcast", "control", "driver", "overview", "progress", "server_optimizer"]
