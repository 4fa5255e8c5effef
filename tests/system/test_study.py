import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from confide.client_node.data.records import read as read_records
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.server_optimizer import ServerOptimizer
from confide.client_node.study.study import Study
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.results.export import score as score_records
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.store import Store
from confide.coordinator.studies.catalogue import load_study
from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.loading import load as load_backbone
from confide.models.evaluation.binned import bin_edges
from confide.models.heads.pooling import PooledHead
from confide.models.heads.signature import signatures
from confide.mpc.sharing.sealing import Envelope, open_envelope
from confide.mpc.sharing.shares import unpack
from confide.privacy.mechanism.sampling import SeededBytes, poisson_sample

from .conftest import (
    BINS,
    PARTIES,
    ROUNDS,
    SITES,
    committed,
    final_hash,
    finish,
    histogram,
    simulated_hash,
    start_run,
    wait_for,
)

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def study(federation: DemoFederation) -> Iterator[Study]:
    store = Store.open(federation.home)
    yield load_study(next(row for row in store.studies() if row.name == "tiny"))  # another file may have made more
    store.close()


@pytest.fixture(scope="module")
def undisturbed(federation: DemoFederation) -> str:
    run = start_run(federation)
    finish(federation, run)
    return run


def test_the_adapter_is_what_a_plain_computation_gives(federation, study, undisturbed):
    store = Store.open(federation.home)
    last = store.last_round(undisturbed)
    got = RunFolder(federation.home, undisturbed).load(last.number, last.state_hash or "").state
    store.close()
    want = plain_training(federation, study)
    moved = np.abs(want).max()
    assert moved > 1e-3
    # Each round rounds the sum of every site to 2**-(scale_bits + 1); what float32 adds is of the same order.
    np.testing.assert_allclose(got, want, atol=2e-4 * moved)


def test_a_simulation_of_the_study_ends_in_the_same_adapter(federation, study, undisturbed, tmp_path):
    found = simulated_hash(federation, study, tmp_path, workers=3)
    assert found == final_hash(federation, undisturbed)  # SHA-256 of all vectors of the last checkpoint


@pytest.mark.parametrize("victim", ["coordinator", "south", "agg-b"])
def test_a_process_killed_in_the_middle_changes_nothing(federation, undisturbed, victim):
    run = start_run(federation)
    wait_for(lambda: committed(federation, run) >= 2, "round 2")
    federation.kill(victim)
    if victim == "coordinator":
        federation.start_coordinator()
    else:
        federation.start_node(victim)
    finish(federation, run)
    assert final_hash(federation, run) == final_hash(federation, undisturbed)
    assert histogram(federation, run) == histogram(federation, undisturbed)


def test_a_site_and_an_aggregator_get_new_transport_keys_while_a_run_goes_on(federation, undisturbed):
    run = start_run(federation)
    wait_for(lambda: committed(federation, run) >= 1, "round 1")
    for name in ("south", "agg-b"):
        federation.client(name, "keys", "rotate")
    finish(federation, run)
    assert final_hash(federation, run) == final_hash(federation, undisturbed)


def test_a_site_and_an_aggregator_get_new_identity_keys_while_a_run_goes_on(federation, study, undisturbed):
    run, names = start_run(federation), ("south", "agg-b")
    wait_for(lambda: committed(federation, run) >= 1, "round 1")
    keys = {name: json.loads(federation.client(name, "keys", "rotate", "--identity", "--json")) for name in names}
    finish(federation, run)
    assert final_hash(federation, run) == final_hash(federation, undisturbed)
    for name, found in keys.items():
        earlier, present = (row["identity"] for row in found)
        assert (earlier, earlier == present) == (study.identities()[name], False)
        store = Store.open(federation.home)
        assert store.identities(name) == (earlier, present)
        store.close()
        federation.kill(name)  # started anew, it has both keys from its disk, and another run of the same study goes on
        federation.start_node(name)
    again = start_run(federation)
    finish(federation, again)
    assert final_hash(federation, again) == final_hash(federation, undisturbed)
    report = federation.home / "report.json"
    report.write_text(federation.operator("budget", "report", "--json"))
    for row in keys["south"]:  # an outsider may know either of its keys
        federation.command("client-node", "budget", "verify", str(report), "--site", f"south={row['identity']}")
    federation.operator("audit", "verify")
    federation.client("south", "decisions", "--verify")


