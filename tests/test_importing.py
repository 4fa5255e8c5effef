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


def test_transformers_fetches_no_kernels_from_a_hub(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 8,
    }
    MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2)).save_pretrained(tmp_path)
    assert not MixtralForCausalLM.from_pretrained(tmp_path).use_kernels
