import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node import daemon
from confide.client_node.approval import run_reservations, study_decisions
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.study_decisions import approve_study, propose
from confide.client_node.data import kept_files
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import (
    ChargeRefused,
    MessageInvalid,
    ModelUnusable,
    NothingHeldOut,
    RoundOver,
    SiteNotReady,
    StaleLease,
    StepFailed,
    StudyNotApproved,
)
from confide.client_node.node import Node
from confide.client_node.policy import load_decisions, load_policy
from confide.client_node.policy.decisions import approve, confirm_sites, revoke, today
from confide.client_node.replay import Checkpoint, FollowedRuns
from confide.client_node.replay.following import round_start
from confide.client_node.shares.aggregator import AggregatorRole
from confide.client_node.study.study import Study
from confide.client_node.training import warm_model
from confide.client_node.training.public_time import LEAST_S, PublicTimes
from confide.client_node.training.trainer import Trainer
from confide.client_node.training.warm_model import WarmModel
from confide.client_node.wire.checkpoints import AuditOffer
from confide.client_node.wire.messages import (
    KeyCertificate,
    Message,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Reply,
    RoundPlan,
    Settle,
    Settled,
    SignedTotal,
    Update,
    sign,
    verify,
)
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, load, save
from confide.models.heads.pooling import PooledHead
from confide.mpc.sharing.sealing import Envelope, new_keypair, open_envelope
from confide.mpc.sharing.shares import unpack
from confide.privacy.accounting.composition import epsilon_pld
from confide.privacy.ledger.charges import Books, Charge
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.mechanism.adaptive_clipping import SENSITIVITY

from .conftest import PATIENTS_CSV, Site, key_of, of_model
from .wire.test_checkpoints import HONEST, checkpoint

RUN = "thyroid-0001"


@dataclass
class Desk:
    """A site with a real backbone, ledger and policy, and the coordinator's side of a conversation with it."""

    site: Site
    study: Study
    node: Node
    ledger: Ledger
    party_keys: list[tuple[bytes, bytes]]

    def ask(self, kind: str, message: Message, blobs: dict[str, bytes] | None = None) -> Packet:
        return self.node.handle(kind, sign(message, key_of("coordinator"), blobs))

    def plan(self, round_number: int = 1, **changes: object) -> RoundPlan:
        keys = tuple(
            KeyCertificate.issue(
                study=self.study.study_hash,
                run=str(changes.get("run", RUN)),
                aggregator_id=i,
                public_key=public,
                signer=self.site.identity.signer if party.name == "svi" else key_of(party.name),
            )
            for i, (party, (_, public)) in enumerate(zip(self.study.aggregators, self.party_keys, strict=True))
        )
        plan = RoundPlan(
            to="svi",
            study=self.study.study_hash,
            run=RUN,
            lease=1,
            round=round_number,
            start=round_start(self.study, self.stand(round_number)).digest,
            keys=(keys[0], keys[1], keys[2]),
            outcomes=(),
            ledger_from=0,
        )
        return plan.model_copy(update=changes)

    def step(self, round_number: int = 1, **changes: object) -> Packet:
        return self.ask("step", self.plan(round_number, **changes))

    def stand(self, round_number: int, state: np.ndarray | None = None) -> Checkpoint:
        """Has the site come to `state`, by default to zeros, when round `round_number` begins."""
        vector = np.zeros(self.study.dim, np.float32) if state is None else state
        checkpoint = Checkpoint(round=round_number - 1, state=vector, velocity=np.zeros_like(vector))
        if round_number > 1:
            FollowedRuns(self.site.home)._save(RUN, checkpoint)
        return checkpoint

    def charges(self) -> list[str]:
        return [entry.kind for entry in self.ledger.entries() if entry.kind in ("reserve", "settle")]

    def restarted(self) -> "Desk":
        return replace(self, node=new_node(self.site, self.ledger))


def new_node(site: Site, ledger: Ledger, model: WarmModel | None = None) -> Node:
    return Node(site.home, site.identity, Enrolment.load(site.home), ledger=ledger, model=model)


def make_desk(site: Site, *changes: tuple[str, str]) -> Desk:
    draft = site.study(*changes)
    schema = draft.record_schema()
    model = build(schema, BackboneConfig(hidden=32, experts=4))
    digest = save(model, schema, torch.zeros(64), torch.eye(64), site.home / "backbone")
    backbone = load(site.home / "backbone")
    head = PooledHead(backbone.center, backbone.whiten)
    study = of_model(draft, digest, attach(backbone.model, AdapterConfig(**draft.adapter_config()), head=head))
    site.keep(study)
    approve(site.home, study.study_hash, unprotected=study.draft.privacy.mode == "none", runs=3)
    ledger = Ledger.open(site.home / "ledger.db", site.identity.signer, "svi")
    return Desk(site, study, new_node(site, ledger), ledger, [new_keypair() for _ in range(3)])


@pytest.fixture
def desk(site: Site) -> Desk:
    desk = make_desk(site)
    prepare(desk)
    return desk


def prepare(desk: Desk, lease: int = 1) -> Packet:
    return desk.ask("prepare", Prepare(to="svi", study=desk.study.study_hash, run=RUN, lease=lease, ledger_from=0))


