import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from confide.client_node.approval.charges import charge
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.training.study_model import StudyModel
from confide.coordinator.errors import AuditMissing, Conflict, StateDamaged
from confide.coordinator.results import trained
from confide.coordinator.results.export import (
    evaluate,
    export_adapter,
    largest_epsilon,
    merge_adapter,
    score,
)
from confide.coordinator.results.metrics import measurement
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.tables import Round, Run
from confide.coordinator.studies.held_out import held_out_policy
from confide.kernels.formats import Int8Row, NF4Block64
from confide.kernels.linear import QuantisedLinear
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.backbones.loading import load as load_backbone
from confide.models.heads.pooling import PooledHead
from confide.models.rounding import rounded_up
from confide.privacy.ledger.ledger import Budget, Ledger, Spent

from ...client_node.conftest import EVALUATION, key_of
from ..audits import audit_facts, keep_audit
from ..conftest import Federation, committed_round
from .test_metrics import evaluation

RUN = "thyroid-0001"
HELD_OUT = """patient_id,age,TSH,sex,sick,diagnosis
p1,34,1.5,F,0,0
p2,71,,M,1,1
p3,25,0.2,F,0,0
p4,50,12,F,1,1
p5,66,5.5,M,0,1
p6,19,2.0,M,0,0
"""


def with_run(federation: Federation, *changes: tuple[str, str], rounds: int = 2, audited: bool = True):
    """A study and a run of it with committed rounds, each with a state of its own, and an audit that passed."""
    study = federation.create(*changes)
    with federation.store.session() as session:
        session.add(Run(id=RUN, study=study.study_hash, state="done", created_at=0.0))
    lease, folder = federation.store.acquire_lease(RUN), RunFolder(federation.home, RUN)
    for number in range(1, rounds + 1):
        state_hash = folder.save(Checkpoint(round=number, state=state(study, number), velocity=state(study, 0)))
        federation.store.commit_round(committed_round(number, run=RUN, lease=lease, state_hash=state_hash))
    if audited:
        keep_audit(federation.store, audit_facts(run=RUN, study=study.study_hash, round=rounds))
    return study


def state(study, number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.1, study.dim).astype(np.float32)


def spend(federation: Federation, study, site: str, *, rounds: int, unit: str = "patient") -> Spent:
    """Charges `rounds` rounds in a ledger of `site`, replicates it, and says what the site itself has spent."""
    policy = held_out_policy(federation.home / "x.csv", study, "patient_id")
    with Ledger.open(federation.home / f"{site}-{unit}.db", key_of(site), site) as ledger:
        ledger.set_budget(Budget(dataset="held-out", unit=unit, epsilon=50.0, delta=1e-5, collusion=1))
        for number in range(1, rounds + 1):
            ledger.reserve(replace(charge(study, policy, run=RUN, round_number=number), unit=unit))
        LedgerReplica(federation.store).extend(site, ledger.public_key, ledger.entries())
        return ledger.spent("held-out", unit, colluding=1, delta=1e-5)


def going_on(federation: Federation, study, monkeypatch) -> None:
    """Lets the run commit another round while its model is being loaded."""
    store, load = federation.store, trained.load_study_model

    def loaded(*args, **terms) -> StudyModel:
        found = load(*args, **terms)
        if store.last_round(RUN).number < 3:
            checkpoint = Checkpoint(round=3, state=state(study, 3), velocity=state(study, 0))
            new = RunFolder(federation.home, RUN).save(checkpoint)
            row = committed_round(3, run=RUN, lease=store.run(RUN).lease, state_hash=new)
            store.commit_round(row)
        return found

    monkeypatch.setattr(trained, "load_study_model", loaded)


@pytest.fixture
def table(federation):
    path = federation.home / "held-out.csv"
    path.write_text(HELD_OUT)
    return path


def test_a_run_without_a_committed_round_has_no_adapter(federation):
    with_run(federation, rounds=0)
    with pytest.raises(Conflict, match="no committed round yet"):
        trained_model(federation.store, federation.home, RUN)
    with pytest.raises(Conflict):
        export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert not (federation.home / "adapter").exists()


