"""Writes shares.json: known answers for every format of the secure sum, for sketches and for oblivious transfer.

Computed from docs/formats-mpc.md and the standards in `primitives`, without any of the product's code. Run it from
anywhere: python tests/mpc/vectors/make.py
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from primitives import (
    Aes,
    Q,
    byte_decode,
    byte_encode,
    ctr,
    ed25519_public,
    ed25519_sign,
    ghash,
    hkdf_expand,
    hkdf_extract,
    hpke_seal,
    hpke_seal_hybrid,
    ml_kem_encapsulate,
    ml_kem_public,
    x25519,
    xor,
)

STATE = hashlib.sha256(b"").hexdigest()
PLAIN = {
    "study": "s", "run": "r", "round": 0, "state": STATE, "site": "a",
    "dim": 5, "ring_bits": 64, "scale_bits": 24, "rows": 0, "tag_count": 0,
}  # fmt: skip
NARROW = {"dim": 9, "ring_bits": 32, "scale_bits": 20}
FULL = NARROW | {"rows": 3, "tag_count": 2}
CONTEXTS = [
    PLAIN,
    PLAIN | {"round": 1, "rows": 2, "tag_count": 3},
    PLAIN | {"state": hashlib.sha256(bytes(20)).hexdigest()} | NARROW,
    PLAIN | {"topup_for": hashlib.sha256(b"a set").hexdigest()} | FULL,
    PLAIN | {"study": "thyroïde", "run": "r-2", "round": 70_000, "site": "SVI"} | FULL,
]
POSITIONED = [hashlib.sha256(name).digest() for name in (b"first", b"second", b"third")]  # a site's ledger
HYBRID = PLAIN | {"run": "hybrid"} | FULL  # sealed with suite 2
MULTIPLIER = 0x9E3779B97F4A7C15
PARTS = ("vector", "masks", "mask_words", "tags")

Parts = dict[str, list[int]]


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(4, "big") + raw


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def secret(name: str) -> bytes:
    """32 bytes that stand for random ones."""
    return hashlib.sha256(name.encode()).digest()


def words(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def context_bytes(case: dict[str, Any]) -> bytes:
    label = "topup" if "topup_for" in case else "context"
    head = text(f"confide/mpc/{label}/2") + text(case["study"]) + text(case["run"]) + number(case["round"])
    shape = b"".join(number(case[name]) for name in ("dim", "ring_bits", "scale_bits", "rows", "tag_count"))
    tail = text(case["topup_for"]) if "topup_for" in case else b""
    return head + text(case["state"]) + text(case["site"]) + shape + tail


def layout(case: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Number and size of the elements of each part."""
    element = case["ring_bits"] // 8
    return {
        "vector": (case["dim"], element),
        "masks": (case["rows"], element),
        "mask_words": (case["rows"], 8),
        "tags": (case["tag_count"], 8),
    }


def expand(case: dict[str, Any], seed: bytes, aggregator_id: int) -> Parts:
    out = {}
    for part, (count, size) in layout(case).items():
        info = text("confide/mpc/expand/2") + text(context_bytes(case)) + number(aggregator_id) + text(part)
        key = hkdf_expand(hkdf_extract(b"", seed), info, 32)
        out[part] = words(ctr(key, count * size), size)
    return out


def body(case: dict[str, Any], update: Parts, seeds: list[bytes]) -> bytes:
    streams = [expand(case, seed, aggregator_id) for aggregator_id, seed in enumerate(seeds)]
    out = b""
    for part, (_, size) in layout(case).items():
        for place, value in enumerate(update[part]):
            for stream in streams:
                value = value ^ stream[part][place] if part == "mask_words" else value - stream[part][place]
            out += (value % 2 ** (8 * size)).to_bytes(size, "little")
    return out


