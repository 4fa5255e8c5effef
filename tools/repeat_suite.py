"""Runs the suite again and again, on a quiet machine or beside a load, and prints one row a run.

python tools/repeat_suite.py 10
python tools/repeat_suite.py 5 --load 8 --command make unit
"""

import argparse
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
_COUNTS = re.compile(rb"(\d+) (passed|failed|errors?|skipped)\b")


def repeat(times: int, *, load: int, command: list[str], logs: Path) -> bool:
    """Returns whether all runs of `command` ended well; each one's output lies in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    print("| run | load | verdict | passed | failed | skipped | minutes |\n|---|---|---|---|---|---|---|", flush=True)
    codes = []
    for number in range(1, times + 1):
        log = logs / f"run-{number}-load-{load}.log"
        began = time.monotonic()
        with ExitStack() as stack, log.open("wb") as file:
            for _ in range(load):
                busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(busy.kill)
            codes.append(subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode)
        minutes = (time.monotonic() - began) / 60
        found = {name.rstrip(b"s"): int(count) for count, name in _COUNTS.findall(log.read_bytes()[-2000:])}
        passed, failed, skipped = (found.get(name, 0) for name in (b"passed", b"failed", b"skipped"))
        failed += found.get(b"error", 0)
        verdict = "green" if codes[-1] == 0 else f"exit {codes[-1]}"
        print(f"| {number} | {load} | {verdict} | {passed} | {failed} | {skipped} | {minutes:.1f} |", flush=True)
    print(f"\n{codes.count(0)} of {times} green; logs in {logs}")
    return not any(codes)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int, help="runs, one after the other")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside each run")
    parser.add_argument("--logs", type=Path, default=ROOT / "dist" / "repeated", help="folder for each run's output")
    parser.add_argument(
        "--command", nargs=argparse.REMAINDER, help="what is run, to the end of the line; else make test"
    )
    asked = parser.parse_args()
    command = asked.command or ["make", "test"]
    sys.exit(not repeat(asked.times, load=asked.load, command=command, logs=asked.logs))


if __name__ == "__main__":
    main()
