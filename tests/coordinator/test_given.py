"""A certificate of a hospital's own CA at the gate, which nodes then trust as they trust ours."""

import datetime as dt
import json
import ssl
import subprocess

import pytest

from confide.client_node import authority
from confide.client_node.enrolment import enrol
from confide.client_node.enrolment.protocol import fetch_studies
from confide.coordinator import ca_rotation
from confide.coordinator.errors import Conflict, StateDamaged
from confide.coordinator.federation import Pki, Settings, create_home, load_settings
from confide.coordinator.federation import pki as pki_module
from confide.coordinator.given import Given, read_given

from .cli.test_main import FAILED, USAGE, invoke, lined
from .conftest import logged
from .hospital_ca import HospitalCa
from .rotating_gate import rotating_gate
from .test_ca_rotation import Cut

SETTINGS = Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2)
pytestmark = [pytest.mark.slow, pytest.mark.process]  # of openssl


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Two roots, an RSA one with a CA below it; servers below each."""
    made = HospitalCa(tmp_path_factory.mktemp("hospital"))
    made.authority("root", key="rsa")
    made.authority("below", by="root", key="ec")
    made.authority("other")
    made.server("gate", by="below", key="rsa")
    made.server("next", by="root", key="ec")
    made.server("another", by="other")
    return made


def given(hospital: HospitalCa, *names: str, ca: str = "root", key: str = "", host: str = "127.0.0.1"):
    return read_given(hospital.chain(*names), hospital.key(key or names[0]), hospital.folder / f"{ca}.pem", host)


@pytest.mark.parametrize(
    ("names", "ca", "shown"),
    [
        (("gate", "below"), "root", 2),
        (("gate", "below", "root"), "root", 2),  # many a CA hands its root out with it
        (("gate", "other", "root", "below"), "root", 2),  # in any order, with others
        (("next",), "root", 1),
        (("another",), "other", 1),
    ],
)
def test_chains_of_rsa_and_ecdsa_with_and_without_a_ca_between(hospital, names, ca, shown):
    found = given(hospital, *names, ca=ca)
    assert found.chain.count(b"BEGIN CERTIFICATE") == shown
    assert "PRIVATE" not in repr(found)


@pytest.fixture(scope="module")
def odd(hospital):
    """Files that nobody may show, and what is said of them."""
    past, future = ("20200101000000Z", "20210101000000Z"), ("20480101000000Z", "20490101000000Z")
    hospital.server("expired", by="root", days=past)
    hospital.server("early", by="root", days=future)
    hospital.server("elsewhere", by="root", host="DNS:other.example.org")
    hospital.server("nameless", by="root", host="")
    hospital.server("client", by="root", use="clientAuth")
    hospital.server("weak", by="root", key="rsa1024")
    hospital.server("odd-curve", by="root", key="secp256k1")
    hospital.issue("old-between", by="root", key="ec", days=past, extensions="basicConstraints=CA:TRUE\n")
    hospital.server("below-old", by="old-between")
    hospital.issue("no-ca", by=None, key="ec", extensions="basicConstraints=CA:FALSE\n")
    HospitalCa(hospital.folder / "twin").authority("root", key="rsa")
    return hospital


@pytest.mark.parametrize(
    ("names", "how", "said"),
    [
        (("gate",), {}, "the certificate of CN=below,O=Hospital is missing. If that is a CA below yours, add it"),
        (("gate", "below"), {"ca": "other"}, "does not lead to the CA in"),
        (("another", "other"), {}, "is not from the CA in .*: it leads to CN=other"),
        (("gate", "below"), {"ca": "twin/root"}, "is not from the CA in .*, which has the same name"),
        (("gate", "below"), {"ca": "below"}, "is a CA below another one; nodes trust only the topmost"),
        (("gate", "below"), {"key": "next"}, "is not of the key in .*next.key"),
        (("below", "gate"), {"key": "gate"}, "the gate's certificate must come first"),
        (("gate", "below"), {"host": "fed.example.org"}, "is for 127.0.0.1, not for fed.example.org"),
        (("elsewhere",), {}, "is for other.example.org, not for 127.0.0.1"),
        (("nameless",), {}, "no name at all"),
        (("expired",), {}, "has expired on 2021-01-01"),
        (("early",), {}, "is not valid before 2048-01-01"),
        (("below-old", "old-between"), {}, "CN=old-between,O=Hospital in .* has expired"),
        (("client",), {}, "is not for servers"),
        (("weak",), {}, "is neither a key of RSA, 2048 bits or more"),
        (("odd-curve",), {}, "nor of ECDSA on P-256, P-384 or P-521"),
        (("no-ca",), {"ca": "no-ca"}, "is no CA's certificate"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_certificate_is_said_in_a_sentence(odd, names, how, said):
    with pytest.raises(Conflict, match=said) as caught:
        given(odd, *names, **how)
    assert str(caught.value).endswith("Nothing was changed")


def test_files_that_are_none_are_told_as_such(odd, tmp_path):
    good = odd.chain("gate", "below"), odd.key("gate"), odd.folder / "root.pem"
    (tmp_path / "junk").write_bytes(b"\x30\x82junk")
    (tmp_path / "junk").chmod(0o600)
    (tmp_path / "open.key").write_bytes(odd.key("gate").read_bytes())
    (tmp_path / "open.key").chmod(0o644)
    subprocess.run(
        ["openssl", "pkey", "-in", odd.key("gate"), "-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.key"],
        check=True,
    )
    (tmp_path / "locked.key").chmod(0o600)
    for place, path, said in (
        (0, tmp_path / "junk", "holds no certificates in PEM form"),
        (0, tmp_path / "nowhere", "is missing"),
        (1, tmp_path / "junk", "is no private key in PEM form"),
        (1, tmp_path / "open.key", "can be read by others"),
        (1, tmp_path / "locked.key", "is locked by a passphrase"),
        (2, odd.chain("root", "other"), "holds 2 certificates"),
        (2, tmp_path, "is a folder"),
    ):
        files = [path if number == place else each for number, each in enumerate(good)]
        with pytest.raises(Conflict, match=said):
            read_given(*files, "127.0.0.1")


def founded(home, hospital, *names):
    files = hospital.chain(*names), hospital.key(names[0]), hospital.folder / "root.pem"
    create_home(home, SETTINGS, given=files)


def test_a_federation_founded_with_the_hospitals_ca_enrols_and_serves_and_has_no_key_of_it(hospital, tmp_path):
    home = tmp_path / "coordinator"
    founded(home, hospital, "gate", "below")
    assert not (home / "pki" / "ca.key").exists()
    with rotating_gate(home) as gate:
        gate.join(tmp_path / "north")
        assert fetch_studies(tmp_path / "north") == []
        assert (tmp_path / "north" / "ca.crt").read_text() == (hospital.folder / "root.pem").read_text()
        assert not gate.pki.renew_if_due()
        with pytest.raises(Conflict, match="certificate use"):
            gate.pki.renew_server(["x"])
        path, _ = gate.pki.loopback_pair()  # of a CA of its own, which no node sees
        assert b"confide" in ssl.PEM_cert_to_DER_cert(path.read_text())


def test_a_renewed_certificate_is_shown_at_once_and_warned_of_before(hospital, tmp_path):
    home = tmp_path / "coordinator"
    founded(home, hospital, "gate", "below")
    with rotating_gate(home) as gate:
        gate.join(tmp_path / "north")
        before = gate.pki.certificate_path.read_bytes()
        ends = gate.pki.certificate_ends
        assert gate.pki.warnings() == []
        (warned, *_) = gate.pki.warnings(ends - 50 * pki_module._DAY)
        assert "coordinator certificate use" in warned
        found = ca_rotation.use(gate.store, home, hospital.folder / "next.pem", hospital.key("next"))
        assert found.next is None
        gate.tick()
        assert fetch_studies(tmp_path / "north") == []
        assert gate.pki.certificate_path.read_bytes() != before
        assert logged(gate.store)[-1][0] == "certificate.use"
        assert gate.keeper._shown == gate.pki.certificate_path.read_bytes()


def test_a_running_federation_moves_to_the_hospitals_ca_and_back(hospital, tmp_path):
    home, north = tmp_path / "coordinator", tmp_path / "north"
    with rotating_gate(home) as gate:
        gate.join(north)
        with pytest.raises(Conflict, match="name the CA of this certificate with --ca"):
            ca_rotation.use(gate.store, home, hospital.folder / "next.pem", hospital.key("next"))
        begun = ca_rotation.use(gate.store, home, *theirs(hospital, "gate", "below"))
        assert begun.lacking == ("north",)
        with pytest.raises(Conflict, match="under way already"):
            ca_rotation.use(gate.store, home, *theirs(hospital, "next"))
        gate.tick()
        authority.fetch(north)
        ca_rotation.finish(gate.store, home)
        gate.tick()
        assert authority.fetch(north).digests == (begun.next.sha256,)
        assert not (gate.pki.folder / "ca.key").exists()
        ca_rotation.begin(gate.store, home)
        with pytest.raises(Conflict, match="finish or cancel it first"):
            ca_rotation.use(gate.store, home, hospital.folder / "next.pem", hospital.key("next"))
        gate.tick()
        authority.fetch(north)
        ca_rotation.finish(gate.store, home)
        gate.tick()
        authority.fetch(north)
        assert fetch_studies(north) == []
        assert (gate.pki.folder / "ca.key").exists()
        assert not gate.pki.is_given


def theirs(hospital: HospitalCa, *names: str):
    return hospital.chain(*names), hospital.key(names[0]), hospital.folder / "root.pem"


@pytest.mark.parametrize("is_renewal", [True, False], ids=["renewal", "other CA"])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_change_that_is_cut_off_anywhere_leaves_a_gate_that_can_be_opened(
    hospital, tmp_path, monkeypatch, step, is_renewal
):
    home = tmp_path / "coordinator"
    if is_renewal:
        founded(home, hospital, "gate", "below")
    with rotating_gate(home) as gate:
        old = (gate.pki.folder / "server.crt").read_bytes()
        if not is_renewal:
            ca_rotation.use(gate.store, home, *theirs(hospital, "next"))
        done: list[object] = []

        def counted(real):
            def run(*args):
                if len(done) == step - 1:
                    raise Cut
                done.append(args[0])
                return real(*args)

            return run

        for name in ("write_private", "write_secret", "move_durably"):
            monkeypatch.setattr(pki_module, name, counted(getattr(pki_module, name)))
        try:
            if is_renewal:
                ca_rotation.use(gate.store, home, hospital.folder / "next.pem", hospital.key("next"))
            else:
                ca_rotation.finish(gate.store, home)
        except Cut:
            pass
        monkeypatch.undo()
        pki = Pki.load(home)
        gate.tick()
        is_done = pki.certificate_path.read_bytes() != old
        assert is_done is (step > (3 if is_renewal else 1))  # from the line on that says so
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.certificate_path, pki.key_path)
        assert gate.keeper._shown == pki.certificate_path.read_bytes()
        enrol(gate.code("north"), tmp_path / "north")


def test_what_a_cut_renewal_left_is_no_part_of_a_later_rotation(hospital, tmp_path, monkeypatch):
    home = tmp_path / "coordinator"
    founded(home, hospital, "gate", "below")
    with rotating_gate(home) as gate:

        def cut(*_: object, **__: object) -> None:
            raise Cut

        with monkeypatch.context() as patched:
            patched.setattr(pki_module, "_take", cut)
            with pytest.raises(Cut):
                ca_rotation.use(gate.store, home, hospital.folder / "next.pem", hospital.key("next"))
        assert (home / "pki" / "server.next.key").exists()
        assert not Pki.load(home).has_next
        ca_rotation.begin(gate.store, home)
        assert ca_rotation.finish(gate.store, home).present.ends > gate.pki.certificate_ends
        assert not Pki.load(home).is_given


def test_a_certificate_that_ended_while_it_lay_ready_does_not_take_over(hospital, tmp_path):
    ended = hospital.server("ended", by="root", days=("20200101000000Z", "20210101000000Z"))
    ready = Given(
        ca=(hospital.folder / "root.pem").read_bytes(), chain=ended.read_bytes(),
        key=hospital.key("ended").read_bytes(), ends=dt.datetime(2021, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip
    with rotating_gate(tmp_path / "coordinator") as gate:
        ca_rotation.begin(gate.store, gate.home, ready)
        with pytest.raises(Conflict, match="has ended on"):
            ca_rotation.finish(gate.store, gate.home)
        ca_rotation.cancel(gate.store, gate.home)
        assert not [*gate.pki.folder.glob("*.next.*")]


def test_damaged_files_of_it_are_told(hospital, tmp_path):
    home = tmp_path / "coordinator"
    founded(home, hospital, "gate", "below")
    for name, content, said in (
        ("server.crt", (hospital.folder / "gate.pem").read_bytes(), "does not lead to the CA in ca.crt"),
        ("server.crt", (hospital.folder / "next.pem").read_bytes(), "is not of the key in server.key"),
        ("ca.crt", (hospital.folder / "other.pem").read_bytes(), "does not lead to the CA in ca.crt"),
        ("server.key", b"x", "is no key"),
    ):
        kept = (home / "pki" / name).read_bytes()
        (home / "pki" / name).write_bytes(content)
        with pytest.raises(StateDamaged, match=said):
            Pki.load(home)
        (home / "pki" / name).write_bytes(kept)
    assert load_settings(home) == SETTINGS


def test_init_and_certificate_use_as_commands(hospital, tmp_path):
    home = ("--home", tmp_path / "home")
    chain, key, ca = theirs(hospital, "gate", "below")
    assert "all three" in lined(invoke("init", "--certificate", chain, *home, code=USAGE).stderr)
    files = "--certificate", chain, "--key", key, "--ca", ca
    wrong = invoke("init", *files, "--host", "fed.example", *home, code=FAILED)
    assert "is for 127.0.0.1, not for fed.example" in lined(wrong.stderr)
    assert not (tmp_path / "home").exists()
    invoke("init", *files, *home)
    other = hospital.folder / "next.pem", hospital.key("next")
    said = json.loads(invoke("certificate", "use", *other, *home, "--json").stdout)
    assert said["next"] is None
    assert "not of the key" in lined(invoke("certificate", "use", other[0], key, *home, code=FAILED).stderr)
