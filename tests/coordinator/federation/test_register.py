import base64
import dataclasses
import threading

import pytest

from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import EnrolRequest, InvitationCode
from confide.coordinator.errors import Conflict, EnrolmentInvalid, InviteExpired, InviteUnknown, InviteUsed, NotFound
from confide.coordinator.federation import register as register_module
from confide.coordinator.federation.invites import VALID_S
from confide.coordinator.federation.pki import Pki
from confide.coordinator.federation.register import Register
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import NodeRow, StudyRow

from ...client_node.conftest import certificate_of
from ..conftest import logged

ADDRESS = "fed.example:9443"


@dataclasses.dataclass
class Office:
    """A register and the nodes that come to it."""

    register: Register
    store: Store
    pki: Pki
    north: NodeIdentity
    south: NodeIdentity

    def invite(self, name="north", *roles) -> str:
        return self.register.invite(name, roles or ("train",), ADDRESS)

    def enrol(self, code, who=None, **party):
        return self.register.enrol(request(code, who or self.north, **party))


def request(code: str, who: NodeIdentity, **party: str) -> EnrolRequest:
    """As the gate hands it on: it has checked the proofs."""
    return EnrolRequest(
        secret=InvitationCode.parse(code).secret.hex(),
        transport_public=who.transport_public.decode(),
        identity=who.identity_hex,
        identity_proof="00" * 64,
        transport_proof="00",
        **party,
    )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes' keys, which take long to make."""
    home = tmp_path_factory.mktemp("nodes")
    return NodeIdentity.create(home / "north"), NodeIdentity.create(home / "south")


@pytest.fixture
def office(any_store, pki, nodes):
    return Office(Register(any_store, pki), any_store, pki, *nodes)


