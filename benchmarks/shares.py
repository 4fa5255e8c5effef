"""Times secret sharing at a site, an aggregator and the coordinator, beside a plain addition of floats.

    python benchmarks/shares.py [--json] [--dim N] [--bits 32] [--kem x25519]

Times are processor time of one thread, best of several turns, all in one run; compare their ratio to the plain addition
of as many float32. A site begins with its noised integers and ends with three envelopes in memory. An aggregator hashes
the envelope, opens it, expands the seed and adds. One site in three also sends it the body, so its figure is the mean
over three sites. Network and files are not timed.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from confide.mpc.crypten.sums import SharedTotal
from confide.mpc.sharing import ShareContext, hpke
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import from_integers, read_total
from confide.mpc.sharing.sealing import Envelope, open_envelope, seal_update
from confide.mpc.sharing.tags import tags, verify_total

TURNS = 5
ROWS, TAGS = 256, 3
KEY = bytes(32)
PLACE = Position(0, 0, bytes(32))


def milliseconds(call: Callable[[], object]) -> float:
    call()
    best = float("inf")
    for _ in range(TURNS):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1000 * best


def measure(dim: int, bits: int, kem: hpke.Kem) -> dict[str, float]:
    """Milliseconds by what was done."""
    context = ShareContext(
        study="s", run="r", round=1, state="ab" * 32, site="a", dim=dim, ring_bits=bits, scale_bits=20,
        rows=ROWS, tag_count=TAGS,
    )  # fmt: skip
    signer = Ed25519PrivateKey.generate()
    identity = signer.public_key().public_bytes_raw()
    private, public = zip(*(hpke.new_keypair(kem.name) for _ in range(3)), strict=True)
    units = np.random.default_rng(0).integers(-(2**20), 2**20, dim)
    floats = np.ones(dim, np.float32), np.ones(dim, np.float32)
    site_tags = tags(units, KEY, TAGS)

    def site() -> tuple[Envelope, ...]:
        return seal_update(from_integers(units, context.ring), context, public, signer, 0, site_tags, position=PLACE)

    envelopes = [envelope.to_bytes() for envelope in site()]
    total = SharedTotal(dim, context.ring, TAGS)

    def party(aggregator_id: int) -> None:
        envelope = Envelope.from_bytes(envelopes[aggregator_id], context)
        share = open_envelope(envelope, context, aggregator_id, identity=identity, private_key=private[aggregator_id])
        total.add(share, context)

    opened, tag_shares = bytes(dim * bits // 8), [bytes(8 * TAGS)] * 3
    found = {
        "plain addition of float32": milliseconds(lambda: np.add(*floats, out=floats[0])),
        "site: integers to three envelopes": milliseconds(site),
        "site: three tags more": milliseconds(lambda: tags(units, KEY, TAGS)),
        "aggregator: seed and body, to the sum": milliseconds(lambda: party(0)),
        "aggregator: seed alone, to the sum": milliseconds(lambda: party(1)),
        "coordinator: the total read": milliseconds(lambda: read_total(opened, tag_shares, context.ring, dim, TAGS)),
        "coordinator: three tags checked": milliseconds(lambda: verify_total(units, site_tags, KEY, 2**31)),
    }
    of_one, of_two = found["aggregator: seed and body, to the sum"], found["aggregator: seed alone, to the sum"]
    found["aggregator: mean of three sites"] = (of_one + 2 * of_two) / 3
    return found


def seals() -> list[dict[str, Any]]:
    """Size and milliseconds of a sealed seed, by suite."""
    out = []
    for kem in hpke.KEMS:
        private, public = hpke.new_keypair(kem.name)
        sealed = hpke.seal(bytes(33), public, b"")
        out.append(
            {
                "kem": kem.name,
                "bytes": len(sealed),
                "public_key_bytes": len(public),
                "keypair_ms": milliseconds(lambda name=kem.name: hpke.new_keypair(name)),
                "seal_ms": milliseconds(lambda key=public: hpke.seal(bytes(33), key, b"")),
                "open_ms": milliseconds(lambda data=sealed, key=private: hpke.unseal(data, key, b"")),
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dim", type=int, default=10_000_000, help="numbers of an update")
    parser.add_argument("--bits", type=int, choices=(32, 64), action="append", help="of the ring; both if left out")
    parser.add_argument("--kem", choices=[kem.name for kem in hpke.KEMS], default="x25519")
    given = parser.parse_args()
    found = {bits: measure(given.dim, bits, hpke.kem_named(given.kem)) for bits in given.bits or (32, 64)}
    suites = seals()
    if given.json:
        print(json.dumps({"dim": given.dim, "kem": given.kem, "ms": found, "seals": suites}))
        return
    console = Console()
    for bits, rows in found.items():
        table = Table("what", "ms", "plain additions", title=f"{given.dim:,} numbers, {bits} bits")
        for what, ms in rows.items():
            table.add_row(what, f"{ms:.1f}", f"{ms / rows['plain addition of float32']:.1f}")
        console.print(table)
    table = Table(*suites[0], title="a sealed seed")
    for row in suites:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


if __name__ == "__main__":
    main()
