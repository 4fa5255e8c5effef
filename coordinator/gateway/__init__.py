"""The public port: listener, gate, enrolment, and the SuperLink behind it.

`Service` is `coordinator serve`: it opens the gate, keeps Flower's SuperLink alive as a child on loopback, and starts a
driver for every run that is to go on. `gate` decides request by request who may pass. `die_with_parent` ties a child
process to the one that started it.

A service needs a federation's home; without one it says what to do first:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.gateway import Service
>>> with TemporaryDirectory() as home:
...     Service(Path(home))
Traceback (most recent call last):
confide.coordinator.errors.NotFound: ... holds no federation; run `coordinator init` first, ...
"""

from .service import Service
from .superlink import die_with_parent

__all__ = ["Service", "die_with_parent"]
