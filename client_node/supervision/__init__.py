"""Ways by which those who look after a process see that it lives: a supervisor, a monitor, and metrics.

`Pulse` notes signs of life of the loops that must go on. `Supervisor` tells them to systemd, and `Monitor` serves them
with `exposition`'s metrics on a loopback port; `asking` asks one. docs/monitoring.md lists every metric, and says why
none of them depends on a record.

A loop that shows no sign of life in time is stuck; one that rests is not expected to:

>>> from confide.client_node.supervision import Pulse
>>> now = 0.0
>>> pulse = Pulse(clock=lambda: now)
>>> pulse.beat("tick", within_s=60)
>>> pulse.beat("poll", within_s=60)
>>> pulse.rest("poll")
>>> now = 61.0
>>> pulse.stuck()
['tick']
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .monitor import HOST, Answers, Monitor, Verdict
    from .notification import Supervisor
    from .pulse import Pulse
else:
    __getattr__ = lazy(__name__, monitor="HOST Answers Monitor Verdict", notification="Supervisor", pulse="Pulse")

__all__ = ["HOST", "Answers", "Monitor", "Pulse", "Supervisor", "Verdict", "asking", "exposition"]
