import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from confide.client_node.approval import peers
from confide.client_node.errors import LedgerOutdated, MessageInvalid, RoundOver, RunEnded, ShareMissing
from confide.client_node.shares import aggregator as aggregator_module
from confide.client_node.shares.aggregator import AggregatorRole
from confide.client_node.succession import partners
from confide.client_node.wire.messages import AggregateOrder, Deposit, Sealed
from confide.mpc.party.handle import OpenedTotal, Order, PartyConfig
from confide.mpc.sharing import hpke
from confide.mpc.sharing.hpke import new_keypair
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.sealing import max_envelope_bytes, seal_update
from confide.mpc.sharing.shares import set_name
from confide.privacy.ledger.succession import Succession

from ..conftest import EVALUATION, identity_of, key_of

RUN = "thyroid-0001"
COHORT = ("svi", "other", "svhc", "rest")


@dataclass
class PlayedParty:
    """Stands where the party process would be and notes what it is told."""

    config: PartyConfig
    told: list[str] = field(default_factory=list)
    updates: dict[str, bytes] = field(default_factory=dict)
    topups: dict[str, bytes] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)

    def start(self) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")

    def aggregate(self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path]) -> OpenedTotal:
        self.orders.append(order)
        self.updates = {site: path.read_bytes() for site, path in envelopes.items()}
        self.topups = {site: path.read_bytes() for site, path in topups.items()}
        return OpenedTotal(kept=tuple(sorted(envelopes)), set_digest=bytes(32), total=b"total")


@pytest.fixture
def parties(monkeypatch):
    """Every party that a role has made."""
    made: list[PlayedParty] = []

    def make(config: PartyConfig) -> PlayedParty:
        made.append(PlayedParty(config))
        return made[-1]

    monkeypatch.setattr(aggregator_module, "PartyProcess", make)
    return made


@pytest.fixture
def study(make_study):
    return make_study()


@pytest.fixture
def open_role(tmp_path):
    return lambda name="agg-b": AggregatorRole(tmp_path, name, lambda _: key_of(name))


def add(role, study, *, run=RUN, cohort=COHORT, shares=COHORT, more=(), round_number=1):
    blobs = dict.fromkeys([*(f"update-{cohort.index(site)}" for site in shares), *more], b"sealed")
    return role.aggregate(study, asked_of(study, run, round_number, cohort), blobs)


def asked_of(study, run, round_number, cohort, spooled=None):
    return AggregateOrder(
        to="agg-b",
        study=study.study_hash,
        run=run,
        lease=1,
        round=round_number,
        state="12" * 32,
        attempt=0,
        cohort=cohort,
        spooled=spooled or {},
    )


@pytest.mark.usefixtures("parties")
def test_a_run_key_is_made_once_and_survives_reopening(open_role, study):
    first = open_role().run_key(study, RUN)
    assert open_role().run_key(study, RUN) == first


@pytest.mark.usefixtures("parties")
def test_every_run_has_a_key_of_its_own(open_role, study):
    role = open_role()
    assert role.run_key(study, RUN).public_key != role.run_key(study, "thyroid-0002").public_key


@pytest.mark.usefixtures("parties")
@pytest.mark.parametrize(("name", "aggregator_id"), [("agg-a", 0), ("agg-b", 1), ("agg-c", 2)])
def test_a_run_key_is_certified_for_the_party_s_place_in_the_study(open_role, study, name, aggregator_id):
    certificate = open_role(name).run_key(study, RUN)
    certificate.verify(identity_of(name))
    assert (certificate.study, certificate.run, certificate.aggregator_id) == (study.study_hash, RUN, aggregator_id)


@pytest.mark.parametrize("kem", ["x25519", "mlkem768-x25519"])
def test_the_private_key_that_opens_shares_is_the_certified_one_s_of_the_study_s_kem(
    open_role, make_study, parties, kem
):
    study = make_study(("[participants]", f'[aggregation]\nkem = "{kem}"\n\n[participants]'))
    role = open_role()
    public = bytes.fromhex(role.run_key(study, RUN).public_key)
    add(role, study)
    private = parties[0].orders[0].private_key
    assert hpke.kem_of_public(public).name == kem
    assert hpke.unseal(hpke.seal(b"a share", public, b""), private, b"") == b"a share"


