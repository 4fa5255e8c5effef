import copy
import json
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.kernels.errors import TokensMiscounted
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones import checkpoints, loading
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.errors import InvalidAdapter, InvalidBackbone
from confide.models.records.vocabularies import word_tokenizer
from confide.models.structure import sense
from confide.models.structure.eye import Eye, EyeConfig
from confide.models.structure.pictures import PictureLayout
from confide.models.structure.places import EYE, FILES
from confide.models.tokens import bytes_of, carrying, made_up, words_of
from confide.privacy.errors import UnitsCoupled
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import kept_gap, refuse_dependence

from .by_loop import UNITS, assert_clipped_as_in_a_loop, away_from_start, learned_of, unit_losses

HIDDEN, WORDS, TEXT = 32, 20, 5
TWO = EyeConfig(size=(32, 64), cell=(32, 32), width=8, depths=(1, 1))
SEEN = PictureLayout(TWO.size, TWO.cell).tokens  # 8, four of each cell
TARGETS = ("eye.q_proj", "eye.fc1", "eye.reduction", "eye.to_words", "o_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "reduction", "to_words")


def eye_of(config=TWO, hidden=HIDDEN):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        eye = Eye(config, hidden).eval()
        for module in eye.swin.modules():  # as large as if it had learned
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return eye


def decoder(words=WORDS):
    config = BackboneConfig(hidden=HIDDEN, experts=4, max_tokens=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return named("deepseek_v3").build(words, config).eval()


def reader(words=WORDS):
    model = decoder(words)
    sense.join(model, eye_of())
    return model


def pictures(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *TWO.size), dtype=np.uint8)


def rows_of(count, *, text=TEXT, seed=0):
    """[R, T, 33] with a picture at the beginning of each."""
    words = np.random.default_rng(seed).integers(1, WORDS, (count, SEEN + text))
    carried = np.zeros((*words.shape, 256), dtype=np.uint8)
    carried[:, :SEEN] = TWO.layout.squares(pictures(count, seed))
    return torch.from_numpy(carrying(words, carried))


def states(model, ids):
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


def entering_first_layer(model, ids):
    found = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda _layer, args: found.append(args[0]))
    states(model, ids)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    "config",
    [
        EyeConfig(size=(32, 64), cell=(32, 32)),
        EyeConfig(size=(64, 128), cell=(32, 64)),
        EyeConfig(size=(64, 96), cell=(64, 96)),
    ],
    ids=["boxes", "broad boxes", "whole"],
)
def test_cells_are_put_together_again_from_what_tokens_carry(config):
    layout, drawn = config.layout, np.random.default_rng(1).integers(0, 256, (3, *config.size), dtype=np.uint8)
    words = np.ones((3, layout.tokens), dtype=np.int64)
    rows = torch.from_numpy(carrying(words, layout.squares(drawn)))
    found = eye_of(config).cells(bytes_of(rows))
    np.testing.assert_allclose((found.numpy() + 1) * 127.5, layout.cut(drawn), atol=1e-4)
    assert float(found.min()) >= -1
    assert float(found.max()) <= 1


def test_states_lie_in_the_order_of_squares():
    """Without attention and depth, a square's state follows from its own pixels: white patches in one of them show."""
    eye = eye_of()
    dark = torch.zeros(1, 32, 32)
    with torch.no_grad():
        for parameter in eye.swin.parameters():
            parameter.zero_()
        for name, module in eye.swin.named_modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
            elif name.endswith(("patch_embeddings.projection", "reduction")):
                module.weight.normal_(generator=torch.Generator().manual_seed(1))
        for square in range(4):
            down, across = divmod(square, 2)
            lit = dark.clone()
            # All but one patch of the first stage, so that mean and spread, which norms take away, move as well.
            lit[0, down * 16 : down * 16 + 12, across * 16 : across * 16 + 12] = torch.rand(12, 12)
            moved = (eye.squares(lit) - eye.squares(dark)).abs().amax(2)[0]
            assert moved.argmax() == square
            assert [place for place in range(4) if moved[place] > 1e-4] == [square]


