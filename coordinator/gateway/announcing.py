"""Tells nodes which CAs they are to trust, and by which key they know the coordinator.

A digest goes with every answer, and the signed list to whoever asks for it.
"""

import logging
from collections.abc import Callable

from cryptography import x509

from ...client_node.authority import Statement, digest, mark
from ...client_node.enrolment.protocol import AuthorityQuery
from ...client_node.files import stamp
from ..errors import CoordinatorError
from ..federation import Pki

logger = logging.getLogger(__name__)

Note = Callable[[AuthorityQuery, tuple[str, ...]], None]


class Announcer:
    """The CAs that nodes are to trust, as they are in the home; commands change them while a server runs.

    Args:
        note: is told which CAs a node says that it trusts, and by which key it knows the coordinator; and which CAs are
            wanted. Raises `EnrolmentInvalid`.
    """

    def __init__(self, pki: Pki, note: Note) -> None:
        self._pki, self._note = pki, note
        self._seen = self._state()
        try:
            self._read(self._seen)
        except (CoordinatorError, OSError) as err:
            self._read(self._seen, with_next=False)  # what is wrong with the next CA keeps no server from starting
            logger.error("nodes are told of the present CA alone: %s", err)

    def look(self) -> bool:
        """Reads the list anew if its files have changed; returns True if it has. What is damaged changes nothing."""
        state = self._state()
        if state == self._seen:
            return False
        before = self.mark
        try:
            self._read(state)
        except (CoordinatorError, OSError) as err:
            self._seen = state  # looked at again when it changes
            logger.error("nodes are told of the CA as before: %s", err)
        return self.mark != before

    def answer(self, query: AuthorityQuery) -> bytes:
        """Notes what a node trusts, and answers it with the signed list."""
        self._note(query, self._digests)
        signing = self._pki.signing.now
        return Statement.issue(self._certificates, signing.key, signing.successions).model_dump_json().encode()

    @property
    def present(self) -> bytes:
        """The certificate of the CA that vouches for the gate now, PEM."""
        return self._certificates[0]

    def _read(self, state: object, *, with_next: bool = True) -> None:
        certificates = self._pki.authorities(with_next=with_next)
        digests = tuple(digest(x509.load_pem_x509_certificate(each)) for each in certificates)
        self._certificates, self._digests, self._seen = certificates, digests, state
        self.mark = mark(digests, self._pki.signing.now.all)

    def _state(self) -> object:
        names = ("ca.crt", "ca.next.crt", "ca.next.key", "server.next.key")
        return [self._pki.signing.now.state, *(stamp(self._pki.folder / name) for name in names)]
