"""The tone in which a state is shown: a word of the style, beside the state's own word."""

from collections.abc import Mapping

_TONES: Mapping[str, str] = {
    "pending": "busy", "running": "busy", "stopping": "busy", "abandoning": "busy",
    "done": "good", "enrolled": "good", "valid": "good", "online": "good", "well": "good",
    "stopped": "warn", "invited": "warn", "expired": "warn", "left": "", "revoked": "", "abandoned": "",
    "failed": "bad", "away": "",
}  # fmt: skip


def tone(state: object) -> str:
    """Returns the style's word for a state: good, busy, warn or bad; "" for none."""
    return _TONES.get(str(state), "")
