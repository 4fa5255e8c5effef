"""Known answers that a program without any of the product's code has made, and that program against the standards."""

import dataclasses
import importlib
import json
import re
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from confide.mpc.crypten import base_transfers, oblivious_transfer
from confide.mpc.links.orders import OpenedTotal, Order
from confide.mpc.party.aggregation import _coin, _place, _set_digest
from confide.mpc.party.coins import _commitment, joint_seeds
from confide.mpc.party.shard import Opened, Summand
from confide.mpc.sharing import position, shares
from confide.mpc.sharing.ring import Ring, read_total
from confide.mpc.sharing.sealing import Envelope, check_update, open_envelope
from confide.mpc.sharing.shares import Share, ShareContext, expand, set_name, split, unpack
from confide.mpc.sharing.sketch import Sketch
from confide.mpc.sharing.tags import tags

FOLDER = Path(__file__).parent / "vectors"
KNOWN = json.loads((FOLDER / "shares.json").read_text())
UPDATES = pytest.mark.parametrize("known", KNOWN["updates"], ids=lambda known: known["context_bytes"][-8:])
h = bytes.fromhex


@pytest.fixture
def primitives(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("primitives")


def keystream(key, size):
    return Cipher(algorithms.AES(h(key)), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def integers(parts):
    return {name: getattr(parts, name).tolist() for name in ("vector", "masks", "mask_words", "tags")}


@UPDATES
def test_contexts_have_the_known_bytes(known):
    assert bytes(ShareContext(**known["context"])).hex() == known["context_bytes"]


@UPDATES
def test_seeds_stand_for_the_known_streams(known):
    context = ShareContext(**known["context"])
    for aggregator_id, (seed, stream) in enumerate(zip(known["seeds"], known["streams"], strict=True)):
        assert integers(expand(h(seed), context, aggregator_id)) == stream


@UPDATES
def test_updates_are_split_into_the_known_body(monkeypatch, known):
    context, update = ShareContext(**known["context"]), known["update"]
    draws = iter([*map(h, known["seeds"]), np.array(update["masks"], context.ring.unsigned).tobytes()])
    monkeypatch.setattr(shares, "token_bytes", lambda size: next(draws))
    parts = split(np.array(update["vector"], context.ring.unsigned), context, known["body_at"], update["tags"])
    assert [part.seed.hex() for part in parts] == known["seeds"]
    assert bytes(parts[known["body_at"]].body).hex() == known["body"]


@UPDATES
def test_the_body_and_its_seed_are_unpacked_to_the_known_share(known):
    context, at = ShareContext(**known["context"]), known["body_at"]
    share = integers(unpack(Share(at, h(known["seeds"][at]), h(known["body"])), context))
    rest = [stream for i, stream in enumerate(known["streams"]) if i != at]
    for part, bits in (("vector", context.ring_bits), ("masks", context.ring_bits), ("tags", 64)):
        columns = zip(share[part], *(stream[part] for stream in rest), strict=True)
        assert [sum(column) % 2**bits for column in columns] == known["update"][part]
    words = zip(share["mask_words"], *(stream["mask_words"] for stream in rest), strict=True)
    assert [a ^ b ^ c for a, b, c in words] == known["update"]["mask_words"]


@UPDATES
def test_known_envelopes_open_to_the_known_seeds(known):
    context, identity = ShareContext(**known["context"]), h(known["identity"])
    check_update([h(one) for one in known["envelopes"]], context, identity)
    for aggregator_id, (data, key) in enumerate(zip(known["envelopes"], known["private_keys"], strict=True)):
        envelope = Envelope.from_bytes(h(data), context)
        share = open_envelope(envelope, context, aggregator_id, identity=identity, private_key=h(key))
        assert share.seed.hex() == known["seeds"][aggregator_id]
        assert bytes(share.body).hex() == (known["body"] if aggregator_id == known["body_at"] else "")


@pytest.mark.parametrize("known", KNOWN["positions"], ids=lambda known: str(len(known["records"])))
def test_records_have_the_known_position(known):
    assert [position.START, *position.digests(position.START, map(h, known["records"]))][-1].hex() == known["digest"]


@pytest.mark.parametrize("known", KNOWN["tags"])
def test_vectors_have_the_known_tags(known):
    assert tags(np.array(known["units"]), h(known["key"]), len(known["tags"])).tolist() == known["tags"]


@pytest.mark.parametrize("known", KNOWN["totals"])
def test_totals_are_read_as_known(known):
    """A share of a total is the vector's ring elements, which the parties open to each other, then words of tags."""
    ring, end = Ring(known["ring_bits"], known["scale_bits"]), known["dim"] * known["ring_bits"] // 8
    shares = [h(share) for share in known["shares"]]
    words = sum(np.frombuffer(share, ring.unsigned, known["dim"]) for share in shares).tobytes()
    assert words.hex() == known["opened"]
    opened = OpenedTotal(kept=("svi", "rest"), set_digest=bytes(32), total=words)
    assert opened.total_digest.hex() == known["digest"]
    total = read_total(words, [share[end:] for share in shares], ring, known["dim"], known["tag_count"])
    assert (total.units.tolist(), total.tags.tolist()) == (known["units"], known["tags"])


@pytest.mark.parametrize("known", KNOWN["sets"])
def test_sets_have_the_known_names(known):
    assert set_name(known["sites"]) == known["name"]


def test_coins_and_the_seed_that_comes_of_them_are_known():
    known, place = KNOWN["seeds"], KNOWN["seeds"]["place"]
    order = Order(**order_fields(KNOWN["orders"][0]), private_key=bytes(32))
    order = dataclasses.replace(order, **{name: place[name] for name in ("study", "run", "round")})
    named = _place(order, Summand(place["site"], is_topup=False), Opened({place["site"]: h(place["digest"])}, {}))
    coins = [_coin(dataclasses.replace(order, private_key=h(key)), named) for key in known["private_keys"]]
    assert [one.hex() for one in coins] == known["coins"]
    said = {"TOSS": [_commitment(i, one) for i, one in enumerate(coins)], "COIN": coins}
    links = SimpleNamespace(aggregator_id=0, all_gather=lambda step, data, limit: said[step])
    assert [seed.hex() for seed in joint_seeds(links, coins[:1])] == [known["seed"]]


@pytest.mark.parametrize("known", KNOWN["sketches"], ids=lambda known: f"{known['ring_bits']} bits")
def test_vectors_have_the_known_sketches(known):
    dim, bits = known["dim"], known["ring_bits"]
    multiplier = re.fullmatch(r".* top (\d+) bits of \(i \+ 1\) \* (\d+) modulo 2\^64", known["vector"])
    assert int(multiplier[1]) == bits
    vector = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(int(multiplier[2])) >> np.uint64(64 - bits)
    assert vector[:3].tolist() == known["vector_begins"]
    kind = np.uint32 if bits == 32 else np.uint64
    found = Sketch(h(known["seed"]), dim, bits, known["rows"]).sketch(vector.astype(kind))
    assert found.tolist() == known["sketch"]


def order_fields(known):
    cohort = tuple((name, identity) for name, identity in known["cohort"])
    return {name: value for name, value in known.items() if name != "digest"} | {"cohort": cohort}


@pytest.mark.parametrize("known", KNOWN["orders"])
def test_orders_have_the_known_digest(known):
    assert Order(**order_fields(known), private_key=bytes(32)).digest().hex() == known["digest"]


@pytest.mark.parametrize("known", KNOWN["set_digests"], ids=["updates", "with top-ups"])
def test_sets_of_sealed_bytes_have_the_known_digest(known):
    order = dataclasses.replace(Order(**order_fields(KNOWN["orders"][0]), private_key=bytes(32)), **known["place"])
    updates, topups = (
        {name: h(one) for name, one in zip(known["sites"], known[kind], strict=False)} for kind in ("updates", "topups")
    )
    assert _set_digest(order, tuple(known["sites"]), Opened(updates, topups)).hex() == known["set_digest"]


def test_base_transfers_from_known_secrets_have_the_known_transcript():
    known = KNOWN["base_transfers"]
    sender, receiver = known["parties"]
    stream = keystream(known["secrets_key"], 128 * (64 + 32))
    own, other = [
        tuple(stream[at : at + 128 * size][i * size : (i + 1) * size] for i in range(128))
        for at, size in ((0, 64), (128 * 64, 32))
    ]
    drawn = base_transfers.ReceiverSecrets(int.from_bytes(h(known["choices"]), "little"), own, other)
    base = base_transfers.BaseReceiver(sender, receiver, drawn)
    message = base.message()
    assert sha256(message).hexdigest() == known["offers_sha256"]
    columns = known["columns"]
    assert [message[2336 * i : 2336 * (i + 1)].hex() for i in range(2)] == [column["offer"] for column in columns]
    pairs = base_transfers.offered_keys((sender, receiver), [h(column["offer"]) for column in columns])
    for pair, column in zip(pairs, columns, strict=True):
        assert [sha256(key).hexdigest() for key in pair] == column["public_keys_sha256"]
    answer = b"".join(h(one) for column in columns for one in column["ciphertexts"])
    found = base.column_keys(answer.ljust(base_transfers.CIPHERTEXTS_BYTES, b"\0"))
    for index, column in enumerate(columns):
        assert found[index].hex() == column["column_keys"][drawn.choices >> index & 1]
    assert [drawn.choices >> index & 1 for index in range(2)] == [0, 1]


def test_extended_transfers_from_known_keys_have_the_known_transcript():
    known = KNOWN["transfers"]
    stream = keystream(known["column_keys_key"], 2 * 128 * 16)
    keys = [stream[16 * i : 16 * (i + 1)] for i in range(256)]
    s, choices = int.from_bytes(h(known["sender_choices"]), "little"), h(known["choices"])
    parties = tuple(known["parties"])
    receiver = oblivious_transfer.OtReceiver((keys[:128], keys[128:]), parties)
    sender = oblivious_transfer.OtSender([keys[128 * (s >> i & 1) + i] for i in range(128)], s, parties)
    message, chosen = receiver.extend(np.frombuffer(choices, np.uint8))
    assert sha256(message).hexdigest() == known["message_sha256"]
    assert [message[48 * i : 48 * (i + 1)].hex() for i in range(2)] == known["first_columns"]
    assert receiver.prove(h(known["challenge"])).hex() == known["proof"]
    sender.receive(message, len(choices))
    zeros, ones = sender.transfers(h(known["challenge"]), h(known["proof"]))
    found = {"zeros": zeros, "ones": ones, "chosen": chosen}
    found["triple_correction"] = zeros ^ ones ^ np.frombuffer(h(known["b"]), np.uint8)
    for name, packed in found.items():
        assert packed.tobytes().hex() == known[name]


@pytest.mark.slow
@pytest.mark.usefixtures("primitives")
def test_the_known_answers_are_those_of_the_program_beside_them():
    assert importlib.import_module("make").answers() == KNOWN


def test_aes_is_that_of_fips_197(primitives):
    plain = h("00112233445566778899aabbccddeeff")  # appendices C.1 and C.3
    assert primitives.Aes(bytes(range(16))).block(plain).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"
    assert primitives.Aes(bytes(range(32))).block(plain).hex() == "8ea2b7ca516745bfeafc49904b496089"


@pytest.mark.parametrize(
    ("key", "nonce", "plain", "aad", "sealed"),
    [
        ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        ("00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
        (
            "feffe9928665731c6d6a8f9467308308" * 2,
            "cafebabefacedbaddecaf888",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ],
    ids=["13", "14", "16"],
)
def test_gcm_is_that_of_its_proposal_to_nist(primitives, key, nonce, plain, aad, sealed):
    assert primitives.gcm_encrypt(h(key), h(nonce), h(plain), h(aad)).hex() == sealed


@pytest.mark.parametrize(
    ("salt", "info", "okm"),
    [
        (
            bytes(range(13)).hex(),
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        ("", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
    ids=["A.1", "A.3"],
)
def test_hkdf_is_that_of_rfc_5869(primitives, salt, info, okm):
    extracted = primitives.hkdf_extract(h(salt), b"\x0b" * 22)
    assert primitives.hkdf_expand(extracted, h(info), 42).hex() == okm


@pytest.mark.parametrize(
    ("scalar", "u", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        ("09" + "00" * 31, "09" + "00" * 31, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
    ],
)
def test_x25519_is_that_of_rfc_7748(primitives, scalar, u, product):
    assert primitives.x25519(h(scalar), h(u)).hex() == product


def test_ed25519_is_that_of_rfc_8032(primitives):
    seed = h("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")  # section 7.1, test 2
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert primitives.ed25519_public(seed).hex() == public
    assert Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex() == public
    assert primitives.ed25519_sign(seed, b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_hpke_is_that_of_rfc_9180(primitives):
    """Appendix A.1.1, which is of AES-128-GCM; the formats use AES-256-GCM."""
    encapsulated, sealed = primitives.hpke_seal(
        h("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736"),
        h("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d"),
        h("4f6465206f6e2061204772656369616e2055726e"),
        h("4265617574792069732074727574682c20747275746820626561757479"),
        key_bytes=16,
        aad=h("436f756e742d30"),
    )
    assert encapsulated.hex() == "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
    assert sealed.hex() == (
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )


def test_ml_kem_is_that_of_openssl(primitives):
    key = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64)))
    public = key.public_key().public_bytes_raw()
    assert primitives.ml_kem_public(bytes(range(64))) == public
    shared, ciphertext = primitives.ml_kem_encapsulate(public, bytes(range(32)))
    assert key.decapsulate(ciphertext) == shared
