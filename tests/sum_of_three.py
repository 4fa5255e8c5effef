"""Adds three sites' vectors up among three party processes, norms checked, and compares with the plain sum.

    python tests/sum_of_three.py FOLDER

Run by tests/test_wheel.py in an environment that holds confide and its dependencies alone, so it imports nothing else.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.machine import free_ports
from confide.mpc.party import Order, PartyConfig, PartyProcess
from confide.mpc.party.handle import make_certificate
from confide.mpc.sharing import Ring, sketch
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import from_integers, read_total
from confide.mpc.sharing.sealing import new_keypair, seal_update

RING = Ring(32, 10)
DIM = 1000
BOUND = 6000  # of every site's vector, ring units
PLACE = Position(0, 0, bytes(32))
PARTIES = range(3)


def configs(folder: Path) -> list[PartyConfig]:
    """Three parties on free ports of 127.0.0.1."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(PARTIES)))
    for party in PARTIES:
        (folder / str(party)).mkdir()
    files = [make_certificate(folder / str(party), f"party-{party}") for party in PARTIES]
    pins = tuple(certificate.read_text() for certificate, _ in files)
    return [
        PartyConfig(
            aggregator_id=party, addresses=addresses, certificate=certificate, key=key, pins=pins,
            journal=folder / f"journal-{party}", timeout_s=120,
        )
        for party, (certificate, key) in enumerate(files)
    ]  # fmt: skip


def main(folder: Path) -> None:
    units = np.random.default_rng(3).integers(-100, 100, (3, DIM))
    signers = {f"site-{number}": Ed25519PrivateKey.generate() for number in range(len(units))}
    cohort = tuple((site, signer.public_key().public_bytes_raw().hex()) for site, signer in signers.items())
    private, public = zip(*(new_keypair() for _ in PARTIES), strict=True)
    orders = [
        Order(
            study="study", run="run", round=0, state="0" * 64, attempt=0, cohort=cohort, dim=DIM,
            ring_bits=RING.bits, scale_bits=RING.scale_bits, min_sites=2, min_untopped=2, rows=sketch.ROWS,
            norm_bound=BOUND, private_key=key,
        )
        for key in private
    ]  # fmt: skip
    boxes: list[dict[str, Path]] = [{} for _ in PARTIES]
    for number, (site, signer) in enumerate(signers.items()):
        vector, context = from_integers(units[number], RING), orders[0].context(site)
        for party, part in enumerate(seal_update(vector, context, public, signer, number, position=PLACE)):
            boxes[party][site] = folder / f"{party}-{site}"
            boxes[party][site].write_bytes(part.to_bytes())
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        parties = [stack.enter_context(PartyProcess(config)) for config in configs(folder)]
        opened = list(pool.map(lambda party: parties[party].aggregate(orders[party], boxes[party]), PARTIES))
    total = read_total(opened[0].total, [b""] * 3, RING, DIM)
    if opened[0].kept != tuple(signers) or (total.units != units.sum(0)).any():
        raise SystemExit(f"not the plain sum of all sites: kept {opened[0].kept}")
    print("the sum is right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
