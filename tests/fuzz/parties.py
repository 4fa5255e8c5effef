"""Bytes that aggregators read: envelopes of sites, messages of the other parties, their own journals."""

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from confide.mpc.errors import EnvelopeRejected, FrameRejected, InvalidField, JournalBroken, ShareMalformed, TotalForged
from confide.mpc.links.frames import Channel, config_from_wire, order_from_wire, unpack_message
from confide.mpc.links.journal import Binding, Journal, RoundId
from confide.mpc.links.positions import Positions
from confide.mpc.sharing import hpke, sealing
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import Ring, read_total
from confide.mpc.sharing.sealing import Envelope, check_update, open_envelope, seal_update
from confide.mpc.sharing.shares import ShareContext, unpack
from confide.mpc.sharing.tags import verify_total

from ..client_node.conftest import key_of
from .inputs import from_file, scratch
from .target import Target

_CONTEXT = ShareContext(
    study="s", run="r", round=1, state="ab" * 32, site="a", dim=16, ring_bits=64, scale_bits=24, rows=3, tag_count=2
)
_SIGNER = key_of("svi")
_IDENTITY = _SIGNER.public_key().public_bytes_raw()
_PLACE = Position(0, 7, bytes(range(32)))
_KEYS = [hpke.new_keypair() for _ in range(3)]


def _update() -> list[bytes]:
    envelopes = seal_update(
        np.arange(16, dtype="<u8"), _CONTEXT, [public for _, public in _KEYS], _SIGNER, 1, [5, 6], position=_PLACE
    )
    return [each.to_bytes() for each in envelopes]


_UPDATE = _update()


def _read_update(data: bytes) -> object:
    """What the relay and then the aggregator do with an envelope in the place where it stands or was."""
    party = max(range(3), key=lambda at: sum(a == b for a, b in zip(_UPDATE[at][:250], data, strict=False)))
    check_update([data if at == party else _UPDATE[at] for at in range(3)], _CONTEXT, _IDENTITY)
    envelope = Envelope.from_bytes(data, _CONTEXT)
    return unpack(open_envelope(envelope, _CONTEXT, party, identity=_IDENTITY, private_key=_KEYS[party][0]), _CONTEXT)


def _read_signed_update(data: bytes) -> object:
    """Signs whatever envelope it is anew, as a site that lies would, and opens it at its aggregator."""
    envelope = Envelope.from_bytes(data, _CONTEXT)
    digests = (envelope.digest(),) * 3
    signature = _SIGNER.sign(sealing._statement(_CONTEXT, digests, envelope.position))
    lied = replace(envelope, digests=digests, signature=signature)
    return unpack(open_envelope(lied, _CONTEXT, 1, identity=_IDENTITY, private_key=_KEYS[1][0]), _CONTEXT)


def _received(data: bytes) -> object:
    """Reads a frame from a socket, as it comes from another party or a worker, in one piece and then the end."""
    ours, theirs = socket.socketpair()
    end = Channel(theirs)
    try:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            ours.send(data)
        ours.close()
        return end.receive(array_bytes=1 << 20)
    finally:
        end.close()


def _frames() -> list[bytes]:
    message = msgpack.packb({"kind": "sums", "value": 1, "arrays": {"a": ["<f4", 2, 3]}})
    arrays = np.arange(6, dtype="<f4").tobytes()
    return [len(message).to_bytes(8, "big") + message + len(arrays).to_bytes(8, "big") + arrays]


_ORDER: dict[str, Any] = {
    "study": "s", "run": "r", "round": 1, "state": "ab" * 32, "attempt": 0,
    "cohort": [["a", "cd" * 32], ["b", "ef" * 32]], "dim": 16, "ring_bits": 64, "scale_bits": 24, "min_sites": 2,
    "min_untopped": 2, "rows": 0, "norm_bound": 0, "topup_bound": 0, "tag_count": 2, "private_key": _KEYS[0][0],
    "timeout_s": 9.0,
}  # fmt: skip
_CONFIG: dict[str, Any] = {
    "aggregator_id": 0, "addresses": ["127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"],
    "certificate": "party.pem", "key": "party.key", "pins": ["a", "b", "c"], "journal": "journal", "timeout_s": 9.0,
    "listen": "0.0.0.0:9001", "shards": 2,
}  # fmt: skip


def _packed(value: dict[str, Any]) -> Callable[[], list[bytes]]:
    return lambda: [msgpack.packb(value)]


def _read_packed(read: Callable[[dict[str, Any]], object]) -> Callable[[bytes], object]:
    return lambda data: read(unpack_message(data))


def _journal() -> list[bytes]:
    path = scratch("journal") / "made"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.bind(RoundId("s", "r", 3), Binding(b"\1" * 32, ("a", "b")))
    journal.bind_total(RoundId("s", "r", 3), b"\2" * 32)
    journal.tie_to_seeds({b"\3" * 32: b"\4" * 32})
    journal.begin_checks({b"\3" * 32: b"\5" * 32})
    journal.close()
    return [path.read_bytes()]


def _positions() -> list[bytes]:
    path = scratch("positions") / "made"
    path.unlink(missing_ok=True)
    positions = Positions(path)
    positions.accept({"ab" * 32: _PLACE, "cd" * 32: Position(1, 9, b"\7" * 32)})
    positions.close()
    return [path.read_bytes()]


def _opened(make: Callable[[Path], Any]) -> Callable[[Path], object]:
    return lambda path: make(path).close()


_RING = Ring(32, 20)
_TAG_KEY = bytes(range(32))


def _totals() -> list[bytes]:
    """A total of four elements, and three shares of its two tags."""
    return [bytes(4 * 4 + 3 * 2 * 8)]


def _read_total(data: bytes) -> object:
    words, tags = data[:16], [data[at : at + 16] for at in range(16, max(len(data), 64), 16)]
    total = read_total(words, tags, _RING, 4, 2)
    with contextlib.suppress(*_FORGED):
        verify_total(total.units, total.tags, _TAG_KEY, 2**30)
    return total


_FORGED = (TotalForged, InvalidField)
TARGETS = (
    Target(
        name="envelope",
        sender="an enrolled site",
        made=lambda: _UPDATE,
        read=_read_update,
        refusals=(EnvelopeRejected, ShareMalformed, InvalidField),
    ),
    Target(
        name="envelope, signed by a liar",
        sender="an enrolled site",
        made=lambda: [_UPDATE[1]],
        read=_read_signed_update,
        refusals=(EnvelopeRejected, ShareMalformed, InvalidField),
    ),
    Target(
        name="frame of a party or worker",
        sender="another party",
        made=_frames,
        read=_received,
        refusals=(FrameRejected, EOFError),
    ),
    Target(
        name="order",
        sender="a party's own daemon",
        made=_packed(_ORDER),
        read=_read_packed(order_from_wire),
        refusals=(FrameRejected, InvalidField),
    ),
    Target(
        name="configuration of a party",
        sender="a party's own daemon",
        made=_packed(_CONFIG),
        read=_read_packed(config_from_wire),
        refusals=(FrameRejected, InvalidField),
    ),
    Target(
        name="journal of a party",
        sender="the disk",
        made=_journal,
        read=from_file("journal", _opened(Journal)),
        refusals=(JournalBroken,),
    ),
    Target(
        name="positions of ledgers",
        sender="the disk",
        made=_positions,
        read=from_file("positions", _opened(Positions)),
        refusals=(JournalBroken,),
    ),
    Target(
        name="total", sender="the aggregators", made=_totals, read=_read_total, refusals=(ShareMalformed, InvalidField)
    ),
)
