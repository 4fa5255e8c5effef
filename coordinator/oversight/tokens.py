"""Recognises operators by the tokens that they send, for whatever listens: one at a time, and wrong ones bounded.

A token that was verified is known by its SHA-256 digest, in memory alone, and its operator's row is looked at each
time: a token that was renewed, has expired or was revoked opens nothing from then on.
"""

import hashlib
import threading
from collections import OrderedDict

from ...client_node.web.entering import Attempts
from ..errors import AccessRefused, AttemptsExceeded
from ..store import Store
from . import access
from .operators import Operator

_AT_ONCE_S = 10.0  # argon2id takes 64 MiB, so one token is looked at at a time
_MOST_KNOWN = 1000


class Tokens:
    """The tokens that one server has seen. Methods may be called from any thread."""

    def __init__(self, store: Store, attempts: Attempts | None = None) -> None:
        self._store, self._attempts = store, attempts or Attempts()
        self._known: OrderedDict[bytes, tuple[str, str]] = OrderedDict()  # digests, the one used last at the end
        self._mutex, self._one = threading.Lock(), threading.Lock()

    def recognise(self, token: str, *, command: str) -> Operator:
        """Returns the operator whose valid token it is.

        Raises:
            AttemptsExceeded: too many were wrong of late, so this one was not looked at.
            AccessRefused: as `access.recognise`.
        """
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        with self._mutex:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
        if known is not None:
            try:
                operator = access.still(self._store, *known, command=command)
            except AccessRefused:
                self._forget(digest)
                raise
            assert operator is not None, "a name is of an operator"
            return operator
        operator = self._verified(token, command)
        with self._mutex:
            self._known[digest] = operator.name, operator.token_hash
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return operator

    def _verified(self, token: str, command: str) -> Operator:
        self._require_few_failures()
        if not self._one.acquire(timeout=_AT_ONCE_S):
            raise AttemptsExceeded(5.0)
        try:
            self._require_few_failures()
            try:
                return access.recognise(self._store, token, command=command)
            except AccessRefused:
                self._attempts.note_failure()
                raise
        finally:
            self._one.release()

    def _require_few_failures(self) -> None:
        if wait_s := self._attempts.wait_s():
            raise AttemptsExceeded(wait_s)

    def _forget(self, digest: bytes) -> None:
        with self._mutex:
            self._known.pop(digest, None)
