import dataclasses
import hashlib
import math
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import MessageInvalid, RoundOver, SetFixed, StateRefused
from confide.client_node.node import Node
from confide.client_node.replay.following import start_digest
from confide.client_node.study.study import AggregatorParty, Participant, Study, load_draft
from confide.client_node.wire import chunks
from confide.client_node.wire.messages import (
    Deposit,
    Fetch,
    Fetched,
    KeyCertificate,
    Outcome,
    Packet,
    RoundPlan,
    Sealed,
    Settle,
    SignedTotal,
    TopUp,
    TopUpPlan,
    Update,
    sign,
    verify,
)
from confide.mpc.sharing.sealing import Envelope, new_keypair, open_envelope
from confide.mpc.sharing.shares import set_name, unpack
from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.ledger import Ledger

from ..conftest import certificate_of, identity_of, key_of
from ..quiet_node import STUDY_TOML, QuietNode, enrol, quiet_node

RUN, DIM, STATE = "run-1", 4000, bytes(4 * 4000)
SITES, PARTIES = ("east", "north", "south", "west"), ("agg-a", "agg-b", "agg-c")
THREE = ("east", "south", "west")
PARTY_KEYS = [new_keypair() for _ in PARTIES]


@dataclass
class Desk:
    """The site `east`, and the coordinator's side of a conversation with it."""

    home: Path
    study: Study
    node: Node
    ledger: Ledger
    identity: NodeIdentity

    def keys(self, **changes: object) -> tuple[KeyCertificate, KeyCertificate, KeyCertificate]:
        first, second, third = (
            KeyCertificate.issue(
                study=self.study.study_hash, run=RUN, aggregator_id=i, public_key=public, signer=key_of(party)
            )
            for i, (party, (_, public)) in enumerate(zip(PARTIES, PARTY_KEYS, strict=True))
        )
        return first, second.model_copy(update=changes), third

    def addressed(self) -> dict[str, object]:
        return {"to": "east", "study": self.study.study_hash, "run": RUN, "lease": 1}

    def ask(self, kind: str, message: object, blobs: dict[str, bytes] | None = None) -> Packet:
        return self.node.handle(kind, sign(message, key_of("coordinator"), blobs))

    def step(self, **changes: object) -> Packet:
        start = hashlib.sha256(STATE).hexdigest()
        plan = RoundPlan(**self.addressed(), round=1, start=start, keys=self.keys(), outcomes=(), ledger_from=0)
        return self.ask("step", plan.model_copy(update=changes))

    def fetch(self, aggregator_id: int, offset: int, topup_for: str | None = None, *, round_number: int = 1) -> bytes:
        message = Fetch(
            **self.addressed(), round=round_number, topup_for=topup_for, aggregator_id=aggregator_id, offset=offset
        )
        answer = self.ask("fetch", message)
        verify(answer, self.identity.identity_hex, Fetched)
        return answer.blobs["part"]

    def fetch_all(self, sealed: tuple[Sealed, ...], topup_for: str | None = None) -> list[bytes]:
        """Each of the three, part by part, from a node that is restarted in between."""
        whole = []
        for aggregator_id, one in enumerate(sealed):
            data = b""
            while len(data) < one.size:
                data += self.restarted().fetch(aggregator_id, len(data), topup_for)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (one.size, one.digest)
            whole.append(data)
        return whole

    def top_up(self, cohort: tuple[str, ...], **changes: object) -> Packet:
        state = hashlib.sha256(STATE).hexdigest()
        plan = TopUpPlan(**self.addressed(), round=1, state=state, cohort=cohort, keys=self.keys())
        return self.ask("topup", plan.model_copy(update=changes))

    def settle(self, summed: tuple[str, ...]) -> Packet:
        share = SignedTotal(
            request="0" * 64,
            study=self.study.study_hash,
            run=RUN,
            round=1,
            start="ab" * 32,
            kept=summed,
            set_digest="cd" * 32,
            total_digest="ef" * 32,
        )
        evidence = tuple(sign(share, key_of(party)).body.decode() for party in PARTIES)
        outcome = Outcome(round=1, sites=summed, evidence=evidence)
        return self.ask("settle", Settle(**self.addressed(), outcomes=(outcome,), final=False, ledger_from=0))

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.ledger.entries() if entry.kind in ("reserve", "settle")]

    def restarted(self) -> "Desk":
        return replace(self, node=QuietNode(self.home, self.identity, Enrolment.load(self.home), ledger=self.ledger))

    def opened(self, packet: Packet, cohort: tuple[str, ...]) -> np.ndarray:
        """The top-up in the clear, as only all three aggregators together could read it."""
        study = self.study
        base = study.share_context(
            study.planned_round(1), run=RUN, site="east", state=hashlib.sha256(STATE).hexdigest()
        )
        context = dataclasses.replace(base, topup_for=set_name(cohort))
        identity, total = bytes.fromhex(self.identity.identity_hex), np.zeros(DIM, np.uint64)
        for party, (private, _) in enumerate(PARTY_KEYS):
            envelope = Envelope.from_bytes(packet.blobs[f"envelope-{party}"], context)
            share = open_envelope(envelope, context, party, identity=identity, private_key=private)
            total += unpack(share, context).vector
        return total.view(np.int64)