def opened(desk: Desk, packet: Packet, round_number: int = 1, *, state: bytes | None = None) -> np.ndarray:
    """A site's vector in the clear, as only all three aggregators together could read it."""
    study, planned = desk.study, desk.study.planned_round(round_number)
    sent = np.zeros(study.dim, "<f4").tobytes() if state is None else state
    context = study.share_context(planned, run=RUN, site="svi", state=hashlib.sha256(sent).hexdigest())
    identity = bytes.fromhex(desk.site.identity.identity_hex)
    total = np.zeros(planned.dim, np.uint64 if planned.ring_bits == 64 else np.uint32)
    for party, (private, _) in enumerate(desk.party_keys):
        envelope = Envelope.from_bytes(packet.blobs[f"envelope-{party}"], context)
        share = open_envelope(envelope, context, party, identity=identity, private_key=private)
        total += unpack(share, context).vector
    return total.view(f"i{total.itemsize}")


def test_a_step_charges_first_and_answers_with_sealed_shares_that_open(desk):
    packet = desk.step()
    answer = verify(packet, desk.site.identity.identity_hex, Update)
    assert desk.charges() == ["reserve"]
    assert [entry.kind for entry in answer.ledger] == ["open", "budget", "reserve"]
    noise = opened(desk, packet)[-200:] / 2**desk.study.scale_bits
    assert 0.3 < noise.std() < 3  # 1.19 / sqrt(3), within what 200 draws and few records can move it


def test_shares_are_sealed_with_the_study_s_kem(site):
    desk = make_desk(site, ("[participants]", '[aggregation]\nkem = "mlkem768-x25519"\n\n[participants]'))
    prepare(desk)
    desk.party_keys = [new_keypair("mlkem768-x25519") for _ in range(3)]
    assert opened(desk, desk.step()).any()


def test_local_noise_is_the_whole_of_it_at_every_site(site):
    desk = make_desk(site, ('mode = "distributed"', 'mode = "local"'))
    prepare(desk)
    noise = opened(desk, desk.step())[-400:] / 2**desk.study.scale_bits
    assert 0.9 < noise.std() < 1.5  # 1.19 give or take 7 standard errors, where distributed noise would have 0.69


def test_local_steps_are_charged_as_many_and_add_up_their_noise(site):
    steps = ("collusion = 1", "collusion = 1\nlocal_steps = 4"), ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1")
    desk = make_desk(site, ('mode = "distributed"', 'mode = "local"'), ("rounds = 40", "rounds = 4"), *steps)
    prepare(desk)
    noise = opened(desk, desk.step())[-400:] / 2**desk.study.scale_bits
    assert noise.std() == pytest.approx(2 * 1.19, rel=0.25)  # 400 draws, and few records
    (release,) = Books.replay(desk.ledger.entries()).releases("patients", "patient")
    assert release.steps == 4
    whole = epsilon_pld([replace(release, steps=1)] * 4, 1e-5, 1)
    assert desk.ledger.spent("patients", "patient", 1, 1e-5).pld == whole


def test_an_adaptive_clip_travels_as_the_last_number_and_is_charged_as_a_constant(site):
    adaptive = ("clip_norm = 1.0", 'clip_norm = 0.5\nclipping = "adaptive"')
    desk = make_desk(site, adaptive)
    prepare(desk)
    assert opened(desk, desk.step()).shape == (desk.study.dim,)
    (release,) = Books.replay(desk.ledger.entries()).releases("patients", "patient")
    assert (release.clip_norm, release.dim, release.steps) == (SENSITIVITY, desk.study.dim, 1)
    fixed = replace(release, clip_norm=1.0, site_noise_int=release.site_noise_int / SENSITIVITY)
    assert release.noise_multiplier(1) == pytest.approx(fixed.noise_multiplier(1), rel=1e-4)


def test_a_rounded_state_is_trained_from_as_it_decodes_and_is_what_shares_are_bound_to(site):
    desk = make_desk(
        site, *NONE, ("rounds = 40", 'rounds = 40\nstate = "int8"'), ("sample_rate = 0.2", "sample_rate = 1.0")
    )
    prepare(desk)
    form = desk.study.state_format(desk.study.planned_round(1))
    vector = np.random.default_rng(0).normal(0, 0.3, desk.study.dim).astype(np.float32)
    state = form.encode(vector)
    plan = desk.plan(2, start=hashlib.sha256(state).hexdigest())
    desk.stand(2, vector)
    packet = desk.ask("step", plan)
    compute = WarmModel("svi").contribution(desk.study, load_policy(site.home), desk.study.planned_round(2))
    np.testing.assert_array_equal(opened(desk, packet, 2, state=state), compute(form.decode(state)))


def test_a_round_asked_for_twice_gets_the_same_bytes_and_one_charge(desk):
    first = desk.step()
    again = desk.restarted().step()
    assert again.blobs == first.blobs
    assert desk.charges() == ["reserve"]


def test_stored_shares_go_out_under_a_charge_even_if_the_ledger_and_its_head_were_lost(desk, tmp_path):
    first = desk.step()
    (desk.site.home / "keys" / "ledger.head").unlink()
    new = Ledger.open(tmp_path / "new.db", desk.site.identity.signer, "svi")
    again = replace(desk, ledger=new, node=new_node(desk.site, new))
    assert again.step().blobs == first.blobs
    assert again.charges() == ["reserve"]


