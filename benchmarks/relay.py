"""Measures the coordinator's relay of sealed shares, by number of sites and length of vector.

    python benchmarks/relay.py [--sites 3 10 50] [--dim 1000000 10000000] [--json]

Sites seal random vectors in a ring of 32 bits. The coordinator's own code fetches them in parts, checks them, and
delivers to each aggregator its shares. Sites and aggregators are files, answered for in this process: each request and
answer is signed and verified as in a run, only Flower and TLS are left out. Memory is the process's peak allocation
less the allocation before; mapped files are not counted, since the kernel may drop them at any time.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measuring import Peak, allocated_mib

from confide.client_node.replay import Checkpoint
from confide.client_node.study import AggregatorParty, Participant, Study, load_draft
from confide.client_node.wire.chunks import PART_BYTES, read_part
from confide.client_node.wire.messages import Deposit, Deposited, Fetch, Fetched, Packet, Sealed, Update, sign, verify
from confide.coordinator.federation import Pki
from confide.coordinator.run.context import RunContext
from confide.coordinator.run.relay import Delivery, Intake, Load
from confide.coordinator.store import LedgerReplica, Store
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.tables import Run, StudyRow
from confide.mpc.sharing import Ring, ShareContext
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import from_integers
from confide.mpc.sharing.sealing import new_keypair, seal_update

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thyroid" / "study.toml"
PARTIES = ("agg-a", "agg-b", "agg-c")
PLACE = Position(0, 0, bytes(32))


class Ends:
    """The far ends of every transfer: what sites have sealed lies in `folder`, and aggregators count what they get."""

    def __init__(self, folder: Path, keys: Mapping[str, Ed25519PrivateKey], coordinator: str) -> None:
        self._folder, self._keys, self._coordinator = folder, keys, coordinator

    def trust(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Whoever is asked is one of ours."""

    def online(self) -> set[str]:
        return set(self._keys)

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet]]:
        for name, packet in requests.items():
            yield name, self._fetch(name, packet) if kind == "fetch" else self._deposit(name, packet)

    def file(self, site: str, aggregator_id: int) -> Path:
        return self._folder / f"{site}-{aggregator_id}"

    def _fetch(self, site: str, packet: Packet) -> Packet:
        asked = verify(packet, self._coordinator, Fetch)
        part = read_part(self.file(site, asked.aggregator_id), asked.offset)
        answer = Fetched(request=packet.digest(), run=asked.run, round=asked.round)
        return sign(answer, self._keys[site], {"part": part})

    def _deposit(self, party: str, packet: Packet) -> Packet:
        asked = verify(packet, self._coordinator, Deposit)
        held = asked.offset + len(packet.blobs["part"])
        answer = Deposited(request=packet.digest(), run=asked.run, round=asked.round, held=held)
        return sign(answer, self._keys[party])


def study_of(names: list[str], keys: Mapping[str, Ed25519PrivateKey], coordinator: str, dim: int) -> Study:
    draft = load_draft(EXAMPLE)
    parts = draft.participants.model_copy(update={"sites": tuple(names), "aggregators": PARTIES})
    identities = {name: key.public_key().public_bytes_raw().hex() for name, key in keys.items()}
    return Study.model_construct(
        draft=draft.model_copy(update={"participants": parts}),
        backbone_hash="0" * 64,
        sites=tuple(Participant(name=name, identity=identities[name]) for name in names),
        aggregators=tuple(
            AggregatorParty.model_construct(name=name, identity=identities[name], address="", certificate="")
            for name in PARTIES
        ),
        coordinator=coordinator,
        created=date(2026, 1, 31),
        scale_bits=16,
        ring_bits=32,
        dim=dim,
    )


def relay(folder: Path, sites: int, dim: int) -> dict[str, Any]:
    """One round's shares from all sites to all aggregators."""
    names = [f"site-{i}" for i in range(sites)]
    keys = {name: Ed25519PrivateKey.generate() for name in (*names, *PARTIES)}
    pki = Pki.create(folder, [])
    coordinator = pki.identity_hex
    study = study_of(names, keys, coordinator, dim)
    (folder / "sites").mkdir()
    ends = Ends(folder / "sites", keys, coordinator)
    described = {name: seal(study, name, place, keys[name], ends) for place, name in enumerate(names)}
    store = Store.create(folder)
    with store.session() as session:
        session.add(StudyRow(hash=study.study_hash, name="s", canonical=b"", signature="", created_at=0))
    with store.session() as session:
        session.add(Run(id="bench", study=study.study_hash, state="running", created_at=0))
    run = RunContext(
        fleet=ends, store=store, folder=RunFolder(folder, "bench"), replica=LedgerReplica(store), study=study,
        id="bench", lease=store.acquire_lease("bench"), pki=pki,
        start=Checkpoint.beginning(np.zeros(1, np.float32)),
    )  # fmt: skip
    started, spent = time.perf_counter(), time.process_time()
    before = allocated_mib()
    with Peak() as peak:
        inbox = run.folder.envelopes(1)
        intake = Intake(run, inbox, lambda site: context_of(study, site))
        for name in names:
            answer = Update(request="0" * 64, run="bench", round=1, sealed=described[name], ledger=())
            intake.begin(name, answer, Packet(body=b"", blobs={}))
        assert intake.finish(names) == set(names)
        envelopes = inbox.read()
        delivery = Delivery(run, 1)
        loads = {party: Load.of(names, i, envelopes, {}, "") for i, party in enumerate(PARTIES)}
        assert not delivery.deposit(loads)
    store.close()
    return {
        "sites": sites,
        "dim": dim,
        "relayed_mb": round(sum(each.size for sealed in described.values() for each in sealed) / 1e6, 1),
        "memory_mib": round(peak.mib - before, 1),
        "wall_s": round(time.perf_counter() - started, 2),
        "processor_s": round(time.process_time() - spent, 2),
    }


def context_of(study: Study, site: str) -> ShareContext:
    return study.share_context(study.planned_round(1), run="bench", site=site, state="0" * 64)


def seal(study: Study, site: str, place: int, key: Ed25519PrivateKey, ends: Ends) -> tuple[Sealed, Sealed, Sealed]:
    """Leaves what the site has sealed where it is fetched from."""
    planned = study.planned_round(1)
    units = np.random.default_rng(place).integers(-1000, 1000, planned.dim)
    vector = from_integers(units, Ring(planned.ring_bits, planned.scale_bits))
    recipients = [new_keypair()[1] for _ in PARTIES]
    found = []
    for i, part in enumerate(
        seal_update(vector, context_of(study, site), recipients, key, full=place % 3, position=PLACE)
    ):
        data = part.to_bytes()
        ends.file(site, i).write_bytes(data)
        found.append(Sealed(size=len(data), digest=hashlib.sha256(data).hexdigest()))
    return found[0], found[1], found[2]


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--dim", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--json", action="store_true", help="one object a line")
    asked = parser.parse_args()
    for dim in asked.dim:
        for sites in asked.sites:
            with tempfile.TemporaryDirectory() as folder:
                row = relay(Path(folder), sites, dim)
            if asked.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{row['dim']:>10,} numbers x {row['sites']:>2} sites: {row['relayed_mb']:7.1f} MB relayed in parts of "
                f"{PART_BYTES >> 20} MiB, {row['memory_mib']:6.1f} MiB more memory, {row['processor_s']:6.2f} s of "
                f"processor time, {row['wall_s']:6.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
