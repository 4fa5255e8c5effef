import json

from confide.client_node.enrolment.join_file import read_join_file
from confide.client_node.enrolment.protocol import InvitationCode

from .test_main import FAILED, _new_home, call, home, lined

__all__ = ["_new_home", "call", "home"]  # fixtures


def test_several_sites_are_invited_at_once(call):
    lines = call("site", "invite", "north", "south").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["north", "south"]
    assert len({InvitationCode.parse(line.split()[1]).secret for line in lines}) == 2
    rows = json.loads(call("site", "invite", "north", "south", "--role", "aggregate", "--json").stdout)
    assert [(row["name"], row["roles"]) for row in rows] == [("north", ["aggregate"]), ("south", ["aggregate"])]


def test_nobody_is_invited_if_one_name_is_wrong(call):
    assert "named more than once" in lined(call("site", "invite", "a", "b", "a", code=FAILED).stderr)
    assert "is no name for a site" in lined(call("site", "invite", "a", "B", code=FAILED).stderr)
    assert json.loads(call("site", "list", "--json").stdout) == []


def test_an_invitation_is_written_to_a_file_and_not_shown(call, tmp_path):
    result = call("site", "invite", "north", "--out", tmp_path / "to-north.join")
    join = read_join_file(tmp_path / "to-north.join")
    assert (join.name, join.roles, join.address, join.federation) == (
        "north", ("train",), "fed.example:9999", "thyroid network",
    )  # fmt: skip
    assert result.stdout.strip() == str(tmp_path / "to-north.join")
    assert join.code.split("/")[1] not in result.output


def test_sites_and_aggregators_are_invited_at_once(call):
    rows = json.loads(call("site", "invite", "a", "b", "--aggregator", "x", "--aggregator", "y", "--json").stdout)
    assert [(row["name"], row["roles"]) for row in rows] == [
        ("a", ["train"]), ("b", ["train"]), ("x", ["aggregate"]), ("y", ["aggregate"]),
    ]  # fmt: skip
    assert "named more than once" in lined(call("site", "invite", "c", "--aggregator", "c", code=FAILED).stderr)


def test_several_invitations_are_files_in_a_folder(call, tmp_path):
    call("site", "invite", "agg-a", "agg-b", "--role", "aggregate", "--out", tmp_path / "codes")
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == ["agg-a.join", "agg-b.join"]
    assert read_join_file(tmp_path / "codes" / "agg-b.join").name == "agg-b"
