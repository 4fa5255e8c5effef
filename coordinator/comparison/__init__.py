"""The ladder: what could be done with a study's records instead, from a constant to private adapters.

`compare` trains every rung at several epsilons, on public records in one process, and keeps what it tried;
`compare_with_run` sets a real run beside the simpler rungs. `linear` has private linear models, `federated` the study's
own rounds without a network, `task` reads the records. `ladder` says which rungs there are.

Texts become inputs of a linear model by hashing, so that no vocabulary is learned from records:

>>> import numpy as np
>>> from confide.coordinator.comparison import linear
>>> texts = ["fever and cough", "broken arm", "itching skin", "cough", "broken leg", "red skin"]
>>> linear.hashed_inputs(texts, "words").shape
(6, 2048)
>>> np.round(np.linalg.norm(linear.hashed_inputs(texts, "ngrams").toarray(), axis=1), 6).tolist()
[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .comparing import compare, compare_with_run
    from .figures import Comparison
else:
    __getattr__ = lazy(__name__, comparing="compare compare_with_run", figures="Comparison")

__all__ = ["Comparison", "compare", "compare_with_run", "federated", "figures", "ladder", "linear", "task"]