def test_an_outcome_without_evidence_for_a_round_that_is_not_charged_drops_no_shares(desk, tmp_path):
    first = desk.step()
    (desk.site.home / "keys" / "ledger.head").unlink()
    new = Ledger.open(tmp_path / "new.db", desk.site.identity.signer, "svi")
    again = replace(desk, ledger=new, node=new_node(desk.site, new))
    untold = Outcome(round=1, sites=desk.study.site_names(), evidence=())
    assert again.step(outcomes=(untold,)).blobs == first.blobs


def test_a_charge_over_the_budget_is_refused_before_a_record_is_read(site, monkeypatch):
    desk = make_desk(site)
    site.write(("epsilon = 10.0", "epsilon = 0.05"))
    monkeypatch.setattr(warm_model, "read_records", lambda *_, **__: pytest.fail("a record was read"))
    with pytest.raises(
        ChargeRefused, match=r"40 rounds of study thyroid would bring the guaranteed epsilon to .* over the cap"
    ):
        prepare(desk)
    with pytest.raises(ChargeRefused, match=r"the cap is epsilon 0\.05"):
        desk.step()
    assert desk.charges() == []


@pytest.mark.parametrize("aggregates", [True, False])
def test_a_site_that_cannot_train_is_still_an_aggregator(site, monkeypatch, aggregates):
    roles = ['aggregators = ["agg-a"', f'aggregators = ["{"svi" if aggregates else "agg-a"}"']
    desk = make_desk(site, (roles[0], roles[1]))
    site.write(("epsilon = 10.0", "epsilon = 0.05"))
    confirm_sites(site.home, {each.name: fingerprint(each.identity) for each in desk.study.sites})
    key = desk.plan().keys[0]
    monkeypatch.setattr(AggregatorRole, "run_key", lambda *_: key)
    if not aggregates:
        with pytest.raises(ChargeRefused):
            prepare(desk)
        return
    answer = verify(prepare(desk), desk.site.identity.identity_hex, Ready)
    assert (answer.key, answer.evaluates) == (key, False)
    with pytest.raises(ChargeRefused, match=r"the cap is epsilon 0\.05"):
        desk.step()
    assert desk.charges() == []


def prepare_run(desk: Desk, run: str, study: Study | None = None, lease: int = 1) -> Packet:
    wanted = (study or desk.study).study_hash
    return desk.ask("prepare", Prepare(to="svi", study=wanted, run=run, lease=lease, ledger_from=0))


def test_two_runs_prepared_at_once_do_not_both_get_what_pays_for_one(site):
    desk = make_desk(site)  # a cap of 10, and a run lifts the filter to 7.7
    prepare_run(desk, "first")
    with pytest.raises(ChargeRefused, match="with what is held for first"):
        prepare_run(desk, "second")
    prepare_run(desk, "first")  # a run does not stand in its own way
    with pytest.raises(ChargeRefused, match="held for first"):
        prepare_run(desk.restarted(), "second")


def test_a_run_that_has_ended_holds_nothing(site):
    desk = make_desk(site)  # a cap of 10, and a run lifts the filter to 7.7
    prepare_run(desk, "first")
    settle = Settle(to="svi", study=desk.study.study_hash, run="first", lease=1, outcomes=(), final=True, ledger_from=0)
    desk.ask("settle", settle)
    prepare_run(desk, "second")


def test_a_run_of_a_revoked_study_holds_nothing(site):
    desk = make_desk(site)  # a cap of 10, and a run lifts the filter to 7.7
    prepare_run(desk, "first")
    other = site.keep(desk.study.model_copy(update={"created": date(2026, 2, 1)}))
    approve(site.home, other.study_hash)
    with pytest.raises(ChargeRefused, match="held for first"):
        prepare_run(desk, "second", other)
    revoke(site.home, desk.study.study_hash)
    prepare_run(desk, "second", other)


def roomy_desk(site: Site, *changes: tuple[str, str], runs: int = 1) -> Desk:
    """A desk whose budget would pay for several runs, so that only the approval stands in their way."""
    desk = make_desk(site, *changes)
    site.write(("epsilon = 10.0", "epsilon = 90.0"))
    approve(site.home, desk.study.study_hash, runs=runs)
    return desk


def test_an_approval_covers_one_run_and_nothing_is_charged_for_another(site):
    desk = roomy_desk(site)
    prepare(desk)
    desk.step()
    for again in (desk, desk.restarted()):
        prepare(again)  # the same run, as after a resume, uses it once
        with pytest.raises(StudyNotApproved, match="covers 1 run, second would be another"):
            prepare_run(again, "second")
        with pytest.raises(StudyNotApproved, match="covers 1 run"):
            again.step(2, run="second")
    assert desk.charges() == ["reserve"]


def test_an_approval_of_two_runs_covers_two(site):
    desk = roomy_desk(site, runs=2)
    for run in ("first", "second", "first"):
        prepare_run(desk, run)
    with pytest.raises(StudyNotApproved, match="covers 2 runs"):
        prepare_run(desk, "third")


def test_a_run_is_counted_before_its_first_charge_also_if_it_is_never_prepared(site):
    desk = roomy_desk(site)
    desk.step()
    assert load_decisions(site.home).runs_used(desk.study.study_hash) == (RUN,)
    with pytest.raises(StudyNotApproved):
        prepare_run(desk, "second")