def make_desk(tmp_path: Path, *, dropouts: str = "top-up") -> Desk:
    home = tmp_path / "east"
    identity = enrol(home, "east", identity_of("coordinator"))
    path = tmp_path / "study.toml"
    path.write_text(STUDY_TOML.format(dropouts=dropouts, max_dropouts=2, rounds=3))
    study = Study.from_draft(
        load_draft(path),
        backbone_hash="ab" * 32,
        sites=[
            Participant(name=name, identity=identity.identity_hex if name == "east" else identity_of(name))
            for name in SITES
        ],
        aggregators=[
            AggregatorParty(
                name=name, identity=identity_of(name), address=f"{name}.example:7001", certificate=certificate_of(name)
            )
            for name in PARTIES
        ],
        coordinator=identity_of("coordinator"),
        created=date(2026, 1, 31),
        dim=DIM,
        start=start_digest(np.zeros(DIM, np.float32)),
        head_size=5,
    )
    node, ledger = quiet_node(home, study, study.sign(key_of("coordinator")))
    assert ledger is not None
    return Desk(home, study, node, ledger, identity)


@pytest.fixture
def desk(tmp_path):
    made = make_desk(tmp_path)
    made.step()
    return made


@pytest.mark.parametrize("cohort", [THREE, ("east", "west")])
def test_a_top_up_is_noise_that_makes_up_for_the_missing_ones(desk, cohort):
    packet = desk.top_up(cohort)
    verify(packet, desk.identity.identity_hex, TopUp)
    std = 1.5 * math.sqrt(1 / (len(cohort) - 1) - 1 / 3)  # noise_multiplier 1.5, collusion 1, four sites planned
    noise = desk.opened(packet, cohort) / 2**desk.study.scale_bits
    reach = 7 * math.sqrt(2 / DIM)  # chi-square
    assert std * math.sqrt(1 - reach) < noise.std() < std * math.sqrt(1 + reach)


def test_a_top_up_asked_for_twice_is_the_same_bytes_and_no_charge(desk):
    first = desk.top_up(THREE)
    assert desk.restarted().top_up(THREE).blobs == first.blobs
    assert desk.kinds() == ["reserve"]


def test_a_site_follows_a_set_downwards_with_fresh_noise(desk):
    first = desk.top_up(THREE)
    second = desk.top_up(("east", "south"))
    assert not set(first.blobs.values()) & set(second.blobs.values())
    both = desk.opened(first, THREE), desk.opened(second, ("east", "south"))
    assert abs(np.corrcoef(*both)[0, 1]) < 7 / math.sqrt(DIM)


@pytest.mark.parametrize(
    ("given", "asked"),
    [(("east", "south"), THREE), (("east", "south"), ("east", "west")), (THREE, ("east", "north", "west"))],
    ids=["a larger one", "one beside it", "one with another site"],
)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_after_a_top_up_for_one_set_there_is_none_for_another(desk, given, asked, is_restarted):
    desk.top_up(given)
    desk = desk.restarted() if is_restarted else desk
    with pytest.raises(SetFixed, match=f"for a sum over {', '.join(given)}"):
        desk.top_up(asked)


@pytest.mark.parametrize(
    "cohort",
    [SITES, ("east",), ("north", "south", "west"), ("east", "south", "stranger"), ("south", "east"), ("east", "east")],
    ids=["nobody is missing", "fewer than the quorum", "without this site", "a stranger", "not sorted", "one twice"],
)
def test_a_set_that_does_not_fit_the_study_gets_no_top_up(desk, cohort):
    with pytest.raises(MessageInvalid):
        desk.top_up(cohort)


def test_no_top_up_without_an_update_to_add_it_to(tmp_path):
    desk = make_desk(tmp_path)
    with pytest.raises(MessageInvalid, match="has sent no update in round 1"):
        desk.top_up(THREE)


def test_no_top_up_where_the_noise_was_provided_in_advance(tmp_path):
    desk = make_desk(tmp_path, dropouts="over-provision")
    desk.step()
    with pytest.raises(MessageInvalid, match="has no top-up"):
        desk.top_up(THREE)


