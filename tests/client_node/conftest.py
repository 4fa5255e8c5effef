"""Studies and nodes to start tests from: a valid study.toml, keys for its names, a site with a table and a policy."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.data.records import Records
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.policy import decisions
from confide.client_node.replay.following import start_digest, start_state
from confide.client_node.study.study import AggregatorParty, Participant, Start, Study, load_draft
from confide.client_node.training import trainer
from confide.models.adapters.lora import AdaptedModel
from confide.privacy.mechanism.batches import BatchShapes

STUDY_TOML = """
name = "thyroid"
description = "Any diagnosis from laboratory values"
[model]
backbone = "some/where/backbone"
[adapter]
rank = 4
alpha = 4.0
targets = ["q_a_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]
head = "pooled"
seed = "thyroid-1"
[data]
label = "diagnosis"
unit = "patient"
max_records_per_unit = 2
max_tokens = 64
flags = ["sick"]
[data.numeric]
age = [20, 40, 60, 80]
TSH = [0.4, 4.0, 10.0]
[data.categorical]
sex = ["F", "M"]
[privacy]
mode = "distributed"
noise_multiplier = 1.19
clip_norm = 1.0
sample_rate = 0.2
delta = 1e-5
max_dropouts = 0
collusion = 1
[rounds]
rounds = 40
min_sites = 3
deadline_s = 60
batch_units = 1374
[optimizer]
lr = 0.3
head_lr = 10.0
momentum = 0.9
[participants]
sites = ["other", "svi", "svhc", "rest"]
aggregators = ["agg-a", "agg-b", "agg-c"]
"""

SITE_TOML = """
[data]
path = "patients.csv"
name = "patients"
unit = "patient"
unit_column = "patient_id"
[data.columns]
TSH = "tsh_miu_l"
[data.values.sex]
female = "F"
male = "M"
[budget]
epsilon = 10.0
delta = 1e-5
[backbone]
directory = "backbone"
[limits]
threads = 1
"""

EVALUATION = ("[participants]", "[evaluation]\nbins = 10\nnoise_multiplier = 4.0\n[participants]")  # a change

TEXT = (  # changes that make STUDY_TOML one of free text
    ('label = "diagnosis"\n', ""),
    ('flags = ["sick"]\n', ""),
    ("[data.numeric]\nage = [20, 40, 60, 80]\nTSH = [0.4, 4.0, 10.0]\n", ""),
    (
        '[data.categorical]\nsex = ["F", "M"]',
        '[data.text]\nprompt = "<|start|>{note}\\n"\ncompletion = "{finding}<|end|>"',
    ),
    ('head = "pooled"', 'head = "lm"'),
    ("head_lr = 10.0\n", ""),
)

TURNS = (  # a change that says the same by turns
    'prompt = "<|start|>{note}\\n"\ncompletion = "{finding}<|end|>"',
    'turns = [{ role = "user", text = "{note}" }, { role = "assistant", text = "{finding}" }]',
)

CHAT = (*TEXT, (f"[data.text]\n{TURNS[0]}", '[data.chat]\ncolumn = "said"'))  # a study of conversations

DOCUMENT = (  # changes that make STUDY_TOML one of documents
    *TEXT[:3],
    (
        '[data.categorical]\nsex = ["F", "M"]',
        '[data.document]\ntext = "{note}"\nlabel = "finding"\nclasses = ["low", "none", "high"]',
    ),
)

NOTES_CSV = """patient_id,note,finding
p1,"feels tired, <|end|> gains weight",low
p2,,none
p1,sweats,high
"""

CHAT_CSV = """patient_id,said
p1,"[{""role"": ""user"", ""content"": ""tired <|end|>""}, {""role"": ""assistant"", ""content"": ""low""},
{""role"": ""user"", ""content"": ""more""}, {""role"": ""assistant"", ""content"": ""rest""}]"
p2,"[{""role"": ""user"", ""content"": ""fine?""}, {""role"": ""assistant"", ""content"": ""yes""}]"
p1,"[{""role"": ""user"", ""content"": "" ""}, {""role"": ""assistant"", ""content"": ""what?""}]"
"""

PATIENTS_CSV = """patient_id,age,tsh_miu_l,sex,sick,diagnosis
p1,34,1.5,female,f,0
p2,71,,M,t,1
p1,35,12,F,no,1
p3,?,0.2,,yes,0
"""


def tokens(study: Study, records: Records) -> np.ndarray:
    """Records of fields as token ids."""
    schema = study.record_schema()
    return schema.encode(schema.render(records.columns))


def key_of(name: str) -> Ed25519PrivateKey:
    """The same key for the same name, in tests only."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def identity_of(name: str) -> str:
    return key_of(name).public_key().public_bytes_raw().hex()


