"""The example's modules, which lie beside each other and import each other by name as scripts do."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ...mpc.conftest import linked

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "fraud"
NAMES = ("baselines", "columns", "cost", "model", "party", "prepare", "psi", "run", "secure_gradient", "terms")


@pytest.fixture(scope="module")
def fraud():
    """All modules of the example; they are gone from the interpreter afterwards, for other examples have such names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setattr("sys.dont_write_bytecode", True)
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name in NAMES:
            del sys.modules[name]


def at_each(call, timeout_s=60.0):
    """`call` with the links of each of three parties, side by side in threads; what they return."""
    links = linked(timeout_s)

    def run(one):
        try:
            return call(one)
        except BaseException:
            one.close()  # the others shall not wait
            raise

    try:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(run, links))
    finally:
        for one in links:
            one.close()


@pytest.fixture(scope="session")
def parties():
    return at_each