def test_an_eye_sees_each_cell_by_itself():
    eye, drawn = eye_of(), pictures(2)
    other = drawn.copy()
    other[0, 3, 40] ^= 255  # in the second cell of the first picture
    with torch.no_grad():
        before, after = (eye(torch.from_numpy(TWO.layout.squares(each)).view(2, SEEN, 256)) for each in (drawn, other))
    assert before.shape == (2, SEEN, HIDDEN)
    has_moved = (before != after).any(2)
    assert has_moved[0, 4:].all()
    assert not has_moved[0, :4].any()
    assert not has_moved[1].any()


def test_equal_cells_differ_by_their_places_alone():
    eye, one = eye_of(), pictures(1)[:, :, :32]
    with torch.no_grad():
        seen = eye(torch.from_numpy(TWO.layout.squares(np.concatenate([one, one], axis=2))))
    apart = (seen - eye.where)[0]
    torch.testing.assert_close(apart[:4], apart[4:])
    assert not torch.allclose(seen[0, :4], seen[0, 4:], atol=0.01)


@torch.no_grad()
def test_a_row_is_what_the_eye_sees_and_then_its_words():
    model, ids = reader(), rows_of(3)
    found = entering_first_layer(model, ids)
    torch.testing.assert_close(found[:, :SEEN], sense.sense_of(model)(bytes_of(ids[:, :SEEN])))
    assert torch.equal(found[:, SEEN:], model.model.embed_tokens(words_of(ids)[:, SEEN:]))


@torch.no_grad()
def test_words_in_a_picture_and_bytes_behind_it_are_never_read():
    model, ids = reader(), rows_of(2)
    other = ids.clone()
    other[:, :SEEN, 0] = 7
    other[:, SEEN:, 1:] = 123456789
    assert torch.equal(states(model, ids), states(model, other))
    other[:, SEEN - 1, 32] ^= 1 << 62
    assert not torch.equal(states(model, ids), states(model, other))


@torch.no_grad()
def test_a_row_that_ends_in_a_picture_sees_the_beginning_of_one():
    model, ids = reader(), rows_of(2)
    whole = entering_first_layer(model, ids)
    torch.testing.assert_close(entering_first_layer(model, ids[:, :4]), whole[:, :4])
    assert entering_first_layer(model, ids[:, :3]).shape == (2, 3, HIDDEN)


@torch.no_grad()
def test_plain_words_are_read_as_without_an_eye():
    model, without, words = reader(), decoder(), words_of(rows_of(3))
    assert torch.equal(model(input_ids=words, use_cache=False).logits, without(input_ids=words, use_cache=False).logits)
    assert torch.equal(model.model(words, use_cache=False).last_hidden_state, states(without, words))


@torch.no_grad()
def test_ids_may_be_given_by_place_or_by_name():
    model, ids = reader(), rows_of(2)
    want = states(model, ids)
    assert torch.equal(model.model(ids, use_cache=False).last_hidden_state, want)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, model.lm_head(want))


def test_a_model_has_one_eye_of_its_own_width():
    with pytest.raises(InvalidBackbone, match="already"):
        sense.join(reader(), eye_of())
    with pytest.raises(InvalidBackbone, match="states of 64 numbers, not 32"):
        sense.join(decoder(), eye_of(hidden=64))
    assert sense.sense_of(decoder()) is None


@torch.no_grad()
def test_a_copy_of_a_model_sees_with_its_own_eye():
    model, ids = reader(), rows_of(1)
    before, other = states(model, ids), copy.deepcopy(model)
    other.model.eye.where.zero_()
    assert torch.equal(states(model, ids), before)
    assert not torch.allclose(states(other, ids), before)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([" ".join(f"w{number}" for number in range(WORDS - 3))])


