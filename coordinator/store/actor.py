"""Names who acts: the operator whose token a command has shown, or else the account that runs the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ...client_node.login import login_name

SELF = "coordinator"  # what the server and its drivers do by themselves
MOST_LETTERS = 80

_ACTING: ContextVar[str | None] = ContextVar("acting", default=None)


def acting() -> str:
    """Names who acts, for the audit log: `operator:NAME`, or `login:NAME` where no operators are."""
    return _ACTING.get() or f"login:{login_name()}"[:MOST_LETTERS]


@contextmanager
def acting_as(operator: str | None) -> Iterator[None]:
    """Lets all actions inside be those of an operator; None leaves them to the account."""
    token = _ACTING.set(None if operator is None else f"operator:{operator}")
    try:
        yield
    finally:
        _ACTING.reset(token)
