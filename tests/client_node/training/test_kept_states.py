"""Steps from kept states: what they release, and when there are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from confide.client_node.approval import study_decisions
from confide.client_node.data import kept_files
from confide.client_node.data.kept_files import FOLDER, KeptStates
from confide.client_node.training import kept_states
from confide.client_node.training import trainer as trainer_module
from confide.client_node.training.trainer import Trainer
from confide.models.records.kind import Examples
from confide.privacy.audit.engine_checks import made_up_state
from confide.privacy.mechanism.batches import BatchShapes

from ...models.structure.test_eye import SEEN, adapted_reader, learned_of, rows_of
from ...models.tiny import byte_tokenizer
from ..conftest import NOTES_CSV, Site
from ..test_node import Desk
from . import test_trainer
from .test_trainer import LAST_LAYER, NONE, new_trainer, text_desk


def files_of(home: Path) -> list[Path]:
    return sorted(file for file in (home / FOLDER).rglob("*") if file.is_file())


def kept_desk(site: Site) -> Desk:
    return text_desk(site, *NONE, LAST_LAYER)


def kept_trainer(desk: Desk, most_bytes: int = 2**20) -> Trainer:
    place = KeptStates(home=desk.site.home, study_hash=desk.study.study_hash, most_bytes=most_bytes)
    return new_trainer(desk, kept=place)


@pytest.fixture(autouse=True)
def shapes_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """To try shapes takes seconds, and `tests/privacy/mechanism/test_batches.py` does."""
    monkeypatch.setattr(trainer_module, "probed_shapes", lambda *_, **__: BatchShapes({32: (8, 4), 64: (4,)}, 1))


def made_up_states(trainer: Trainer) -> list[np.ndarray]:
    """An ordinary one, and such where a rounding decides gradients."""
    rng, adapted = np.random.default_rng(0), trainer.adapted
    ordinary = rng.normal(0, 0.3, adapted.layout.dim).astype(np.float32)
    return [ordinary, *(made_up_state(adapted, rng) for _ in range(4))]


LONG_CSV = """patient_id,note,finding
p1,feels tired and gains weight and sleeps badly cold,low
p1,cold hands now,low
p2,has lost weight in a short time and is hot,high
p2,hot hands now,high
"""
OWN = "p3,well,none\n"


def save_wide_backbone(directory: Path) -> None:
    """So wide that products of other numbers of rows are rounded otherwise, and padding can go to other experts."""
    tokenizer, generator = byte_tokenizer(), torch.Generator().manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, moe_intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=4,
            num_experts_per_tok=2, mlp_only_layers=[0], max_position_embeddings=256, use_cache=False, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture
def fine_desk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Its units have records of two lengths, and its sums are rounded so finely that one bit of a gradient shows."""
    shapes = BatchShapes({24: (8,), 32: (8,), 48: (5,), 64: (4,)}, 1)
    monkeypatch.setattr(trainer_module, "probed_shapes", lambda *_, **__: shapes)
    monkeypatch.setattr(test_trainer, "save_text_backbone", save_wide_backbone)
    targets = '["q_a_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]'
    changes = (f"targets = {targets}", 'targets = ["gate", "experts"]'), ("max_tokens = 64", "max_tokens = 63")
    desk = text_desk(site, *NONE, LAST_LAYER, *changes, table=LONG_CSV)
    return replace(desk, study=desk.study.model_copy(update={"scale_bits": 40}))


def test_a_step_gives_the_same_bits_whatever_is_kept(fine_desk: Desk):
    desk = fine_desk
    never = new_trainer(desk)  # limits.kept_states_bytes = 0
    states = made_up_states(never)
    want = [never.release(state, 1) for state in states]
    assert all(np.linalg.norm(found) > 2**30 for found in want)
    trainer = kept_trainer(desk)
    assert (trainer.is_warm, trainer.starts_from) == (False, "tokens")
    np.testing.assert_array_equal([trainer.release(state, 1) for state in states], want)
    trainer.keep(seconds=60)
    assert (trainer.is_warm, trainer.starts_from) == (True, "kept states")
    np.testing.assert_array_equal([trainer.release(state, 1) for state in states], want)
    again = kept_trainer(desk)  # after a restart
    again.look_at_kept()
    assert again.is_warm
    np.testing.assert_array_equal([again.release(state, 1) for state in states], want)


