"""The process that loads a model for the page: `python -m confide.coordinator.page.model_process`.

The page's own process never does. This one writes an adapter or a merged model for a download, or keeps a heat map. It
takes its order as a line of JSON on its standard input, since every account of the machine can read arguments, and says
how far it is in lines of JSON on its standard output: `{"part": ...}`, and last `{}` or a kind and a problem. It ends
when its input is closed, so it never outlives the page.
"""

import json
import logging
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from ...client_node.errors import ClientNodeError
from ...log_lines import log_to_stderr
from ...models.errors import ModelError
from ...mpc.crash import TextLeftOut, hide_values
from ...privacy.errors import PrivacyError
from ..errors import CoordinatorError
from ..federation import opened_store
from ..store.actions import acting_as

logger = logging.getLogger(__name__)


def write(
    home: Path,
    run_id: str,
    folder: Path,
    *,
    form: Literal["adapter", "merged"],
    operator: str | None,
    override_audit: str | None,
) -> None:
    """Writes a run's adapter, or its backbone with the adapter merged in, into `folder`, as `model.zip`.

    Errors are those of `export_adapter` and `merge_adapter`.
    """
    from ..results.export import export_adapter, merge_adapter

    who = f"the operator {operator}" if operator is not None else "this machine's account"
    publish = export_adapter if form == "adapter" else merge_adapter
    with opened_store(home) as store, acting_as(operator):
        publish(store, home, run_id, folder / "model", override_audit=override_audit, destination=f"browser of {who}")
    with zipfile.ZipFile(folder / "model.zip", "x") as archive:  # weights do not become smaller
        for path in sorted((folder / "model").iterdir()):
            archive.write(path, f"{run_id}/{path.name}")
            path.unlink()  # so that a large model does not lie on the disk twice


def keep_map(home: Path, run_id: str, *, operator: str | None, progress: Callable[[int, int], None]) -> None:
    """Keeps the heat map of a run's routing, as `coordinator adapter map` does."""
    from ..routing.measuring import keep

    with opened_store(home) as store, acting_as(operator):
        keep(store, home, run_id, progress=progress)


def main() -> int:
    """Carries out one order; returns the exit code."""
    told: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is for the log
    hide_values()
    log_to_stderr(logging.WARNING)
    threading.Thread(target=_watch, name="parent watch", daemon=True).start()
    answer: dict[str, str] = {}
    try:
        _carry_out(told, out)
    except (CoordinatorError, ClientNodeError, ModelError, PrivacyError) as err:
        answer = {"kind": type(err).__name__, "problem": str(err)[:4000]}
    except OSError as err:
        answer = {"kind": "CoordinatorError", "problem": f"the model cannot be written: {err.strerror}"}
    except Exception as err:
        logger.error("an order of the page was not carried out", exc_info=TextLeftOut.of(err))
        return 1
    print(json.dumps(answer), file=out, flush=True)
    return 0


def _carry_out(told: dict[str, Any], out: IO[str]) -> None:
    home, run_id, operator = Path(told["home"]), told["run"], told["operator"]
    if told["do"] == "map":
        keep_map(
            home, run_id, operator=operator,
            progress=lambda read, of: print(json.dumps({"part": read / of}), file=out, flush=True),
        )  # fmt: skip
    else:
        write(
            home, run_id, Path(told["folder"]), form=told["do"], operator=operator,
            override_audit=told["override_audit"],
        )  # fmt: skip


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
