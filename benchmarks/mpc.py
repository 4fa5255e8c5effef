"""Times whole rounds of secure aggregation, beside a plain sum and alternative methods.

    python benchmarks/mpc.py [--json] [--sites 3 10 50] [--dim 1000000 10000000] [--bits 32 64] [--others]

Sites seal random vectors inside the norm bound. Three party processes on this machine verify, check norms, add and
release over mutual TLS. The total is opened and compared, bit for bit, with the plain sum of the integers. All parts
are real except the coordinator's relay (`benchmarks/relay.py`) and the training. Times of sites and of the coordinator
are processor time of one thread. A party's time is its process's processor time over a second round, after base
transfers and imports. The plain addition is float32, in the same run.

`--others` times, for one site's vector: Flower's SecAgg+ (quantising, and one pairwise mask a neighbour), CrypTen's own
`cryptensor` path in three processes over Gloo without TLS, and TenSEAL's CKKS: the latter two where they are installed,
CrypTen as published, by `pip install --no-deps crypten==0.4.1`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measuring import Peak, best

from confide.machine import free_ports
from confide.mpc.party import OpenedTotal, Order, PartyConfig, PartyProcess
from confide.mpc.party.handle import make_certificate
from confide.mpc.sharing import Ring, sketch
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import read_total
from confide.mpc.sharing.sealing import new_keypair, seal_update

PARTIES = range(3)
PLACE = Position(0, 0, bytes(32))
NORM = 2.0**22  # of every site's vector, ring units
MASKS = 10  # SecAgg+ masks a neighbour each: log2 of a thousand sites
_STOCK = """
import sys, types, os, time, warnings, torch
warnings.simplefilter("ignore")
def stand_in(name, **attributes):
    module = types.ModuleType(name); module.__dict__.update(attributes); sys.modules[name] = module
stand_in("crypten.nn.onnx_converter", from_onnx=None, from_pytorch=None, from_tensorflow=None, TF_AND_TF2ONNX=False)
stand_in("crypten.nn.tensorboard", SummaryWriter=None)
rank, folder, dim = sys.argv[1:]
os.environ.update(RANK=rank, WORLD_SIZE="3", RENDEZVOUS=f"file://{folder}/stock", DISTRIBUTED_BACKEND="gloo")
torch.set_num_threads(1)
import crypten
crypten.init()
vector, total = torch.randn(int(dim)), None
start = time.process_time()
for site in range(3):
    share = crypten.cryptensor(vector, src=site)
    total = share if total is None else total + share
print((time.process_time() - start) / 3)
total.get_plain_text()
"""


def plain_add_s(dim: int) -> float:
    total, vector = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    return best(lambda: np.add(total, vector, out=total))


class Bench:
    """Three parties and the sites of one shape of rounds."""

    def __init__(self, folder: Path, sites: int, dim: int, ring: Ring, *, checked: bool) -> None:
        self.folder, self.dim, self.ring, self.checked = folder, dim, ring, checked
        self.signers = {f"site-{i}": Ed25519PrivateKey.generate() for i in range(sites)}
        self.private, self.public = zip(*(new_keypair() for _ in PARTIES), strict=True)
        self.units = np.rint(np.random.default_rng(1).normal(0.0, NORM / dim**0.5, dim)).astype(np.int64)

    def order(self, party: int, number: int) -> Order:
        keys = {site: signer.public_key().public_bytes_raw().hex() for site, signer in self.signers.items()}
        return Order(
            study="bench", run="bench", round=number, state="0" * 64, attempt=0, cohort=tuple(keys.items()),
            dim=self.dim, ring_bits=self.ring.bits, scale_bits=self.ring.scale_bits, min_sites=2, min_untopped=2,
            rows=sketch.ROWS if self.checked else 0, norm_bound=int(1.1 * NORM) if self.checked else 0,
            private_key=self.private[party],
        )  # fmt: skip

    def seal(self, number: int) -> tuple[list[dict[str, Path]], float, int]:
        """Envelopes as files by party and site; the median of a site's processor time, and its bytes."""
        boxes: list[dict[str, Path]] = [{} for _ in PARTIES]
        times, size, order = [], 0, self.order(0, number)
        for place, (site, signer) in enumerate(self.signers.items()):
            start = time.process_time()
            parts = seal_update(self.units, order.context(site), self.public, signer, full=place % 3, position=PLACE)
            sealed = [part.framed() for part in parts]
            times.append(time.process_time() - start)
            size = sum(map(len, sealed))
            for party, data in enumerate(sealed):
                boxes[party][site] = self.folder / f"{number}-{party}-{site}"
                boxes[party][site].write_bytes(data)
        return boxes, statistics.median(times), size

    def run(self, processes: list[PartyProcess], number: int) -> dict[str, float]:
        boxes, site_s, size = self.seal(number)
        before = [processor_s(process) for process in processes]
        start = time.perf_counter()
        with ExitStack() as watched, ThreadPoolExecutor(3) as pool:
            peaks = [watched.enter_context(Peak(process.pid)) for process in processes]
            releases: list[OpenedTotal] = list(
                pool.map(lambda i: processes[i].aggregate(self.order(i, number), boxes[i]), PARTIES)
            )
            wall = time.perf_counter() - start
        spent = [processor_s(process) - earlier for process, earlier in zip(processes, before, strict=True)]
        start = time.process_time()
        total = read_total(releases[0].total, [b""] * 3, self.ring, self.dim)
        coordinator_s = time.process_time() - start
        sites = len(self.signers)
        assert len(releases[0].kept) == sites
        assert (total.units == sites * self.units).all()
        for box in boxes:
            for path in box.values():
                path.unlink()
        return {
            "site_ms": 1e3 * site_s,
            "party_ms_a_site": 1e3 * statistics.mean(spent) / sites,
            "wall_s": wall,
            "coordinator_ms": 1e3 * coordinator_s,
            "party_peak_mib": max(peak.mib for peak in peaks),
            "bytes": size,
        }


