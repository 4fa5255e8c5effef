"""Imports of what makes a million objects that live as long as the process."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Lets Python's collector rest while modules are imported, in all threads of the process.

    While torch and transformers are imported it would look again and again through all that they have made, of which
    nothing can go.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
