"""The way to the coordinator: what is wrong with a certificate, in words, and what goes by a proxy. With real TLS."""

import datetime as dt
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from confide.client_node.enrolment import outbound
from confide.client_node.enrolment.protocol import (
    EnrolAnswer,
    Enrolment,
    EnrolRequest,
    change_proxy,
    enrol,
    fetch_studies,
)
from confide.client_node.errors import CoordinatorUnreachable, NotEnrolled, ProxyInvalid, WrongCoordinator
from confide.coordinator.federation import pki as pki_module
from confide.coordinator.federation.invites import code_text, new_invite
from confide.coordinator.federation.pki import Pki
from confide.coordinator.gateway.gate import FleetGate, serve_gate

from ...connect_proxy import OUTSIDE, ConnectProxy

DAY = dt.timedelta(days=1)
Made = Callable[[Path], Pki]


def issued(pki: Pki, days: int, names: tuple[str, ...] = ("127.0.0.1",)) -> Pki:
    """The same federation, its server certificate issued `days` ago, or ahead if negative."""
    found = pki_module._alternative_names(names)
    pki_module._write_server(pki.folder, "server", found, 398, dt.datetime.now(dt.UTC) - days * DAY)
    return pki


def of_another_ca(pki: Pki) -> Pki:
    other = Pki.create(pki.folder.parent / "other", [])
    for name in ("server.crt", "server.key"):
        (pki.folder / name).write_bytes((other.folder / name).read_bytes())
    return pki


