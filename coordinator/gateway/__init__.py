"""The federation's public port: listener, gate, enrolment, and the SuperLink behind it.

`Service` is `coordinator serve`, and `stand_by` what that does while another server leads, by its `Seat`. A service
opens the gate, keeps Flower's SuperLink alive as a child on loopback, and starts a driver for every unfinished run.
`gate` admits or refuses each request.

A service needs a federation's home; without one, the error names the first step:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.gateway import Seat, Service
>>> with TemporaryDirectory() as home, Seat.at(Path(home)) as seat:
...     Service(Path(home), seat)
Traceback (most recent call last):
confide.coordinator.errors.NotFound: ... holds no federation; run `coordinator init` first, ...
"""

from .leading import Seat
from .service import Service
from .standing_by import stand_by

__all__ = ["Seat", "Service", "stand_by"]
