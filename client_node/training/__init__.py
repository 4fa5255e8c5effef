"""Training at a site: the study's model, its rounds, and the worker processes that compute them.

`trainer.Trainer` holds one study's model and one site's records; its `release` computes the site's update of a round.
`study_model` builds the model and turns records into its inputs. `workers` divides the work among processes.
`public_time` lets answers leave when that tells nothing of the sample.

The repr of records is empty, so that no log or traceback shows them:

>>> import numpy as np
>>> from confide.client_node.training import study_model
>>> study_model.Examples(ids=np.array([[2, 1]]), targets=np.array([1]), units=np.array([0]))
Examples()
"""

__all__ = ["public_time", "study_model", "trainer", "warm_model", "workers"]
