"""The coordinator's signing key changes in the middle of a run, which goes on with the new one."""

import pytest

from confide.client_node.enrolment import Enrolment
from confide.client_node.enrolment.protocol import follow
from confide.client_node.errors import KeyNotFollowed, MessageInvalid
from confide.client_node.wire.messages import Settle, sign
from confide.coordinator import key_rotation
from confide.coordinator.federation import Pki

from ..quiet_fleet import PARTIES, RUN, SITES, found

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path, empty_store, monkeypatch):
    return found(tmp_path, empty_store, monkeypatch, dropouts="over-provision", max_dropouts=1, rounds=3)


def hear(federation, name):
    """The node's daemon fetches the list that tells of the new key."""
    signing = Pki.load(federation.home).signing.now
    follow(federation.home / name, signing.successions, signing.public)


@pytest.mark.parametrize("kind", ["step", "aggregate", "replay", "settle"])
def test_a_run_goes_on_with_the_new_key_once_its_nodes_have_heard_of_it(federation, kind):
    told = set()

    def before(asked, name):
        rounds = len(federation.store.rounds(RUN))
        if not told and asked == kind and rounds == (2 if kind == "settle" else 1):
            key_rotation.rotate(federation.store, federation.home)
            told.add("")
        elif told and name not in told:  # each has refused once, or hears in time
            told.add(name)
            hear(federation, name)

    federation.fleet.before = before
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES] * 3
    for site in SITES:
        kinds = [entry.kind for entry in federation.ledgers[site].entries()]
        assert kinds.count("reserve") == 3  # nothing is charged twice
    own = Pki.load(federation.home).signing.now.all
    assert {Enrolment.load(federation.home / name).coordinators for name in (*SITES, *PARTIES)} == {own}
    assert federation.study.coordinator == own[0]


def test_messages_of_the_earlier_key_are_refused(federation):
    old = Pki.load(federation.home).signer
    key_rotation.rotate(federation.store, federation.home)
    run = federation.context()
    message = Settle(**run.addressed("west"), outcomes=(), final=False, ledger_from=0)
    with pytest.raises(MessageInvalid, match="not signed"):
        federation.fleet.nodes["west"].handle("settle", sign(message, run.signer))
    hear(federation, "west")
    federation.fleet.nodes["west"].handle("settle", sign(message, run.signer))
    with pytest.raises(KeyNotFollowed, match="that another one has followed"):
        federation.fleet.nodes["west"].handle("settle", sign(message, old))
