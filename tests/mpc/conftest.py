"""Three parties and their sites on this machine."""

import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.mpc import parties, sealing
from confide.mpc.errors import MpcError
from confide.mpc.links import TlsCommunicator
from confide.mpc.ring import Ring, RingVector
from confide.mpc.shares import ShareContext

PARTIES = range(3)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def configs(folder: Path, timeout_s: float) -> list[parties.PartyConfig]:
    """Configurations of three parties on free ports of 127.0.0.1, certificates made."""
    files = []
    for party in PARTIES:
        (folder / f"party{party}").mkdir()
        files.append(parties.make_certificate(folder / f"party{party}", f"party{party}"))
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(3))
    pins = tuple(certificate.read_text() for certificate, _ in files)
    return [
        parties.PartyConfig(
            aggregator_id=party,
            addresses=addresses,
            certificate=files[party][0],
            key=files[party][1],
            pins=pins,
            journal=folder / f"party{party}" / "journal",
            timeout_s=timeout_s,
        )
        for party in PARTIES
    ]


class Round:
    """One round of sites with random vectors in `ring`, and the orders for it."""

    def __init__(self, number: int, ring: Ring, sites: int, dim: int, rng: np.random.Generator) -> None:
        self.number, self.ring, self.dim = number, ring, dim
        self.state = f"{number:064x}"
        self.signers = {f"site{i}": Ed25519PrivateKey.generate() for i in range(sites)}
        self.private, self.public = zip(*(sealing.new_keypair() for _ in PARTIES), strict=True)
        self.vectors = {
            site: rng.integers(0, 2**ring.bits, dim, dtype=ring.unsigned.type, endpoint=False) for site in self.signers
        }
        self.envelopes = {
            site: sealing.seal_update(self.vectors[site], self.context(site), self.public, signer, i % 3)
            for i, (site, signer) in enumerate(self.signers.items())
        }
        self.topups: dict[str, tuple[RingVector, tuple[sealing.Envelope, ...]]] = {}  # of the last `top_up`

    def context(self, site: str) -> ShareContext:
        return self.order(0).context(site)

    def top_up(self, sites: Iterable[str]) -> None:
        """Lets each of `sites` draw and seal a top-up for just this set."""
        self.topups, cohort, rng = {}, tuple(sites), np.random.default_rng(12)
        for site in cohort:
            vector = rng.integers(0, 2**self.ring.bits, self.dim, dtype=self.ring.unsigned.type, endpoint=False)
            context = self.order(0, sites=cohort).topup_context(site)
            self.topups[site] = vector, sealing.seal_update(vector, context, self.public, self.signers[site], 0)

    def topup_box(self, party: int) -> dict[str, bytes]:
        return {site: parts[party].to_bytes() for site, (_, parts) in self.topups.items()}

    def order(
        self,
        party: int,
        *,
        attempt: int = 0,
        min_sites: int = 2,
        min_untopped: int | None = None,
        sites: Iterable[str] | None = None,
    ) -> parties.Order:
        members = self.signers if sites is None else sites
        cohort = tuple((site, self.signers[site].public_key().public_bytes_raw().hex()) for site in members)
        return parties.Order(
            study="study",
            run="run",
            round=self.number,
            state=self.state,
            attempt=attempt,
            cohort=cohort,
            dim=self.dim,
            ring_bits=self.ring.bits,
            scale_bits=self.ring.scale_bits,
            min_sites=min_sites,
            min_untopped=min_untopped or min_sites,
            private_key=self.private[party],
        )

    def inbox(self, party: int, without: Iterable[str] = ()) -> dict[str, bytes]:
        return {site: parts[party].to_bytes() for site, parts in self.envelopes.items() if site not in without}

    def total(self, sites: Iterable[str]) -> RingVector:
        """The plain sum in the ring, by numpy."""
        return np.sum([self.vectors[site] for site in sites], axis=0, dtype=self.ring.unsigned)


def outcomes(calls: Mapping[int, Callable[[], object]]) -> dict[int, object]:
    """Runs the parties' calls side by side; their results, or the errors of ours that they raised."""

    def attempt(call: Callable[[], object]) -> object:
        try:
            return call()
        except MpcError as err:
            return err

    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(attempt, calls.values()), strict=True))


def linked(timeout_s: float = 60.0) -> list[TlsCommunicator]:
    """Links between three parties of this process: socket pairs without TLS."""
    ends: dict[int, dict[int, socket.socket]] = {party: {} for party in PARTIES}
    for low, high in ((0, 1), (0, 2), (1, 2)):
        ends[low][high], ends[high][low] = socket.socketpair()
    return [TlsCommunicator(party, ends[party], timeout_s) for party in PARTIES]


def at_each(call: Callable[[TlsCommunicator], object], links: list[TlsCommunicator] | None = None) -> list[object]:
    """`call` at three linked parties side by side, each in a thread; their results, or the errors of ours."""
    ends = linked() if links is None else links

    def run(end: TlsCommunicator) -> object:
        try:
            return call(end)
        except BaseException:
            end.close()  # the others shall not wait
            raise

    try:
        return list(outcomes({end.aggregator_id: partial(run, end) for end in ends}).values())
    finally:
        for end in ends:
            end.close()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What the tests of this folder share; they are no package, so they cannot import it."""
    return SimpleNamespace(
        Round=Round, configs=configs, free_ports=free_ports, outcomes=outcomes, linked=linked, at_each=at_each
    )