def test_a_run_that_did_not_fit_has_used_nothing(site):
    desk = roomy_desk(site)
    site.write(("epsilon = 10.0", "epsilon = 0.05"))
    with pytest.raises(ChargeRefused):
        prepare_run(desk, "first")
    site.write()
    prepare_run(desk, "second")


def test_a_run_goes_on_after_a_mistaken_revoke(site):
    desk = make_desk(site)  # a cap of 10, and a run lifts the filter to 7.7
    prepare(desk)
    desk.step(1)
    revoke(site.home, desk.study.study_hash)
    with pytest.raises(StudyNotApproved):
        desk.step(2)
    # All of what is left fits, if and only if what is charged is not counted twice.
    (site.home / "patients.csv").write_text(PATIENTS_CSV)
    approve_study(site.home, propose(site.home, desk.study.study_hash))
    desk.step(2)
    prepare(desk, lease=2)
    assert desk.charges() == ["reserve", "reserve"]
    with pytest.raises(StudyNotApproved):
        prepare_run(desk, "second")


def test_an_expired_approval_ends_a_run_at_its_next_message(site):
    desk = roomy_desk(site)
    prepare(desk)
    desk.step(1)
    yesterday = today() - timedelta(days=1)
    approve(site.home, desk.study.study_hash, until=yesterday, under_way=[RUN])
    with pytest.raises(
        StudyNotApproved, match=f"not approved at this site any more: its approval was until {yesterday}"
    ):
        desk.step(2)
    assert desk.charges() == ["reserve"]


@pytest.mark.parametrize(("table", "covered"), [("", 1), ('[studies.runs]\n"HASH" = 2\n', 2)])
def test_a_study_that_site_toml_approves_has_one_run_or_as_many_as_its_table_says(site, table, covered):
    desk = make_desk(site)
    (site.home / "decisions.json").unlink()
    stated = f'[studies]\napproved = ["HASH"]\n{table}'.replace("HASH", desk.study.study_hash)
    site.write(("epsilon = 10.0", "epsilon = 90.0"), ("[backbone]", f"{stated}[backbone]"))
    for number in range(covered):
        prepare_run(desk, f"run-{number}")
    with pytest.raises(StudyNotApproved, match=f"covers {covered} run"):
        prepare_run(desk.restarted(), "another")


def test_a_run_of_an_earlier_approval_is_settled_under_a_later_one(site):
    desk = roomy_desk(site)
    prepare(desk)
    desk.step(1)
    approve(site.home, desk.study.study_hash)  # as if the first run had been silent for long
    prepare_run(desk, "second")
    settle(desk, outcome_of(desk, desk.study.site_names()))
    assert desk.charges() == ["reserve", "settle"]


def test_what_an_earlier_version_approved_covers_the_runs_that_had_begun_and_no_other(site):
    desk = roomy_desk(site)
    (site.home / "leases.json").write_text(json.dumps(dict.fromkeys((RUN, "second"), (desk.study.study_hash, 4))))
    old = {"format": 1, "studies": {desk.study.study_hash: {"verdict": "approved", "unprotected": False}}}
    (site.home / "decisions.json").write_text(json.dumps(old))
    desk.step(1, lease=4)
    prepare_run(desk, "second", lease=4)
    with pytest.raises(StudyNotApproved, match="covers 1 run, third would be another"):
        prepare_run(desk, "third")
    (site.home / "leases.json").unlink()
    (site.home / "decisions.json").write_text(json.dumps(old))
    prepare_run(desk, "third")
    with pytest.raises(StudyNotApproved):
        prepare_run(desk, "fourth")


def test_a_ledger_that_lacks_what_the_coordinator_has_from_it_goes_no_further(desk):
    for ask in (prepare_from, step_from):
        with pytest.raises(SiteNotReady, match="has 2 entries here and 3 at the coordinator"):
            ask(desk, 3)
    assert desk.charges() == []
    step_from(desk, 2)


def prepare_from(desk: Desk, ledger_from: int) -> Packet:
    return desk.ask(
        "prepare", Prepare(to="svi", study=desk.study.study_hash, run=RUN, lease=1, ledger_from=ledger_from)
    )


def step_from(desk: Desk, ledger_from: int) -> Packet:
    return desk.step(ledger_from=ledger_from)