def save(model, tokenizer, directory):
    checkpoints.save_model(model, directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    sense.save(model, directory)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    save(reader(), tokenizer, folder)
    return folder


@torch.no_grad()
def test_an_eye_is_saved_beside_the_weights_and_found_again(saved):
    found, ids = loading.load_text(saved), rows_of(3)
    assert torch.equal(states(found.model, ids), states(reader(), ids))
    assert not any(parameter.requires_grad for parameter in sense.sense_of(found.model).parameters())
    assert not sense.sense_of(found.model).training
    weights = json.loads((saved / checkpoints.INDEX).read_text())["weight_map"]
    assert not [name for name in weights if "eye" in name]


def parts(saved):
    return load_file(saved / FILES[EYE]), {"sizes": json.dumps(asdict(TWO))}


def sizes(**changes):
    stated = {**asdict(TWO), **changes}
    return {"sizes": json.dumps({name: value for name, value in stated.items() if value != "left out"})}


# The sizes that an eye's file states, changed in one thing.
WRONG_SIZES = {
    "nothing is stated": None,
    "other metadata": {"format": "pt"},
    "no JSON": {"sizes": "width: 8"},
    "a list": {"sizes": "[]"},
    "left out": sizes(window="left out"),
    "one more": sizes(depth=3),
    "text": sizes(width="8"),
    "a fraction": sizes(width=8.5),
    "a flag": sizes(window=True),
    "three depths": sizes(depths=[1, 1, 1]),
    "one number": sizes(size=32),
    "no multiple of 32": sizes(size=[32, 80]),
    "cells that do not fit": sizes(cell=[32, 96]),
    "gigantic": sizes(size=[2**20, 2**20]),
    "window beyond a cell": sizes(window=8),
    "window that leaves a rest": sizes(window=3),
    "no window": sizes(window=0),
    "window of gigabytes": sizes(size=[2048, 2048], cell=[2048, 2048], window=256),
    "no width": sizes(width=0),
    "monstrous width": sizes(width=2**40),
    "heads that leave a rest": sizes(heads=[3, 4]),
    "no heads": sizes(heads=[0, 4]),
    "less than no heads": sizes(heads=[-2, 4]),
    "no layers": sizes(depths=[0, 1]),
    "more layers than any": sizes(depths=[65, 1]),
    "another width": sizes(width=16),
    "another depth": sizes(depths=[2, 1]),
    "another window": sizes(window=2),
    "another size": sizes(size=[32, 32]),
}


@pytest.mark.parametrize("what", WRONG_SIZES)
def test_an_eye_of_other_sizes_is_refused(saved, tmp_path, what):
    weights, _ = parts(saved)
    save_file(weights, tmp_path / FILES[EYE], metadata=WRONG_SIZES[what])
    refuse(tmp_path)


def test_an_eye_that_is_written_anew_is_read(saved, tmp_path):
    weights, metadata = parts(saved)
    save_file(weights, tmp_path / FILES[EYE], metadata=metadata)
    sense.load(tmp_path, model := decoder())
    assert sense.sense_of(model).settings == TWO


bare = cache(decoder)  # a model that is only looked at


def refuse(folder, model_of=bare, said=FILES[EYE]):
    model = model_of()
    with pytest.raises(InvalidBackbone, match=said):
        sense.load(folder, model)
    assert sense.sense_of(model) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (32, 80)}, "multiples of 32"),
        ({"window": 8}, "window of 8 patches does not divide the last stage of a cell, 4 x 4 patches"),
        ({"window": 3}, "does not divide"),
        ({"cell": (32, 64), "window": 8}, "does not divide"),
        ({"size": (64, 96), "cell": (64, 96), "window": 8}, "does not divide"),  # 8 x 12
        ({"size": (256, 256), "cell": (256, 256), "window": 32}, "widths, heads, depths and windows"),
        ({"width": 2049, "heads": (1, 1)}, "cannot be built"),
        ({"heads": (1, 3)}, "cannot be built"),
        ({"depths": (1, 65)}, "cannot be built"),
    ],
)
def test_sizes_of_no_eye_are_refused(changes, said):
    with pytest.raises(InvalidBackbone, match=said):
        EyeConfig(**{**asdict(TWO), **changes})


