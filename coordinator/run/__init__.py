"""One run: its rounds, the relay of sealed shares, totals passed on, the driver, orders and progress.

`driver.drive` takes a run's lease and calls `rounds.drive_run`. Read that first: it has the steps of a round in their
order, and each step has its own file. `recovery` finds the checkpoint to go on from, `replaying` passes on the totals
that sites lack, `collection` collects the sites' sealed updates, `relay` moves sealed shares, `aggregation` takes their
total; `client_node.replay` computes the next state. All of them ask nodes through `questions` and share one `context`.
`control` starts, stops and resumes a run, `progress` follows one for people, `overview` lists all with their progress,
`glance` looks at a whole federation, `approvals` at who has approved a study, and `laps` has the steps that a round is
timed by.

A fresh federation has no runs yet:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.run import overview
>>> from confide.coordinator.store import Store
>>> with TemporaryDirectory() as home:
...     store = Store.create(Path(home))
...     overview.run_standings(store)
...     store.close()
[]
"""

__all__ = ["approvals", "control", "driver", "glance", "laps", "overview", "progress"]