def test_a_step_that_finds_only_some_states_kept_gives_the_same_bits(site: Site, fine_desk: Desk, monkeypatch):
    desk = fine_desk
    monkeypatch.setattr(kept_states, "FILE_BYTES", 1)
    trainer = kept_trainer(desk)
    trainer.keep(seconds=-1)
    assert len(files_of(site.home)) == 1
    assert (trainer.is_warm, trainer.starts_from) == (False, "tokens")
    for state in made_up_states(trainer):
        np.testing.assert_array_equal(trainer.release(state, 1), new_trainer(desk).release(state, 1))


def test_a_unit_for_which_there_is_no_room_moves_nothing_of_the_others(site: Site, fine_desk: Desk):
    desk = fine_desk
    states = made_up_states(new_trainer(desk))
    tables = {"others": LONG_CSV, "own": LONG_CSV.partition("\n")[0] + "\n" + OWN, "all": LONG_CSV + OWN}
    limit, sums, starts = 0, {}, {}
    for name, table in tables.items():
        (site.home / "patients.csv").write_text(table)
        trainer = kept_trainer(desk, limit or 2**20)
        trainer.keep(seconds=60)
        starts[name] = trainer.starts_from
        limit = limit or trainer._states.num_bytes  # room for the others alone
        sums[name] = np.array([trainer.release(state, 1) for state in states])
    assert starts == {"others": "kept states", "own": "kept states", "all": "tokens"}
    assert np.abs(sums["all"] - sums["others"] - sums["own"]).max() <= 2  # of three roundings


def test_equal_records_are_kept_once_and_bytes_are_as_the_docs_say(site: Site):
    (site.home / "patients.csv").write_text(NOTES_CSV)
    desk = kept_desk(site)
    (site.home / "patients.csv").write_text(NOTES_CSV + "p4,sweats,high\n")
    trainer = kept_trainer(desk)
    trainer.keep(seconds=60)
    found = trainer._load()
    tokens = {tuple(ids[ids > 0]) for ids in found.ids}
    assert len(tokens) == 3 < len(found.ids)
    assert trainer._states.num_bytes == sum(map(len, tokens)) * 32 * 4
    (file,) = files_of(site.home)
    assert file.stat().st_size == trainer._states.num_bytes + 22 + 4 + 3 * (16 + 8) + 4 * 32


def test_a_table_that_changed_loses_the_states_of_records_that_left_it(site: Site):
    desk = kept_desk(site)
    kept_trainer(desk).keep(seconds=60)
    before = files_of(site.home)
    (site.home / "patients.csv").write_text(NOTES_CSV.replace("sweats", "sleeps"))
    trainer = kept_trainer(desk)
    trainer.look_at_kept()
    assert not trainer.is_warm
    assert not files_of(site.home)
    trainer.keep(seconds=60)
    assert trainer.is_warm
    assert files_of(site.home) != before


