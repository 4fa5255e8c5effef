"""What holds for every test: chance and load decide nothing, and who starts a process says so."""

import gc
import itertools
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from string import ascii_uppercase

import hypothesis
import pytest

from confide import machine

from .tiers import BUDGET_S, is_long

# The same examples in every run, at their own pace: a busy machine fails no property.
hypothesis.settings.register_profile(
    "confide", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("confide")
# `pytest --hypothesis-profile search` draws others, and more of them: run it on what you change.
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)

# What collection makes lives as long as the session: more than a million objects, which Python's collector walked
# through thirty times while they were made, and would again at every full collection of a test.
gc.disable()

# Before numpy and torch are loaded, and for processes that tests start: on few cores, threads of many processes wait
# for each other more than they compute; a norm check with numpy's own choice takes ten times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

for size in ("COLUMNS", "LINES"):  # readline sets them in xdist's workers; a command's tables keep what they find first
    os.environ.pop(size, None)

STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
_running: list[pytest.Item] = []  # the test of this moment, if any


def _refuse_unmarked(event: str, args: tuple[object, ...]) -> None:
    """Fails a test that starts a process without the marker by which `make quick` leaves it out."""
    if event == "subprocess.Popen" and args[1][:1] == ["fc-list"]:
        return  # of matplotlib, which looks for fonts once on each machine
    if event in STARTS and _running and _running[0].get_closest_marker("process") is None:
        pytest.fail(f"{_running[0].nodeid} starts a process ({event}); mark it with pytest.mark.process")


sys.addaudithook(_refuse_unmarked)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.clear()


_MEMORY, _ROOM = Path("/dev/shm"), 4 << 30
_TESTS = Path(__file__).parent
_SYSTEM = _TESTS / "system"  # whole federations: large, and in need of memory themselves


@pytest.fixture(scope="module")
def _in_memory(request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """A folder in memory for the tests of a file; none if room is scarce, no program may run there or TMPDIR is set."""
    if not _MEMORY.is_dir() or "TMPDIR" in os.environ or _SYSTEM in request.path.parents:
        yield None
        return
    found = os.statvfs(_MEMORY)
    if found.f_bavail * found.f_frsize < _ROOM or found.f_flag & os.ST_NOEXEC:
        yield None
        return
    folder = _new_folder(_MEMORY)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _new_folder(place: Path) -> Path:
    """Makes a folder whose name no chance decides: tests look for words and digits that a path must not have."""
    names = (letters for size in itertools.count(1) for letters in itertools.product(ascii_uppercase, repeat=size))
    while True:
        folder = place / f"confide-tests-{''.join(next(names))}"
        with suppress(FileExistsError):  # another worker's
            folder.mkdir(mode=0o700)
            return folder


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _in_memory: Path | None) -> Path:
    """A folder of the test's own, in memory: homes and ledgers see each write to the disk, which takes longer."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    if _in_memory is None:
        return tmp_path_factory.mktemp(name)
    folder = next(path for n in itertools.count() if not (path := _in_memory / f"{name}{n}").exists())
    folder.mkdir(mode=0o700)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker ports of its own: a port is free until its server starts, so two could choose the same."""
    if worker := getattr(config, "workerinput", None):
        number, workers = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
        machine._PORTS = machine._PORTS[number::workers]


@pytest.hookimpl(tryfirst=True)  # before pytest's own looks for what `-m` names
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what takes long, and gives workers whole federations first, then files that start processes."""
    for item in items:
        if is_long(item.path.relative_to(_TESTS).as_posix()):
            item.add_marker(pytest.mark.long)
    if hasattr(config, "workerinput"):
        files = {item.path for item in items if item.get_closest_marker("process")}
        items.sort(key=lambda item: (item.path.parent.name != "system", item.path not in files))


def pytest_collection_finish() -> None:
    """Turns Python's collector on, for what tests make."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Lets go of it: Triton's compiler complains at the end of a process of what is left."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the ten slowest files, and each that takes more than its budget."""
    files: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            files[report.nodeid.split("::")[0]] += report.duration
    if len(files) < 2:
        return
    terminalreporter.section(f"slowest files of {len(files)}, {sum(files.values()):.0f} s in all processes together")
    for name, seconds in files.most_common(10):
        is_over = seconds > BUDGET_S and not is_long(name.removeprefix("tests/"))
        terminalreporter.write_line(f"{seconds:6.1f} s  {name}{f', over {BUDGET_S} s' if is_over else ''}")
