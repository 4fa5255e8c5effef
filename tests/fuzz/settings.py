"""Files that people write or a disk keeps: studies, policies, decisions, small state of node and coordinator."""

import json
from functools import cache
from pathlib import Path

from confide.client_node import secret_files, witness
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.enrolment.token_uri import TokenUri
from confide.client_node.errors import (
    BackupInvalid,
    FileDamaged,
    IdentityMissing,
    KeysSealed,
    NotEnrolled,
    PolicyInvalid,
    ProxyInvalid,
    SettingsInvalid,
    StudyInvalid,
    StudyOutdated,
    TokenUnusable,
)
from confide.client_node.files import write_private
from confide.client_node.home_archive import read_archive, write_archive
from confide.client_node.ledger_head import kept_head
from confide.client_node.policy import decision_log
from confide.client_node.policy.decisions import load_decisions, load_leases
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.study import Study
from confide.client_node.study.terms import load_draft
from confide.client_node.succession import own_keys, partners
from confide.client_node.wire.checkpoints import Checkpoint
from confide.coordinator.errors import Conflict, NotFound, StateDamaged
from confide.coordinator.federation.home import load_settings
from confide.coordinator.federation.serving import only_server, read_serving
from confide.coordinator.federation.signing_keys import SigningKeys
from confide.coordinator.store import place
from confide.coordinator.studies.dictionary import read_dictionary
from confide.privacy.ledger.chain import Head
from confide.privacy.ledger.succession import CoordinatorSuccession, Succession

from ..client_node.conftest import (
    CHAT,
    DOCUMENT,
    EVALUATION,
    SITE_TOML,
    STUDY_TOML,
    TEXT,
    build_study,
    identity_of,
    key_of,
)
from .inputs import as_json, from_file, from_text, in_folder, scratch
from .target import Target


def _studies() -> list[bytes]:
    found = [STUDY_TOML.encode()]
    for changes in (TEXT, CHAT, DOCUMENT, (EVALUATION,)):
        text = STUDY_TOML
        for old, new in changes:
            text = text.replace(old, new)
        found.append(text.encode())
    return found


def _canonical() -> list[bytes]:
    draft = scratch("draft") / "study.toml"
    draft.write_text(STUDY_TOML)
    names = ("other", "svi", "svhc", "rest", "agg-a", "agg-b", "agg-c")
    return [build_study(draft, {name: identity_of(name) for name in names}).canonical()]


def _backup() -> list[bytes]:
    folder = scratch("to-back-up")
    files = {"enrolment.json": b"{}", "keys/identity.key": bytes(range(256)), "party/empty": b""}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "made").unlink(missing_ok=True)
    write_archive(folder / "made", "node", [(name, folder / name) for name in files])
    return [(folder / "made").read_bytes()]


_DECISIONS = {
    "format": 2,
    "studies": {"ab" * 32: {"verdict": "approved", "runs": 2, "until": "2099-01-31", "by": "Ann"}},
    "budget": {"epsilon": 4.0, "delta": 1e-5, "collusion": 1},
    "used": {"ab" * 32: ["run-1"]},
    "sites": {"north": "-".join(["AB23"] * 8)},
}
_LOGGED = {
    "at": "2026-01-31T12:00:00Z",
    "by": "Ann",
    "login": "ann",
    "decision": "approve",
    "about": "ab" * 32,
    "detail": "",
}
_SUCCESSION = Succession.make(
    "svi", identity_of("coordinator"), key_of("svi"), key_of("next"), "2026-03-01T09:00:00Z"
).model_dump()


def _key_followed() -> dict[str, str]:
    return CoordinatorSuccession.make(key_of("svi"), key_of("next"), "2026-03-01T09:00:00Z").model_dump()


@cache
def _signing() -> tuple[Path, bytes]:
    """A coordinator's folder of keys, in which one has followed another, and the file that says so."""
    SigningKeys.create(folder := scratch("pki")).rotate(lambda old, new: None)
    return folder, (folder / "successions.json").read_bytes()


def _read_signing_keys(data: bytes) -> object:
    folder, _ = _signing()
    write_private(folder / "successions.json", data)
    return SigningKeys(folder).now.all


_ENROLMENT = {"name": "north", "roles": ["train"], "address": "fed:9443", "coordinator": "ab" * 32, "proxy": "env"}
_SETTINGS = {
    "federation": "Fever", "address": "fed.example.org:9443", "listen": "127.0.0.1", "port": 9443,
    "superlink_port": 9444, "strangers_per_address": 32,
}  # fmt: skip
_SERVING = {
    "since": 1.5, "noted": 2.5, "version": "1.0", "superlink": True, "worker": True, "trouble": "",
    "nodes": {"north": {"at": 2.0, "version": "1.0"}},
}  # fmt: skip
_DICTIONARY = b"name,kind,values,cuts\nage,number,,40|60\nsex,category,F|M,\nsick,flag,,\nill,label,,\n"


def _witnessed() -> list[bytes]:
    last = Checkpoint.issue(log="ab" * 32, head=Head(7, "cd" * 32), time="2026-01-31T12:00:00Z", signer=key_of("svi"))
    older = witness.Refused(reason="older", checkpoint=last)
    return [
        each.model_dump_json().encode()
        for each in (witness.Witnessed(last=last), witness.Witnessed(last=last, refused=older))
    ]


_SALT, _KEY, _SECRET = bytes(16), bytes(32), "keys/identity.key"


def _mark() -> secret_files._Mark:
    return secret_files._marked("node", "sealed", _SALT, _KEY)


