"""Frames of one body: a message's head and its parts, which otherwise are a request each.

Every frame is its length, four bytes with the highest first, and its bytes. Which part a frame is follows from its
SHA-256, by which Flower names it.
"""

from collections.abc import Iterable

TAKE, GIVE = "take", "give"  # the calls below `CALLS` by which a node takes a question and gives its answer
CALLS = "/confide/v1/fleet/"
ROOM = 6 << 20  # bytes of a message's parts in one body; those beyond it travel alone, each at most 5 MiB
HEAD = 256 << 10  # bytes for the first frame, which tells what the message is
MOST = 256  # parts of a message
_LENGTH = 4
MAX_BODY = ROOM + HEAD + (MOST + 1) * _LENGTH


def join(frames: Iterable[bytes]) -> bytes:
    """Writes frames as one body."""
    return b"".join(piece for frame in frames for piece in (len(frame).to_bytes(_LENGTH, "big"), frame))


def split(body: bytes, most: int = MOST + 1) -> list[bytes]:
    """Reads the frames of a body. Raises ValueError unless they fill it, and are `most` or fewer."""
    frames, at = list[bytes](), 0
    while at < len(body):
        end = at + _LENGTH + int.from_bytes(body[at : at + _LENGTH], "big")
        if at + _LENGTH > len(body) or end > len(body) or len(frames) == most:
            raise ValueError(f"not a body of at most {most} frames")
        frames.append(body[at + _LENGTH : end])
        at = end
    return frames


def fitting(parts: Iterable[bytes], room: int = ROOM, most: int = MOST) -> list[bytes]:
    """Selects the parts that travel in one body: each that still fits when its turn comes."""
    taken = list[bytes]()
    for part in parts:
        if len(part) <= room and len(taken) < most:
            taken.append(part)
            room -= len(part)
    return taken
