"""A worker that forks nothing: it takes orders and tells what the lines of PLAY say, for the tests of `Drivers`.

Its arguments are the home and the port of the SuperLink. `home/orders` gets a line for each order, and `home/times` the
moment of each; `home/play-RUN` has the exit code of a run's drivers, and without one a driver lives until it is killed.
"""

import json
import sys
import time
from pathlib import Path


def tell(**event):
    print(json.dumps(event), flush=True)


home = Path(sys.argv[1])
if (home / "broken").exists():
    sys.exit("it cannot start")
tell(ready=True)
drivers = 0
for line in sys.stdin:
    order = json.loads(line)
    with (home / "orders").open("a") as orders:
        orders.write(line)
    with (home / "times").open("a") as times:
        times.write(f"{time.monotonic()}\n")
    if "kill" in order:
        tell(ended=order["kill"], code=-9)
        continue
    drivers += 1
    tell(began=drivers, run=order["drive"])
    play = home / f"play-{order['drive']}"
    if play.exists():
        tell(ended=drivers, code=int(play.read_text()))
    if (home / "dies").exists():
        (home / "dies").unlink()
        sys.exit(1)
