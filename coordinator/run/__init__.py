"""One run: its rounds, the relay of sealed shares, the server optimizer, the driver, orders and progress.

`driver.drive` takes a run's lease and calls `rounds.drive_run`. Read that first: it has the steps of a round in their
order, and each step has its own file. `broadcast` encodes the state for the sites, `collection` collects their sealed
updates, `relay` moves sealed shares, `aggregation` opens their total, `server_optimizer` computes the next state. All
of them ask nodes through `questions` and share one `context`. `control` starts, stops and resumes a run, `progress`
follows one for people, `overview` lists all with their progress.

From a mean update to the next state, with a separate rate for the head at the end:

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
