"""Faces of rooms that import a module when one of its names is first asked for (PEP 562).

Else a command that lists sites would import torch, since a room's `__init__` names what needs it.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy(face: str, **homes: str) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a face: `homes` has the names that each module of the room gives, with blanks between.

    The face imports the same names under `TYPE_CHECKING`, for mypy and readers.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {face!r} has no attribute {name!r}", name=name)
        value = getattr(importlib.import_module(f"{face}.{home_of[name]}"), name)
        setattr(sys.modules[face], name, value)
        return value

    return find