def _sealed() -> list[bytes]:
    home = Path("home")
    return [secret_files._sealed(data, home / _SECRET, home, _mark(), _KEY) for data in (b"a key", bytes(500))]


def _read_sealed(home: Path) -> object:
    secret_files._keys[_SALT] = _KEY  # as if a passphrase had opened it
    if not (home / secret_files.FILE).exists():
        secret_files._write_mark(home, _mark())
    return secret_files.read_secret(home / _SECRET, remedy="Mend it")


def _read_served(home: Path) -> object:
    with only_server(home):
        return read_serving(home)


TARGETS = (
    Target(
        name="study.toml",
        sender="people",
        made=_studies,
        read=from_file("study.toml", load_draft),
        refusals=(SettingsInvalid,),
    ),
    Target(
        name="study",
        sender="the coordinator",
        made=_canonical,
        read=Study.parse,
        refusals=(StudyInvalid, StudyOutdated),
    ),
    Target(
        name="site.toml",
        sender="people",
        made=lambda: [SITE_TOML.encode()],
        read=in_folder("site.toml", load_policy),
        refusals=(PolicyInvalid,),
    ),
    Target(
        name="decisions",
        sender="the disk",
        made=as_json(_DECISIONS),
        read=in_folder("decisions.json", load_decisions),
        refusals=(PolicyInvalid,),
    ),
    Target(
        name="decision log",
        sender="the disk",
        made=lambda: [json.dumps(_LOGGED).encode() + b"\n"],
        read=in_folder("decisions.jsonl", decision_log.read),  # lines that cannot be read are counted
        refusals=(),
    ),
    Target(
        name="leases",
        sender="the disk",
        made=as_json({"run-1": ["ab" * 32, 3]}),
        read=in_folder("leases.json", load_leases),
        refusals=(FileDamaged,),
    ),
    Target(
        name="run reservations",
        sender="the disk",
        made=as_json({"runs": {"run-1": {"study": "ab" * 32, "heard": 1.5}}}),
        read=in_folder("holds.json", lambda home: RunReservations(home).runs()),
        refusals=(FileDamaged,),
    ),
    Target(
        name="kept head of a ledger",
        sender="the disk",
        made=as_json({"public_key": "ab" * 32, "seq": 7, "hash": "cd" * 32}),
        read=in_folder("keys/ledger.head", lambda home: kept_head(home, "ab" * 32)),
        refusals=(FileDamaged,),
    ),
    Target(
        name="successions of partners",
        sender="the disk",
        made=as_json({"format": 1, "successions": {"svi": [_SUCCESSION]}}),
        read=in_folder(partners.FILE, partners.load),
        refusals=(FileDamaged,),
    ),
    Target(
        name="successions of one's own",
        sender="the disk",
        made=as_json({"format": 1, "successions": [_SUCCESSION]}),
        read=in_folder(str(own_keys.FILE), own_keys.successions),
        refusals=(IdentityMissing,),
    ),
    Target(
        name="countersigned checkpoint",
        sender="the disk",
        made=_witnessed,
        read=in_folder(witness.FILE, witness.load),
        refusals=(FileDamaged,),
    ),
    Target(
        name="sealed key",
        sender="the disk",
        made=_sealed,
        read=in_folder(_SECRET, _read_sealed),
        refusals=(FileDamaged,),
    ),
    Target(
        name="mark of sealed keys",
        sender="the disk",
        made=lambda: [secret_files._MARK_FORM.dump_json(_mark())],
        read=in_folder(secret_files.FILE, secret_files.standing),
        refusals=(FileDamaged, KeysSealed),
    ),
    Target(
        name="URI of a key in a token",
        sender="people",
        made=lambda: [b"pkcs11:token=My%20token;object=a;id=%01%ff;type=private?module-path=/usr/lib/module.so"],
        read=from_text(lambda text: TokenUri.parse(TokenUri.parse(text).text())),
        refusals=(TokenUnusable,),
    ),
    Target(
        name="enrolment",
        sender="the disk",
        made=as_json(_ENROLMENT, _ENROLMENT | {"coordinator": identity_of("next"), "successions": [_key_followed()]}),
        read=in_folder("enrolment.json", Enrolment.load),
        refusals=(NotEnrolled, ProxyInvalid),
    ),
    Target(
        name="successions of the coordinator's key",
        sender="the disk",
        made=lambda: [_signing()[1]],
        read=_read_signing_keys,
        refusals=(StateDamaged,),
    ),
    Target(
        name="settings of the coordinator",
        sender="the disk",
        made=as_json(_SETTINGS),
        read=in_folder("settings.json", load_settings),
        refusals=(StateDamaged, NotFound),
    ),
    Target(
        name="place of the database",
        sender="the disk",
        made=as_json({"url": "postgresql://confide@db.example.org/fever?sslmode=verify-full"}),
        read=in_folder(place.FILE, place.database_of),
        refusals=(StateDamaged, Conflict),
    ),
    Target(
        name="note of the server",
        sender="the disk",
        made=as_json(_SERVING),
        read=in_folder("serve.json", _read_served),
        refusals=(),
    ),
    Target(
        name="backup of a node",
        sender="people",
        made=_backup,
        read=from_file("node.backup", lambda path: read_archive(path, "node", lambda _: True)),
        refusals=(BackupInvalid,),
    ),
    Target(
        name="data dictionary",
        sender="people",
        made=lambda: [_DICTIONARY],
        read=from_file("dictionary.csv", read_dictionary),
        refusals=(SettingsInvalid,),
    ),
)
