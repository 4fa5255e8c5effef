from types import MethodType

import pytest
import torch

from confide.models.backbones.families import FAMILIES as ALL
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.compression.cutting import (
    FAMILIES,
    Importance,
    Kept,
    Sizes,
    chosen,
    cut,
    measured,
    parameters,
    planned,
    resized,
)
from confide.models.errors import InvalidCompression

IDS = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(1))
BATCH = (IDS, torch.ones_like(IDS, dtype=torch.bool))


def built(kind, *, layers=3, hidden=64, experts=8, top_k=2):
    family = named(kind)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = BackboneConfig(family=kind, hidden=hidden, layers=layers, experts=experts, top_k=top_k)
        model = family.build(50, config).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            weight.normal_(std=0.1 if weight.ndim > 1 else 0.3)
            if weight.ndim == 1:
                weight.add_(1.0)
            if name.endswith("bias"):
                weight.sub_(1.0)
    model.config.rms_norm_eps = 1e-9  # added to a mean square, which does not follow a norm's weight
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-9
    return family, model


def mlps(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "down_proj")}


def whole_of(family, model):
    """All parts of a model."""
    sizes = Sizes.of(family, model.config)
    neurons = {}
    for name, mlp in mlps(model).items():
        if isinstance(mlp.down_proj, torch.nn.Parameter):
            neurons[name] = torch.arange(sizes.expert_neurons).repeat(sizes.experts, 1)
        else:
            neurons[name] = torch.arange(mlp.down_proj.in_features)
    experts = {
        place: torch.arange(sizes.experts)
        for place, layer in enumerate(model.model.layers)
        if any(name.startswith(f"model.layers.{place}.") and each.ndim == 2 for name, each in neurons.items())
    }
    return sizes, Kept(
        layers=tuple(range(sizes.layers)), channels=torch.arange(sizes.hidden), neurons=neurons, experts=experts
    )


def changed(kept, **parts):
    return Kept(**({name: getattr(kept, name) for name in Kept.__dataclass_fields__} | parts))


def resize(sizes, **parts):
    return Sizes(**({name: getattr(sizes, name) for name in Sizes.__dataclass_fields__} | parts))


@torch.no_grad()
def states(model):
    return model.model(input_ids=IDS, use_cache=False).last_hidden_state


