"""The process that writes an adapter for a download: `python -m confide.coordinator.page.exporting`.

It loads the model, which the page's own process never does. It takes one line of JSON on its standard input, since
every account of the machine can read arguments, and says `{}` or `{"kind": ..., "problem": ...}` on its standard
output. It ends when its input is closed, so it never outlives the page.
"""

import json
import logging
import os
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

from ...client_node.errors import ClientNodeError
from ...log_lines import log_to_stderr
from ...models.errors import ModelError
from ...mpc.crash import TextLeftOut
from ...privacy.errors import PrivacyError
from ..errors import CoordinatorError
from ..federation import opened_store
from ..store.actions import acting_as

logger = logging.getLogger(__name__)


def write(home: Path, run_id: str, folder: Path, *, operator: str | None, override_audit: str | None) -> None:
    """Writes a run's adapter into `folder`, as `adapter.zip`; errors are those of `export_adapter`."""
    from ..results.export import export_adapter

    who = f"the operator {operator}" if operator is not None else "this machine's account"
    with opened_store(home) as store, acting_as(operator):
        export_adapter(
            store, home, run_id, folder / "adapter", override_audit=override_audit, destination=f"browser of {who}"
        )
    with zipfile.ZipFile(folder / "adapter.zip", "x") as archive:  # weights do not become smaller
        for path in sorted((folder / "adapter").iterdir()):
            archive.write(path, f"{run_id}/{path.name}")


def main() -> int:
    """Carries out one order; returns the exit code."""
    told: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints is for the log
    log_to_stderr(logging.WARNING)
    threading.Thread(target=_watch, name="parent watch", daemon=True).start()
    answer: dict[str, str] = {}
    try:
        write(
            Path(told["home"]), told["run"], Path(told["folder"]), operator=told["operator"],
            override_audit=told["override_audit"],
        )  # fmt: skip
    except (CoordinatorError, ClientNodeError, ModelError, PrivacyError) as err:
        answer = {"kind": type(err).__name__, "problem": str(err)[:4000]}
    except OSError as err:
        answer = {"kind": "CoordinatorError", "problem": f"the adapter cannot be written: {err.strerror}"}
    except Exception as err:
        logger.error("an adapter was not written", exc_info=TextLeftOut.of(err))
        return 1
    with os.fdopen(out, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    return 0


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
