"""Drives the exchanges that HOME/RUN.json lists and writes what came back to HOME/RUN.jsonl."""

import hashlib
import json
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    from confide.client_node.wire.messages import Packet
    from confide.coordinator.fleet.flower import Fleet

    home, run_id = Path(str(context.run_config["home"])), str(context.run_config["run_id"])
    script = json.loads((home / f"{run_id}.json").read_text())
    fleet = Fleet(grid)
    fleet.trust(json.loads((home / "register.json").read_text()).get)
    end = time.monotonic() + 30
    while not set(script["nodes"]) <= fleet.online() and time.monotonic() < end:
        time.sleep(0.1)
    with (home / f"{run_id}.jsonl").open("a", buffering=1) as out:
        for number, step in enumerate(script["steps"]):
            blob = hashlib.shake_256(str(number).encode()).digest(step.get("bytes", 100))
            packet = Packet(json.dumps({"number": number}).encode(), {"blob": blob})
            began, answers = time.monotonic(), {}
            requests = dict.fromkeys(script["nodes"], packet)
            for name, answer in fleet.ask(step["kind"], requests, step.get("timeout", 20)):
                is_echo = isinstance(answer, Packet) and answer == packet
                answers[name] = "echo" if is_echo else str(answer)
            out.write(json.dumps({"seconds": time.monotonic() - began, "answers": answers}) + "\n")
            time.sleep(step.get("pause", 0))
