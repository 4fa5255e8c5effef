import numpy as np

from confide.client_node.replay.checkpoint import Checkpoint
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store.run_folder import RunFolder

from ..conftest import committed_round
from .test_export import RUN, state, with_run


def test_the_adapter_is_that_of_the_last_committed_round(federation):
    study = with_run(federation)
    found = trained_model(federation.store, federation.home, RUN).adapted
    np.testing.assert_array_equal(found.state(), state(study, 2))


def test_where_states_are_averaged_the_adapter_is_the_average_without_the_clip(federation):
    study = with_run(federation, ("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"'), rounds=1)
    folder, store = RunFolder(federation.home, RUN), federation.store
    kept = Checkpoint(round=2, state=state(study, 2), velocity=state(study, 0), average=state(study, 3))
    lease = store.acquire_lease(RUN)
    store.commit_round(committed_round(2, run=RUN, lease=lease, state_hash=folder.save(kept)))
    np.testing.assert_array_equal(trained_model(store, federation.home, RUN).adapted.state(), state(study, 3)[:-1])