def update_of(case: dict[str, Any]) -> Parts:
    """A vector with both ends of the ring in it, and masks and tags of any kind."""
    top = 2 ** case["ring_bits"]
    vector = [0, 1, top // 2, top - 1, *words(ctr(secret("vector"), 8 * case["dim"]), 8)]
    masks = words(ctr(secret("masks"), case["rows"] * case["ring_bits"] // 8), case["ring_bits"] // 8)
    tags = words(ctr(secret("tags"), 8 * case["tag_count"]), 8)
    return {
        "vector": [value % top for value in vector[: case["dim"]]],
        "masks": masks,
        "mask_words": masks,
        "tags": tags,
    }


def envelopes(case: dict[str, Any], seeds: list[bytes], body_at: int, update: Parts, suite: int) -> dict[str, Any]:
    """What a site sends to each aggregator, with fixed keys."""
    signer = secret("site")
    private = [secret(f"aggregator {i}") for i in range(3)]
    if suite == 2:
        private = [secret(f"d {i}") + secret(f"z {i}") + key for i, key in enumerate(private)]
    sealed = []
    for aggregator_id, (seed, key) in enumerate(zip(seeds, private, strict=True)):
        info = text("confide/mpc/seal/2") + text(context_bytes(case)) + number(aggregator_id)
        ephemeral, recipient, payload = secret(f"ephemeral {aggregator_id}"), x25519(key[-32:]), b"\2" + seed
        if suite == 1:
            encapsulated, ciphertext = hpke_seal(ephemeral, recipient, info, payload)
        else:
            both = ml_kem_public(key[:64]) + recipient
            encapsulated, ciphertext = hpke_seal_hybrid(secret(f"m {aggregator_id}"), ephemeral, both, info, payload)
        rest = body(case, update, seeds) if aggregator_id == body_at else b""
        sealed.append(encapsulated + ciphertext + rest)
    digests = [hashlib.sha256(part).digest() for part in sealed]
    place = number(0) + number(len(POSITIONED)) + position(POSITIONED)
    statement = text("confide/mpc/envelope/3") + text(hashlib.sha256(context_bytes(case)).digest()) + text(place)
    signature = ed25519_sign(signer, statement + b"".join(text(digest) for digest in digests))
    return {
        "identity": ed25519_public(signer).hex(),
        "private_keys": [key.hex() for key in private],
        "envelopes": [(bytes([3, suite]) + place + b"".join(digests) + signature + part).hex() for part in sealed],
    }


def position(records: list[bytes]) -> bytes:
    digest = bytes(32)
    for record in records:
        digest = hashlib.sha256(text("confide/mpc/position/1") + text(digest) + text(record)).digest()
    return digest


def tags(units: list[int], key: bytes, count: int) -> list[int]:
    derived = hkdf_expand(hkdf_extract(b"", key), text("confide/mpc/tags/1"), 32)
    r = words(ctr(derived, 4 * (len(units) + count)), 4)
    return [sum(r[j + k] * unit for j, unit in enumerate(units)) % 2**64 for k in range(count)]


def set_name(sites: list[str]) -> str:
    names = sorted(sites)
    listed = b"".join(text(name) for name in names)
    return hashlib.sha256(text("confide/mpc/sites/1") + number(len(names)) + listed).hexdigest()


def total(case: dict[str, Any], shares: list[bytes]) -> dict[str, Any]:
    size, end = case["ring_bits"] // 8, case["dim"] * case["ring_bits"] // 8
    half = 2 ** (case["ring_bits"] - 1)
    vectors = zip(*(words(share[:end], size) for share in shares), strict=True)
    sums = zip(*(words(share[end:], 8) for share in shares), strict=True)
    sums_of_words = [sum(column) % (2 * half) for column in vectors]
    opened = b"".join(value.to_bytes(size, "little") for value in sums_of_words)
    units = [(value + half) % (2 * half) - half for value in sums_of_words]
    return {
        "opened": opened.hex(),
        "digest": hashlib.sha256(opened).hexdigest(),
        "units": units,
        "tags": [sum(column) % 2**64 for column in sums],
    }


def coin(private_key: bytes, place: dict[str, Any]) -> bytes:
    """What a party adds to the seed of a vector's sketch."""
    key = hkdf_expand(hkdf_extract(b"", private_key), b"confide/mpc/coin-key/1", 32)
    names = text("confide/mpc/coin/1") + text(place["study"]) + text(place["run"]) + number(place["round"])
    return hmac.digest(key, names + text(place["site"]) + text(bytes.fromhex(place["digest"])), "sha256")


def joint_seed(coins: list[bytes]) -> bytes:
    return hashlib.sha256(text("confide/mpc/joint-seed/1") + b"".join(map(text, coins))).digest()


def sketch(seed: bytes, vector: list[int], ring_bits: int, rows: int) -> list[int]:
    """docs/norm-check.md, "The map", entry by entry."""
    pieces = -(-len(vector) // 8192)
    info = text("confide/mpc/sketch/1") + number(len(vector)) + number(ring_bits) + number(rows)
    sizes = [(2**18 + 8192) // 8, 4 * pieces, 16 * pieces, 4 * 6144 * rows]
    stream = ctr(hkdf_expand(hkdf_extract(b"", seed), info, 32), sum(sizes))
    signs, starts, offsets, coefficients = (stream[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(4))
    start = [word % 2**18 for word in words(starts, 4)]
    offset = [word % 2**12 for word in words(offsets, 4)]
    buckets = [[0] * 12288 for _ in range(4)]
    for i, entry in enumerate(vector):
        piece, j = divmod(i, 8192)
        place = start[piece] + j
        signed = entry if signs[place // 8] >> place % 8 & 1 else -entry
        for table in range(4):
            buckets[table][offset[4 * piece + table] + j] += signed
    out = []
    for row in range(rows):
        total = 0
        for table in range(4):
            of_row = coefficients[(table * rows + row) * 6144 :][:6144]
            for j, byte in enumerate(of_row):
                total += ((byte & 15).bit_count() - 2) * buckets[table][j]
                total += ((byte >> 4).bit_count() - 2) * buckets[table][6144 + j]
        out.append(total % 2**ring_bits)
    return out


def spread(dim: int, ring_bits: int) -> list[int]:
    """A vector that is long in both senses and told by a rule: multiples of an odd number."""
    return [(i + 1) * MULTIPLIER % 2**64 >> 64 - ring_bits for i in range(dim)]


def order_digest(order: dict[str, Any]) -> str:
    numbers = ("dim", "ring_bits", "scale_bits", "rows", "tag_count", "norm_bound", "topup_bound", "min_sites")
    place = text(order["study"]) + text(order["run"]) + number(order["round"]) + text(order["state"])
    shape = b"".join(number(order[name]) for name in (*numbers, "min_untopped"))
    cohort = b"".join(text(name) + text(identity) for name, identity in order["cohort"])
    whole = text("confide/mpc/order/4") + place + number(order["attempt"]) + shape + number(len(order["cohort"]))
    return hashlib.sha256(whole + cohort).hexdigest()


def set_digest(place: dict[str, Any], sites: list[str], digests: list[bytes], topups: list[bytes]) -> str:
    label = "confide/mpc/topped-set/1" if topups else "confide/mpc/set/1"
    round_id = text(place["study"]) + text(place["run"]) + number(place["round"])
    columns = [list(map(text, column)) for column in (sites, digests, topups) if column]
    listed = b"".join(part for row in zip(*columns, strict=True) for part in row)
    return hashlib.sha256(text(label) + round_id + number(len(sites)) + listed).hexdigest()


def uniform(name: bytes) -> list[int]:
    """768 numbers modulo Q."""
    kept = [word for word in words(hashlib.shake_256(name).digest(2048), 2) if word < 19 * Q]
    return [word % Q for word in kept[:768]]


def base_mask(parties: list[int], index: int, choice: int, matrix: bytes, other: bytes) -> list[int]:
    label = text("confide/mpc/base-ot-mask/1") + number(parties[0]) + number(parties[1])
    return uniform(label + number(index) + number(choice) + text(matrix) + text(other))


def column_key(parties: list[int], index: int, choice: int, offer: bytes, ciphertext: bytes, shared: bytes) -> bytes:
    label = text("confide/mpc/base-ot/2") + number(parties[0]) + number(parties[1]) + number(index) + number(choice)
    return hashlib.sha256(label + text(offer) + text(ciphertext) + text(shared)).digest()[:16]


def base_transfers(parties: list[int]) -> dict[str, Any]:
    """Base transfers with fixed secrets; of their columns the first two whole."""
    choices, stream = 2 | secret("choices")[0] << 8, ctr(secret("base transfers"), 128 * (64 + 32))
    own = [stream[64 * i : 64 * (i + 1)] for i in range(128)]
    other = [stream[128 * 64 + 32 * i :][:32] for i in range(128)]
    offers, columns = [], []
    for index in range(128):
        choice, key = choices >> index & 1, ml_kem_public(own[index])
        vector, matrix = byte_decode(key[:1152], 12), key[1152:]
        random = byte_encode(uniform(text("confide/mpc/base-ot-other/1") + text(other[index])), 12)
        mask = base_mask(parties, index, choice, matrix, random)
        chosen = byte_encode([(x - m) % Q for x, m in zip(vector, mask, strict=True)], 12)
        strings = [random, chosen] if choice else [chosen, random]
        offers.append(b"".join(strings) + matrix)
        if index > 1:
            continue
        pair, ciphertexts, keys = [], [], []
        for which in (0, 1):
            mask = base_mask(parties, index, which, matrix, strings[1 - which])
            summed = [(x + m) % Q for x, m in zip(byte_decode(strings[which], 12), mask, strict=True)]
            pair.append(byte_encode(summed, 12) + matrix)
            shared, ciphertext = ml_kem_encapsulate(pair[which], secret(f"m {index} {which}"))
            ciphertexts.append(ciphertext)
            keys.append(column_key(parties, index, which, offers[index], ciphertext, shared))
        columns.append(
            {
                "offer": offers[index].hex(),
                "public_keys_sha256": [hashlib.sha256(one).hexdigest() for one in pair],
                "drawn": [secret(f"m {index} {which}").hex() for which in (0, 1)],
                "ciphertexts": [one.hex() for one in ciphertexts],
                "column_keys": [one.hex() for one in keys],
            }
        )
    return {
        "parties": parties,
        "choices": choices.to_bytes(16, "little").hex(),
        "secrets_key": secret("base transfers").hex(),
        "offers_sha256": hashlib.sha256(b"".join(offers)).hexdigest(),
        "columns": columns,
    }


def check_hash(challenge: bytes, column: bytes) -> bytes:
    """GHASH of the column as additional data, less that of as many zeros: what is linear in the column."""
    h = int.from_bytes(Aes(challenge).block(bytes(16)), "big")
    lengths = (8 * len(column)).to_bytes(8, "big") + bytes(8)
    return (ghash(h, column + lengths) ^ ghash(h, bytes(len(column)) + lengths)).to_bytes(16, "big")


def row_bits(columns: list[bytes], offset: int, parties: list[int]) -> bytes:
    """The lowest bit of the hash of each row, below 16,384 rows; `parties` are sender and receiver of the extension."""
    pi, rows, bits = Aes(hashlib.sha256(b"confide/mpc/ot-hash/1").digest()[:16]), 8 * len(columns[0]), []
    for row in range(rows):
        k, j = divmod(row, 128)
        x = sum((column[row // 8] >> row % 8 & 1) << i for i, column in enumerate(columns)) ^ offset
        tweak = (j * (rows // 128) + k).to_bytes(8, "little") + (1 + 3 * parties[0] + parties[1]).to_bytes(8, "little")
        once = pi.block(x.to_bytes(16, "little"))
        bits.append((pi.block(xor(once, tweak))[0] ^ once[0]) & 1)
    return sum(bit << i for i, bit in enumerate(bits)).to_bytes(rows // 8, "little")


def transfers(parties: list[int]) -> dict[str, Any]:
    """256 extended transfers and their check, and the part of AND triples that comes of them."""
    size, s = 32 + 16, int.from_bytes(secret("offset")[:16], "little")
    stream = ctr(secret("column keys"), 2 * 128 * 16)
    keys = [[stream[16 * (128 * which + i) :][:16] for i in range(128)] for which in (0, 1)]
    zeros, ones = ([ctr(key, size) for key in each] for each in keys)
    choices, challenge = (secret("a") + secret("hiding"))[:size], secret("challenge")[:16]
    corrections = [xor(xor(t0, t1), choices) for t0, t1 in zip(zeros, ones, strict=True)]
    received = [xor(ones[i], corrections[i]) if s >> i & 1 else zeros[i] for i in range(128)]
    proof = b"".join(check_hash(challenge, column) for column in (choices, *zeros))
    x_0, x_1 = (row_bits([column[:32] for column in received], offset, parties) for offset in (0, s))
    return {
        "parties": parties,
        "column_keys_key": secret("column keys").hex(),
        "sender_choices": s.to_bytes(16, "little").hex(),
        "choices": choices.hex(),
        "message_sha256": hashlib.sha256(b"".join(corrections)).hexdigest(),
        "first_columns": [column.hex() for column in corrections[:2]],
        "challenge": challenge.hex(),
        "proof": proof.hex(),
        "zeros": x_0.hex(),
        "ones": x_1.hex(),
        "chosen": row_bits([column[:32] for column in zeros], 0, parties).hex(),
        "b": secret("b").hex(),
        "triple_correction": xor(xor(x_0, x_1), secret("b")).hex(),
    }


def answers() -> dict[str, Any]:
    updates = []
    for place, case in enumerate([*CONTEXTS, HYBRID]):
        seeds = [secret(f"seed {place} {i}") for i in range(3)]
        update = update_of(case)
        expanded = [expand(case, seed, aggregator_id) for aggregator_id, seed in enumerate(seeds)]
        known = {"context": case, "context_bytes": context_bytes(case).hex(), "seeds": [seed.hex() for seed in seeds]}
        known |= {"streams": expanded, "update": update, "body_at": place % 3}
        suite = 2 if case is HYBRID else 1
        known |= {"body": body(case, update, seeds).hex()} | envelopes(case, seeds, place % 3, update, suite)
        updates.append(known)
    units = [0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 123_456_789]
    tagged = [{"key": secret("round").hex(), "units": units, "tags": tags(units, secret("round"), n)} for n in (1, 3)]
    totals = []
    for case in (CONTEXTS[1], CONTEXTS[4]):
        size = case["dim"] * case["ring_bits"] // 8 + 8 * case["tag_count"]
        shares = [ctr(secret(f"share {i}"), size) for i in range(3)]
        shape = {name: case[name] for name in ("dim", "ring_bits", "scale_bits", "tag_count")}
        totals.append(shape | {"shares": [share.hex() for share in shares], **total(case, shares)})
    sets = [{"sites": sites, "name": set_name(sites)} for sites in ([], ["b", "a"], ["svi", "thyroïde", "other"])]
    place = {"study": "s", "run": "r", "round": 3, "site": "thyroïde", "digest": secret("vector").hex()}
    keys = [secret(f"aggregator {i}") for i in range(3)]
    coins = [coin(key, place) for key in keys]
    seeds = {
        "place": place,
        "private_keys": [key.hex() for key in keys],
        "coins": [one.hex() for one in coins],
        "seed": joint_seed(coins).hex(),
    }
    sketches = [
        {
            "dim": dim,
            "ring_bits": bits,
            "rows": rows,
            "seed": joint_seed(coins).hex(),
            "vector": f"entry i, from 0 on: the top {bits} bits of (i + 1) * {MULTIPLIER} modulo 2^64",
            "vector_begins": spread(3, bits),
            "sketch": sketch(joint_seed(coins), spread(dim, bits), bits, rows),
        }
        for dim, bits, rows in ((9000, 32, 2), (8192, 64, 1))
    ]
    names, digests = ["svi", "thyroïde"], [secret("update 0"), secret("update 1")]
    order = {
        "study": "s", "run": "r", "round": 3, "state": STATE, "attempt": 2, "dim": 9, "ring_bits": 32, "scale_bits": 20,
        "rows": 256, "tag_count": 3, "norm_bound": 70_000, "topup_bound": 3_000, "min_sites": 2, "min_untopped": 3,
        "cohort": [["svi", ed25519_public(secret("svi")).hex()], ["thyroïde", ed25519_public(secret("site")).hex()]],
    }  # fmt: skip
    return {
        "updates": updates,
        "tags": tagged,
        "totals": totals,
        "sets": sets,
        "positions": [
            {"records": [record.hex() for record in POSITIONED[:count]], "digest": position(POSITIONED[:count]).hex()}
            for count in range(4)
        ],
        "seeds": seeds,
        "sketches": sketches,
        "orders": [order | {"digest": order_digest(order)}],
        "set_digests": [
            {
                "place": {name: place[name] for name in ("study", "run", "round")},
                "sites": names,
                "updates": [one.hex() for one in digests],
                "topups": [one.hex() for one in topups],
                "set_digest": set_digest(place, names, digests, topups),
            }
            for topups in ([], [secret("topup 0"), secret("topup 1")])
        ],
        "base_transfers": base_transfers([0, 1]),
        "transfers": transfers([1, 0]),
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("shares.json")
    path.write_text(json.dumps(answers(), indent=1, ensure_ascii=False) + "\n")