def test_the_largest_window_of_an_eye_is_small():
    """Of a window, transformers keeps a table of the fourth power of its side, which is not in the file."""
    widest = EyeConfig(size=(512, 512), cell=(512, 512), width=1, depths=(1, 1), heads=(1, 1), window=16)
    with torch.device("meta"):
        eye = Eye(widest, HIDDEN)
    assert sum(buffer.numel() * buffer.itemsize for buffer in eye.buffers()) <= 2 * 8 * 16**4


WRONG_WEIGHTS = {
    "nan": lambda found: found["where"].view(-1)[5:6].fill_(torch.nan),
    "infinity": lambda found: found["to_words.weight"].view(-1)[5:6].fill_(-torch.inf),
    "whole numbers": lambda found: found.update(where=found["where"].to(torch.int32)),
    "bytes": lambda found: found.update(where=found["where"].to(torch.uint8)),
    "8 bits": lambda found: found.update(where=found["where"].to(torch.float8_e4m3fn)),
    "8 bits, more of a range": lambda found: found.update(where=found["where"].to(torch.float8_e5m2)),
    "complex": lambda found: found.update(where=found["where"].to(torch.complex64)),
    "one less": lambda found: found.pop("where"),
    "one more": lambda found: found.update(more=torch.zeros(1)),
    "another shape": lambda found: found.update(where=found["where"].T.contiguous()),
    "one axis more": lambda found: found.update(where=found["where"][None]),
    "none": lambda found: found.clear(),
}


@pytest.mark.parametrize("what", WRONG_WEIGHTS)
def test_an_eye_of_other_weights_is_refused(saved, tmp_path, what):
    weights, metadata = parts(saved)
    WRONG_WEIGHTS[what](weights)
    save_file(weights, tmp_path / FILES[EYE], metadata=metadata)
    refuse(tmp_path)


def test_an_eye_for_another_model_is_refused(saved):
    def broader():
        return named("deepseek_v3").build(WORDS, BackboneConfig(hidden=64, experts=4, max_tokens=64))

    refuse(saved, broader, "other shapes")


def test_a_file_that_is_no_eye_is_refused(saved, tmp_path):
    whole = (saved / FILES[EYE]).read_bytes()
    for file in (b"", b"no safetensors", whole[:7], whole[:900], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]):
        (tmp_path / FILES[EYE]).write_bytes(file)
        refuse(tmp_path)
    (tmp_path / FILES[EYE]).unlink()
    (tmp_path / FILES[EYE]).mkdir()
    refuse(tmp_path)


def test_a_folder_without_an_eye_is_a_model_without_one(tmp_path):
    model = decoder()
    sense.load(tmp_path, model)
    assert sense.sense_of(model) is None


def adapted_reader(targets=TARGETS, *, dtype=torch.float64, freeze_a=True, layers=None):
    return away_from_start(reader(), targets, dtype=dtype, freeze_a=freeze_a, layers=layers)


@pytest.mark.slow
@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("targets", [TARGETS, tuple(f"eye.{leaf}" for leaf in LINEAR)], ids=["both", "eye alone"])
def test_clipping_by_unit_through_an_eye_is_that_of_a_loop(freeze_a, targets):
    """Four rows of three units; every unit's gradient by itself, clipped, and summed."""
    adapted, ids = adapted_reader(targets, freeze_a=freeze_a), rows_of(4)
    assert {name.split(".")[-2] for name in adapted.trained} == {target.split(".")[-1] for target in targets}
    assert_clipped_as_in_a_loop(adapted, ids, SEEN)