@cache
def certificate_of(name: str) -> str:
    """The same certificate on every call and machine: Ed25519 signatures are deterministic."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(
        subject, subject, key_of(name).public_key(), 1, start, start + timedelta(days=999)
    )
    return builder.sign(key_of(name), None).public_bytes(Encoding.PEM).decode()


def build_study(draft_file: Path, identities: dict[str, str]) -> Study:
    draft = load_draft(draft_file)
    return Study.from_draft(
        draft,
        backbone_hash="ab" * 32,
        sites=[
            Participant(name=name, identity=identities.get(name) or identity_of(name))
            for name in draft.participants.sites
        ],
        aggregators=[
            AggregatorParty(
                name=name,
                identity=identities.get(name) or identity_of(name),
                address=f"{name}.example:74{i:02}",
                certificate=certificate_of(name),
            )
            for i, name in enumerate(draft.participants.aggregators)
        ],
        coordinator=identity_of("coordinator"),
        created=date(2026, 1, 31),
        dim=1000,
        start=start_digest(np.zeros(1000, np.float32)),
        head_size=65,
    )


def of_model(study: Study, backbone_hash: str, adapted: AdaptedModel) -> Study:
    """The same study of another model, with what it says of the model's size and start."""
    state = start_state(study.draft, adapted.state())
    start = Start(state=start_digest(state), head_size=adapted.layout.head_slice.stop)
    return study.model_copy(update={"backbone_hash": backbone_hash, "dim": len(state), "start": start})


@dataclass(frozen=True)
class Site:
    """An enrolled node with a table and a policy, and what its coordinator would offer it."""

    home: Path
    identity: NodeIdentity

    def study(self, *changes: tuple[str, str], named: str = "svi") -> Study:
        """A study in which this node is the site `named`."""
        path = self.home.parent / "study.toml"
        path.write_text(changed(STUDY_TOML, changes))
        return build_study(path, {named: self.identity.identity_hex})

    def offer(self, study: Study) -> dict[str, str]:
        """The study as it comes over the network."""
        return {
            "canonical": base64.b64encode(study.canonical()).decode(),
            "hash": study.study_hash,
            "signature": study.sign(key_of("coordinator")),
        }

    def keep(self, study: Study) -> Study:
        """Puts the study where `client-node study list` would."""
        (self.home / "studies").mkdir(exist_ok=True)
        (self.home / "studies" / f"{study.study_hash}.json").write_text(json.dumps(self.offer(study)))
        return study

    def aggregate(self) -> Study:
        """Makes the node the aggregator agg-a, without site.toml; returns a study in which it is no site."""
        facts = json.loads((self.home / "enrolment.json").read_text()) | {"name": "agg-a", "roles": ["aggregate"]}
        (self.home / "enrolment.json").write_text(json.dumps(facts))
        (self.home / "site.toml").unlink()
        study = self.keep(self.study(named="agg-a"))
        decisions.confirm_sites(self.home, {each.name: fingerprint(each.identity) for each in study.sites})
        return study

    def write(self, *changes: tuple[str, str]) -> Path:
        """A site.toml in which each (old, new) has been replaced."""
        path = self.home / "site.toml"
        path.write_text(changed(SITE_TOML, changes))
        return path


def changed(text: str, changes: tuple[tuple[str, str], ...]) -> str:
    for old, new in changes:
        assert old in text, f"{old!r} is not in the text to change"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="session", autouse=True)
def one_probe_a_kind_of_model() -> Iterator[None]:
    """Probes a model for coupled units and shapes of batches once, not for every node that loads it: seconds each."""
    probe, passed = trainer.refuse_dependence, set()
    find, shapes = trainer.probed_shapes, {}

    def probe_once(adapted: AdaptedModel, *, words: int, lengths: tuple[int, ...], are_kept: bool) -> None:
        if (
            kind := (repr(adapted), repr(adapted.head and adapted.head.objective), words, lengths, are_kept)
        ) not in passed:
            probe(adapted, words=words, lengths=lengths, are_kept=are_kept)
            passed.add(kind)

    def find_once(adapted: AdaptedModel, **limits: int) -> BatchShapes:
        kind = (repr(adapted), repr(adapted.head and adapted.head.objective), *limits.items(), torch.get_num_threads())
        if kind not in shapes:
            shapes[kind] = find(adapted, **limits)
        return shapes[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "refuse_dependence", probe_once)
        patch.setattr(trainer, "probed_shapes", find_once)
        yield


@pytest.fixture
def write_draft(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study.toml in which each (old, new) has been replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(changed(STUDY_TOML, changes))
        return path

    return write


@pytest.fixture
def make_study(write_draft: Callable[..., Path]) -> Callable[..., Study]:
    """A study of `write_draft`'s draft and made-up keys."""
    return lambda *changes: build_study(write_draft(*changes), {})


@pytest.fixture
def coordinator_key() -> Ed25519PrivateKey:
    return key_of("coordinator")


def site_in(folder: Path) -> Site:
    """A site whose home is in `folder`."""
    home = folder / "node"
    identity = NodeIdentity.create(home, "svi")
    (home / "enrolment.json").write_text(
        json.dumps(
            {"name": "svi", "roles": ["train"], "address": "127.0.0.1:1", "coordinator": identity_of("coordinator")}
        )
    )
    (home / "ca.crt").write_text(certificate_of("ca"))
    (home / "patients.csv").write_text(PATIENTS_CSV)
    found = Site(home, identity)
    found.write()
    return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_in(tmp_path)
