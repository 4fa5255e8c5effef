import datetime as dt
import json

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app
from confide.client_node.enrolment.join_file import make_join_file, read_join_file, write_join_file
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import CodeExpired, CodeInvalid

from .test_protocol import federation, pki

__all__ = ["federation", "pki"]  # fixtures

SOON = dt.datetime.now(dt.UTC) + dt.timedelta(days=7)


@pytest.fixture
def join(federation):
    return make_join_file("north", ("train",), "Thyroid 2026", federation.code, SOON)


def test_a_join_file_enrols_a_node(federation, join, tmp_path):
    write_join_file(tmp_path / "north.join", join)
    assert (tmp_path / "north.join").stat().st_mode & 0o777 == 0o600
    words = ["enroll", str(tmp_path / "north.join"), "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "is used; delete the file" in result.stderr
    assert Enrolment.load(tmp_path / "home").name == "north"


def test_it_says_what_is_to_be_done_and_its_repr_has_no_code(federation, join, tmp_path):
    write_join_file(tmp_path / "north.join", join)
    plain = json.loads((tmp_path / "north.join").read_text())
    assert plain["address"] == f"127.0.0.1:{federation.port}"
    assert plain["ca_sha256"] == federation.pki.ca_digest.hex()
    assert plain["next"][0] == "client-node enroll north.join"
    assert federation.code.split("/")[1] not in repr(join)
    party = make_join_file("agg-a", ("aggregate",), "Thyroid 2026", federation.code, SOON)
    assert party.next[0].startswith("client-node enroll agg-a.join --party-address HOST:PORT")
    assert any("site confirm" in step for step in party.next)


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", "127.0.0.1:1/ABC"), ("address", "elsewhere:1"), ("ca_sha256", "00" * 32), ("format", "2"), ("more", 1),
     ("roles", []), ("expires", "2099-01-01T00:00:00"), ("expires", "soon"), ("name", "No Name")],
)  # fmt: skip
def test_a_file_that_was_changed_is_refused_without_a_word_of_its_code(join, tmp_path, key, value):
    plain = json.loads(join.model_dump_json()) | {key: value}
    (tmp_path / "x.join").write_text(json.dumps(plain))
    with pytest.raises(CodeInvalid, match="no whole join file") as caught:
        read_join_file(tmp_path / "x.join")
    assert join.code.split("/")[1] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{" * 100_000])
def test_bytes_that_are_no_join_file_are_refused(tmp_path, content):
    (tmp_path / "x.join").write_bytes(content)
    with pytest.raises(CodeInvalid, match="no whole join file"):
        read_join_file(tmp_path / "x.join")
    with pytest.raises(CodeInvalid, match="cannot be read"):
        read_join_file(tmp_path / "absent.join")


def test_an_old_file_is_refused_before_anybody_is_asked(federation, tmp_path):
    old = make_join_file("north", ("train",), "f", federation.code, SOON - dt.timedelta(days=8))
    write_join_file(tmp_path / "x.join", old)
    with pytest.raises(CodeExpired, match="has expired"):
        read_join_file(tmp_path / "x.join")
