import secrets

from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.sharing.curve25519 import P, is_square, on_curve


@given(st.integers(0, P - 1))
def test_squares_are_those_of_eulers_criterion(number):
    assert is_square(number) == (pow(number, (P - 1) // 2, P) <= 1)
    assert is_square(number * number % P)


def test_on_curve_says_whether_the_equation_has_a_solution():
    """v by the formula for p = 5 mod 8 (RFC 8032, section 5.1.3), then the equation itself."""
    for u in [0, 1, 2, 9, P - 1, *(secrets.randbelow(P) for _ in range(50))]:
        square = (u**3 + 486662 * u**2 + u) % P
        root = pow(square, (P + 3) // 8, P)
        roots = {root, root * pow(2, (P - 1) // 4, P) % P}
        assert on_curve(u) == any(v * v % P == square for v in roots)
