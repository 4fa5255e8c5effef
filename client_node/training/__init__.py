"""Training at a site: the study's model, one round of it, and the worker processes that share it.

`trainer.Trainer` holds one study's model and one site's records, and its `release` is the site's part in a round.
`study_model` builds the model and turns records into its inputs; `workers` divides the work among processes.

Records never show where a log or a traceback could take them up:

>>> import numpy as np
>>> from confide.client_node.training import study_model
>>> study_model.Examples(ids=np.array([[2, 1]]), targets=np.array([1]), units=np.array([0]))
Examples()
"""

__all__ = ["study_model", "trainer", "warm_model", "workers"]
