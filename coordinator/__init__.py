"""The operator's side of a federation: who belongs to it, its studies and runs, and what comes of them.

`cli` is the command `coordinator`; `gateway` serves the federation; `run` drives a round from top to bottom, which is
the place to read. `oversight` says who may do what, and who did what. `federation`, `studies` and `store` keep what it
works on, `fleet` reaches the nodes, `results` is what comes of a run, `routing` which experts a model chooses,
`comparison` what simpler means would give, and `simulation` what many sites would.
docs/operator.md is the page for operators.

A federation is founded in a folder, with keys, certificates and an empty store:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.federation import Settings, create_home
>>> from confide.coordinator.store import Store
>>> settings = Settings(
...     federation="clinics", address="127.0.0.1:8443", listen="127.0.0.1", port=8443, superlink_port=0
... )
>>> with TemporaryDirectory() as home:
...     create_home(Path(home), settings)
...     store = Store.open(Path(home))
...     found = store.nodes(), store.studies(), store.runs()
...     store.close()
>>> found
([], [], [])
"""

__all__ = [
    "api",
    "cli",
    "comparison",
    "demo",
    "federation",
    "fleet",
    "gateway",
    "oversight",
    "page",
    "results",
    "routing",
    "run",
    "simulation",
    "store",
    "studies",
]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.coordinator: write `import confide.coordinator`, not `import coordinator`"
    )
