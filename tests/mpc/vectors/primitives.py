"""What the formats are built of, written down from the standards in plain Python: slow, for known answers only.

AES (FIPS 197), GCM (NIST SP 800-38D), CTR (SP 800-38A), HKDF-SHA256 (RFC 5869), X25519 (RFC 7748), Ed25519 signatures
(RFC 8032), ML-KEM-768 (FIPS 203), X-Wing (draft-connolly-cfrg-xwing-kem) and HPKE's base mode (RFC 9180) with either
key encapsulation. SHA-2, SHA-3 and HMAC are Python's own. Nothing here is constant-time.
"""

import hashlib
import hmac

P = 2**255 - 19


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=False))


def _times(a: int, b: int) -> int:
    """The product in AES's field, GF(2)[x] modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def _s_box() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((x for x in range(256) if _times(value, x) == 1), 0)
        turned = [(inverse << k | inverse >> (8 - k)) & 255 for k in range(5)]
        box.append(turned[0] ^ turned[1] ^ turned[2] ^ turned[3] ^ turned[4] ^ 0x63)
    return box


S_BOX = _s_box()
DOUBLE = [_times(2, value) for value in range(256)]


class Aes:
    """One key of 128 or 256 bits."""

    def __init__(self, key: bytes) -> None:
        words, count, rcon = [list(key[i : i + 4]) for i in range(0, len(key), 4)], len(key) // 4, 1
        self.rounds = count + 6
        for i in range(count, 4 * (self.rounds + 1)):
            word = list(words[-1])
            if i % count == 0:
                word = [S_BOX[value] for value in word[1:] + word[:1]]
                word[0] ^= rcon
                rcon = _times(2, rcon)
            elif count == 8 and i % 8 == 4:
                word = [S_BOX[value] for value in word]
            words.append([x ^ y for x, y in zip(word, words[i - count], strict=True)])
        flat = [value for word in words for value in word]
        self.keys = [flat[i : i + 16] for i in range(0, len(flat), 16)]

    def block(self, block: bytes) -> bytes:
        state = [x ^ y for x, y in zip(block, self.keys[0], strict=True)]
        for number in range(1, self.rounds + 1):
            state = [S_BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # SubBytes, ShiftRows
            if number < self.rounds:
                mixed = []
                for column in range(0, 16, 4):
                    a = state[column : column + 4]
                    whole = a[0] ^ a[1] ^ a[2] ^ a[3]
                    mixed += [a[i] ^ whole ^ DOUBLE[a[i] ^ a[(i + 1) % 4]] for i in range(4)]
                state = mixed
            state = [x ^ y for x, y in zip(state, self.keys[number], strict=True)]
        return bytes(state)


def ctr(key: bytes, size: int) -> bytes:
    """The keystream of a counter of 128 bits that begins at 0."""
    aes = Aes(key)
    return b"".join(aes.block(i.to_bytes(16, "big")) for i in range(-(-size // 16)))[:size]


def ghash(h: int, data: bytes) -> int:
    """GHASH of whole blocks (SP 800-38D, section 6.4)."""
    y = 0
    for start in range(0, len(data), 16):
        y ^= int.from_bytes(data[start : start + 16], "big")
        z, v = 0, h
        for bit in range(127, -1, -1):
            if y >> bit & 1:
                z ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        y = z
    return y


def gcm_encrypt(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes = b"") -> bytes:
    """Ciphertext and tag, for a nonce of 12 bytes."""
    aes = Aes(key)
    blocks = range(2, 2 + -(-len(plaintext) // 16))
    ciphertext = xor(plaintext, b"".join(aes.block(nonce + i.to_bytes(4, "big")) for i in blocks))
    padded = b"".join(part + bytes(-len(part) % 16) for part in (aad, ciphertext))
    lengths = (8 * len(aad)).to_bytes(8, "big") + (8 * len(ciphertext)).to_bytes(8, "big")
    digest = ghash(int.from_bytes(aes.block(bytes(16)), "big"), padded + lengths)
    return ciphertext + xor(digest.to_bytes(16, "big"), aes.block(nonce + b"\0\0\0\1"))


def hkdf_extract(salt: bytes, key: bytes) -> bytes:
    return hmac.new(salt or bytes(32), key, hashlib.sha256).digest()


def hkdf_expand(extracted: bytes, info: bytes, size: int) -> bytes:
    out, last = b"", b""
    while len(out) < size:
        last = hmac.new(extracted, last + info + bytes([len(out) // 32 + 1]), hashlib.sha256).digest()
        out += last
    return out[:size]


def x25519(scalar: bytes, u: bytes = (9).to_bytes(32, "little")) -> bytes:
    """The Montgomery ladder of RFC 7748, section 5."""
    k = (int.from_bytes(scalar, "little") & ((1 << 254) - 8)) | 1 << 254
    x1 = int.from_bytes(u, "little") % 2**255 % P
    x2, z2, x3, z3, swapped = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if bit ^ swapped:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


D = -121665 * pow(121666, P - 2, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493
_Y = 4 * pow(5, P - 2, P) % P
_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
Point = tuple[int, int]


def _add(p: Point, q: Point) -> Point:
    """The sum of two points of Ed25519, affine: x^2 and y^2 as in RFC 8032, section 5.1."""
    (x1, y1), (x2, y2) = p, q
    product = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P)
    return x % P, y % P


def _times_base(scalar: int) -> bytes:
    """The encoded multiple of the base point."""
    total, power = (0, 1), (_X, _Y)
    while scalar:
        if scalar & 1:
            total = _add(total, power)
        power, scalar = _add(power, power), scalar >> 1
    return (total[1] | (total[0] & 1) << 255).to_bytes(32, "little")


def _ed25519_secret(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    return (int.from_bytes(digest[:32], "little") & ((1 << 254) - 8)) | 1 << 254, digest[32:]


def ed25519_public(seed: bytes) -> bytes:
    return _times_base(_ed25519_secret(seed)[0])


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    secret, prefix = _ed25519_secret(seed)
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % ORDER
    point = _times_base(nonce)
    challenge = hashlib.sha512(point + _times_base(secret) + message).digest()
    s = (nonce + int.from_bytes(challenge, "little") * secret) % ORDER
    return point + s.to_bytes(32, "little")


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + key)


def _labeled_expand(suite: bytes, extracted: bytes, label: bytes, info: bytes, size: int) -> bytes:
    return hkdf_expand(extracted, size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, size)


def hpke_seal(
    ephemeral: bytes, recipient: bytes, info: bytes, plaintext: bytes, *, key_bytes: int = 32, aad: bytes = b""
) -> tuple[bytes, bytes]:
    """Encapsulated key and ciphertext of base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-GCM.

    Args:
        ephemeral: the sender's one-time secret key, which RFC 9180 derives from randomness.
        key_bytes: 16 for AES-128-GCM, 32 for AES-256-GCM.
    """
    encapsulated, kem = x25519(ephemeral), b"KEM\0\x20"
    secret = _labeled_extract(kem, b"", b"eae_prk", x25519(ephemeral, recipient))
    shared = _labeled_expand(kem, secret, b"shared_secret", encapsulated + recipient, 32)
    suite = b"HPKE\0\x20\0\1\0" + {16: b"\1", 32: b"\2"}[key_bytes]
    return encapsulated, _seal(suite, shared, info, plaintext, key_bytes, aad)


def hpke_seal_hybrid(
    drawn: bytes, ephemeral: bytes, recipient: bytes, info: bytes, plaintext: bytes
) -> tuple[bytes, bytes]:
    """Encapsulated key and ciphertext of base mode: X-Wing, HKDF-SHA256, AES-256-GCM.

    Args:
        drawn: the 32 random bytes of ML-KEM.
        ephemeral: the one-time secret key of X25519.
        recipient: the public keys of ML-KEM-768 and of X25519, one after the other.
    """
    lattice, curve = recipient[:1184], recipient[1184:]
    of_lattice, ciphertext = ml_kem_encapsulate(lattice, drawn)
    of_curve, point = x25519(ephemeral, curve), x25519(ephemeral)
    shared = hashlib.sha3_256(of_lattice + of_curve + point + curve + b"\\./" + b"/^\\").digest()
    return ciphertext + point, _seal(b"HPKE\x64\x7a\0\1\0\2", shared, info, plaintext, 32, b"")


def _seal(suite: bytes, shared: bytes, info: bytes, plaintext: bytes, key_bytes: int, aad: bytes) -> bytes:
    """The key schedule of base mode and one message."""
    context = (
        b"\0" + _labeled_extract(suite, b"", b"psk_id_hash", b"") + _labeled_extract(suite, b"", b"info_hash", info)
    )
    extracted = _labeled_extract(suite, shared, b"secret", b"")
    key = _labeled_expand(suite, extracted, b"key", context, key_bytes)
    nonce = _labeled_expand(suite, extracted, b"base_nonce", context, 12)
    return gcm_encrypt(key, nonce, plaintext, aad)


Q = 3329
Polynomial = list[int]


def _reversed_bits(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


ZETAS = [pow(17, _reversed_bits(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _reversed_bits(i) + 1, Q) for i in range(128)]


def _ntt(f: Polynomial) -> Polynomial:
    """FIPS 203, algorithm 9."""
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, 256, 2 * length):
            zeta, i = ZETAS[i], i + 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
        length //= 2
    return f


def _inverse_ntt(f: Polynomial) -> Polynomial:
    """Algorithm 10."""
    f, i, length = list(f), 127, 2
    while length <= 128:
        for start in range(0, 256, 2 * length):
            zeta, i = ZETAS[i], i - 1
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, zeta * (f[j + length] - t) % Q
        length *= 2
    return [x * 3303 % Q for x in f]


def _dot(f: list[Polynomial], g: list[Polynomial]) -> Polynomial:
    """The sum of products in the transformed ring, algorithms 11 and 12."""
    out = [0] * 256
    for a, b in zip(f, g, strict=True):
        for i in range(128):
            a0, a1, b0, b1 = a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1]
            out[2 * i] = (out[2 * i] + a0 * b0 + a1 * b1 * GAMMAS[i]) % Q
            out[2 * i + 1] = (out[2 * i + 1] + a0 * b1 + a1 * b0) % Q
    return out


def _plus(f: Polynomial, g: Polynomial) -> Polynomial:
    return [(a + b) % Q for a, b in zip(f, g, strict=True)]


def _sample_ntt(seed: bytes) -> Polynomial:
    """Algorithm 7."""
    stream, out, at = hashlib.shake_128(seed).digest(3 * 512), [], 0
    while len(out) < 256:
        a, b, c = stream[at : at + 3]
        at += 3
        out += [d for d in (a + 256 * (b % 16), b // 16 + 16 * c) if d < Q]
    return out[:256]


def _noise(seed: bytes, number: int) -> Polynomial:
    """Algorithm 8 with eta = 2."""
    bits = int.from_bytes(hashlib.shake_256(seed + bytes([number])).digest(128), "little")
    halves = [(bits >> 2 * i & 3).bit_count() for i in range(512)]
    return [(halves[2 * i] - halves[2 * i + 1]) % Q for i in range(256)]


def byte_encode(f: Polynomial, d: int) -> bytes:
    """Algorithm 5."""
    return sum(x << d * i for i, x in enumerate(f)).to_bytes(len(f) * d // 8, "little")


def byte_decode(data: bytes, d: int) -> Polynomial:
    """Algorithm 6, without the reduction modulo Q."""
    whole = int.from_bytes(data, "little")
    return [whole >> d * i & 2**d - 1 for i in range(8 * len(data) // d)]


def _compress(f: Polynomial, d: int) -> Polynomial:
    return [((x << d + 1) + Q) // (2 * Q) % 2**d for x in f]


def _matrix(seed: bytes) -> list[list[Polynomial]]:
    return [[_sample_ntt(seed + bytes([j, i])) for j in range(3)] for i in range(3)]


def ml_kem_public(seed: bytes) -> bytes:
    """The public key of the 64-byte seed d || z (algorithms 13 and 16)."""
    drawn = hashlib.sha3_512(seed[:32] + b"\3").digest()
    rho, sigma = drawn[:32], drawn[32:]
    secret = [_ntt(_noise(sigma, i)) for i in range(3)]
    error = [_ntt(_noise(sigma, 3 + i)) for i in range(3)]
    rows = [_plus(_dot(row, secret), e) for row, e in zip(_matrix(rho), error, strict=True)]
    return b"".join(byte_encode(row, 12) for row in rows) + rho


def ml_kem_encapsulate(public: bytes, drawn: bytes) -> tuple[bytes, bytes]:
    """Shared secret and ciphertext for 32 random bytes (algorithms 14 and 17)."""
    hashed = hashlib.sha3_512(drawn + hashlib.sha3_256(public).digest()).digest()
    shared, coins = hashed[:32], hashed[32:]
    vector = [byte_decode(public[384 * i : 384 * (i + 1)], 12) for i in range(3)]
    matrix = _matrix(public[1152:])
    y = [_ntt(_noise(coins, i)) for i in range(3)]
    u = [_plus(_inverse_ntt(_dot([row[i] for row in matrix], y)), _noise(coins, 3 + i)) for i in range(3)]
    message = [(Q + 1) // 2 * bit for bit in byte_decode(drawn, 1)]
    v = _plus(_plus(_inverse_ntt(_dot(vector, y)), _noise(coins, 6)), message)
    return shared, b"".join(byte_encode(_compress(f, 10), 10) for f in u) + byte_encode(_compress(v, 4), 4)
