"""What must hold of the code itself: where randomness comes from, and what is imported where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import confide
from confide import mpc

FOLDER = Path(mpc.__file__).parent.resolve()
FILES = sorted(FOLDER.rglob("*.py"))
WEAK = {
    "randint",
    "rand",
    "rand_like",
    "randint_like",
    "randn",
    "randn_like",
    "random",
    "random_",
    "RandomState",
    "randperm",
    "normal",
    "normal_",
    "uniform",
    "uniform_",
    "bernoulli",
    "bernoulli_",
    "dropout",
    "exponential_",
    "manual_seed",
    "multinomial",
    "permutation",
    "poisson",
    "default_generator",
    "Generator",
    "default_rng",
}


def names_used(tree):
    """Every attribute and imported name, with the module it comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield "" if node.level else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_random_numbers_from_numpy_torch_or_random(path):
    used = set(names_used(ast.parse(path.read_text())))
    assert not used & WEAK
    assert not {name for name in used if name.split(".")[0] in ("random", "pickle", "marshal")}


def test_only_one_module_imports_crypten():
    importers = {
        path.relative_to(FOLDER).as_posix()
        for path in FILES
        if "crypten" in {n.split(".")[0] for n in names_used(ast.parse(path.read_text()))}
    }
    assert importers == {"crypten/runtime.py"}


def run(code):
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )


@pytest.mark.process
def test_site_and_aggregator_do_not_import_torch():
    code = "import sys; from confide.mpc import party; from confide.mpc.sharing import ring, sealing"
    code += "; print({'torch', 'crypten'} & {*sys.modules})"
    assert run(code).stdout == "set()\n"


RUNTIME = """
import sys, numpy as np, torch
from confide.mpc.crypten import runtime
from confide.mpc.errors import RuntimeUnsound
from confide.mpc.sharing.ring import Ring
crypten, Shared = runtime.crypten, runtime.ArithmeticSharedTensor

class Links:  # of a party between two others that send 32 bytes each
    aggregator_id = 1
    def exchange(self, step, outgoing, limit):
        self.sent = dict(outgoing)
        return {0: b"p" * 32, 2: b""}
    def all_gather(self, step, data, limit):
        raise AssertionError("nothing is opened here")

def refused(call):
    try:
        call()
    except RuntimeUnsound:
        return True
    raise AssertionError(call)

refused(lambda: Shared.PRZS((4,)))  # no party was started

links = Links()
runtime.start(links)
held = [one for generators in crypten.generators.values() for one in generators.values()]
assert len(held) == 3 and all(type(one) is runtime.Prg for one in held), held
assert len(links.sent[2]) == 32 and links.sent[0] == b"", links.sent
for generators in crypten.generators.values():
    try:
        generators[runtime.CPU] = torch.Generator()
    except TypeError:
        continue
    raise AssertionError("took a generator")
refused(lambda: crypten.generators["global"][runtime.CPU])
stream = crypten.generators["prev"][runtime.CPU].elements((2,)).numpy().tobytes()
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
assert stream == Cipher(algorithms.AES(b"p" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(16))
assert (Shared.PRZS((4,)).share != 0).all()  # CrypTen itself draws from them

one = Shared.from_shares(torch.arange(4), precision=0)
refused(lambda: one * one)
refused(lambda: one.square())
refused(lambda: crypten.mpc.get_default_provider().B2A_rng(()))
refused(crypten.init)
refused(lambda: sys.modules["crypten.common.rng"].generate_random_ring_element((2,), generator=torch.Generator()))
assert one.add(one).share.tolist() == [0, 2, 4, 6]
runtime.stop()
assert not any(crypten.generators.values()) and not runtime.PartyCommunicator.is_initialized()
print("sound")
"""


@pytest.mark.process
def test_crypten_holds_only_our_generators_and_without_a_provider_can_only_add():
    result = run(RUNTIME)
    assert result.stdout == "sound\n", result.stderr


NO_TORCH = "import sys; from unittest.mock import MagicMock; sys.modules['torch'] = MagicMock()"  # it loads slowly


@pytest.mark.process
@pytest.mark.parametrize(
    ("before", "says"),
    [
        (f"{NO_TORCH}; sys.modules['crypten'] = MagicMock()", "imported before"),
        (
            "import sys, types; sys.modules['omegaconf'] = types.ModuleType('omegaconf')",  # crypten.config fails
            "does not import",
        ),
    ],
)
def test_changed_crypten_is_refused(before, says):
    result = run(f"{before}\nimport confide.mpc.crypten.runtime")
    assert result.returncode == 1
    assert re.search(rf"RuntimeUnsound: .*{says}", result.stderr), result.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("source", "says"),
    [(None, "is missing at .*install confide anew"), ("__version__ = '0.4.2'", "CrypTen 0.4.2 is at")],
)
def test_another_crypten_than_the_one_examined_is_refused(tmp_path, source, says):
    """In an installation whose third_party/crypten is missing or not the published 0.4.1."""
    package = tmp_path / "confide"
    package.mkdir()
    for name in ("__init__.py", "mpc"):
        (package / name).symlink_to(Path(confide.__file__).with_name(name))
    if source is not None:
        crypten = package / "third_party" / "crypten" / "crypten"
        crypten.mkdir(parents=True)
        (crypten / "__init__.py").write_text(source)
    result = run(f"{NO_TORCH}; sys.path.insert(0, {str(tmp_path)!r})\nimport confide.mpc.crypten.runtime")
    assert result.returncode == 1
    assert re.search(rf"RuntimeUnsound: .*{says}", result.stderr), result.stderr


@pytest.mark.process
def test_the_crypten_that_runs_is_the_copy_beside_mpc_and_has_no_networks():
    code = "import sys; from confide.mpc.crypten import runtime; print(runtime.crypten.__file__)"
    code += "; print([name for name in sys.modules if name.startswith(('crypten.nn.', 'crypten.optim.'))])"
    code += "; print({'configs', 'examples', 'test', 'benchmarks'} & {*sys.modules})"
    path, *rest = run(code).stdout.splitlines()
    assert Path(path).samefile(FOLDER.parent / "third_party" / "crypten" / "crypten" / "__init__.py")
    assert rest == ["[]", "set()"]