def test_of_two_keys_that_come_with_one_code_at_once_one_is_enrolled(office, tmp_path):
    others = [Store.open(tmp_path) for _ in range(2)]
    registers = [Register(each, office.pki) for each in others]
    for number in range(5):
        code, outcomes = office.invite(f"site-{number}"), []
        whos = [dataclasses.replace(who, home=tmp_path) for who in (office.north, office.south)]
        start = threading.Barrier(2)

        def come(register, who, code=code, start=start, outcomes=outcomes):
            start.wait(30)
            try:
                outcomes.append(register.enrol(request(code, who)).name)
            except (InviteUsed, EnrolmentInvalid) as err:
                outcomes.append(type(err).__name__)

        threads = [threading.Thread(target=come, args=pair) for pair in zip(registers, whos, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == sorted(["InviteUsed", f"site-{number}"])
        with office.store.session() as session:  # so that both keys are free again
            session.delete(session.get(NodeRow, f"site-{number}"))
    for each in others:
        each.close()


def test_a_code_carries_the_address_and_the_ca_to_trust(office):
    code = InvitationCode.parse(office.invite())
    assert (code.address, code.ca_digest) == (ADDRESS, office.pki.ca_digest)


def test_the_store_keeps_nothing_that_enrols(office):
    code = InvitationCode.parse(office.invite())
    node = office.store.node("north")
    assert code.secret.hex() not in repr(vars(node))
    assert node.enrolled_at is None


def test_whoever_holds_the_code_is_enrolled_under_the_operator_s_name_and_roles(office):
    answer = office.enrol(office.invite("north", "train"))
    assert (answer.name, answer.roles, answer.coordinator) == ("north", ("train",), office.pki.identity_hex)
    node = office.store.node("north")
    assert (node.identity, node.fingerprint) == (office.north.identity_hex, office.north.transport_fingerprint)


def test_an_enrolled_key_is_known_at_once(office):
    office.enrol(office.invite())
    assert office.register.site_of(office.north.transport_fingerprint) == "north"
    assert office.register.names_by_key()[office.north.transport_fingerprint] == "north"
    assert office.register.site_with_identity(office.north.identity_hex) == "north"
    assert office.register.revoked_site(office.north.transport_fingerprint) is None


def test_a_key_that_never_enrolled_is_unknown(office):
    office.invite()
    assert office.register.site_of(office.north.transport_fingerprint) is None
    assert office.north.transport_fingerprint not in office.register.names_by_key()
    assert office.register.site_with_identity(office.north.identity_hex) is None
    assert office.register.revoked_site(office.north.transport_fingerprint) is None


def test_the_same_keys_with_the_same_code_get_the_same_answer_and_change_nothing(office):
    code = office.invite()
    first = office.enrol(code)
    before = office.store.node("north").enrolled_at
    assert office.enrol(code) == first
    assert office.store.node("north").enrolled_at == before
    assert len(logged(office.store)) == 2


def test_other_keys_with_a_used_code_are_refused(office):
    code = office.invite()
    office.enrol(code)
    with pytest.raises(InviteUsed):
        office.enrol(code, office.south)
    assert office.store.node("north").identity == office.north.identity_hex


@pytest.mark.parametrize("part", ["identity", "transport_public"])
def test_a_repeat_with_one_of_two_keys_changed_is_refused(office, part):
    code = office.invite()
    office.enrol(code)
    changed = request(code, office.north).model_copy(update={part: getattr(request(code, office.south), part)})
    with pytest.raises(InviteUsed):
        office.register.enrol(changed)


def test_a_code_that_nobody_issued_is_unknown(office):
    office.invite()
    stranger = InvitationCode(ADDRESS, bytes(16), bytes(32)).text()
    with pytest.raises(InviteUnknown):
        office.enrol(stranger)


@pytest.mark.parametrize(("seconds", "is_late"), [(VALID_S - 60, False), (VALID_S + 60, True)])
def test_a_code_expires(office, monkeypatch, seconds, is_late):
    with monkeypatch.context() as patched:
        now = register_module.time.time()
        patched.setattr(register_module.time, "time", lambda: now - seconds)
        code = office.invite()
    if is_late:
        with pytest.raises(InviteExpired):
            office.enrol(code)
    else:
        assert office.enrol(code).name == "north"


def test_a_new_code_kills_the_one_before(office):
    old, new = office.invite(), office.invite()
    with pytest.raises(InviteUnknown):
        office.enrol(old)
    assert office.enrol(new).name == "north"


def test_an_enrolled_site_cannot_be_invited_again(office):
    office.enrol(office.invite())
    with pytest.raises(Conflict, match="north is enrolled already"):
        office.invite()


def test_keys_serve_one_name(office):
    office.enrol(office.invite("north"))
    code = office.invite("south")
    with pytest.raises(EnrolmentInvalid, match="registered under another name"):
        office.enrol(code)
    assert office.enrol(code, office.south).name == "south"  # the refusal did not use the code up


@pytest.mark.parametrize(
    "party", [{}, {"party_address": "agg:7000"}, {"party_address": "agg:7000", "party_certificate": "PEM\0"}], ids=str
)
def test_an_aggregator_without_address_or_certificate_is_refused_and_may_try_again(office, party):
    code = office.invite("agg-a", "aggregate")
    with pytest.raises(EnrolmentInvalid, match="--party-address HOST:PORT"):
        office.enrol(code, **party)
    office.enrol(code, party_address="agg:7000", party_certificate=certificate_of("agg"))
    node = office.store.node("agg-a")
    assert (node.party_address, node.party_certificate) == ("agg:7000", certificate_of("agg"))


def test_roles_come_from_the_invitation_in_one_order(office):
    code = office.invite("both", "aggregate", "train")
    answer = office.enrol(code, party_address="agg:7000", party_certificate=certificate_of("agg"))
    assert answer.roles == ("train", "aggregate")


def test_a_revoked_node_is_unknown_from_then_on(office):
    office.enrol(office.invite())
    office.register.revoke("north")
    assert office.register.site_of(office.north.transport_fingerprint) is None
    assert office.north.transport_fingerprint not in office.register.names_by_key()
    assert office.register.site_with_identity(office.north.identity_hex) is None
    assert office.register.revoked_site(office.north.transport_fingerprint) == "north"


def test_keys_that_were_turned_out_do_not_come_back_under_another_name(office):
    office.enrol(office.invite())
    office.register.revoke("north")
    with pytest.raises(EnrolmentInvalid):
        office.enrol(office.invite("other"))


def test_the_code_of_a_revoked_invitation_admits_nobody(office):
    code = office.invite()
    office.register.revoke("north")
    with pytest.raises(InviteUnknown, match="no invitation has this code"):
        office.enrol(code)
    assert office.store.node("north").enrolled_at is None


def test_the_code_of_a_revoked_node_repeats_no_answer(office):
    code = office.invite()
    office.enrol(code)
    office.register.revoke("north")
    with pytest.raises(InviteUnknown):
        office.enrol(code)


def test_a_site_revoked_before_it_enrolled_can_be_invited_again(office):
    office.invite()
    office.register.revoke("north")
    office.enrol(office.invite())
    assert office.register.site_of(office.north.transport_fingerprint) == "north"


def test_nobody_who_was_never_invited_is_revoked(office):
    with pytest.raises(NotFound, match="no site is called 'nobody'"):
        office.register.revoke("nobody")


def test_every_step_is_in_the_audit_log_without_the_secret(office):
    code = office.invite("north", "train")
    office.enrol(code)
    office.register.revoke("north")
    assert logged(office.store) == [
        ("site.invite", {"site": "north", "roles": "train"}),
        ("site.enrol", {"site": "north", "identity": office.north.identity_hex}),
        ("site.revoke", {"site": "north"}),
    ]
    assert InvitationCode.parse(code).secret.hex() not in str(logged(office.store))


def test_a_node_is_shown_every_study_as_stored(office):
    with office.store.session() as session:
        session.add(StudyRow(hash="ab" * 32, name="s", canonical=b'{"a":1}', signature="cd" * 64, created_at=0.0))
    (study,) = office.register.studies("north")["studies"]
    assert base64.b64decode(study["canonical"]) == b'{"a":1}'
    assert (study["hash"], study["signature"]) == ("ab" * 32, "cd" * 64)
