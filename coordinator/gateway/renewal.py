"""Keeps the gate's certificate valid while `coordinator serve` runs."""

import datetime as dt
import logging
import time
from collections.abc import Callable

from cryptography import x509

from ...client_node.errors import ClientNodeError
from ...client_node.files import stamp
from ..errors import CoordinatorError
from ..federation import Pki
from .listener import GateServer

logger = logging.getLogger(__name__)

EVERY_S = 24 * 3600.0


class CertificateKeeper:
    """Renews the gate's certificate when it is due, and warns once a day of one that is about to end."""

    def __init__(self, pki: Pki, noted: Callable[[dt.datetime], object] = lambda _: None) -> None:
        """Renews at once, if need be: the gate that is opened next shows a valid certificate.

        Args:
            noted: is told the end of each renewed certificate.
        """
        self._pki, self._noted = pki, noted
        self._next = 0.0
        self._seen: object = None  # stamp of the certificate's file, when it was looked at
        self._shown = b""  # the certificate that the gate shows
        self.check()
        self._shown = pki.certificate_path.read_bytes()

    def check(self, gate: GateServer | None = None) -> None:
        """Looks once a day, and when a command has changed it, and gives `gate` a renewed certificate.

        Connections that are open stay open. A renewal that fails is a line in the log: the certificate holds for weeks
        then, and the next try is tomorrow.
        """
        state = stamp(self._pki.certificate_path)
        if time.monotonic() < self._next and state == self._seen:
            return
        self._seen, self._next = state, time.monotonic() + EVERY_S
        try:
            if self._pki.renew_if_due():
                self._seen = stamp(self._pki.certificate_path)
                logger.info("the server certificate was renewed")
                self._noted(self._pki.certificate_ends)
            found = self._pki.certificate_path.read_bytes()
            if gate is not None and found != self._shown:  # renewed now, by a command, or by a try that failed then
                gate.show(self._pki.certificate_path, self._pki.key_path)
                self._shown = found
            for line in self._pki.warnings():
                logger.warning("%s", line)
        except (CoordinatorError, ClientNodeError, OSError, x509.ExtensionNotFound) as err:
            logger.error("the server certificate cannot be renewed: %s", err)