@pytest.mark.usefixtures("parties")
def test_a_run_key_is_its_owner_s_alone_and_gone_after_the_end(open_role, study, tmp_path):
    role = open_role()
    role.run_key(study, RUN)
    path = tmp_path / "aggregator" / "run-keys" / f"{RUN}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    role.end(RUN)
    assert path.read_text() == '{"ended": true}'


@pytest.mark.usefixtures("parties")
@pytest.mark.parametrize("is_reopened", [False, True])
def test_a_run_that_ended_never_gets_a_key_again(open_role, study, is_reopened):
    role = open_role()
    role.run_key(study, RUN)
    role.end(RUN)
    role = open_role() if is_reopened else role
    with pytest.raises(RunEnded, match="start a new run"):
        role.run_key(study, RUN)


def test_a_run_that_ended_before_it_began_gets_no_key_and_no_process(open_role, study):
    role = open_role()  # with the real PartyProcess, which is never started
    role.end(RUN)
    with pytest.raises(RunEnded):
        add(role, study)


def test_the_end_of_a_run_leaves_other_runs_their_keys(open_role, study, parties):
    role = open_role()
    kept = role.run_key(study, "thyroid-0002")
    role.end(RUN)
    assert role.run_key(study, "thyroid-0002") == kept


@pytest.mark.parametrize(
    ("cohort", "shares", "more"),
    [
        ((*COHORT, "stranger"), (*COHORT, "stranger"), ()),
        (COHORT, COHORT[:3], ()),
        (COHORT[:3], COHORT[:3], ("update-3",)),
        (COHORT, (), ()),
        ((*COHORT[:3], COHORT[0]), COHORT[:3], ("update-3",)),
        (COHORT, COHORT, ("topup-0", "topup-1", "topup-2")),
        (COHORT, COHORT, ("other",)),
    ],
    ids=[
        "a site outside the study", "a share missing", "a share too many", "no shares", "a site twice",
        "a top-up missing", "a blob of another kind",
    ],
)  # fmt: skip
def test_an_order_that_does_not_fit_the_study_is_refused(open_role, study, cohort, shares, more):
    role = open_role()  # with the real PartyProcess, which is never started
    with pytest.raises(MessageInvalid, match=r"not made of sites of study thyroid|not those of the cohort"):
        add(role, study, cohort=cohort, shares=shares, more=more)


TOPPED = (("max_dropouts = 0", 'max_dropouts = 1\ndropouts = "top-up"'),)


@pytest.mark.parametrize(("changes", "least"), [(TOPPED, 4), ((("max_dropouts = 0", "max_dropouts = 1"),), 3)])
def test_which_sums_need_top_ups_is_read_from_the_study(open_role, make_study, parties, changes, least):
    study = make_study(*changes)
    add(open_role(), study, cohort=COHORT[:3], shares=COHORT[:3], more=("topup-0", "topup-1", "topup-2"))
    assert (parties[0].orders[0].min_sites, parties[0].orders[0].min_untopped) == (3, least)
    assert parties[0].topups == dict.fromkeys(COHORT[:3], b"sealed")


LOCAL = (
    ('mode = "distributed"', 'mode = "local"'),
    ("collusion = 1", "collusion = 0"),
    ("min_sites = 3", "min_sites = 2"),
)


def test_a_small_sum_that_needs_no_top_ups_has_no_bound_on_them(open_role, make_study, parties):
    """The noise that two of four sites would have to make up for may be more than a norm check has room for."""
    study = make_study(*LOCAL)
    add(open_role(), study, cohort=COHORT[:2], shares=COHORT[:2])
    assert parties[0].orders[0].topup_bound == 0
    assert parties[0].orders[0].norm_bound > 0


def test_a_party_is_told_the_study_s_identities_size_and_quorum(open_role, study, parties):
    role = open_role()
    release = add(role, study)
    order = parties[0].orders[0]
    assert release.kept == tuple(sorted(COHORT))
    assert order.cohort == tuple((site, identity_of(site)) for site in sorted(COHORT))
    assert (order.dim, order.ring_bits, order.scale_bits) == (study.dim, study.ring_bits, study.scale_bits)
    assert order.min_sites == study.quorum == 4