def test_what_is_measured_is_what_a_plain_count_of_the_final_models_scores_gives(federation, study, undisturbed):
    store = Store.open(federation.home)
    model = trained_model(store, federation.home, undisturbed)
    store.close()
    counts = np.zeros((2, BINS))
    for site in SITES:
        held_out = load_policy(federation.node_home(site)).held_out()
        assert held_out is not None
        for score, label in zip(*score_records(model, study, held_out), strict=True):
            counts[label, sum(score >= edge for edge in bin_edges(BINS))] += 1
    assert histogram(federation, undisturbed) == counts.ravel().tolist()
    assert counts.sum() == 12 * len(SITES)
    printed = json.loads(federation.operator("run", "metrics", undisturbed, "--json"))
    assert printed["metrics"]["records"]["value"] == counts.sum()
    assert printed["epsilon"] is None


def test_the_prototype_is_what_a_plain_sum_of_signatures_gives(federation, study, undisturbed):
    store = Store.open(federation.home)
    found = store.prototype(undisturbed)
    store.close()
    policy = load_policy(federation.node_home(SITES[0]))
    backbone = load_backbone(policy.backbone.directory)
    want = torch.zeros(16, dtype=torch.float64)
    for site in SITES:
        records = read_records(load_policy(federation.node_home(site)), study, site=site)
        ids = backbone.schema.encode(backbone.schema.render(records.columns))
        by_unit: dict[int, list[torch.Tensor]] = {}
        for unit, row in zip(records.units.tolist(), ids, strict=True):
            own = torch.from_numpy(row[row > 0])[None]
            with torch.no_grad():
                by_unit.setdefault(unit, []).append(signatures(backbone.model, backbone.head(), own, 16)[0].double())
        want += sum(torch.stack(vectors).mean(0) for vectors in by_unit.values())
    assert found is not None
    np.testing.assert_allclose(found.vector, want.numpy(), atol=1e-4)


def test_nothing_at_the_coordinator_holds_a_share_or_an_update_in_clear(federation, study):
    run = start_run(federation)
    outboxes = [federation.node_home(site) / "outbox" / run for site in SITES]
    wait_for(lambda: any(outbox.exists() for outbox in outboxes), "the first round's step")
    os.kill(federation.pid("agg-a"), signal.SIGSTOP)  # so that round 1 waits with all shares at the coordinator
    try:
        envelopes = federation.home / "runs" / run / "envelopes-1"
        wait_for(lambda: len(list(envelopes.glob("*/complete"))) == len(SITES), "all sealed shares")
        secrets = secrets_of_round_one(federation, study, run)
        stored = b"".join(path.read_bytes() for path in everything_of(federation))
        sealed = [path.read_bytes() for path in (envelopes / SITES[0]).iterdir() if path.name != "complete"]
    finally:
        os.kill(federation.pid("agg-a"), signal.SIGCONT)
    assert len(sealed) == len(PARTIES)
    assert all(data in stored for data in sealed)  # what is looked through is what lies there
    for name, secret in secrets.items():
        assert secret not in stored, f"{name} lies in clear at the coordinator"
    finish(federation, run)


def test_the_runs_keys_are_gone_when_it_is_done(federation, undisturbed):
    for party in PARTIES:
        kept = federation.node_home(party) / "aggregator" / "run-keys" / f"{undisturbed}.json"
        assert kept.read_text() == '{"ended": true}'


def test_each_site_was_charged_once_a_round_and_signed_what_was_summed(federation, undisturbed):
    store = Store.open(federation.home)
    for site in SITES:
        with store.session() as session:
            rows = [row for row in store.ledger(session, site) if undisturbed in row.entry]
        bodies, kinds = [row.entry for row in rows], [row.kind for row in rows]
        assert kinds.count("reserve") == kinds.count("settle") == ROUNDS + 2  # prototype and evaluation
        assert all(f'"{other}"' in body for body in bodies for other in SITES)
    store.close()


