import pytest

from confide.client_node.enrolment.join_file import JoinFile, read_join_file
from confide.client_node.enrolment.protocol import InvitationCode
from confide.coordinator.errors import Conflict, NotFound, StateDamaged
from confide.coordinator.federation.home import create_home, opened_store
from confide.coordinator.federation.members import (
    Member,
    invite,
    join_text,
    members,
    parse_roles,
    party_certificate_ends,
    revoke,
    write_invitations,
)
from confide.coordinator.federation.pki import Pki
from confide.coordinator.store.tables import NodeRow

from ...client_node.conftest import certificate_of, identity_of
from ..conftest import PARTIES, SITES, enrolled_nodes
from .test_home import SETTINGS


@pytest.fixture
def home(tmp_path):
    create_home(tmp_path / "home", SETTINGS)
    return tmp_path / "home"


@pytest.fixture
def store(home):
    with opened_store(home) as opened:
        yield opened


def test_an_invited_site_is_a_member_that_has_no_key_yet(store, home):
    (invitation,) = invite(store, home, [("north", ["aggregate", "train", "train"])])
    assert (invitation.name, invitation.roles) == ("north", ("train", "aggregate"))
    code = InvitationCode.parse(invitation.code)
    assert (code.address, code.ca_digest) == ("hub:9092", Pki.load(home).ca_digest)
    assert members(store) == [Member("north", "train,aggregate", "invited", "")]


def test_an_invitation_says_whether_it_voids_a_code(store, home):
    assert not invite(store, home, [("north", ["train"])])[0].voids_earlier
    assert [each.voids_earlier for each in invite(store, home, [("north", ["train"]), ("south", ["train"])])] == [
        True,
        False,
    ]
    with store.session() as session:
        session.get(NodeRow, "south").invite_expires = 1.0
    revoke(store, home, "north")
    assert not any(each.voids_earlier for each in invite(store, home, [("north", ["train"]), ("south", ["train"])]))


def test_members_are_enrolled_until_they_are_revoked(store, home):
    with store.session() as session:
        session.add_all(enrolled_nodes())
    revoke(store, home, "svi")
    found = {member.name: member for member in members(store)}
    assert found.keys() == {*SITES, *PARTIES}
    assert found["svi"].state == "revoked"
    assert found["rest"] == Member("rest", "train", "enrolled", identity_of("rest"))


@pytest.mark.parametrize("name", ["", "North", "a b", "../up", ".hidden", "a" * 64, "ö", "north\n"])
def test_nobody_is_invited_under_a_name_that_is_none(store, home, name):
    with pytest.raises(Conflict, match="is no name for a site"):
        invite(store, home, [("south", ["train"]), (name, ["train"])])
    assert members(store) == []


def test_nobody_is_invited_to_a_role_that_is_none(store, home):
    with pytest.raises(Conflict, match="listen, watch is no role"):
        invite(store, home, [("north", ["watch", "train", "listen"])])
    assert members(store) == []


def test_a_site_that_was_never_invited_cannot_be_revoked(store, home):
    with pytest.raises(NotFound):
        revoke(store, home, "nobody")


def test_roles_are_named_each_once_and_in_one_order():
    assert parse_roles(["aggregate", "train", "aggregate"]) == ("train", "aggregate")
    assert parse_roles([]) == ()


def test_a_join_file_has_the_text_that_is_shown(store, home, tmp_path):
    (invitation,) = invite(store, home, [("north", ["train"])])
    text = join_text(invitation, home)
    (file,) = write_invitations([invitation], home, tmp_path / "north.join")
    shown, written = JoinFile.model_validate_json(text), read_join_file(file)
    assert shown.model_copy(update={"expires": written.expires}) == written
    assert text.endswith("}\n")


def test_an_invitation_hides_its_code_from_logs(store, home):
    (invitation,) = invite(store, home, [("north", ["train"])])
    assert invitation.code not in repr(invitation)


def test_the_end_of_a_party_certificate_is_read():
    node = NodeRow(name="agg-a", roles="aggregate", party_certificate=certificate_of("agg-a"))
    assert f"{party_certificate_ends(node):%Y-%m-%d}" == "2028-09-26"
    assert party_certificate_ends(NodeRow(name="svi", roles="train")) is None
    node.party_certificate = "none"
    with pytest.raises(StateDamaged, match="the party certificate of agg-a"):
        party_certificate_ends(node)
