import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node import node as node_module
from confide.client_node.decisions import approve
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import ChargeRefused, MessageInvalid, ModelUnusable, StaleLease, StudyNotApproved
from confide.client_node.messages import (
    KeyCertificate,
    Message,
    Outcome,
    Packet,
    Prepare,
    Ready,
    RoundPlan,
    Settle,
    Settled,
    Update,
    outgoing_fields,
    sign,
    verify,
)
from confide.client_node.node import Node
from confide.client_node.study import Study
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbone import BackboneConfig, build, load, save
from confide.models.head import PooledHead
from confide.mpc.sealing import Envelope, new_keypair, open_envelope
from confide.mpc.shares import ShareContext, unpack
from confide.privacy.charges import Charge
from confide.privacy.ledger import Ledger

from .conftest import Site, key_of

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
                study=self.study.study_hash, run=RUN, aggregator_id=i, public_key=public, signer=key_of(party.name)
            )
            for i, (party, (_, public)) in enumerate(zip(self.study.aggregators, self.party_keys, strict=True))
        )
        plan = RoundPlan(
            study=self.study.study_hash,
            run=RUN,
            lease=1,
            round=round_number,
            cohort=self.study.site_names(),
            keys=(keys[0], keys[1], keys[2]),
            outcomes=(),
            ledger_from=0,
        )
        return plan.model_copy(update=changes)

    def step(self, round_number: int = 1, **changes: object) -> Packet:
        state = {"state": np.zeros(self.study.dim, "<f4").tobytes()}
        return self.ask("step", self.plan(round_number, **changes), state)

    def charges(self) -> list[str]:
        return [entry.kind for entry in self.ledger.entries() if entry.kind in ("reserve", "settle")]

    def restarted(self) -> "Desk":
        return replace(self, node=new_node(self.site, self.ledger))


def new_node(site: Site, ledger: Ledger) -> Node:
    return Node(site.home, site.identity, Enrolment.load(site.home), ledger=ledger)


def make_desk(site: Site, *changes: tuple[str, str]) -> Desk:
    draft = site.study(*changes)
    schema = draft.record_schema()
    model = build(schema, BackboneConfig(hidden=32, experts=4))
    digest = save(model, schema, torch.zeros(64), torch.eye(64), site.home / "backbone")
    backbone = load(site.home / "backbone")
    head = PooledHead(backbone.center, backbone.whiten)
    dim = attach(backbone.model, AdapterConfig(**draft.adapter_config()), head=head).layout.dim
    study = draft.model_copy(update={"backbone_hash": digest, "dim": dim})
    site.keep(study)
    approve(site.home, study.study_hash, unprotected=study.draft.privacy.mode == "none")
    ledger = Ledger.open(site.home / "ledger.db", site.identity.signer, "svi")
    return Desk(site, study, new_node(site, ledger), ledger, [new_keypair() for _ in range(3)])


@pytest.fixture
def desk(site: Site) -> Desk:
    desk = make_desk(site)
    prepare(desk)
    return desk


def prepare(desk: Desk, lease: int = 1) -> Packet:
    return desk.ask("prepare", Prepare(study=desk.study.study_hash, run=RUN, lease=lease, ledger_from=0))


def opened(desk: Desk, packet: Packet) -> np.ndarray:
    """The update in the clear, as only all three aggregators together could read it."""
    study = desk.study
    context = ShareContext(
        study=study.study_hash,
        run=RUN,
        round=1,
        site="svi",
        dim=study.dim,
        ring_bits=study.ring_bits,
        scale_bits=study.scale_bits,
    )
    identity = bytes.fromhex(desk.site.identity.identity_hex)
    total = np.zeros(study.dim, np.uint64 if study.ring_bits == 64 else np.uint32)
    for party, (private, _) in enumerate(desk.party_keys):
        envelope = Envelope.from_bytes(packet.blobs[f"envelope-{party}"])
        share = open_envelope(envelope, context, party, identity=identity, private_key=private)
        total += unpack(share, context)
    return total.view(f"i{total.itemsize}")


def test_a_step_charges_first_and_answers_with_sealed_shares_that_open(desk):
    packet = desk.step()
    answer = verify(packet, desk.site.identity.identity_hex, Update)
    assert desk.charges() == ["reserve"]
    assert [entry.kind for entry in answer.ledger] == ["open", "budget", "reserve"]
    noise = opened(desk, packet)[-200:] / 2**desk.study.scale_bits
    assert 0.3 < noise.std() < 3  # 1.19 / sqrt(3), within what 200 draws and few records can move it


