"""The prototype that a run has released, as its export carries it."""

import torch

from ...client_node.study.cost import release
from ...models.adapters.prototype import Prototype
from ..store import Store
from ..studies.catalogue import load_study


def released_prototype(store: Store, run_id: str) -> Prototype | None:
    """Reads a run's prototype and the standard deviation of its noise; None if there is none, for whatever reason."""
    row = store.prototype(run_id)
    if row is None or row.problem is not None:
        return None
    study = load_study(store.study(store.run(run_id).study))
    sites = len(row.summed)
    made = release(study, study.closing_round("prototype"), sites=sites).over(sites)  # with top-ups for missing sites
    noise_std = sites**0.5 * made.site_noise_int / 2.0**made.scale_bits
    return Prototype(torch.tensor(row.vector, dtype=torch.float32), noise_std)
