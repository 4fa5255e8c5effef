"""Curve25519, v^2 = u^3 + 486662 u^2 + u modulo 2^255 - 19 (RFC 7748, section 4.1): what X25519 does not tell."""

P = 2**255 - 19
A = 486662


def on_curve(u: int) -> bool:
    """True if 0 <= `u` < P is the u-coordinate of a point of the curve, and not of its twist."""
    return is_square(u * (u * (u + A) + 1) % P)


def is_square(a: int) -> bool:
    """True if 0 <= `a` < P is a square modulo P, by the Jacobi symbol (Cohen 1993, section 1.4).

    Euler's criterion takes four times as long here, and would be most of what hashing an id to the curve costs. The
    time depends on `a`.
    """
    n, is_negative = P, False
    while a:
        twos = (a & -a).bit_length() - 1
        a >>= twos
        is_negative ^= bool(twos & 1) and n & 7 in (3, 5)
        is_negative ^= a & n & 3 == 3
        a, n = n % a, a
    return not is_negative
