"""Writes expand.json: known answers of `shares.expand`, computed without any of its code.

HKDF-SHA256 is built from hmac (RFC 5869), the context from its layout in docs/formats-mpc.md, and AES-256-CTR from
single AES blocks. Run it from anywhere: python tests/mpc/vectors/make.py
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

STATE = hashlib.sha256(b"").hexdigest()
FIRST = {"study": "s", "run": "r", "round": 0, "state": STATE, "site": "a", "dim": 5, "ring_bits": 64, "scale_bits": 24}
NARROW = {"dim": 9, "ring_bits": 32, "scale_bits": 20}
CASES = [
    FIRST,
    FIRST | {"round": 1},
    FIRST | {"state": hashlib.sha256(bytes(20)).hexdigest()},
    FIRST | {"topup_for": hashlib.sha256(b"a set").hexdigest()},
    FIRST | {"study": "thyroïde", "run": "r-2", "round": 70_000, "site": "SVI"} | NARROW,
]


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(4, "big") + raw


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def context(case: dict) -> bytes:
    label = "topup" if "topup_for" in case else "context"
    head = text(f"confide/mpc/{label}/1") + text(case["study"]) + text(case["run"])
    ring = number(case["dim"]) + number(case["ring_bits"]) + number(case["scale_bits"])
    tail = text(case["topup_for"]) if "topup_for" in case else b""
    return head + number(case["round"]) + text(case["state"]) + text(case["site"]) + ring + tail


def hkdf(seed: bytes, info: bytes) -> bytes:
    extracted = hmac.new(bytes(32), seed, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def keystream(key: bytes, size: int) -> bytes:
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(block.update(i.to_bytes(16, "big")) for i in range(-(-size // 16)))[:size]


def answers() -> list[dict]:
    out = []
    for case in CASES:
        for aggregator_id, seed in ((0, bytes(range(32))), (2, bytes(range(32))), (2, b"\xff" * 32)):
            info = text("confide/mpc/expand/1") + text(context(case)) + number(aggregator_id)
            stream = keystream(hkdf(seed, info), case["dim"] * case["ring_bits"] // 8)
            step = case["ring_bits"] // 8
            elements = [int.from_bytes(stream[i : i + step], "little") for i in range(0, len(stream), step)]
            known = {"context": case, "context_bytes": context(case).hex(), "aggregator_id": aggregator_id}
            out.append({**known, "seed": seed.hex(), "elements": elements})
    return out


if __name__ == "__main__":
    path = Path(__file__).with_name("expand.json")
    path.write_text(json.dumps(answers(), indent=1, ensure_ascii=False) + "\n")