def test_every_adapter_of_an_eye_is_told_its_own_number_of_tokens():
    adapted = adapted_reader(tuple(f"eye.{leaf}" for leaf in LINEAR), dtype=torch.float32)
    for name, adapter in adapted.adapters.items():
        leaf, is_last = name.rpartition(".")[2], ".layers.1." in name
        pixels_apart = {"reduction": 8, "to_words": 16}.get(leaf, 8 if is_last else 4)
        assert adapter.tokens_per_row == 32 * 64 // pixels_apart**2, name
    other = adapted_reader(("o_proj",), dtype=torch.float32)
    assert {adapter.tokens_per_row for adapter in other.adapters.values()} == {None}


@pytest.mark.parametrize("leaf", LINEAR)
def test_an_adapter_of_an_eye_that_is_not_told_is_refused(leaf):
    adapted, ids = adapted_reader((f"eye.{leaf}", "o_proj"), dtype=torch.float32), rows_of(4)
    (name, *_) = [name for name in adapted.adapters if "eye" in name]
    adapted.adapters[name].tokens_per_row = None
    clipper = PerUnitClipper(adapted)
    with pytest.raises(TokensMiscounted), clipper.microbatch(UNITS, ids.shape[1]), adapted.rows.told(ids):
        sum(unit_losses(adapted, ids, np.arange(4), SEEN)).backward()


@torch.no_grad()
def test_kept_states_stand_for_picture_and_words_and_the_eye_does_not_run():
    adapted, ids = adapted_reader(("o_proj",), layers=(1,), dtype=torch.float32), rows_of(4)
    calls = []
    sense.sense_of(adapted.model).register_forward_hook(lambda *_: calls.append(1))
    assert adapted.frozen_layers == 1
    whole, kept = adapted.losses(ids, learned_of(ids, SEEN)), adapted.entering(ids)
    assert len(calls) == 2
    resumed = adapted.losses(ids, learned_of(ids, SEEN), kept)
    assert len(calls) == 2
    torch.testing.assert_close(resumed, whole, rtol=1e-6, atol=0)
    other = ids.clone()
    other[:, :SEEN, 1:] ^= -1
    assert not torch.allclose(adapted.losses(other, learned_of(ids, SEEN)), whole)
    torch.testing.assert_close(adapted.losses(other, learned_of(ids, SEEN), kept), whole, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_gradients_from_kept_states_are_those_of_the_whole():
    adapted = adapted_reader(("o_proj", "kv_b_proj"), layers=(1,), dtype=torch.float32)
    assert kept_gap(adapted, words=WORDS, tokens=SEEN + TEXT) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("targets", [("eye.to_words",), ("eye.to_words", "o_proj"), ("o_proj",)])
def test_what_a_frozen_encoder_gives_is_kept_where_no_layer_is_frozen(targets):
    adapted, ids = adapted_reader(targets, dtype=torch.float32), rows_of(4)
    calls = []
    sense.sense_of(adapted.model).encoder.register_forward_hook(lambda *_: calls.append(1))
    assert adapted.frozen_layers == 0
    assert adapted.can_keep
    whole, kept = adapted.losses(ids, learned_of(ids, SEEN)), adapted.entering(ids)
    assert kept.shape[:2] == (4, SEEN)  # nothing of the words
    assert len(calls) == 2
    behind = torch.nn.functional.pad(kept, (0, 0, 0, ids.shape[1] - SEEN), value=7.0)  # as a batch pads it; not read
    for given in (kept, behind):
        resumed = adapted.losses(ids, learned_of(ids, SEEN), given)
        torch.testing.assert_close(resumed, whole, rtol=1e-6, atol=0)
    assert len(calls) == 2
    other = ids.clone()
    other[:, :SEEN, 1:] ^= -1
    assert not torch.allclose(adapted.losses(other, learned_of(ids, SEEN)), whole)
    torch.testing.assert_close(adapted.losses(other, learned_of(ids, SEEN), kept), whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        adapted.losses(ids, learned_of(ids, SEEN)), whole, rtol=0, atol=0
    )  # nothing is left over


def test_kept_features_that_do_not_fit_are_refused():
    adapted, ids = adapted_reader(("eye.to_words",), dtype=torch.float32), rows_of(2)
    kept = adapted.entering(ids)
    for wrong in (kept[:1], kept[..., :-1]):
        with pytest.raises(InvalidAdapter, match="kept features of shape"):
            adapted.losses(ids, learned_of(ids, SEEN), wrong)
    with pytest.raises(InvalidAdapter, match="must not be trained"):
        adapted.losses(ids, learned_of(ids, SEEN), kept.requires_grad_())
    assert sense.sense_of(adapted.model).given is None


@pytest.mark.slow
@pytest.mark.parametrize("targets", [("eye.to_words",), ("eye.to_words", "o_proj", "kv_b_proj")])
def test_gradients_from_kept_features_are_those_of_the_whole(targets):
    adapted = adapted_reader(targets, dtype=torch.float32)
    assert kept_gap(adapted, words=WORDS, tokens=SEEN + TEXT) < 1e-5


def test_features_below_an_adapted_encoder_are_never_kept():
    adapted = adapted_reader(("eye.fc1", "eye.to_words", "o_proj"), dtype=torch.float32)
    assert not adapted.can_keep


def test_states_above_an_adapted_eye_are_never_kept():
    adapted, ids = adapted_reader(("eye.fc1", "o_proj"), layers=(1,), dtype=torch.float32), rows_of(1)
    assert any("eye" in name for name in adapted.trained)  # `layers` are the decoder's alone
    assert not any("model.layers.0" in name for name in adapted.trained)
    assert adapted.frozen_layers == 0
    with pytest.raises(InvalidAdapter, match="nothing to keep"):
        adapted.entering(ids)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(SEEN + TEXT,), (7, SEEN + 2)], ids=["one", "shorter than a picture"])