def test_a_failure_after_the_charge_leaves_it_standing_and_says_nothing(desk, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise OSError("patient 4711")

    monkeypatch.setattr(warm_model, "read_records", broken)
    with pytest.raises(StepFailed) as failed:
        desk.step()
    assert str(failed.value) == "the step failed after its charge; the site's log says why"
    assert desk.charges() == ["reserve"]
    assert "failed after its charge: OSError in confide.client_node." in caplog.text
    assert "4711" not in caplog.text  # the log may leave the site


def test_answers_and_failures_leave_at_one_public_time(desk, monkeypatch):
    """Steps of 0.9, 0.3 and 0.5 s, the last one fails: each is answered after a second."""
    now, release = [0.0], Trainer.release

    def pass_(seconds: float) -> None:
        now[0] += seconds

    def timed(self: Trainer, state: np.ndarray, round_number: int) -> np.ndarray:
        pass_({1: 0.9, 2: 0.9, 3: 0.3, 4: 0.5}[round_number])
        if round_number == 4:
            raise OSError("patient 4711")
        return release(self, state, round_number)

    monkeypatch.setattr(Trainer, "release", timed)
    desk.node._site._times = PublicTimes(desk.site.home, lambda: now[0], pass_)
    answered = []
    for round_number in (1, 2, 3):
        desk.step(round_number)
        answered.append(now[0])
    with pytest.raises(StepFailed):
        desk.step(4)
    assert [*answered, now[0]] == pytest.approx([1.0, 2.0, 3.0, 4.0])


LAST_LAYER = ('seed = "thyroid-1"', 'seed = "thyroid-1"\nlayers = [1]')


def kept_in(desk: Desk) -> list[Path]:
    kept = os.walk(desk.site.home / kept_files.FOLDER)  # which passes over a folder that is deleted meanwhile
    return [Path(folder, name) for folder, _, names in kept for name in names]


def test_states_are_kept_before_round_1_and_go_with_the_run(site):
    desk = make_desk(site, LAST_LAYER)
    prepare(desk)
    assert len(kept_in(desk)) == 1
    model = desk.node._site._model.load(desk.study, load_policy(site.home))
    assert model.starts_from == "kept states"
    assert not desk.charges()
    opened(desk, desk.step())
    assert desk.charges() == ["reserve"]
    settle = Settle(to="svi", study=desk.study.study_hash, run=RUN, lease=1, outcomes=(), final=True, ledger_from=0)
    desk.ask("settle", settle)
    assert not kept_in(desk)
    prepare_run(desk, "second")
    assert len(kept_in(desk)) == 1


def test_states_stay_while_another_run_of_the_study_is_under_way_and_go_with_the_approval(site):
    desk = roomy_desk(site, LAST_LAYER, runs=2)
    prepare_run(desk, "first")
    prepare_run(desk, "second")
    settle = Settle(to="svi", study=desk.study.study_hash, run="first", lease=1, outcomes=(), final=True, ledger_from=0)
    desk.ask("settle", settle)
    assert kept_in(desk)
    study_decisions.revoke_study(site.home, desk.study.study_hash)
    assert not kept_in(desk)


def test_looking_for_and_computing_states_lasts_until_public_times(site, monkeypatch):
    desk, now, parts = make_desk(site, LAST_LAYER), [0.0], []
    desk.node._site._times = PublicTimes(site.home, lambda: now[0], lambda s: now.__setitem__(0, now[0] + s))
    true_look, true_keep = Trainer.look_at_kept, Trainer.keep

    def look(self):
        now[0] += 0.3
        true_look(self)

    def keep(self, *, seconds):
        parts.append(seconds)
        now[0] += 1.5
        true_keep(self, seconds=seconds)

    monkeypatch.setattr(Trainer, "look_at_kept", look)
    monkeypatch.setattr(Trainer, "keep", keep)
    prepare(desk)
    assert parts == [desk.study.draft.rounds.deadline_s / 3]
    times = json.loads((site.home / "answer-times.json").read_text())["seconds"]
    kinds = {name.partition("/")[2]: seconds for name, seconds in times.items()}
    assert kinds["kept states computed"] >= 1.8  # with another look
    assert kinds["kept states looked for"] >= 0.3
    read = LEAST_S  # the table, before a charge
    assert now[0] == pytest.approx(kinds["kept states computed"] + kinds["kept states looked for"] + read)


def test_until_all_states_are_kept_steps_compute_what_they_lack(site, monkeypatch):
    desk = make_desk(site, LAST_LAYER)
    monkeypatch.setattr(Trainer, "keep", lambda self, *, seconds: None)  # none in the time there is
    prepare(desk)
    opened(desk, desk.step())
    model = desk.node._site._model.load(desk.study, load_policy(site.home))
    assert (model.is_warm, model.starts_from) == (False, "tokens")


def test_a_table_that_cannot_be_read_for_its_states_is_refused_in_one_constant_text(site, caplog):
    desk = make_desk(site, LAST_LAYER)
    (site.home / "patients.csv").write_text(PATIENTS_CSV.replace("34,1.5", "34,many"))
    with pytest.raises(ChargeRefused) as refused:
        prepare(desk)
    assert str(refused.value) == "the site cannot charge its table as it stands; its log says why"
    assert "many" not in caplog.text


def test_a_limit_of_no_bytes_keeps_nothing_and_deletes_what_was_kept(site):
    desk = make_desk(site, LAST_LAYER)
    prepare(desk)
    assert kept_in(desk)
    site.write(("threads = 1", "threads = 1\nkept_states_bytes = 0"))
    opened(desk, desk.step())
    assert not kept_in(desk)


def test_workers_keep_nothing_and_what_was_kept_is_deleted(site, monkeypatch):
    desk = make_desk(site, LAST_LAYER)
    prepare(desk)
    assert kept_in(desk)
    policy = load_policy(site.home)
    monkeypatch.setattr("confide.client_node.training.workers.Workers", lambda *_, **__: SimpleNamespace())
    limits = policy.limits.model_copy(update={"workers": 1, "kept_states_bytes": 0})
    WarmModel("svi", site.home).load(desk.study, policy.model_copy(update={"limits": limits}))
    assert not kept_in(desk)


def test_kept_states_go_when_the_run_s_reservation_has_lapsed(site, monkeypatch):
    desk = make_desk(site, LAST_LAYER)
    prepare(desk)
    opened(desk, desk.step())
    daemon.delete_states(site.home)
    assert kept_in(desk)
    monkeypatch.setattr(run_reservations, "LAPSE_S", -1.0)
    ended = threading.Event()
    monkeypatch.setattr(daemon, "_LOOK_EVERY_S", 0.001)
    deleting = threading.Thread(target=daemon._look_for_ended_runs, args=(site.home, ended))
    deleting.start()
    for _ in range(1000):
        if not kept_in(desk):
            break
        time.sleep(0.005)
    ended.set()
    deleting.join()
    assert not kept_in(desk)


def test_kept_states_of_a_study_that_is_revoked_before_they_are_computed_do_not_stay(site, monkeypatch):
    desk, true_look = make_desk(site, LAST_LAYER), Trainer.look_at_kept

    def look(self):
        true_look(self)
        study_decisions.revoke_study(site.home, desk.study.study_hash)

    monkeypatch.setattr(Trainer, "look_at_kept", look)
    prepare(desk)
    assert not kept_in(desk)


def test_whatever_fails_before_a_charge_is_told_in_one_constant_text(site, caplog, monkeypatch):
    def fails(self):
        raise UnicodeDecodeError("utf-8", b"secret cell", 0, 1, "secret cell")

    desk = make_desk(site, LAST_LAYER)
    monkeypatch.setattr(Trainer, "look_at_kept", fails)
    with pytest.raises(ChargeRefused) as refused:
        prepare(desk)
    assert str(refused.value) == "the site cannot charge its table as it stands; its log says why"
    assert "secret cell" not in caplog.text


def outcome_of(desk: Desk, sites: tuple[str, ...], *, claimed: tuple[str, ...] | None = None) -> Outcome:
    """What the three aggregators signed for `sites`, under what the coordinator claims it to be."""
    signed = [
        sign(
            SignedTotal(
                request="0" * 64,
                study=desk.study.study_hash,
                run=RUN,
                round=1,
                start="ab" * 32,
                kept=sites,
                set_digest="cd" * 32,
                total_digest="ef" * 32,
            ),
            key_of(party.name),
        ).body.decode()
        for party in desk.study.aggregators
    ]
    return Outcome(round=1, sites=claimed or sites, evidence=tuple(signed))


def settle(desk: Desk, outcome: Outcome) -> Packet:
    message = Settle(
        to="svi",
        study=desk.study.study_hash,
        run=RUN,
        lease=1,
        outcomes=(outcome,),
        final=False,
        ledger_from=len(desk.ledger.entries()),
    )
    return desk.ask("settle", message)


ALL = ("other", "rest", "svhc", "svi")


NONE = (('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\nmax", "max"))
BINS, EVALUATION = 4, 41  # the round after the last one


def evaluating_desk(site: Site, *changes: tuple[str, str], noise: float = 10.0) -> Desk:
    """A desk of a study that evaluates, at a site that holds three patients out."""
    (site.home / "held-out.csv").write_text(PATIENTS_CSV)
    site.write(('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"'))
    terms = f"[evaluation]\nbins = {BINS}\n" + (f"noise_multiplier = {noise}\n" if noise else "")
    return make_desk(site, ("[participants]", terms + "[participants]"), *changes)


def test_an_evaluation_counts_every_held_out_unit_once_by_label_and_bin(site):
    desk = evaluating_desk(site, *NONE, noise=0)
    (site.home / "patients.csv").write_text("these are not read")
    counts = opened(desk, desk.step(EVALUATION), EVALUATION).reshape(2, BINS) / 2**20
    assert counts.sum() == 3  # p1 has two records, of both labels
    assert (counts[:, BINS // 2] >= 1).all()  # an untrained head says one half of everybody, which counts as positive


def test_an_evaluation_is_charged_first_as_what_it_is_with_noise_of_its_own(site):
    desk = evaluating_desk(site)
    packet = desk.step(EVALUATION)
    reserved = desk.ledger.entries()[-1].body
    assert (desk.charges(), reserved["purpose"]) == (["reserve"], "evaluation")
    assert isinstance(reserved["release"], dict)
    assert (reserved["release"]["dim"], float.fromhex(reserved["release"]["sample_rate"])) == (2 * BINS, 1.0)
    assert reserved["release"]["site_noise_int"] == int(np.ceil(10 / 3**0.5 * 2**20))  # three of four sites do not pool
    spread = np.abs(opened(desk, packet, EVALUATION)).mean() / 2**20
    assert 1 < spread < 20  # of 8 draws of std 5.8; without noise it would be 3 / 8


def test_an_evaluation_over_the_budget_is_refused_before_a_record_is_read(site, monkeypatch):
    desk = evaluating_desk(site, noise=0.1)
    monkeypatch.setattr(warm_model, "read_records", lambda *_, **__: pytest.fail("a record was read"))
    with pytest.raises(ChargeRefused, match="41 rounds of study thyroid would bring the guaranteed epsilon to"):
        prepare(desk)  # the training alone would fit
    with pytest.raises(ChargeRefused, match=r"round 41: .* the cap is epsilon 10"):
        desk.step(EVALUATION)
    assert desk.charges() == []


def test_an_evaluation_asked_for_twice_gets_the_same_bytes_and_one_charge(site):
    desk = evaluating_desk(site)
    first = desk.step(EVALUATION)
    assert desk.restarted().step(EVALUATION).blobs == first.blobs
    assert desk.charges() == ["reserve"]


def test_a_site_that_holds_nothing_out_says_so_and_pays_for_no_evaluation(site):
    desk = evaluating_desk(site, noise=0.1)
    assert site.write().exists()  # without heldout_path
    ready = verify(prepare(desk), site.identity.identity_hex, Ready)  # which fits, as no evaluation is to come
    assert not ready.evaluates
    with pytest.raises(NothingHeldOut, match="svi holds no records out"):
        desk.step(EVALUATION)
    assert desk.charges() == []


def prototyped_desk(site: Site, *changes: tuple[str, str], noise: float = 40.0) -> Desk:
    """A desk of a study that releases a prototype after its last update, and then evaluates."""
    (site.home / "held-out.csv").write_text(PATIENTS_CSV)
    site.write(('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"'))
    terms = (
        f"[prototype]\nlength = 16\nnoise_multiplier = {noise}\n[evaluation]\nbins = {BINS}\nnoise_multiplier = 10\n"
    )
    return make_desk(site, ("[participants]", terms + "[participants]"), *changes)


def test_a_prototype_is_charged_first_as_what_it_is_and_the_evaluation_comes_after_it(site):
    desk = prototyped_desk(site)
    packet = desk.step(41)
    reserved = desk.ledger.entries()[-1].body
    assert (desk.charges(), reserved["purpose"]) == (["reserve"], "prototype")
    assert isinstance(reserved["release"], dict)
    assert (reserved["release"]["dim"], float.fromhex(reserved["release"]["sample_rate"])) == (16, 1.0)
    assert float.fromhex(reserved["release"]["clip_norm"]) == 1.0
    assert reserved["release"]["site_noise_int"] == int(np.ceil(40 / 3**0.5 * 2**20))
    assert 5 < np.abs(opened(desk, packet, 41)).mean() / 2**20 < 60  # of 16 draws of std 23; without noise below 3
    assert desk.restarted().step(41).blobs == packet.blobs
    desk.step(42)
    assert [entry.body.get("purpose") for entry in desk.ledger.entries() if entry.kind == "reserve"] == [
        "prototype", "evaluation",
    ]  # fmt: skip


def test_a_prototype_over_the_budget_is_refused_before_a_record_is_read(site, monkeypatch):
    desk = prototyped_desk(site, noise=0.1)
    monkeypatch.setattr(warm_model, "read_records", lambda *_, **__: pytest.fail("a record was read"))
    with pytest.raises(ChargeRefused, match="42 rounds of study thyroid would bring the guaranteed epsilon to"):
        prepare(desk)
    with pytest.raises(ChargeRefused, match=r"round 41: .* the cap is epsilon 10"):
        desk.step(41)
    assert desk.charges() == []


def test_a_settled_round_is_signed_with_the_set_really_summed_and_its_shares_are_forgotten(desk):
    desk.step()
    answer = verify(settle(desk, outcome_of(desk, ALL)), desk.site.identity.identity_hex, Settled)
    assert [entry.body["summed"] for entry in answer.ledger] == [list(ALL)]
    assert not any((desk.site.home / "outbox" / RUN).iterdir())


def test_a_settled_round_is_never_computed_again(desk):
    desk.step()
    settle(desk, outcome_of(desk, ALL))
    with pytest.raises(RoundOver, match="another draw would be another release"):
        desk.step()
    with pytest.raises(RoundOver):
        desk.restarted().step()


def test_a_plan_that_settles_its_own_round_gets_nothing(desk):
    desk.step()
    with pytest.raises(RoundOver):
        desk.step(outcomes=(outcome_of(desk, ALL),))


@pytest.mark.parametrize(
    "outcome",
    [
        lambda desk: outcome_of(desk, ALL[1:], claimed=ALL),
        lambda desk: outcome_of(desk, ALL).model_copy(update={"evidence": ()}),
        lambda desk: outcome_of(desk, ALL).model_copy(update={"evidence": outcome_of(desk, ALL).evidence[:1] * 3}),
    ],
    ids=["another set than was signed", "no signatures", "one aggregator three times"],
)
def test_a_set_that_the_aggregators_did_not_sign_is_not_believed(desk, outcome):
    desk.step()
    with pytest.raises(MessageInvalid):
        settle(desk, outcome(desk))
    assert desk.charges() == ["reserve"]


def test_an_outcome_of_a_round_that_the_site_missed_is_no_business_of_its_ledger(desk):
    settle(desk, outcome_of(desk, ALL))
    assert desk.charges() == []


def test_a_message_for_another_node_is_refused(desk):
    with pytest.raises(MessageInvalid, match="the message is for rest, this is svi"):
        desk.step(to="rest")


def test_a_run_belongs_to_the_study_that_it_began_with(desk):
    other = desk.site.keep(desk.study.model_copy(update={"scale_bits": 20}))
    approve(desk.site.home, other.study_hash)
    message = Prepare(to="svi", study=other.study_hash, run=RUN, lease=2, ledger_from=0)
    with pytest.raises(MessageInvalid, match="is of study"):
        desk.ask("prepare", message)


def test_records_that_changed_on_disk_are_read_anew(desk, monkeypatch):
    desk.step()
    reads = []
    real = warm_model.read_records
    monkeypatch.setattr(warm_model, "read_records", lambda *a, **named: reads.append(1) or real(*a, **named))
    desk.step(2)
    assert reads == []
    (desk.site.home / "patients.csv").write_text((desk.site.home / "patients.csv").read_text() + "p9,50,1,M,no,0\n")
    desk.step(3)
    assert reads == [1]


def test_a_study_that_is_not_approved_runs_nothing(site):
    desk = make_desk(site)
    (site.home / "decisions.json").unlink()
    with pytest.raises(StudyNotApproved, match="client-node study approve"):
        prepare(desk)
    with pytest.raises(StudyNotApproved):
        desk.step()
    assert desk.charges() == []


def test_without_privacy_only_with_the_sites_explicit_consent(site):
    desk = make_desk(site, *NONE)
    desk.step()
    approve(site.home, desk.study.study_hash, unprotected=False)
    with pytest.raises(StudyNotApproved, match="--unprotected"):
        desk.step(2)


def test_a_message_from_an_overtaken_driver_is_refused(desk):
    prepare(desk, lease=5)
    with pytest.raises(StaleLease, match="under lease 5, this message is from lease 1"):
        desk.step()
    with pytest.raises(StaleLease):
        desk.restarted().step()


@pytest.mark.parametrize(
    "bad",
    [
        "another signer",
        "another party's key",
        "a key for another run",
        "a key of another suite",
        "a round too many",
    ],
)
def test_a_plan_with_one_thing_wrong_is_refused_uncharged(desk, bad):
    plan, signer = desk.plan(), key_of("coordinator")
    if bad == "another signer":
        signer = Ed25519PrivateKey.generate()
    elif bad == "another party's key":
        plan = plan.model_copy(update={"keys": (plan.keys[1], plan.keys[1], plan.keys[2])})
    elif bad == "a key for another run":
        plan = plan.model_copy(update={"keys": (plan.keys[0].model_copy(update={"run": "other-run"}), *plan.keys[1:])})
    elif bad == "a key of another suite":
        plan = replace(desk, party_keys=[new_keypair("mlkem768-x25519"), *desk.party_keys[1:]]).plan()
    else:
        plan = plan.model_copy(update={"round": 41})
    with pytest.raises(MessageInvalid):
        desk.node.handle("step", sign(plan, signer))
    assert desk.charges() == []


def test_another_backbone_than_the_approved_one_is_refused(site):
    desk = make_desk(site)
    config = json.loads((site.home / "backbone" / "config.json").read_text())
    (site.home / "backbone" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    with pytest.raises(ModelUnusable):
        prepare(desk)


def test_the_charge_is_for_the_smallest_set_that_may_be_summed(site):
    desk = make_desk(site, ("max_dropouts = 0", "max_dropouts = 1"))
    prepare(desk)
    desk.step()
    booked = desk.ledger.entries()[-1].body
    assert isinstance(booked["release"], dict)
    assert booked["release"]["sites"] == 3


def test_a_ready_site_says_nothing_but_its_ledger(desk):
    ready = verify(prepare(desk), desk.site.identity.identity_hex, Ready)
    assert ready.key is None
    assert {entry.kind for entry in ready.ledger} == {"open", "budget"}


@pytest.mark.parametrize("file", ["witness.json", "decisions.head"])
def test_a_damaged_file_of_an_audit_stops_no_run(desk, caplog, file):
    (desk.site.home / file).write_text("{")
    offer = AuditOffer(checkpoint=checkpoint(HONEST, 0), digests=tuple(HONEST[:1]))
    message = Prepare(to="svi", study=desk.study.study_hash, run=RUN, lease=1, ledger_from=0, audit=offer)
    ready = verify(desk.ask("prepare", message), desk.site.identity.identity_hex, Ready)
    assert ready.audit is None
    assert file in caplog.text


def test_every_field_that_leaves_a_node_is_known_and_none_depends_on_records():
    # request, run, round: repeated from the coordinator. key: drawn from the OS. ledger: terms of the study and the
    # site's own caps. evaluates: whether site.toml names a second table. kept, set_digest, bound, complete: names and
    # digests of sealed bytes. start: of public totals. total_digest: of a noised total, which the sites pay for.
    # replayed: how many public totals came. rejected: names, by the one bit of a site that a norm check opens. Updates,
    # histograms and top-ups travel in blobs, sealed. audit: the coordinator's own checkpoint, signed, with the number
    # of decisions that people made here.
    assert {reply.kind: sorted(reply.model_fields) for reply in Reply.__subclasses__()} == {
        "ready": ["audit", "evaluates", "key", "ledger", "request"],
        "update": ["ledger", "request", "round", "run", "sealed"],
        "total": ["kept", "rejected", "request", "round", "run", "set_digest", "start", "study", "total_digest"],
        "bound": ["bound", "request", "round", "run"],
        "replayed": ["held", "request", "round", "run"],
        "topped": ["request", "round", "run", "sealed"],
        "fetched": ["request", "round", "run"],
        "deposited": ["held", "request", "round", "run"],
        "incomplete": ["complete", "outdated", "rejected", "request", "round", "run"],
        "settled": ["audit", "ledger", "request"],
    }
    assert set(Charge.__dataclass_fields__) == {
        "study", "run", "round", "dataset", "unit", "cohort", "release", "purpose", "relation", "sampler",
    }  # fmt: skip
