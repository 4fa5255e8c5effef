"""Random bytes that no party could choose: one coin of each is enough to make the joint one uniform.

All commit before any opens (Blum, CRYPTO 1981), with SHA-256 as a random oracle: a coin has 256 bits that the others do
not know, so its commitment hides it. A party can still stop when it has seen the others' coins; the order then fails.
"""

from collections.abc import Sequence
from hashlib import sha256

from ..errors import CommitmentBroken, PartyLost
from ..fields import canonical, octets
from ..links.tls import Links

COIN_BYTES = 32


def joint_seeds(links: Links, coins: Sequence[bytes]) -> list[bytes]:
    """One public 32-byte seed for each of this party's `coins`, from the coins of all three; the same at all parties.

    Args:
        coins: 32 bytes each that only this party knows; every party has equally many. Equal coins give equal seeds, so
            a party derives them from what the seed is for.

    Raises:
        CommitmentBroken: a party opened something else than it committed to; all honest parties raise it.
        PartyLost: another party is gone, silent or has another number of coins.
    """
    mine = b"".join(octets("coin", coin, COIN_BYTES) for coin in coins)
    commitment = _commitment(links.aggregator_id, mine)
    commitments = links.all_gather("TOSS", commitment, len(commitment))
    opened = links.all_gather("COIN", mine, len(mine))
    if any(len(data) != len(mine) for data in opened):
        raise PartyLost("another party is out of step")
    for party, (data, committed) in enumerate(zip(opened, commitments, strict=True)):
        if _commitment(party, data) != committed:
            raise CommitmentBroken(f"aggregator {party} opened other coins than it had committed to")
    return [
        sha256(canonical("confide/mpc/joint-seed/1", *(data[at : at + COIN_BYTES] for data in opened))).digest()
        for at in range(0, len(mine), COIN_BYTES)
    ]


def _commitment(aggregator_id: int, coins: bytes) -> bytes:
    """Names its party, so that a party cannot repeat another's commitment and then its coins."""
    return sha256(canonical("confide/mpc/coins/1", aggregator_id, coins)).digest()