def plain_training(federation: DemoFederation, study: Study) -> np.ndarray:
    """The same rounds with plain autograd, one unit at a time, clipped and added in float64."""
    policy = load_policy(federation.node_home(SITES[0]))
    backbone = load_backbone(policy.backbone.directory)
    head = PooledHead(backbone.center, backbone.whiten)
    adapted = attach(backbone.model, AdapterConfig(**study.adapter_config()), head=head)
    terms = study.draft
    lr, head_lr = terms.optimizer.rates
    optimizer = ServerOptimizer(lr=lr, head_lr=head_lr, momentum=0.9)
    checkpoint = Checkpoint.beginning(adapted.state())
    for number in range(1, ROUNDS + 1):
        adapted.load_state(checkpoint.state)
        total = sum(clipped_sum(adapted, federation, study, site, number) for site in SITES)
        mean_update = total / (terms.rounds.batch_units * terms.privacy.clip_norm)
        checkpoint = optimizer.step(checkpoint, mean_update, adapted.layout.head_slice)
    return checkpoint.state


def clipped_sum(adapted: AdaptedModel, federation: DemoFederation, study: Study, site: str, number: int) -> np.ndarray:
    records = read_records(load_policy(federation.node_home(site)), study, site=site)
    schema, privacy = study.record_schema(), study.draft.privacy
    ids = schema.encode(schema.render(records.columns))
    total = np.zeros(study.dim)
    units = np.unique(records.units)
    for unit in units[poisson_sample(len(units), privacy.sample_rate, source(study, site, number))]:
        rows = np.flatnonzero(records.units == unit)
        logits = adapted.classify(torch.from_numpy(ids[rows]))
        target = torch.from_numpy(records.labels[rows]).to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        grads = torch.autograd.grad(loss, list(adapted.trained.values()), allow_unused=True)
        flat = np.concatenate(
            [np.zeros(p.numel()) if g is None else g.double().flatten().numpy()
             for g, p in zip(grads, adapted.trained.values(), strict=True)]
        )  # fmt: skip
        total += flat * min(1.0, privacy.clip_norm / np.linalg.norm(flat))
    return total


def source(study: Study, site: str, number: int) -> SeededBytes:
    """The coins of a study without privacy, as the sites draw them."""
    return SeededBytes(hashlib.sha256(f"confide/unprotected/1|{study.study_hash}|{site}|{number}".encode()).digest())


def secrets_of_round_one(federation: DemoFederation, study: Study, run: str) -> dict[str, bytes]:
    """Recognisable pieces of every site's update and shares, opened with all three aggregators' keys."""
    found = {}
    state = hashlib.sha256(np.zeros(study.dim, "<f4").tobytes()).hexdigest()  # every B and the head start at zero
    for site in SITES:
        identity = bytes.fromhex(next(s.identity for s in study.sites if s.name == site))
        context = study.share_context(study.planned_round(1), run=run, site=site, state=state)
        total = np.zeros(study.dim, np.uint64 if study.ring_bits == 64 else np.uint32)
        for party, name in enumerate(PARTIES):
            keys = federation.node_home(name) / "aggregator" / "run-keys" / f"{run}.json"
            envelope = (federation.node_home(site) / "outbox" / run / "1" / f"envelope-{party}").read_bytes()
            share = open_envelope(
                Envelope.from_bytes(envelope, context), context, party,
                identity=identity, private_key=bytes.fromhex(json.loads(keys.read_text())["private"]),
            )  # fmt: skip
            found[f"{site}'s share for {name}"] = share.seed
            total += unpack(share, context).vector
        largest = int(np.argmax(np.abs(total.view(f"i{total.itemsize}"))))
        first = min(largest, study.dim - 8)
        found[f"{site}'s update"] = total[first : first + 8].tobytes()
    return found


def everything_of(federation: DemoFederation) -> list[Path]:
    """Every file that the coordinator writes, its log included."""
    return [*(path for path in federation.home.rglob("*") if path.is_file()), federation.log("coordinator")]
