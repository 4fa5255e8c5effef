"""Measures the processor time that commands take to start, and a site to be ready: nearly all of it is imports.

    python benchmarks/startup.py [--turns N] [--json]

Each command runs in processes of its own, on a federation made here; the row is the median of N turns, user and system
time together. "A site ready" imports what the daemon has imported when it answers `prepare`, model classes included.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STUDY = """
name = "startup"
model = {backbone = "backbone"}
adapter = {rank = 4, alpha = 4.0, targets = ["experts"], seed = "public"}
data = {unit = "patient", label = "sick", max_tokens = 64, flags = ["goitre"], numeric = {age = [40, 60]}}
privacy = {mode = "distributed", noise_multiplier = 2.0, clip_norm = 1.0, sample_rate = 0.2, delta = 1e-5}
rounds = {rounds = 40, min_sites = 3, deadline_s = 60, batch_units = 1375}
optimizer = {}
participants = {sites = ["a", "b", "c"], aggregators = ["x", "y", "z"]}
"""
READY = """
import confide.client_node.daemon, confide.client_node.flower, confide.client_node.node
import confide.client_node.training.trainer
from transformers import DeepseekV3ForCausalLM
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: seconds(words, given.turns) for name, words in commands(Path(folder)).items()}
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    print("| command | CPU s |\n|---|---|")
    for name, taken in rows.items():
        print(f"| {name} | {taken:.2f} |")


def commands(folder: Path) -> dict[str, list[str]]:
    """The rows, as command lines of processes."""
    coordinator, node, draft = folder / "coordinator", folder / "node", folder / "study.toml"
    draft.write_text(STUDY)
    made_in_a_child(lambda: found(coordinator, node, draft))
    ours = {
        program: [sys.executable, "-c", f"from confide.{program}.cli.main import app; app()"]
        for program in ("coordinator", "client_node")
    }
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "`coordinator --help`": [*ours["coordinator"], "--help"],
        "`client-node --help`": [*ours["client_node"], "--help"],
        "`coordinator status`": [*ours["coordinator"], "status", "--home", str(coordinator)],
        "`client-node status`": [*ours["client_node"], "status", "--home", str(node)],
        "`coordinator study create`": [*ours["coordinator"], "study", "create", str(draft), "--home", str(coordinator),
                                       "--accept-unused-experts"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "a site ready": [sys.executable, "-c", READY],
    }  # fmt: skip


def found(coordinator: Path, node: Path, draft: Path) -> None:
    """Makes a federation of three sites and three aggregators, a node's home, and a backbone."""
    import torch

    from confide.client_node.enrolment import NodeIdentity
    from confide.client_node.study import load_draft
    from confide.coordinator.federation import Settings, create_home
    from confide.coordinator.store import Store
    from confide.coordinator.store.tables import NodeRow
    from confide.models.backbones.family import BackboneConfig
    from confide.models.backbones.loading import build, save
    from confide.mpc.links.certificates import make_certificate

    settings = Settings(federation="f", address="localhost:9443", listen="127.0.0.1", port=9443, superlink_port=9444)
    create_home(coordinator, settings)
    store = Store.open(coordinator)
    with store.session() as session:
        for number, name in enumerate("abcxyz"):
            key = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
            row = NodeRow(name=name, roles="train", identity=key, enrolled_at=0.5)
            if name in "xyz":
                row.roles, row.party_address = "aggregate", f"localhost:{7000 + number}"
                (folder := draft.parent / name).mkdir()
                row.party_certificate = make_certificate(folder, name)[0].read_text()
            session.add(row)
    store.close()
    identity = NodeIdentity.create(node, "a").identity_hex
    joined = {"name": "a", "roles": ["train"], "address": "localhost:9443", "coordinator": identity}
    (node / "enrolment.json").write_text(json.dumps(joined))
    schema = load_draft(draft).record_schema()
    save(build(schema, BackboneConfig()), schema, torch.zeros(256), torch.eye(256), draft.parent / "backbone")


def made_in_a_child(make: Callable[[], None]) -> None:
    """Calls `make` in a child, so that nothing which it imports is imported here."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                make()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("the federation could not be made")


def seconds(words: list[str], turns: int) -> float:
    """The median processor time of a process, user and system, in seconds."""
    taken = []
    for _ in range(turns):
        quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        child = os.posix_spawn(words[0], words, os.environ, file_actions=quiet)
        _, status, used = os.wait4(child, 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"failed: {' '.join(words)}")
        taken.append(used.ru_utime + used.ru_stime)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
