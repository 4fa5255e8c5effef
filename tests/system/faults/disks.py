"""A full disk for each party: its home on a small tmpfs, filled in the middle of a round, then freed. Needs root."""

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from .attempts import after, attempt, words_of
from .bench import PARTY, SITE, Bench, Stuck
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach

_ROOM = "32m"
_FULL_S = 20.0
_POINTS = {
    SITE: ("sites are asked", "answer stored at the site"),
    PARTY: ("aggregators are ordered", "set bound at the party"),
    "coordinator": ("sites are asked", "all answers at the coordinator", "round committed"),
}


def fill_each(bench: Bench, outcomes: Outcomes) -> None:
    """Fills the disk of each party at some points."""
    for owner, points in _POINTS.items():
        planned = [Outcome(group="disk", fault=f"full, {_FULL_S:.0f} s", target=owner, point=point) for point in points]
        if all(map(outcomes.has, planned)) or outcomes.is_enough(planned[0].group):
            continue
        bench.ensure_run(needs=20)
        home = bench.home if owner == "coordinator" else bench.node(owner)
        _onto_a_small_disk(bench, owner, home)
        try:
            for each in planned:
                attempt(bench, outcomes, each, lambda planned, home=home: _fill(bench, home, planned), needs=20)
        finally:
            _back(bench, owner, home)


def _onto_a_small_disk(bench: Bench, owner: str, home: Path) -> None:
    bench.federation.kill(owner)
    beside = home.with_name(home.name + "-on-the-large-disk")
    home.rename(beside)
    home.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM},mode=700", "tmpfs", str(home)], check=True)
    shutil.copytree(beside, home, dirs_exist_ok=True)
    shutil.rmtree(beside)
    bench.restart(owner)
    before = bench.committed()
    bench.wait(lambda: bench.committed() > before, "a round on the small disk")


def _back(bench: Bench, owner: str, home: Path) -> None:
    bench.federation.kill(owner)
    beside = home.with_name(home.name + "-copy")
    shutil.copytree(home, beside)
    for _ in range(50):  # children of what was killed may take a moment to let go
        if subprocess.run(["umount", str(home)], capture_output=True).returncode == 0:
            break
        time.sleep(0.2)
    else:
        raise Stuck(f"{home} cannot be unmounted")
    home.rmdir()
    beside.rename(home)
    bench.restart(owner)


def _fill(bench: Bench, home: Path, planned: Outcome) -> Outcome:
    owner = planned.target
    reach(bench, BY_NAME[planned.point])
    log, at = bench.federation.log(owner), bench.committed()
    end = time.monotonic() + _FULL_S
    while time.monotonic() < end:
        _fill_up(home)
        time.sleep(0.5)
    step = bench.row()[1]
    (home / "ballast").unlink()
    start, before, problems = time.monotonic(), bench.committed(), []
    if not bench.federation.is_alive(owner):
        problems.append(f"{owner} ended")
        bench.mend()
    told = (_told(log) or step).replace(str(bench.folder), "")
    return after(
        bench, replace(planned, told=told, problems=problems, figures={"rounds meanwhile": before - at}), start, before
    )


def _fill_up(home: Path) -> None:
    """Writes until there is no byte left."""
    with (home / "ballast").open("ab", buffering=0) as out:
        for size in (1 << 20, 4096, 1):
            try:
                while out.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


def _told(log: Path) -> str:
    """The newest line of the log about the disk."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "full" in line or "no room" in line]
    return words_of(lines[-1]) if lines else ""
