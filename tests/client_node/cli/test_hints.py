"""What `enroll` tells people to do next, and that it can be typed as it stands."""

import shlex

import pytest

from confide.client_node.cli.options import DEFAULT_HOME
from confide.client_node.cli.tables import show_enrolment
from confide.client_node.enrolment import Enrolment


def hints(capsys, home, *roles):
    joined = Enrolment(name="svi", roles=roles, address="fed:1", coordinator="00" * 32, ca_path=home / "ca.crt")
    show_enrolment(joined, home, as_json=False)
    return capsys.readouterr().out


def test_an_aggregator_is_told_to_confirm_the_sites_before_it_approves(capsys, tmp_path):
    told = hints(capsys, tmp_path, "aggregate")
    assert "client-node site confirm NAME=FINGERPRINT" in told
    assert told.index("site confirm") < told.index("study approve")
    assert "site confirm" not in hints(capsys, tmp_path, "train")


def test_hints_carry_a_home_that_is_not_the_default(capsys, tmp_path):
    home = tmp_path / "my node"
    commands = [line.partition("client-node ")[2] for line in hints(capsys, home, "train", "aggregate").splitlines()]
    given = [shlex.split(words) for words in commands if words]
    assert len(given) == 5
    assert all(words[-2:] == ["--home", str(home)] for words in given)


def test_hints_leave_the_default_home_out(capsys):
    assert "--home" not in hints(capsys, DEFAULT_HOME.resolve(), "train", "aggregate")


@pytest.mark.parametrize("roles", [("train",), ("aggregate",), ("train", "aggregate")])
def test_every_next_step_is_on_a_line_of_its_own(capsys, tmp_path, roles):
    assert hints(capsys, tmp_path, *roles).count("\nThen: client-node") == 3
