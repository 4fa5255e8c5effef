"""The federation's public port: listener, gate, enrolment, and the SuperLink behind it.

`Service` is `coordinator serve`: it opens the gate, keeps Flower's SuperLink alive as a child on loopback, and starts a
driver for every unfinished run. `gate` admits or refuses each request. `die_with_parent` makes a child process end with
the one that started it.

A service needs a federation's home; without one, the error names the first step:

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