def test_a_damaged_state_is_not_exported(federation):
    with_run(federation)
    for path in RunFolder(federation.home, RUN).path.glob("state-2-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StateDamaged):
        export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert not (federation.home / "adapter").exists()


def test_an_export_is_a_peft_directory_with_the_trained_head(federation):
    with_run(federation)
    directory = federation.home / "adapter"
    export_adapter(federation.store, federation.home, RUN, directory)
    assert {path.name for path in directory.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "confide.json", "head.safetensors", "README.md",
    }  # fmt: skip
    assert json.loads((directory / "adapter_config.json").read_text())["r"] == 4
    head = trained_model(federation.store, federation.home, RUN).adapted.head.weight.detach().numpy()
    np.testing.assert_array_equal(load_file(directory / "head.safetensors")["weight"], head)


def test_a_study_of_quantised_weights_is_scored_with_them_and_merged_without(federation, table):
    study = with_run(federation, ("[adapter]", 'frozen = "int8"\nexperts = "nf4"\n[adapter]'))
    model = trained_model(federation.store, federation.home, RUN)
    banks = [module for name, module in model.adapted.adapters.items() if name.endswith(".experts")]
    assert banks
    assert all(isinstance(bank.base.confide_experts.down, NF4Block64) for bank in banks)
    linear = [it for it in model.adapted.adapters.values() if isinstance(it.base, QuantisedLinear)]
    assert linear
    assert all(isinstance(it.base.weight.stack, Int8Row) for it in linear)
    assert evaluate(model, study, [held_out_policy(table, study, "patient_id")])["records"] == 6
    export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    merge_adapter(federation.store, federation.home, RUN, federation.home / "merged")
    for name in ("adapter", "merged"):
        card = (federation.home / name / "README.md").read_text()
        assert "| linear layers | held in int8" in card
        assert "| routed experts | held in nf4" in card
    dense = trained_model(federation.store, federation.home, RUN, unpacked=True)
    ids, whole = torch.arange(2, 9)[None], load_backbone(federation.home / "merged").model
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, dense.adapted.model(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_merged_model_scores_as_the_adapted_one(federation, table):
    study = with_run(federation)
    directory, policy = federation.home / "merged", held_out_policy(table, study, "patient_id")
    card = merge_adapter(federation.store, federation.home, RUN, directory)
    assert card.study_hash in (directory / "README.md").read_text()
    loaded, weight = load_backbone(directory), load_file(directory / "head.safetensors")["weight"]
    config = AdapterConfig(rank=1, alpha=1.0, targets=(), seed="")
    adapted = attach(loaded.model, config, head=PooledHead(loaded.center, loaded.whiten))
    adapted.load_state(weight)
    kind = study.draft.data.kind
    reader = kind.reader(study.draft.data.terms, loaded.vocabulary, max_tokens=64)
    plain = StudyModel(adapted, loaded.family, kind, study.draft.data.terms, reader, loaded.hash)
    ours, _ = score(trained_model(federation.store, federation.home, RUN), study, policy)
    np.testing.assert_allclose(score(plain, study, policy)[0], ours, rtol=1e-4, atol=1e-5)


def test_a_merged_model_needs_an_audit_as_an_export_does(federation):
    with_run(federation, audited=False)
    with pytest.raises(AuditMissing):
        merge_adapter(federation.store, federation.home, RUN, federation.home / "merged")
    assert not (federation.home / "merged").exists()


@pytest.mark.parametrize("publish", [export_adapter, merge_adapter])
def test_a_run_that_goes_on_while_its_model_is_loaded_changes_neither_the_card_nor_the_audit(
    federation, monkeypatch, publish
):
    study = with_run(federation)  # audited at round 2
    going_on(federation, study, monkeypatch)
    card = publish(federation.store, federation.home, RUN, federation.home / "model")
    assert federation.store.last_round(RUN).number == 3
    assert card.rounds == 2
    with pytest.raises(AuditMissing, match="round 3 would be exported"):
        publish(federation.store, federation.home, RUN, federation.home / "later")


def test_an_export_replaces_nothing(federation):
    with_run(federation)
    (federation.home / "adapter").mkdir()
    with pytest.raises(FileExistsError):
        export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")


def test_the_card_s_epsilon_is_the_largest_that_a_site_signed_for(federation):
    study = with_run(federation)
    spent = [spend(federation, study, "svi", rounds=2), spend(federation, study, "rest", rounds=5)]
    card = export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    figures = [(each.pld, each.guaranteed) for each in spent]
    assert (card.epsilon, card.guaranteed) == max(figures) > min(figures) > (0, 0)
    assert f"epsilon {rounded_up(card.guaranteed, 3)} is guaranteed" in card.table()
    assert (card.delta, card.collusion, card.unit, card.mode) == (1e-5, 1, "patient", "distributed")


def test_the_card_counts_an_account_that_lost_entries_as_spent_up_to_its_cap(federation):
    study = with_run(federation)
    spend(federation, study, "svi", rounds=2)
    with Ledger.open(federation.home / "svi-patient.db", key_of("svi"), "svi") as ledger:
        ledger.recover(100)
        LedgerReplica(federation.store).extend("svi", ledger.public_key, ledger.entries())
    card = export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert card.epsilon == card.guaranteed == 50.0


def test_no_card_is_written_without_the_charges_of_all_summed_sites(federation):
    study = with_run(federation)
    with federation.store.session() as session:
        session.get(Round, (RUN, 2)).sites = '["svi", "rest"]'
    spend(federation, study, "svi", rounds=2)
    with pytest.raises(Conflict, match="no charge of rest for round 2 is here"):
        export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    spend(federation, study, "rest", rounds=2)
    export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")


def test_a_measured_auc_stands_on_the_card_once_its_charges_are_here(federation):
    study = with_run(federation, EVALUATION)
    federation.store.commit_round(evaluation(federation.store.run(RUN).lease, number=41, sites='["svi"]'))
    with pytest.raises(Conflict, match="no charge of svi for round 41 is here"):
        export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    policy = held_out_policy(federation.home / "x.csv", study, "patient_id")
    with Ledger.open(federation.home / "svi.db", key_of("svi"), "svi") as ledger:
        ledger.set_budget(Budget(dataset="held-out", unit="patient", epsilon=50.0, delta=1e-5, collusion=1))
        ledger.reserve(charge(study, policy, run=RUN, round_number=41))
        LedgerReplica(federation.store).extend("svi", ledger.public_key, ledger.entries())
        spent = ledger.spent("held-out", "patient", colluding=1, delta=1e-5).pld
    card = export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert card.epsilon == spent > 0
    assert card.auc == measurement(federation.store, RUN).metrics.auc
    assert f"AUC {card.auc.value:.3f}" in (federation.home / "adapter" / "README.md").read_text()


def test_the_card_names_the_study_its_sites_and_rounds(federation):
    study = with_run(federation)
    card = export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert (card.study, card.study_hash, card.backbone_hash) == (study.name, study.study_hash, study.backbone_hash)
    assert (card.sites, card.rounds) == (study.site_names(), 2)
    text = (federation.home / "adapter" / "README.md").read_text()
    assert all(word in text for word in (study.study_hash, study.backbone_hash, *study.site_names()))


def test_what_a_site_spent_on_another_unit_is_not_this_study_s(federation):
    study = with_run(federation)
    spend(federation, study, "svi", rounds=3, unit="visit")
    assert largest_epsilon(federation.store, study, colluding=1).pld == 0


def test_the_card_of_a_study_without_privacy_states_no_epsilon(federation):
    with_run(
        federation,
        ('mode = "distributed"', 'mode = "none"'),
        ("noise_multiplier = 1.19\n", ""),
        ("delta = 1e-5\n", ""),
    )
    card = export_adapter(federation.store, federation.home, RUN, federation.home / "adapter")
    assert (card.mode, card.epsilon, card.delta) == ("none", None, None)


def test_an_evaluation_counts_pairs_and_right_answers(federation, table):
    study = with_run(federation)
    model, policy = trained_model(federation.store, federation.home, RUN), held_out_policy(table, study, "patient_id")
    scores, labels = score(model, study, policy)
    found = evaluate(model, study, [policy])
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    assert labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert found["records"] == 6
    assert found["auc"]["value"] == pytest.approx(np.mean([a > b for a, b in pairs]))
    assert found["accuracy"]["value"] == pytest.approx(np.mean((scores > 0) == labels))
    assert found["brier_score"]["value"] == pytest.approx(np.mean((1 / (1 + np.exp(-scores)) - labels) ** 2))
    for metric in ("auc", "accuracy", "brier_score", "calibration_error"):
        assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"]


def test_an_untrained_head_knows_nothing(federation, table):
    study = with_run(federation)
    model = trained_model(federation.store, federation.home, RUN)
    model.adapted.load_state(np.zeros(study.dim, np.float32))
    assert evaluate(model, study, [held_out_policy(table, study, "patient_id")])["auc"]["value"] == 0.5


def test_two_tables_are_scored_as_one(federation, table):
    study = with_run(federation)
    header, *rows = HELD_OUT.splitlines(keepends=True)
    halves = []
    for name, part in (("first.csv", rows[:2]), ("second.csv", rows[2:])):
        (federation.home / name).write_text(header + "".join(part))
        halves.append(held_out_policy(federation.home / name, study, "patient_id"))
    model = trained_model(federation.store, federation.home, RUN)
    whole = evaluate(model, study, [held_out_policy(table, study, "patient_id")])
    found = evaluate(model, study, halves)
    assert found["records"] == whole["records"] == 6
    assert found["auc"] == pytest.approx(whole["auc"])
    assert found["accuracy"] == pytest.approx(whole["accuracy"])