def test_a_round_asked_for_twice_gets_the_same_bytes_and_one_charge(desk):
    first = desk.step()
    again = desk.restarted().step()
    assert again.blobs == first.blobs
    assert desk.charges() == ["reserve"]


def test_a_charge_over_the_budget_is_refused_before_a_record_is_read(site, monkeypatch):
    desk = make_desk(site)
    site.write(("epsilon = 8.0", "epsilon = 0.05"))
    monkeypatch.setattr(node_module, "read_records", lambda *_: pytest.fail("a record was read"))
    with pytest.raises(ChargeRefused, match=r"40 rounds of study thyroid would bring epsilon to .* over the budget"):
        prepare(desk)
    with pytest.raises(ChargeRefused, match=r"the cap is epsilon 0\.05"):
        desk.step()
    assert desk.charges() == []


def test_a_failure_after_the_charge_leaves_it_standing(desk, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(node_module, "read_records", broken)
    with pytest.raises(OSError, match="disk"):
        desk.step()
    assert desk.charges() == ["reserve"]


def test_a_settled_round_is_signed_with_the_set_really_summed_and_its_shares_are_forgotten(desk):
    desk.step()
    outcome = Outcome(round=1, sites=("other", "rest", "svhc", "svi"))
    settle = Settle(study=desk.study.study_hash, run=RUN, lease=1, outcomes=(outcome,), final=False, ledger_from=3)
    answer = verify(desk.ask("settle", settle), desk.site.identity.identity_hex, Settled)
    assert [entry.body["summed"] for entry in answer.ledger] == [list(outcome.sites)]
    assert not any((desk.site.home / "outbox" / RUN).iterdir())


def test_a_study_that_is_not_approved_runs_nothing(site):
    desk = make_desk(site)
    (site.home / "decisions.json").unlink()
    with pytest.raises(StudyNotApproved, match="client-node study approve"):
        prepare(desk)
    with pytest.raises(StudyNotApproved):
        desk.step()
    assert desk.charges() == []


def test_without_privacy_only_with_the_sites_explicit_consent(site):
    none = (
        ('mode = "distributed"', 'mode = "none"'),
        ("noise_multiplier = 1.19\n", ""),
        ("delta = 1e-5\nmax", "max"),
    )
    desk = make_desk(site, *none)
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
    "bad", ["another signer", "another party's key", "a key for another run", "a short state", "a round too many"]
)
def test_a_plan_with_one_thing_wrong_is_refused_uncharged(desk, bad):
    state = np.zeros(desk.study.dim, "<f4").tobytes()
    plan, signer = desk.plan(), key_of("coordinator")
    if bad == "another signer":
        signer = Ed25519PrivateKey.generate()
    elif bad == "another party's key":
        plan = plan.model_copy(update={"keys": (plan.keys[1], plan.keys[1], plan.keys[2])})
    elif bad == "a key for another run":
        plan = plan.model_copy(update={"keys": (plan.keys[0].model_copy(update={"run": "other-run"}), *plan.keys[1:])})
    elif bad == "a short state":
        state = state[:-4]
    else:
        plan = plan.model_copy(update={"round": 41})
    with pytest.raises(MessageInvalid):
        desk.node.handle("step", sign(plan, signer, {"state": state}))
    assert desk.charges() == []


def test_another_backbone_than_the_approved_one_is_refused(site):
    desk = make_desk(site)
    config = json.loads((site.home / "backbone" / "config.json").read_text())
    (site.home / "backbone" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    with pytest.raises(ModelUnusable, match="hash"):
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


def test_every_field_that_leaves_a_node_is_known_and_none_depends_on_records():
    # request, run, round: repeated from the coordinator. key: drawn from the OS. ledger: terms of the study and the
    # site's own caps. kept, set_digest, bound: names and digests of sealed bytes. Updates travel in blobs, sealed.
    assert outgoing_fields() == {
        "ready": ["key", "ledger", "request"],
        "update": ["ledger", "request", "round", "run"],
        "share": ["kept", "request", "round", "run", "set_digest"],
        "bound": ["bound", "request", "round", "run"],
        "settled": ["ledger", "request"],
    }
    assert set(Charge.__dataclass_fields__) == {
        "study", "run", "round", "dataset", "unit", "cohort", "release", "relation", "sampler",
    }  # fmt: skip