def test_one_process_serves_a_study_and_pins_its_certificates(open_role, study, parties):
    role = open_role()
    role.run_key(study, RUN)
    add(role, study)
    add(role, study, run="thyroid-0002")
    assert [party.told for party in parties] == [["start"]]
    assert parties[0].config.aggregator_id == 1
    assert parties[0].config.pins == tuple(party.certificate for party in study.aggregators)
    assert parties[0].config.addresses == tuple(party.address for party in study.aggregators)


def test_a_party_listens_where_site_toml_says_and_another_place_takes_a_new_process(
    open_role, study, parties, tmp_path
):
    role = open_role()
    role.run_key(study, RUN)
    (tmp_path / "enrolment.json").write_text(json.dumps({
        "name": "agg-b", "roles": ["aggregate"], "address": "fed.example:9443", "coordinator": "ab" * 32,
    }))  # fmt: skip
    (tmp_path / "site.toml").write_text('[party]\nlisten = "0.0.0.0:7001"\n')
    role.run_key(study, RUN)
    assert [party.config.listen for party in parties] == [None, "0.0.0.0:7001"]
    assert parties[0].config.addresses == parties[1].config.addresses == tuple(p.address for p in study.aggregators)


def test_studies_of_the_same_aggregators_share_one_process(open_role, study, make_study, parties):
    role, heart = open_role(), make_study(('name = "thyroid"', 'name = "heart"'), ("deadline_s = 60", "deadline_s = 9"))
    role.run_key(study, RUN)
    role.run_key(heart, "heart-0001")
    add(role, study)
    add(role, heart, run="heart-0001")
    assert [party.told for party in parties] == [["start", "start"]]  # the second finds it running
    assert [(order.study, order.timeout_s) for order in parties[0].orders] == [
        (study.study_hash, 20.0),
        (heart.study_hash, 3.0),
    ]


def test_a_study_with_other_aggregators_stops_the_process_of_the_one_before(open_role, study, parties):
    role = open_role()
    role.run_key(study, RUN)
    first, second, third = study.aggregators
    moved = third.model_copy(update={"address": "127.0.0.1:1"})
    role.run_key(study.model_copy(update={"aggregators": (first, second, moved)}), "heart-0001")
    assert [party.told for party in parties] == [["start", "stop"], ["start"]]


def test_a_stopped_role_can_stop_again_and_start_anew(open_role, study, parties):
    role = open_role()
    role.run_key(study, RUN)
    role.stop()
    role.stop()
    role.run_key(study, RUN)
    assert [party.told for party in parties] == [["start", "stop"], ["start"]]


@pytest.mark.parametrize(("deadline_s", "patience"), [(30, 10.0), (1, 2.0), (86_400, 3600.0)])
def test_parties_give_up_on_each_other_before_the_coordinator_asks_anew(
    open_role, make_study, parties, deadline_s, patience
):
    add(open_role(), make_study(("deadline_s = 60", f"deadline_s = {deadline_s}")))
    assert parties[0].orders[0].timeout_s == patience


@pytest.mark.usefixtures("parties")
def test_a_node_outside_the_three_has_no_part(open_role, study):
    with pytest.raises(MessageInvalid, match="agg-x is no aggregator of study thyroid"):
        open_role("agg-x").run_key(study, RUN)


def test_an_evaluation_is_added_in_its_own_ring_and_no_round_beyond_it(open_role, make_study, parties):
    study, role = make_study(EVALUATION), open_role()
    add(role, study)
    add(role, study, round_number=41)
    update, evaluation = parties[0].orders
    assert (update.dim, update.scale_bits) == (study.dim, study.scale_bits)
    assert (evaluation.dim, evaluation.ring_bits, evaluation.scale_bits) == (20, 64, 20)
    assert evaluation.min_sites == study.quorum
    with pytest.raises(MessageInvalid, match="none of number 42"):
        add(role, study, round_number=42)


SHARE = b"a sealed share"