def test_filling_stops_at_its_time_and_goes_on_from_there(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk = kept_desk(site)
    monkeypatch.setattr(kept_states, "FILE_BYTES", 1)
    now = [0.0]
    monkeypatch.setattr(kept_states.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    trainer, counts = kept_trainer(desk), []
    for _ in range(3):
        trainer.keep(seconds=0.5)
        counts.append(len(files_of(site.home)))
    assert counts == [1, 2, 3]
    assert trainer.is_warm


def test_filling_stops_when_the_approval_is_revoked_and_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk = kept_desk(site)
    monkeypatch.setattr(kept_states, "FILE_BYTES", 1)
    true_add, added = kept_files.StatesOnDisk.add, []

    def add(self, states):
        added.append(true_add(self, states))
        if len(added) == 1:
            study_decisions.revoke_study(site.home, desk.study.study_hash, by="somebody")
        return added[-1]

    monkeypatch.setattr(kept_files.StatesOnDisk, "add", add)
    kept_trainer(desk).keep(seconds=60)
    assert added == [True, False]
    assert not files_of(site.home)


@pytest.mark.parametrize("most_bytes", [1, 2000])
def test_states_above_the_limit_are_not_kept_and_the_log_says_so(site: Site, caplog, most_bytes):
    desk = kept_desk(site)
    trainer = kept_trainer(desk, most_bytes)
    trainer.keep(seconds=60)
    assert (trainer.is_warm, trainer.starts_from) == (True, "tokens")
    assert f"limits.kept_states_bytes = {most_bytes}" in caplog.text
    assert not files_of(site.home)


def test_a_limit_that_was_lowered_deletes_what_was_kept(site: Site):
    desk = kept_desk(site)
    kept_trainer(desk).keep(seconds=60)
    assert files_of(site.home)
    kept_trainer(desk, 2000).look_at_kept()
    assert not files_of(site.home)


def test_a_disk_that_takes_no_states_moves_no_bit_of_a_step(fine_desk: Desk, caplog, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    desk = fine_desk
    trainer = kept_trainer(desk)
    trainer.look_at_kept()
    monkeypatch.setattr(kept_files, "write_private", full)
    trainer.keep(seconds=60)
    assert (trainer.is_warm, trainer.starts_from) == (True, "tokens")
    assert "No space left" in caplog.text
    for state in made_up_states(trainer):
        np.testing.assert_array_equal(trainer.release(state, 1), new_trainer(desk).release(state, 1))


def test_damaged_states_are_computed_anew_in_the_step_that_needs_them(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk = kept_desk(site)
    trainer = kept_trainer(desk)
    trainer.keep(seconds=60)
    state = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    want = trainer.release(state, 1)
    (file,) = files_of(site.home)
    file.write_bytes(bytes(len(file.read_bytes())))
    computed, true_states = [], kept_states.entering_states

    def noted(adapted, ids, *args, **kwargs):
        computed.append(len(ids))
        return true_states(adapted, ids, *args, **kwargs)

    monkeypatch.setattr(kept_states, "entering_states", noted)
    np.testing.assert_array_equal(trainer.release(state, 1), want)
    assert computed == [1, 2]  # batch by batch


def test_a_study_that_trains_all_layers_keeps_nothing(site: Site):
    desk = text_desk(site, *NONE)
    trainer = kept_trainer(desk)
    assert trainer.is_warm
    trainer.keep(seconds=60)
    assert trainer.starts_from == "tokens"
    assert not (site.home / FOLDER).exists()


def test_states_of_another_backbone_layer_or_machine_are_not_taken(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk = kept_desk(site)
    kept_trainer(desk).keep(seconds=60)
    trainer = kept_trainer(replace(desk, study=desk.study.model_copy(update={"created": desk.study.created})))
    trainer.look_at_kept()
    assert trainer.is_warm
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # stands for all that a rounding depends on
    trainer = kept_trainer(desk)
    trainer.look_at_kept()
    assert not trainer.is_warm


def test_where_resuming_gives_other_gradients_nothing_is_kept(site: Site, caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("confide.client_node.training.trainer.kept_gap", lambda *_, **__: float("nan"))
    trainer = kept_trainer(kept_desk(site))
    assert (trainer.is_warm, trainer.starts_from) == (True, "tokens")
    assert "a gradient from kept states is off by nan" in caplog.text


def test_what_is_kept_of_pictures_has_no_place_for_words(tmp_path):
    """Records of two lengths: an encoder gives as much for each, and equal pictures the same bits."""
    adapted, ids = adapted_reader(("eye.to_words", "o_proj"), dtype=torch.float32), rows_of(3)
    targets = learned_of(ids, SEEN)
    targets[0, -2:], ids[0, -2:] = False, 0
    examples = Examples(ids.numpy(), targets.numpy(), np.arange(3))
    place = KeptStates(home=tmp_path, study_hash="0" * 64, most_bytes=2**20)
    shapes = BatchShapes({16: (4,)}, 1)
    states = kept_states.RecordStates(adapted, examples, shapes, place.store(), facts={}, threads=1)
    assert states.num_bytes == 3 * SEEN * adapted.entering(ids).shape[2] * 4
    computed = states.of(np.arange(3))
    states.fill(seconds=60)
    assert states.is_whole
    again = kept_states.RecordStates(adapted, examples, shapes, place.store(), facts={}, threads=1)
    for found, wanted, whole in zip(again.of(np.arange(3)), computed, adapted.entering(ids), strict=True):
        assert torch.equal(found, wanted)
        assert found.shape == (SEEN, whole.shape[1])
        torch.testing.assert_close(found, whole.detach())
