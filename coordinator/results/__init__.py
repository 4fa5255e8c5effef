"""Results of a run: adapters, metrics, audits, budget reports.

`trained` loads the model that a run has trained, `export` writes its adapter. `metrics` computes metrics from the run's
evaluation, `held_out` from records on this machine. `privacy_audit` tests the run's training step. `reports` makes
signed budget reports and gives a site its replicated ledger back. `asking` answers requests with the adapters of
several studies, `deployment` writes a model that runs elsewhere.

A budget report needs ledgers that sites have sent:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.errors import NotFound
>>> from confide.coordinator.federation import Settings, create_home
>>> from confide.coordinator.results.reports import budget_report
>>> from confide.coordinator.store import Store
>>> settings = Settings(
...     federation="clinics", address="127.0.0.1:8443", listen="127.0.0.1", port=8443, superlink_port=0
... )
>>> with TemporaryDirectory() as home:
...     create_home(Path(home), settings)
...     store = Store.open(Path(home))
...     try:
...         budget_report(store, Path(home), None)
...     except NotFound as err:
...         print(err)
...     finally:
...         store.close()
no site has sent a ledger yet; a report needs at least one run that has begun
"""

__all__ = [
    "asking",
    "deployment",
    "export",
    "held_out",
    "metrics",
    "privacy_audit",
    "reports",
    "trained",
]
