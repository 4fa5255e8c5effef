"""Metrics with intervals, from scores or from noised histograms, statistics of routing, and mathematical answers.

`metrics` judges scores that are at hand; `binned` judges a histogram that sites have noised and summed, and says how
much the noise hides; `router_statistics` counts which experts a model's routers choose, and `layer_routing` says how
evenly. `answers` reads mathematical answers, of which nothing is run, and tells which are equal; `derivations` checks
their lines. `programs` says whether a program parses, and `mutants` makes copies of it with one error each, which do.
Every metric is an `Estimate`: a value and an interval that covers the population's with the stated confidence.

Eight of nine pairs of a positive and a negative are in the right order:

>>> import numpy as np
>>> from confide.models.evaluation import metrics
>>> scores = np.array([-2.0, -1.0, 0.5, -0.5, 1.0, 2.0])  # logits
>>> found = metrics.auc(scores, np.array([0, 0, 0, 1, 1, 1]))
>>> round(found.value, 3), found.low < found.value < found.high, found.confidence
(0.889, True, 0.95)

An answer is right in any form:

>>> from confide.models.evaluation import answers
>>> answers.is_equivalent("(x+1)^{2}", "x^2+2x+1"), answers.is_equivalent("__import__('os')", "3")
(True, False)
"""

__all__ = ["answers", "binned", "derivations", "layer_routing", "metrics", "mutants", "programs", "router_statistics"]
