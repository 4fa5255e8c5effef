"""Python's collector while modules are imported."""

import gc

import pytest

from confide.importing import without_collector


@pytest.fixture(autouse=True)
def _as_before():
    was_enabled = gc.isenabled()
    yield
    gc.enable() if was_enabled else gc.disable()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_rests_and_is_then_as_it_was(is_enabled):
    gc.enable() if is_enabled else gc.disable()
    with without_collector():
        assert not gc.isenabled()
    assert gc.isenabled() == is_enabled


def test_it_goes_on_after_an_import_that_fails():
    gc.enable()
    with pytest.raises(ModuleNotFoundError), without_collector():
        import confide.no_module  # noqa: F401
    assert gc.isenabled()
