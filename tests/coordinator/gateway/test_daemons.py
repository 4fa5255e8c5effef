"""The gate between several daemons with one key, over real TLS, in front of a SuperLink that the test plays."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest

from confide.client_node.enrolment import outbound
from confide.client_node.enrolment.identity import NodeIdentity, wire_form
from confide.client_node.enrolment.sessions import HELLO_HEADER, LOCK_FILE, SESSION_HEADER, Hello
from confide.coordinator.federation.pki import Pki
from confide.coordinator.gateway import gate as gate_module
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.versions import EARLIER, HEADER, OWN, PROTOCOL, Speaks, apart

from .played import PlayedRegister, PlayedSuperLink, pull, signed


class Flower:
    """A SuperLink as far as activations go: a node that counts as online, or is not known yet, is refused with 412."""

    def __init__(self) -> None:
        self.unknown_for = 0  # activations, after its start
        self.online: set[int] = set()
        self.waiting: list[bytes] = []
        self.calls: list[str] = []
        self.app = PlayedSuperLink(answer=self._answer)

    def _answer(self, path: str, body: bytes) -> bytes:
        call = path.rpartition("/")[2]
        self.calls.append(call)
        self.app.status = 200
        if call == "activate-node":
            if 7 in self.online or self.unknown_for > 0:
                self.unknown_for -= 1
                self.app.status = 412
                return b""
            self.online.add(7)
            return bytes(ActivateNodeResponse(node_id=7).SerializeToString())
        if call == "deactivate-node":
            self.online.discard(DeactivateNodeRequest.FromString(body).node_id)
        return self.waiting.pop() if call == "pull-messages" and self.waiting else b""


class Site:
    """A node with a home; `daemon` starts one there, in words only."""

    def __init__(self, client: httpx.Client, home: Path) -> None:
        self.identity, self._client = NodeIdentity.create(home), client
        (home / LOCK_FILE).touch()

    def activate(self, hello: Hello | None, **changed: str) -> httpx.Response:
        body = ActivateNodeRequest(public_key=wire_form(self.identity.transport_public)).SerializeToString()
        told = {} if hello is None else {HELLO_HEADER: hello.model_dump_json()}
        return self.post("activate-node", body, told | changed)

    def pull(self, hello: Hello | None) -> httpx.Response:
        return self.post("pull-messages", pull(7), {} if hello is None else {SESSION_HEADER: hello.session})

    def post(self, call: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return self._client.post(f"/v1/fleet/{call}", content=body, headers=signed(self.identity) | headers)


@dataclass
class Setting:
    site: Site
    superlink: Flower
    app: FleetGate


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture
def setting(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setting]:
    monkeypatch.setitem(gate_module.HOLD_S, "pull-messages", 0.3)
    caplog.set_level(logging.INFO, logger="confide.gate")
    superlink, register = Flower(), PlayedRegister()
    behind = serve_gate(superlink.app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    app = FleetGate(
        register,
        enrol=lambda _: None,
        rotate=lambda _: "",
        studies=lambda _: {"studies": []},
        ca_path=pki.ca_path,
        superlink=behind.port,
    )  # type: ignore[arg-type, return-value]
    server = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    with httpx.Client(
        base_url=f"https://127.0.0.1:{server.port}", verify=outbound.trusting(pki.ca_path.read_text())
    ) as client:
        site = Site(client, tmp_path / "north")
        register.known[site.identity.transport_fingerprint] = "north"
        yield Setting(site, superlink, app)
    server.stop()
    behind.stop()


def test_a_daemon_that_was_killed_is_replaced_at_once_by_the_next_one_on_its_home(
    setting: Setting,
) -> None:
    site, superlink = setting.site, setting.superlink
    first, second = Hello.of(site.identity.home), Hello.of(site.identity.home)
    assert site.activate(first).status_code == 200
    assert site.activate(second).status_code == 200
    taken = [call for call in superlink.calls if call != "pull-messages"]
    assert taken == ["activate-node", "activate-node", "deactivate-node", "activate-node"]
    superlink.waiting = [b"asked now"]
    assert site.pull(second).content == b"asked now"


def test_a_node_that_is_back_before_the_superlink_knows_it_waits_and_is_taken_for_no_second_daemon(
    setting: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_AWAY_POLL_S", 0.01)
    site, superlink = setting.site, setting.superlink
    superlink.unknown_for = 3
    assert site.activate(Hello.of(site.identity.home)).status_code == 200
    assert superlink.calls == ["activate-node"] * 4
    assert "second daemon" not in caplog.text


def test_a_node_that_the_superlink_does_not_learn_of_is_asked_to_come_again(
    setting: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "CONNECT_S", 0.05)
    monkeypatch.setattr(gate_module, "_AWAY_POLL_S", 0.01)
    site, superlink = setting.site, setting.superlink
    superlink.unknown_for = 10**6
    assert site.activate(Hello.of(site.identity.home)).status_code == 503
    assert "second daemon" not in caplog.text


def test_a_daemon_that_lost_its_connection_gets_back_in_at_once(setting: Setting) -> None:
    site = setting.site
    hello = Hello.of(site.identity.home)
    assert [site.activate(hello).status_code for _ in range(3)] == [200] * 3


def copied(home: Path, tmp_path: Path) -> Hello:
    """The introduction of a daemon on a copy of a home."""
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / LOCK_FILE).touch()
    return Hello.of(tmp_path / "copy")


def test_a_copy_of_a_home_is_kept_out_while_the_first_daemon_lives(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, superlink = setting.site, setting.superlink
    own, copy = Hello.of(site.identity.home), copied(site.identity.home, tmp_path)
    site.activate(own)
    for _ in range(3):
        answer = site.activate(copy)
        assert (answer.status_code, answer.headers["confide-refused"]) == (409, "in-use")
    assert "deactivate-node" not in superlink.calls
    superlink.waiting = [b"asked now"]
    assert site.pull(own).content == b"asked now"
    assert caplog.text.count("a second daemon uses the key of site 'north'") == 1


def test_of_two_daemons_only_the_one_that_connected_last_gets_messages(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, superlink = setting.site, setting.superlink
    own, copy = Hello.of(site.identity.home), copied(site.identity.home, tmp_path)
    site.activate(own)
    superlink.calls.clear()
    superlink.online.clear()  # it was silent for so long that Flower gave it up
    assert site.activate(copy).status_code == 200
    answer = site.pull(own)
    assert (answer.status_code, answer.headers["confide-refused"]) == (409, "replaced")
    assert superlink.calls == ["activate-node"]  # of the copy
    assert "two daemons use the key of site 'north'" in caplog.text


def test_a_daemon_that_said_goodbye_keeps_nobody_out(setting: Setting, tmp_path: Path) -> None:
    site, own = setting.site, Hello.of(setting.site.identity.home)
    site.activate(own)
    goodbye = DeactivateNodeRequest(node_id=7).SerializeToString()
    assert site.post("deactivate-node", goodbye, {SESSION_HEADER: own.session}).status_code == 200
    assert site.activate(copied(site.identity.home, tmp_path)).status_code == 200


def test_the_gates_log_tells_the_version_of_each_daemon_once(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    site = setting.site
    hello = Hello.of(site.identity.home)
    for _ in range(3):
        site.activate(hello)
    assert caplog.messages == [f"north is connected, with {OWN}, from 127.0.0.1"]
    assert setting.app.seen["north"].version == OWN.version


def test_a_key_that_connects_again_and_again_leaves_one_line(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        assert setting.site.activate(Hello.of(setting.site.identity.home)).status_code == 200
    assert caplog.text.count("north is connected") == 1


def too_long(told: dict[str, Any]) -> None:
    told["version"] = "1" * 33


def a_line_of_a_log(told: dict[str, Any]) -> None:
    told["version"] = "1.0\nrevoked key"


def short_session(told: dict[str, Any]) -> None:
    told["session"] = "ab"


def turned_round(told: dict[str, Any]) -> None:
    told["oldest"], told["newest"] = 3, 2


@pytest.mark.parametrize("change", [too_long, a_line_of_a_log, short_session, turned_round])
def test_an_introduction_of_another_form_is_refused(setting: Setting, change: Callable[[dict[str, Any]], None]) -> None:
    site, superlink = setting.site, setting.superlink
    told = Hello.of(site.identity.home).model_dump()
    change(told)
    assert site.activate(None, **{HELLO_HEADER: json.dumps(told)}).status_code == 400
    assert superlink.calls == []


def spoken(home: Path, oldest: int, newest: int) -> Hello:
    """The introduction of a daemon of another version."""
    return Hello.of(home).model_copy(update={"version": "9.9.9", "oldest": oldest, "newest": newest})


@pytest.mark.parametrize("oldest", [PROTOCOL, PROTOCOL + 1], ids=["neighbour", "two apart"])
def test_a_neighbouring_version_is_let_in_and_one_that_is_two_apart_is_not(
    setting: Setting, oldest: int, caplog: pytest.LogCaptureFixture
) -> None:
    site, newest = setting.site, oldest + 1
    answer = site.activate(spoken(site.identity.home, oldest, newest))
    assert Speaks.read(answer.headers[HEADER]) == OWN  # in either case
    if oldest == PROTOCOL:
        assert answer.status_code == 200
        assert (setting.app.seen["north"].version, setting.app.seen["north"].protocol) == ("9.9.9", PROTOCOL)
        assert setting.app.apart() == {}
    else:
        assert (answer.status_code, answer.headers["confide-refused"]) == (426, "version")
        assert setting.superlink.calls == []
        (said,) = setting.app.apart().values()
        assert said.endswith("no protocol is common to both: upgrade the coordinator first")
        assert caplog.messages == [f"turned away: {said}"]


@pytest.mark.parametrize("told", [None, {}], ids=["no introduction", "an introduction without protocols"])
def test_a_version_of_the_first_protocol_is_refused_with_the_sentence_that_its_operator_is_told(
    setting: Setting, told: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    site = setting.site
    hello = Hello.of(site.identity.home).model_dump(exclude={"oldest", "newest"})
    changed = {} if told is None else {HELLO_HEADER: json.dumps(hello)}
    for _ in range(3):
        answer = site.activate(None, **changed)
        assert (answer.status_code, answer.headers["confide-refused"]) == (426, "version")
    assert setting.superlink.calls == []
    spoke = EARLIER if told is None else Speaks(version=OWN.version, oldest=1, newest=1)
    assert setting.app.apart() == {"north": apart("north", spoke, OWN)}
    assert setting.app.apart()["north"].endswith("upgrade north first")
    assert len(caplog.messages) == 1


def test_leaving_the_introduction_out_is_no_way_past_a_daemon_that_lives(setting: Setting) -> None:
    site, own = setting.site, Hello.of(setting.site.identity.home)
    site.activate(own)
    setting.superlink.online.clear()  # a SuperLink that was started again counts nobody as online
    assert site.activate(None).status_code == 426
    setting.superlink.waiting = [b"asked now"]
    assert site.pull(None).status_code == 409
    assert site.pull(own).content == b"asked now"


def test_a_refusal_is_forgotten_once_the_node_is_upgraded(setting: Setting) -> None:
    site = setting.site
    site.activate(None)
    assert setting.app.apart().keys() == {"north"}
    assert site.activate(Hello.of(site.identity.home)).status_code == 200
    assert setting.app.apart() == {}


def test_what_a_later_version_adds_to_its_introduction_is_passed_over(setting: Setting) -> None:
    told = spoken(setting.site.identity.home, PROTOCOL, PROTOCOL + 1).model_dump() | {"more": ["of", "it"]}
    assert setting.site.activate(None, **{HELLO_HEADER: json.dumps(told)}).status_code == 200