def bring(
    role, study, data=SHARE, *, site="svi", run=RUN, round_number=1, offset=0, size=None, topup_for=None, part=None
):
    message = Deposit(
        to="agg-b",
        study=study.study_hash,
        run=run,
        lease=1,
        round=round_number,
        site=site,
        topup_for=topup_for,
        sealed=Sealed(size=size or len(data), digest=hashlib.sha256(data).hexdigest()),
        offset=offset,
    )
    return role.deposit(study, message, data[offset:][:5] if part is None else part)


def bring_all(role, study, data=SHARE, **where):
    held = 0
    while held < len(data):
        held = bring(role, study, data, offset=held, **where)


@pytest.fixture
def prepared(open_role, study, parties):
    role = open_role()
    role.run_key(study, RUN)
    return role


def order(role, study, spooled, *, cohort=COHORT, topups=(), round_number=1):
    """An order that carries whatever it does not name as spooled."""
    names = [*(f"update-{i}" for i in range(len(cohort))), *topups]
    blobs = {name: b"sealed" for name in names if name not in spooled}
    return role.aggregate(study, asked_of(study, RUN, round_number, cohort, spooled), blobs)


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def test_a_deposited_share_is_added_with_those_that_the_order_carries(prepared, open_role, study, parties):
    bring_all(prepared, study)
    order(open_role(), study, {f"update-{COHORT.index('svi')}": digest_of(SHARE)})  # after a restart
    assert parties[-1].updates == {"svi": SHARE, "other": b"sealed", "svhc": b"sealed", "rest": b"sealed"}


def test_a_deposited_top_up_is_added_for_its_set_alone(open_role, make_study, parties):
    role, study, cohort = open_role(), make_study(*TOPPED), COHORT[:3]
    role.run_key(study, RUN)
    bring_all(role, study, site=cohort[0], topup_for=set_name(cohort))
    topups, spooled = ("topup-0", "topup-1", "topup-2"), {"topup-0": digest_of(SHARE)}
    order(role, study, spooled, cohort=cohort, topups=topups)
    assert parties[0].topups == {cohort[0]: SHARE, cohort[1]: b"sealed", cohort[2]: b"sealed"}
    with pytest.raises(ShareMissing):
        order(role, study, spooled, cohort=(cohort[0], *COHORT[2:]), topups=topups)


@pytest.mark.parametrize("came", [0, 5], ids=["nothing", "half"])
def test_an_order_that_names_a_share_that_is_not_here_reaches_no_party(prepared, study, parties, came):
    if came:
        bring(prepared, study)
    with pytest.raises(ShareMissing, match="the sealed share of svi is not here"):
        order(prepared, study, {f"update-{COHORT.index('svi')}": digest_of(SHARE)})
    assert parties[0].orders == []


def test_an_order_carries_no_more_than_a_message_may_and_leaves_nothing(prepared, study, monkeypatch, tmp_path):
    """Shares that come with orders are not held against the disk: a coordinator could fill it."""
    monkeypatch.setattr(aggregator_module, "MAX_INLINE", 4 * len(b"sealed") - 1)
    with pytest.raises(MessageInvalid, match="carries more than 23 bytes"):
        add(prepared, study)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    monkeypatch.setattr(aggregator_module, "MAX_INLINE", 4 * len(b"sealed"))
    add(prepared, study)


def test_an_order_that_names_another_share_than_was_deposited_reaches_no_party(prepared, study, parties):
    bring_all(prepared, study)
    with pytest.raises(ShareMissing):
        order(prepared, study, {f"update-{COHORT.index('svi')}": digest_of(b"another")})
    assert parties[0].orders == []


@pytest.mark.parametrize(
    "where",
    [
        {"site": "stranger"},
        {"round_number": 41},
        {"run": "never-prepared"},
        {"size": 10**6},
        {"topup_for": "ab" * 32},
        {"part": b""},
    ],
    ids=[
        "a site outside the study", "a round outside it", "a run never prepared", "longer than a share",
        "a top-up where there are none", "an empty part",
    ],
)  # fmt: skip
def test_a_deposit_that_does_not_fit_the_study_is_refused_and_leaves_nothing(prepared, study, tmp_path, where):
    with pytest.raises(MessageInvalid):
        bring(prepared, study, **where)
    assert not (tmp_path / "spool").exists()


