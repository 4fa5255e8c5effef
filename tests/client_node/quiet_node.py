"""A real node without a model: its samples are all empty, so what it shares is noise and nothing else."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.node import Node
from confide.client_node.policy.decisions import approve, confirm_sites
from confide.client_node.policy.site_policy import SitePolicy
from confide.client_node.study.study import PlannedRound, Study
from confide.client_node.training.warm_model import WarmModel
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.mechanism.noise import discrete_gaussian

from .conftest import SITE_TOML

STUDY_TOML = """
name = "s"
[model]
backbone = "backbone"
[adapter]
rank = 1
alpha = 1.0
targets = ["experts"]
seed = "s"
[data]
label = "sick"
unit = "patient"
max_tokens = 8
numeric = {{ age = [50.0] }}
[privacy]
mode = "distributed"
noise_multiplier = 1.5
delta = 1e-5
clip_norm = 1.0
sample_rate = 0.1
max_dropouts = {max_dropouts}
dropouts = "{dropouts}"
collusion = 1
[rounds]
rounds = {rounds}
min_sites = 2
deadline_s = 5
batch_units = 10
[optimizer]
lr = 0.5
head_lr = 2.0
[participants]
sites = ["east", "north", "south", "west"]
aggregators = ["agg-a", "agg-b", "agg-c"]
"""


class QuietModel(WarmModel):
    """No model: a contribution of noise alone."""

    is_warm, starts_from = True, "tokens"

    def load(self, study: Study, policy: SitePolicy) -> "QuietModel":  # type: ignore[override]
        return self

    def start(self, study: Study, policy: SitePolicy) -> np.ndarray:
        return np.zeros(study.dim, np.float32)

    def contribution(
        self, study: Study, policy: SitePolicy, planned: PlannedRound
    ) -> Callable[[np.ndarray], np.ndarray]:
        return lambda state: discrete_gaussian(study.site_noise(planned), planned.dim)


class QuietNode(Node):
    """Does all that a node does, except for loading a model and reading records."""

    def __init__(
        self, home: Path, identity: NodeIdentity, enrolment: Enrolment, *, ledger: Ledger | None = None
    ) -> None:
        self.model = QuietModel(enrolment.name)
        super().__init__(home, identity, enrolment, ledger=ledger, model=self.model)


def enrol(home: Path, name: str, coordinator: str) -> NodeIdentity:
    """A home with keys, an enrolment and, for whoever trains, a policy."""
    identity = NodeIdentity.create(home, name)
    facts = {"name": name, "roles": ["train"], "address": "127.0.0.1:1", "coordinator": coordinator}
    (home / "enrolment.json").write_text(json.dumps(facts))
    return identity


def quiet_node(home: Path, study: Study, signature: str) -> tuple[QuietNode, Ledger | None]:
    """The node at `home`, which has approved `study`, and the ledger that it keeps if it trains."""
    offered = {
        "canonical": base64.b64encode(study.canonical()).decode(),
        "hash": study.study_hash,
        "signature": signature,
    }
    (home / "studies").mkdir()
    (home / "studies" / f"{study.study_hash}.json").write_text(json.dumps(offered))
    enrolment, identity = Enrolment.load(home), NodeIdentity.load(home)
    trains = enrolment.name in study.site_names()
    if trains:
        (home / "site.toml").write_text(SITE_TOML.replace("epsilon = 10.0", "epsilon = 100.0"))
    approve(home, study.study_hash)
    confirm_sites(home, {site.name: fingerprint(site.identity) for site in study.sites})
    ledger = Ledger.open(home / "ledger.db", identity.signer, enrolment.name) if trains else None
    return QuietNode(home, identity, enrolment, ledger=ledger), ledger