def test_units_stay_apart_in_a_model_with_an_eye(lengths):
    refuse_dependence(adapted_reader(dtype=torch.float32), words=WORDS, lengths=lengths)


def test_rows_of_nobody_are_bright_and_dark():
    """Each within bounds of its own, or what takes the bounds of a whole batch would not show."""
    rows = made_up(torch.Generator().manual_seed(0), 40, 9, words=WORDS, carried=32)
    assert (rows.shape, rows.dtype) == ((40, 9, 33), torch.int64)
    assert sorted(words_of(rows).unique().tolist()) == list(range(1, WORDS))
    seen = bytes_of(rows).flatten(1)
    assert len(seen.amax(1).unique()) > 20
    assert len(seen.amin(1).unique()) > 20
    assert int(seen.max()) > 240
    assert int(seen.min()) < 15
    assert made_up(torch.Generator().manual_seed(0), 2, 9, words=WORDS, carried=0).shape == (2, 9)
    assert made_up(torch.Generator().manual_seed(0), 0, 9, words=WORDS, carried=32).shape == (0, 9, 33)


class Averaging(Eye):
    """Takes the batch's mean away from what it sees."""

    def forward(self, bytes_RNB):
        seen = super().forward(bytes_RNB)
        return seen - seen.mean(0, keepdim=True)


class Brightening(Eye):
    """Makes the brightest pixel of a batch white."""

    def cells(self, bytes_RNB):
        cells = super().cells(bytes_RNB)
        return cells + (1 - cells.max())


class Stretching(Eye):
    """Takes the mean of all cells of a batch from every cell."""

    def squares(self, cells_CHW):
        return super().squares(cells_CHW - cells_CHW.mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Averaging, Brightening, Stretching])
def test_an_eye_that_ties_rows_together_is_refused(kind):
    model = decoder()
    mixing = kind(TWO, HIDDEN)
    mixing.load_state_dict(eye_of().state_dict())
    sense.join(model, mixing)
    adapted = attach(model, AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="x"))
    with pytest.raises(UnitsCoupled):
        refuse_dependence(adapted, words=WORDS, lengths=(SEEN + TEXT,))
