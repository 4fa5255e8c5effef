"""Asks a monitor on this machine whether its process lives, for a container's health check and for people."""

import http.client
from typing import Literal

from pydantic import ValidationError

from ...models.strict import StrictModel
from ..errors import MonitorUnavailable
from .monitor import HOST, Verdict

Page = Literal["healthz", "readyz"]

_WAIT_S = 10.0
_MOST_BYTES = 64 << 10


class _Said(StrictModel):
    ok: bool
    reason: str


def ask(port: int, page: Page) -> Verdict:
    """Asks the monitor on that loopback port.

    Raises:
        MonitorUnavailable: nobody answers there, or not as a monitor does.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=_WAIT_S)
    try:
        connection.request("GET", f"/{page}")
        response = connection.getresponse()
        said = _Said.model_validate_json(response.read(_MOST_BYTES))
        return Verdict((said.reason,) if not said.ok or response.status != 200 else ())
    except (OSError, http.client.HTTPException) as err:
        why = err.strerror if isinstance(err, OSError) and err.strerror else type(err).__name__
        raise MonitorUnavailable(
            f"no monitor answers on {HOST}:{port} ({why}); is the process running, with --monitor {port}?"
        ) from err
    except ValidationError as err:
        raise MonitorUnavailable(f"what answers on {HOST}:{port} is no monitor of confide; name its port") from err
    finally:
        connection.close()