def ended_ca(pki: Pki) -> Pki:
    pki_module._write_ca(pki.folder, dt.datetime.now(dt.UTC) - 3700 * DAY)
    return issued(pki, 3650)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pki: issued(pki, 400), "has expired by this machine's clock"),
        (lambda pki: issued(pki, -3), "not valid yet by this machine's clock"),
        (lambda pki: issued(pki, 0, ("10.9.9.9",)), "but for another name or address"),
        (of_another_ca, "is not from this federation's CA"),
        (ended_ca, "this federation's CA ended on"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told_apart(
    tmp_path: Path, change: Callable[[Pki], Pki], told: str
) -> None:
    pki = change(Pki.create(tmp_path, []))
    app = FleetGate(
        None, enrol=lambda _: None, rotate=lambda _: "", studies=lambda _: {"studies": []},
        ca_path=pki.ca_path, superlink=1,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    server = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    try:
        context = outbound.trusting(pki.ca_path.read_text())
        with outbound.open_client("x", context, None, 5) as client, pytest.raises(httpx.ConnectError) as caught:
            client.get(f"https://127.0.0.1:{server.port}/")
    finally:
        server.stop()
    text = outbound.certificate_trouble(caught.value, pki.ca_path)
    assert text is not None
    assert told in text
    assert text.endswith("Nothing was sent")


def test_another_failure_is_none_of_the_certificate() -> None:
    assert outbound.certificate_trouble(httpx.ConnectError("refused")) is None


class Federation:
    """A gate that notes from where it is asked, and enrols whoever knows the secret."""

    def __init__(self, pki: Pki) -> None:
        self.pki, self.secret = pki, new_invite()[0]
        self.peers: list[str] = []
        self._gate = FleetGate(
            self,
            enrol=self.enrol,
            rotate=lambda _: "",
            studies=lambda _: {"studies": []},
            ca_path=pki.ca_path,
            superlink=1,
        )
        self._server = serve_gate(self, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
        self.address = f"127.0.0.1:{self._server.port}"
        self.code = code_text(self.address, self.secret, pki.ca_digest)
        self.close = self._server.stop

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.peers.append(scope["client"][0])
        await self._gate(scope, receive, send)

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        return EnrolAnswer(name="north", roles=("train",), coordinator=self.pki.identity_hex)

    def site_of(self, fingerprint: str) -> None:
        return None

    revoked_site = left_site = site_of

    def site_with_identity(self, identity: str) -> str:
        return "north"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture
def federation(pki: Pki) -> Iterator[Federation]:
    running = Federation(pki)
    yield running
    running.close()


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    running = ConnectProxy("nurse:s%40cret")
    running.login = "nurse:s@cret"  # as it reads what was written so in the address
    yield running
    running.close()


def address_of(proxy: ConnectProxy) -> str:
    return f"http://nurse:s%40cret@127.0.0.1:{proxy.server_address[1]}"


def test_a_node_enrols_and_lists_studies_by_its_proxy_alone(
    federation: Federation, proxy: ConnectProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="confide")
    found = enrol(federation.code, tmp_path, proxy=address_of(proxy))
    assert fetch_studies(tmp_path) == []
    assert federation.peers == [OUTSIDE] * 3  # the CA, the enrolment, the list
    assert set(proxy.tunnels) == {federation.address}
    assert proxy.refused == []
    assert "cret" not in caplog.text + repr(found)


def test_the_proxy_of_the_environment_counts_only_if_chosen(
    federation: Federation, proxy: ConnectProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address_of(proxy))
    enrol(federation.code, tmp_path)
    assert proxy.tunnels == []
    change_proxy(tmp_path, "env")
    fetch_studies(tmp_path)
    assert proxy.tunnels == [federation.address]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fetch_studies(tmp_path)
    assert len(proxy.tunnels) == 1


def test_a_proxy_that_refuses_is_named_without_its_password(
    federation: Federation, proxy: ConnectProxy, tmp_path: Path
) -> None:
    wrong = f"http://nurse:wr0ng@127.0.0.1:{proxy.server_address[1]}"
    with pytest.raises(CoordinatorUnreachable, match="407") as caught:
        enrol(federation.code, tmp_path, proxy=wrong)
    assert f"the proxy 127.0.0.1:{proxy.server_address[1]} lets nothing through" in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert federation.peers == []


def test_a_proxy_that_opens_tls_is_not_trusted(federation: Federation, tmp_path: Path) -> None:
    """What such a device shows is a certificate of its own; the node has no other trust to fall back on."""
    intercepting = Federation(Pki.create(tmp_path / "device", []))
    home = tmp_path / "node"
    try:
        enrol(federation.code, home)
        kept = json.loads((home / "enrolment.json").read_text())
        (home / "enrolment.json").write_text(json.dumps(kept | {"address": intercepting.address}))
        with pytest.raises(WrongCoordinator, match="a device on the way opens TLS"):
            fetch_studies(home)
    finally:
        intercepting.close()
    assert intercepting.peers == []


def test_a_proxy_can_be_changed_and_taken_away(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    assert change_proxy(tmp_path, "http://proxy.example.org:3128/").proxy == "http://proxy.example.org:3128"
    assert Enrolment.load(tmp_path).proxy == "http://proxy.example.org:3128"
    assert change_proxy(tmp_path, None).proxy is None


def test_a_proxy_that_was_written_wrong_by_hand_can_be_mended(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    kept = json.loads((tmp_path / "enrolment.json").read_text())
    (tmp_path / "enrolment.json").write_text(json.dumps(kept | {"proxy": "nurse:s3cret@proxy"}))
    with pytest.raises(ProxyInvalid, match=r"enrolment\.json") as caught:
        Enrolment.load(tmp_path)
    assert "s3cret" not in str(caught.value)
    assert change_proxy(tmp_path, "http://proxy:3128").proxy == "http://proxy:3128"


def test_no_proxy_is_kept_where_nothing_is_enrolled(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        change_proxy(tmp_path, "env")


@pytest.mark.parametrize(
    "setting",
    ["", "squid", "proxy:3128", "https://proxy:3128", "http://proxy", "http://proxy:3128/path", "socks5://proxy:1",
     "http://a b@proxy:1", "http://u@p@proxy:1", "http://proxy:123456",
     "http://proxy:65536"],
)  # fmt: skip
def test_any_other_form_of_a_proxy_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(ProxyInvalid) as caught:
        outbound.check_proxy(setting)
    assert setting == "" or setting not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [(None, "none"), ("env", "env"), ("http://u:p@proxy:3128", "proxy:3128"), ("http://[::1]:80", "[::1]:80")],
)
def test_a_proxy_is_shown_without_its_password(setting: str | None, shown: str) -> None:
    assert outbound.shown_proxy(setting) == shown
