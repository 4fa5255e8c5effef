"""Tries the chat template of a checkpoint, a program in Jinja: once, on two turns, in a process with limits.

Transformers runs templates in Jinja's sandbox, which keeps them from files and code but not from time and memory.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidBackbone

MAX_CHARACTERS = 2**16  # of a template; published ones have up to some 20,000
_SECONDS, _BYTES = 10, 2**30  # of processor time and of memory, besides what the libraries take
_MOST_WRITTEN = 2**17  # bytes of two turns
_ASKED, _ANSWERED = "What is the first word?", "Harmless"
_CHILD = Path(__file__).with_name("chat_render.py")


def try_template(template: str, variables: Mapping[str, Any], name: str) -> None:
    """Renders a template once; starts a process that ends with the trial.

    Args:
        variables: special tokens that the template may name, such as `bos_token`.
        name: of the place where the template stands, for messages.

    Raises:
        InvalidBackbone: the template is empty or too long, fails, takes too much time or memory, or leaves out what was
            said.
    """
    if not template.strip():
        raise InvalidBackbone(f"{name} is empty; remove it if the model has no chat format")
    if len(template) > MAX_CHARACTERS:
        raise InvalidBackbone(f"{name} has {len(template):,} characters; at most {MAX_CHARACTERS:,} are read")
    asked = {
        "template": template,
        "messages": [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}],
        "variables": {name: value for name, value in variables.items() if isinstance(value, str)},
        "seconds": _SECONDS,
        "bytes": _BYTES,
        "most": _MOST_WRITTEN,
    }
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR")
    environment = {key: os.environ[key] for key in kept if key in os.environ} | {"HF_HUB_OFFLINE": "1"}
    too_much = InvalidBackbone(f"{name} cannot be rendered within {_SECONDS} s and {_BYTES >> 30} GiB")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=30 * _SECONDS,  # the machine may be busy; the child counts its processor time
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise too_much from None
    if done.returncode < 0:  # a limit ends it by a signal
        raise too_much
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InvalidBackbone(f"{name} could not be tried: {last[:200]}")
    told = json.loads(done.stdout)
    if "failed" in told:
        raise InvalidBackbone(f"{name} cannot be rendered for a user's and an assistant's turn: {told['failed']}")
    if not told["is_said"]:
        raise InvalidBackbone(f"{name} leaves out what a user and an assistant have said, or writes without an end")