def test_no_top_up_under_a_key_that_is_not_the_aggregator_s(desk):
    with pytest.raises(MessageInvalid, match="not signed by it"):
        desk.top_up(THREE, keys=desk.keys(public_key=new_keypair()[1].hex()))


@pytest.mark.parametrize("change", [{"state": "ab" * 32}, {"tag_key": "ab" * 32}], ids=str)
def test_no_top_up_for_another_start_than_that_of_the_update(desk, change):
    """It would stand for ever in the place of the one that can be added."""
    with pytest.raises(StateRefused, match="sealed its update of round 1 to another start"):
        desk.top_up(THREE, **change)
    desk.opened(desk.top_up(THREE), THREE)


def test_no_top_up_of_a_settled_round(desk):
    desk.top_up(THREE)
    desk.settle(THREE)
    assert desk.kinds() == ["reserve", "settle"]
    with pytest.raises(RoundOver):
        desk.top_up(THREE)


@pytest.mark.parametrize("summed", [THREE, ("east", "south")])
def test_a_smaller_sum_without_this_site_s_top_up_is_not_believed(desk, summed):
    if summed != THREE:
        desk.top_up(THREE)
    with pytest.raises(MessageInvalid, match="east never added noise for a sum over"):
        desk.settle(summed)
    assert desk.kinds() == ["reserve"]


def test_a_sum_over_all_or_without_this_site_needs_no_top_up_of_it(desk):
    desk.settle(SITES)
    assert desk.kinds() == ["reserve", "settle"]


def test_the_settled_sum_is_paid_for_with_the_noise_after_the_top_up(desk):
    first = desk.top_up(THREE)
    desk.settle(THREE)
    release = Books.replay(desk.ledger.entries()).booked[RUN, 1].release("east")
    added = desk.opened(first, THREE) / 2**desk.study.scale_bits
    before = 1.5 / math.sqrt(3)
    assert release.site_noise_int / 2**desk.study.scale_bits == pytest.approx(math.hypot(before, added.std()), rel=0.05)
    assert release.noise_multiplier(1) == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize("room", [0, 400, 1000])
def test_what_an_answer_does_not_carry_comes_in_parts_byte_for_byte(desk, monkeypatch, room):
    monkeypatch.setattr(chunks, "PART_BYTES", 10_000)
    whole = desk.step()
    packet = desk.step(inline=room)
    answer = verify(packet, desk.identity.identity_hex, Update)
    assert len(packet.blobs) == (room // 400 if room < 1000 else 2)  # two seeds of 243 bytes, a vector of 32 kB
    assert packet.blobs.items() <= whole.blobs.items()
    assert desk.fetch_all(answer.sealed) == [whole.blobs[f"envelope-{i}"] for i in range(3)]
    assert desk.kinds() == ["reserve"]


def test_a_large_top_up_comes_in_parts_for_its_set(desk, monkeypatch):
    monkeypatch.setattr(chunks, "PART_BYTES", 10_000)
    whole = desk.top_up(THREE)
    answer = verify(desk.top_up(THREE, inline=0), desk.identity.identity_hex, TopUp)
    assert desk.fetch_all(answer.sealed, set_name(THREE)) == [whole.blobs[f"envelope-{i}"] for i in range(3)]


@pytest.mark.parametrize(
    "where",
    [{"offset": 10**6}, {"topup_for": set_name(THREE)}, {"round_number": 2}],
    ids=["past the end", "a top-up never given", "a round never computed"],
)
def test_there_is_no_part_of_what_was_never_sealed(desk, where):
    with pytest.raises(MessageInvalid, match="east has sealed nothing there"):
        desk.fetch(**{"aggregator_id": 0, "offset": 0} | where)


def test_no_part_of_a_settled_round(desk):
    desk.settle(SITES)
    with pytest.raises(RoundOver):
        desk.fetch(0, 0)


def test_parts_go_out_under_a_charge_even_if_the_ledger_and_its_head_were_lost(desk, tmp_path):
    (desk.home / "keys" / "ledger.head").unlink()
    new = Ledger.open(tmp_path / "new.db", desk.identity.signer, "east")
    again = replace(desk, ledger=new).restarted()
    again.fetch(0, 0)
    assert again.kinds() == ["reserve"]


def test_a_node_that_trains_only_keeps_nothing_for_others(desk):
    message = Deposit(
        **desk.addressed(), round=1, site="east", topup_for=None, sealed=Sealed(size=1, digest="ab" * 32), offset=0
    )
    with pytest.raises(MessageInvalid, match="east is no aggregator"):
        desk.ask("deposit", message, {"part": b"x"})
