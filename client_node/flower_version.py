"""Refuses to import on another Flower than the one that this package was written for.

Node and coordinator use modules of Flower that are not its public interface, and those move between minor versions:
`client_node/flower.py`, `coordinator/fleet/flower.py` and `coordinator/fleet/superlink_process.py`, the only files that
import Flower, list them. Installing checks the version too; this says so where somebody has forced another one.
"""

from importlib.metadata import PackageNotFoundError, version

from .errors import FlowerUnsupported

MINOR = "1.42"


def require(found: str | None) -> None:
    """Raises `FlowerUnsupported` unless `found` is a version of Flower `MINOR`; None is no Flower at all."""
    if found is None or ".".join(found.split(".")[:2]) != MINOR:
        raise FlowerUnsupported(
            f"confide needs flwr {MINOR}, whose private modules it uses, and {found or 'none'} is installed; "
            f"pip install 'flwr=={MINOR}.*'"
        )


def _installed() -> str | None:
    try:
        return version("flwr")
    except PackageNotFoundError:
        return None


require(_installed())