def test_the_longest_share_of_the_study_is_taken_and_no_longer_one(prepared, study):
    planned = study.planned_round(1)
    longest = max_envelope_bytes(study.share_context(planned, run=RUN, site="svi", state="12" * 32))
    bring_all(prepared, study, bytes(longest), part=bytes(longest))
    with pytest.raises(MessageInvalid, match="has no such share"):
        bring(prepared, study, site="rest", size=longest + 1)


def test_a_part_longer_than_a_message_may_carry_is_refused(prepared, study, monkeypatch):
    monkeypatch.setattr(aggregator_module, "PART_BYTES", 4)
    with pytest.raises(MessageInvalid):
        bring(prepared, study)


def test_no_deposit_for_an_ended_run_and_nothing_of_it_stays(prepared, study, tmp_path):
    bring_all(prepared, study)
    prepared.end(RUN)
    with pytest.raises(RunEnded):
        bring(prepared, study)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]


def test_no_deposit_and_no_order_for_a_round_before_the_one_at_hand(prepared, study):
    order(prepared, study, {}, round_number=2)
    with pytest.raises(RoundOver):
        bring(prepared, study)
    with pytest.raises(RoundOver):
        order(prepared, study, {})


def test_a_run_that_pauses_leaves_no_shares_and_goes_on_when_they_are_brought_again(prepared, study, parties, tmp_path):
    named = {f"update-{COHORT.index('svi')}": digest_of(SHARE)}
    bring_all(prepared, study)
    prepared.rest(RUN)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    with pytest.raises(ShareMissing):
        order(prepared, study, named)
    bring_all(prepared, study)
    order(prepared, study, named)
    assert parties[0].updates["svi"] == SHARE


def sealed_by(key, study, position, *, run=RUN):
    """A site's real envelope for this aggregator, at a position of its ledger; other sites' are no envelopes."""
    planned, (_, public) = study.planned_round(1), new_keypair(study.draft.aggregation.kem)
    context = study.share_context(planned, run=run, site=COHORT[0], state="12" * 32)
    made = seal_update(np.zeros(planned.dim, np.int64), context, [public] * 3, key, 0, position=position)
    return made[1].to_bytes()


def renamed(study, identity):
    """The study as it is made once the first site of the cohort has another key."""
    parties = tuple(
        each.model_copy(update={"identity": identity}) if each.name == COHORT[0] else each for each in study.sites
    )
    return study.model_copy(update={"sites": parties})


@pytest.mark.parametrize("known_by", ["a succession", "an accepted key", ""])
def test_an_older_ledger_is_noticed_across_a_succession_of_the_site_s_key(study, parties, tmp_path, known_by):
    old, new, is_known = key_of("old"), key_of("new"), bool(known_by)
    keys = [key.public_key().public_bytes_raw().hex() for key in (old, new)]
    name = COHORT[0] if known_by == "an accepted key" else "somebody"
    known = [{"identity": key, "study": study.study_hash, "since": "2026-03-01T09:00:00Z"} for key in keys]
    (tmp_path / peers.FILE).write_text(json.dumps({"peers": {name: known}}))
    role = AggregatorRole(tmp_path, "agg-b", lambda _: key_of("agg-b"), partial(peers.known_keys, tmp_path))
    first, later = (renamed(study, key) for key in keys)
    made = Succession.make(COHORT[0], "c0" * 32, old, new, "2026-03-01T09:00:00Z")
    if known_by == "a succession":
        partners.take(tmp_path, ["c0" * 32], later.identities(), [made.model_dump()])

    def add_at(count, study, key, run):
        role.run_key(study, run)
        sealed = sealed_by(key, study, Position(0, count, bytes([count]) * 32), run=run)
        blobs = dict.fromkeys([f"update-{place}" for place in range(len(COHORT))], b"sealed")
        role.aggregate(study, asked_of(study, run, 1, COHORT), blobs | {"update-0": sealed})

    add_at(9, first, old, "thyroid-0001")
    if is_known:
        with pytest.raises(LedgerOutdated) as refusal:
            add_at(5, later, new, "thyroid-0002")
        assert refusal.value.seen == {COHORT[0]: 9}
    else:
        add_at(5, later, new, "thyroid-0002")  # to whom nobody showed it, the later key is another site's
    role.stop()