@pytest.mark.parametrize("kind", FAMILIES)
def test_keeping_all_keeps_the_function(kind):
    family, model = built(kind)
    sizes, kept = whole_of(family, model)
    rms = measured(model, [BATCH]).rms
    torch.testing.assert_close(states(cut(family, model, kept, sizes, rms).eval()), states(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_leaving_out_channels_that_are_always_zero_keeps_the_function(kind):
    family, model = built(kind)
    sizes, kept = whole_of(family, model)
    gone = torch.tensor([0, 5, 6, 17, 30, 31, 40, 63])
    stay = torch.tensor([place for place in range(64) if place not in gone.tolist()])
    model.model.embed_tokens.weight[:, gone] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[gone] = 0
    for mlp in mlps(model).values():
        if isinstance(mlp.down_proj, torch.nn.Parameter):
            mlp.down_proj[:, gone] = 0
        else:
            mlp.down_proj.weight[gone] = 0
    found = cut(family, model, changed(kept, channels=stay), resize(sizes, hidden=56), measured(model, [BATCH]).rms)
    torch.testing.assert_close(states(found.eval()), states(model)[..., stay], rtol=1e-4, atol=1e-4)
    logits, want = found(IDS).logits, model(IDS).logits
    if model.config.tie_word_embeddings:
        torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_leaving_out_neurons_that_say_nothing_keeps_the_function(kind):
    family, model = built(kind)
    sizes, kept = whole_of(family, model)
    generator = torch.Generator().manual_seed(5)
    neurons = {}
    for name, mlp in mlps(model).items():
        if isinstance(mlp.down_proj, torch.nn.Parameter):
            own = [torch.randperm(sizes.expert_neurons, generator=generator)[:24].sort().values for _ in range(8)]
            for expert, stay in enumerate(own):
                mask = torch.ones(sizes.expert_neurons, dtype=torch.bool)
                mask[stay] = False
                mlp.down_proj[expert][:, mask] = 0
            neurons[name] = torch.stack(own)
        else:
            width = mlp.down_proj.in_features
            stay = torch.randperm(width, generator=generator)[: 24 if "shared" in name else 40].sort().values
            mask = torch.ones(width, dtype=torch.bool)
            mask[stay] = False
            mlp.down_proj.weight[:, mask] = 0
            neurons[name] = stay
    smaller = resize(sizes, neurons=sizes.neurons and 40, expert_neurons=None if sizes.experts is None else 24)
    found = cut(family, model, changed(kept, neurons=neurons), smaller, measured(model, [BATCH]).rms)
    torch.testing.assert_close(states(found.eval()), states(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if named(kind).experts is not None])
def test_fewer_experts_are_what_a_router_of_these_alone_would_choose(kind):
    family, model = built(kind)
    sizes, kept = whole_of(family, model)
    stay = {layer: torch.tensor([0, 2, 3, 7]) for layer in kept.experts}
    neurons = {name: each[:4] if each.ndim == 2 else each for name, each in kept.neurons.items()}
    smaller = resize(sizes, experts=4)
    found = cut(family, model, changed(kept, experts=stay, neurons=neurons), smaller, measured(model, [BATCH]).rms)

    for name, router in model.named_modules():
        if name.rpartition(".")[2] != "gate" or not hasattr(router, "weight"):
            continue
        mine = next(each for place, each in found.named_modules() if place == name)
        layer = int(name.split(".")[2])

        def among_few(self, hidden, *, mine=mine, layer=layer):
            logits, weights, ids = mine(hidden)
            return logits, weights, stay[layer][ids]

        router.forward = MethodType(among_few, router)
        assert torch.equal(mine.weight, router.weight[stay[layer]])
    torch.testing.assert_close(states(found.eval()), states(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_leaving_out_layers_leaves_the_others_as_they_are(kind):
    family, model = built(kind)
    sizes, kept = whole_of(family, model)
    stay = (0, 2)
    found = cut(family, model, changed(kept, layers=stay), resize(sizes, layers=2), measured(model, [BATCH]).rms)
    del model.model.layers[1]
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = 2
    torch.testing.assert_close(states(found.eval()), states(model), rtol=1e-4, atol=1e-4)
    assert found.config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("times", [1.5, 3.0])
def test_a_plan_keeps_as_much_as_its_parameters_allow(kind, times):
    family, model = built(kind, hidden=128)
    before = parameters(family, model.config)
    assert before == sum(weight.numel() for weight in model.parameters())
    sizes = planned(family, model.config, times)
    after = parameters(family, resized(family, model.config, sizes, (0, 1, 2)))
    assert 0.75 * before / times < after <= before / times
    kept = chosen(measured(model, [BATCH]), model.config, sizes)
    found = cut(family, model, kept, sizes, measured(model, [BATCH]).rms)
    assert sum(weight.numel() for weight in found.parameters()) == after
    assert Sizes.of(family, found.config) == sizes
    assert sizes.experts is None or sizes.experts > sizes.top_k >= 1


def test_what_is_given_is_kept_by_a_plan():
    family, model = built("deepseek_v3", hidden=128)
    sizes = planned(family, model.config, 2.5, {"hidden": 64, "experts": 6})
    assert (sizes.hidden, sizes.experts, sizes.layers) == (64, 6, 3)


def test_what_counts_most_is_kept():
    family, model = built("deepseek_v3")
    sizes = resize(Sizes.of(family, model.config), layers=2, hidden=3, experts=3, top_k=2)
    importance = measured(model, [BATCH])
    importance = Importance(
        layers=torch.tensor([0.5, 0.1, 0.4]),
        channels=torch.arange(64.0).flip(0),
        neurons=importance.neurons,
        experts={1: torch.tensor([0.0, 0.1, 0.3, 0.0, 0.2, 0.2, 0.1, 0.1]), 2: torch.full((8,), 0.125)},
        rms=importance.rms,
    )
    kept = chosen(importance, model.config, sizes)
    assert kept.layers == (0, 2)
    assert kept.channels.tolist() == [0, 1, 2]
    assert {layer: each.tolist() for layer, each in kept.experts.items()} == {1: [2, 4, 5], 2: [0, 1, 2]}
    for name, score in importance.neurons.items():
        if score.ndim == 1:
            assert torch.equal(kept.neurons[name], score.topk(len(kept.neurons[name])).indices.sort().values)


def test_a_layer_of_experts_is_always_kept():
    family, model = built("deepseek_v3")
    importance = measured(model, [BATCH])
    importance = Importance(
        layers=torch.tensor([0.9, 0.1, 0.2]),
        channels=importance.channels,
        neurons=importance.neurons,
        experts=importance.experts,
        rms=importance.rms,
    )
    kept = chosen(importance, model.config, resize(Sizes.of(family, model.config), layers=1))
    assert kept.layers == (2,)
    found = cut(family, model, kept, resize(Sizes.of(family, model.config), layers=1), importance.rms)
    assert found.config.first_k_dense_replace == 0
    assert hasattr(found.model.layers[0].mlp, "experts")


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_cut_model_is_one_that_transformers_writes_and_reads(kind, tmp_path):
    """Some families take no width that is not a multiple of their heads, and say so when they are written."""
    family = named(kind)
    latent = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    settings = family.settings(BackboneConfig(family=kind, hidden=96, layers=2, heads=3)) | (
        latent if kind.startswith("deepseek") else {}
    )
    model = family.model_class()(family.config_class()(**settings, vocab_size=50)).eval()
    sizes, importance = planned(family, model.config, 1.8), measured(model, [BATCH])
    found = cut(family, model, chosen(importance, model.config, sizes), sizes, importance.rms).eval()
    found.save_pretrained(tmp_path)
    again = family.model_class().from_pretrained(tmp_path).eval()
    torch.testing.assert_close(states(again), states(found), rtol=1e-5, atol=1e-5)
    if kind in ("llama", "deepseek_v2"):
        with pytest.raises(InvalidCompression, match="multiple of the 3 heads"):
            resized(family, model.config, resize(sizes, hidden=40), (0, 1))


def test_of_groups_of_experts_each_keeps_as_many():
    family, model = built("deepseek_v3")
    model.config.n_group, model.config.topk_group = 2, 1
    for layer in model.model.layers[1:]:
        layer.mlp.gate.n_group, layer.mlp.gate.topk_group = 2, 1
    importance = measured(model, [BATCH])
    sizes = resize(Sizes.of(family, model.config), experts=4)
    for each in chosen(importance, model.config, sizes).experts.values():
        assert [place // 4 for place in each.tolist()] == [0, 0, 1, 1]
    with pytest.raises(InvalidCompression, match="5 experts are no 2 groups"):
        resized(family, model.config, resize(sizes, experts=5), (0, 1, 2))


@pytest.mark.parametrize(
    ("groups", "within", "top_k", "experts", "least"), [(4, 1, 3, 16, 12), (8, 4, 9, 64, 24), (3, 2, 4, 12, 9)]
)
def test_a_plan_of_groups_keeps_enough_of_each(groups, within, top_k, experts, least):
    family, model = built("deepseek_v3", experts=experts, top_k=top_k)
    model.config.n_group, model.config.topk_group = groups, within
    sizes = planned(family, model.config, 2.0)
    assert sizes.experts % groups == 0
    assert least <= sizes.experts < experts


def test_a_plan_that_sends_a_token_to_fewer_experts_may_keep_fewer():
    family, model = built("deepseek_v3", hidden=128)
    assert planned(family, model.config, 6.0, {"top_k": 1}).experts < planned(family, model.config, 6.0).experts


def test_each_group_keeps_two_experts_by_which_it_is_judged():
    family, model = built("deepseek_v3")
    model.config.n_group, model.config.topk_group = 4, 2
    with pytest.raises(InvalidCompression, match="4 experts in 4 groups"):
        resized(family, model.config, resize(Sizes.of(family, model.config), experts=4), (0, 1, 2))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v2"])
def test_a_model_without_shared_experts_is_cut(kind):
    family = named(kind)
    settings = family.settings(BackboneConfig(family=kind, hidden=64, layers=3)) | {"n_shared_experts": 0}
    model = family.model_class()(family.config_class()(**settings, vocab_size=50)).eval()
    importance = measured(model, [BATCH])
    sizes = planned(family, model.config, 2.0)
    found = cut(family, model, chosen(importance, model.config, sizes), sizes, importance.rms)
    assert Sizes.of(family, found.config) == sizes


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe"])
def test_a_model_of_dense_layers_alone_is_cut_whatever_its_family(kind):
    family = named(kind)
    dense = {"first_k_dense_replace": 3} if kind == "deepseek_v3" else {"mlp_only_layers": [0, 1, 2]}
    settings = family.settings(BackboneConfig(family=kind, hidden=64, layers=3)) | dense
    model = family.model_class()(family.config_class()(**settings, vocab_size=50)).eval()
    importance = measured(model, [BATCH])
    sizes = planned(family, model.config, 2.0)
    found = cut(family, model, chosen(importance, model.config, sizes), sizes, importance.rms)
    assert Sizes.of(family, found.config) == sizes


def test_importance_is_that_of_tokens_and_not_of_padding():
    _, model = built("deepseek_v3")
    padded = torch.cat([IDS, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    found, want = measured(model, [(padded, padded > 0)]), measured(model, [BATCH])
    torch.testing.assert_close(found.layers, want.layers, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.channels, want.channels, rtol=1e-4, atol=1e-6)
    for layer, share in want.experts.items():
        torch.testing.assert_close(found.experts[layer], share, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"hidden": 0}, "hidden is 0; it can be 1 to 64"),
        ({"hidden": 65}, "hidden is 65; it can be 1 to 64"),
        ({"layers": 4}, "layers is 4; it can be 1 to 3"),
        ({"experts": 2}, "with 2 of 2 experts for a token there is nothing to route"),
        ({"top_k": None}, "top_k is None"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(parts, said):
    family, model = built("deepseek_v3")
    with pytest.raises(InvalidCompression, match=said):
        resized(family, model.config, resize(Sizes.of(family, model.config), **parts), (0, 1, 2))


def test_what_cannot_be_is_refused_in_words():
    family, model = built("deepseek_v3")
    for times in (1.0, 0.5, float("nan"), float("inf")):
        with pytest.raises(InvalidCompression, match="a finite number above 1"):
            planned(family, model.config, times)
    with pytest.raises(InvalidCompression, match="leave out layers, or ask for less"):
        planned(family, model.config, 1000.0)
    with pytest.raises(InvalidCompression, match="no public token"):
        measured(model, [(IDS, torch.zeros_like(IDS, dtype=torch.bool))])
    llama, dense = built("llama")
    with pytest.raises(InvalidCompression, match="experts is 4; it can be none in this family"):
        resized(llama, dense.config, resize(Sizes.of(llama, dense.config), experts=4), (0, 1, 2))


@pytest.mark.parametrize("kind", sorted(ALL.keys() - set(FAMILIES)))
def test_a_family_with_other_layers_is_refused(kind):
    family, model = built(kind)
    with pytest.raises(InvalidCompression, match="layers that nothing here can cut"):
        planned(family, model.config, 2.0)