def processor_s(process: PartyProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def configs(folder: Path) -> list[PartyConfig]:
    for party in PARTIES:
        (folder / str(party)).mkdir(parents=True)
    files = [make_certificate(folder / str(party), f"party-{party}") for party in PARTIES]
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(3))
    pins = tuple(certificate.read_text() for certificate, _ in files)
    return [
        PartyConfig(
            aggregator_id=party, addresses=addresses, certificate=files[party][0], key=files[party][1], pins=pins,
            journal=folder / f"journal-{party}", timeout_s=600,
        )
        for party in PARTIES
    ]  # fmt: skip


def rounds(dims: list[int], sites: list[int], bits: list[int]) -> list[dict[str, Any]]:
    rows = []
    number = iter(range(1_000_000))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dim in dims:
            for count in sites:
                for width in bits:
                    for checked in (False, True):
                        processes = [PartyProcess(config) for config in configs(folder / f"parties-{next(number)}")]
                        try:
                            for process in processes:
                                process.wait_ready()
                            bench = Bench(folder, count, dim, Ring(width, 16), checked=checked)
                            bench.run(processes, next(number))
                            plain = plain_add_s(dim)
                            figures = bench.run(processes, next(number))
                        finally:
                            for process in processes:
                                process.stop()
                        row = {"dim": dim, "sites": count, "bits": width, "checked": checked, "plain_ms": 1e3 * plain}
                        rows.append(row | figures)
                        print(told(rows[-1]), file=sys.stderr, flush=True)
    return rows


def others(dim: int) -> dict[str, dict[str, float]]:
    """Measures alternative methods on one vector: processor ms, and bytes if they differ from the vector's own."""
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = np.random.default_rng(1).normal(0.0, 1.0, dim)
    found: dict[str, dict[str, float]] = {"plain float32 addition": {"ms": 1e3 * plain_add_s(dim)}}
    quantising = best(lambda: quantize([vector], 8.0, 2**22), turns=2)
    mask = best(lambda: pseudo_rand_gen(bytes(32), 2**24, [(dim,)]), turns=2)
    found["Flower SecAgg+: quantise"] = {"ms": 1e3 * quantising}
    found[f"Flower SecAgg+: {MASKS} pairwise masks"] = {"ms": 1e3 * MASKS * mask}
    if find_spec("crypten"):
        with tempfile.TemporaryDirectory() as folder:
            parties = [
                subprocess.Popen([sys.executable, "-c", _STOCK, str(rank), folder, str(dim)], stdout=subprocess.PIPE)
                for rank in PARTIES
            ]
            spent = [float(party.communicate(timeout=600)[0].split()[-1]) for party in parties]
        found["CrypTen cryptensor and add, a party"] = {"ms": 1e3 * statistics.mean(spent)}
    try:
        import tenseal
    except ImportError:
        return found
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[40, 21, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,  # sites share the key; the other takes twice as long
    )
    context.global_scale = 2**21
    block = vector[:4096]
    blocks = -(-dim // len(block))
    sealed = tenseal.ckks_vector(context, block)
    size = len(sealed.serialize())
    found["TenSEAL CKKS: encrypt"] = {"ms": 1e3 * blocks * best(lambda: tenseal.ckks_vector(context, block), 20)}
    found["TenSEAL CKKS: serialise"] = {"ms": 1e3 * blocks * best(sealed.serialize, 20), "bytes": blocks * size}
    found["TenSEAL CKKS: add"] = {"ms": 1e3 * blocks * best(lambda: sealed + sealed, 20)}
    return found


def told(row: dict[str, Any]) -> str:
    plain = row["plain_ms"]
    kind = "norms checked" if row["checked"] else "sum alone"
    return " | ".join(
        (
            f"{row['dim']:>10,} x {row['sites']:>2} sites, {row['bits']} bits, {kind:13}",
            f"site {row['site_ms']:6.1f} ms ({row['site_ms'] / plain:5.1f})",
            f"party {row['party_ms_a_site']:6.1f} ms a site ({row['party_ms_a_site'] / plain:5.1f})",
            f"round {row['wall_s']:6.2f} s",
            f"coordinator {row['coordinator_ms']:6.1f} ms",
            f"party {row['party_peak_mib']:5.0f} MiB",
            f"{row['bytes'] / (row['dim'] * row['bits'] / 8):.4f} of the vector",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--dim", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64], choices=[32, 64])
    parser.add_argument("--others", action="store_true", help="also time what one would use instead")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = rounds(asked.dim, asked.sites, asked.bits)
    result: dict[str, Any] = {"rounds": rows, "load": os.getloadavg()[0]}
    if asked.others:
        result["others"] = {dim: others(dim) for dim in asked.dim}
    if asked.json:
        print(json.dumps(result))
        return
    print("\n".join(map(told, rows)))
    for dim, found in result.get("others", {}).items():
        plain = found["plain float32 addition"]["ms"]
        for name, cost in found.items():
            size = f", {cost['bytes'] / 1e6:.0f} MB" if "bytes" in cost else ""
            print(f"{dim:>10,} | {name:42} {cost['ms']:10.1f} ms ({cost['ms'] / plain:8.1f}){size}")
    print(f"load average {result['load']:.1f}; in brackets: plain additions of as many float32")


if __name__ == "__main__":
    main()
