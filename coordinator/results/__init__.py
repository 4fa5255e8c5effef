"""Results of a run: adapters, metrics, audits, budget reports, statistics of routing.

`trained` loads the model that a run has trained, `export` writes its adapter. `metrics` computes metrics from the run's
evaluation, `held_out` from records on this machine. `privacy_audit` tests the run's training step. `reports` makes
signed budget reports and gives a site its replicated ledger back. `router_statistics` and `router_page` show the
experts that a backbone's routers choose. `asking` answers requests with the adapters of several studies, `deployment`
writes a model that runs elsewhere.

A page about one layer with an unused expert:

>>> from confide.coordinator.results import router_page, router_statistics
>>> from confide.models.evaluation.router_statistics import LayerRouting
>>> layer = LayerRouting(layer=1, tokens=3, choices=(3, 2, 1, 0), weights=(0.5, 0.3, 0.2, 0.0), token_entropy=0.9)
>>> routing = router_statistics.Routing("backbone", "ab" * 32, "a text", (layer,))
>>> page = router_page.render_html("backbone", routing)
>>> page.startswith("<!doctype html>"), layer.unused
(True, (3,))
"""

__all__ = [
    "asking",
    "deployment",
    "export",
    "held_out",
    "metrics",
    "privacy_audit",
    "reports",
    "router_page",
    "router_statistics",
    "trained",
]
