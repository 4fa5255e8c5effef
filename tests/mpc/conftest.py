"""Three parties and their sites on this machine."""

import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.machine import free_ports
from confide.mpc.errors import MpcError
from confide.mpc.links.tls import TlsCommunicator
from confide.mpc.party import handle
from confide.mpc.sharing import sealing, sketch
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import Ring, RingVector
from confide.mpc.sharing.shares import ShareContext

PARTIES = range(3)
PLACE = Position(0, 0, bytes(32))  # of every site here: parties themselves do not look at it


def configs(folder: Path, timeout_s: float) -> list[handle.PartyConfig]:
    """Configurations of three parties on free ports of 127.0.0.1, certificates made."""
    files = []
    for party in PARTIES:
        (folder / f"party{party}").mkdir()
        files.append(handle.make_certificate(folder / f"party{party}", f"party{party}"))
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(3))
    pins = tuple(certificate.read_text() for certificate, _ in files)
    return [
        handle.PartyConfig(
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

    def __init__(
        self,
        number: int,
        ring: Ring,
        sites: int,
        dim: int,
        rng: np.random.Generator,
        *,
        tag_count: int = 0,
        norm_bound: int = 0,
        vectors: Mapping[str, RingVector] | None = None,
    ) -> None:
        """Sites share random ring elements, or `vectors`; norms are checked if there is a `norm_bound`."""
        self.number, self.ring, self.dim, self.tag_count, self.norm_bound = number, ring, dim, tag_count, norm_bound
        self.state = f"{number:064x}"
        self.signers = {f"site{i}": Ed25519PrivateKey.generate() for i in range(sites)}
        self.private, self.public = zip(*(sealing.new_keypair() for _ in PARTIES), strict=True)
        self.vectors = {
            site: rng.integers(0, 2**ring.bits, dim, dtype=ring.unsigned.type, endpoint=False) for site in self.signers
        } | dict(vectors or {})
        self.tags = {site: rng.integers(0, 2**64, tag_count, np.uint64) for site in self.signers}
        self.envelopes = {
            site: sealing.seal_update(
                self.vectors[site], self.context(site), self.public, signer, i % 3, self.tags[site], position=PLACE
            )
            for i, (site, signer) in enumerate(self.signers.items())
        }
        self.topups: dict[str, tuple[RingVector, tuple[sealing.Envelope, ...]]] = {}  # of the last `top_up`

    def context(self, site: str) -> ShareContext:
        return self.order(0).context(site)

    def top_up(self, sites: Iterable[str], scale: int | None = None) -> None:
        """Lets each of `sites` draw and seal a top-up for just this set, of entries below `scale`."""
        self.topups, cohort, rng = {}, tuple(sites), np.random.default_rng(12)
        for site in cohort:
            vector = rng.integers(0, scale or 2**self.ring.bits, self.dim, dtype=self.ring.unsigned.type)
            context = self.order(0, sites=cohort).topup_context(site)
            tags = rng.integers(0, 2**64, self.tag_count, np.uint64)
            self.topups[site] = (
                vector,
                sealing.seal_update(vector, context, self.public, self.signers[site], 0, tags, position=PLACE),
            )

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
    ) -> handle.Order:
        members = self.signers if sites is None else sites
        cohort = tuple((site, self.signers[site].public_key().public_bytes_raw().hex()) for site in members)
        return handle.Order(
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
            rows=sketch.ROWS if self.norm_bound else 0,
            norm_bound=self.norm_bound,
            topup_bound=self.norm_bound // 2,
            tag_count=self.tag_count,
            private_key=self.private[party],
        )

    def inbox(self, party: int, without: Iterable[str] = ()) -> dict[str, bytes]:
        return {site: parts[party].to_bytes() for site, parts in self.envelopes.items() if site not in without}

    def total(self, sites: Iterable[str]) -> RingVector:
        """The plain sum in the ring, by numpy."""
        return np.sum([self.vectors[site] for site in sites], axis=0, dtype=self.ring.unsigned)


def lay(folder: Path, box: Mapping[str, bytes]) -> dict[str, Path]:
    """Envelopes as files in a new folder under `folder`, by site."""
    new = Path(tempfile.mkdtemp(dir=folder))
    for site, data in box.items():
        (new / site).write_bytes(data)
    return {site: new / site for site in box}


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
        Round=Round,
        PLACE=PLACE,
        configs=configs,
        lay=lay,
        outcomes=outcomes,
        linked=linked,
        at_each=at_each,
    )


@pytest.fixture(scope="session")
def at_each_prepared(kit: SimpleNamespace) -> Iterator[Callable[..., list[object]]]:
    """As `at_each`, for calls of links and triples that stay up from test to test: base transfers are slow."""
    from confide.mpc.crypten.triples import Oblivious  # loads torch

    ends = kit.linked()
    triples = kit.outcomes({end.aggregator_id: partial(Oblivious, end) for end in ends})

    def run(call: Callable[..., object]) -> list[object]:
        return list(kit.outcomes({i: partial(call, end, triples[i]) for i, end in enumerate(ends)}).values())

    yield run
    for end in ends:
        end.close()
