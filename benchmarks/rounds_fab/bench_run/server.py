"""Times rounds over stock nodes (Flower's own exchange) or warm ones (ours); writes seconds to HOME/MODE.json."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the mode that `run_id` names."""
    home, mode = Path(str(context.run_config["home"])), str(context.run_config["run_id"])
    plan = json.loads((home / "plan.json").read_text())
    update = np.random.default_rng(0).standard_normal(plan["bytes"] // 4).astype(np.float32)
    seconds = []
    one_round = warm_round(grid, home, plan, update) if mode == "warm" else stock_round(grid, plan, update)
    for _ in range(plan["rounds"][mode]):
        began = time.monotonic()
        one_round()
        seconds.append(time.monotonic() - began)
    (home / f"{mode}.part").write_text(json.dumps(seconds))
    (home / f"{mode}.part").replace(home / f"{mode}.json")


def stock_round(grid, plan, update):
    nodes = wait_until(lambda: [node.node_id for node in grid.get_nodes() if node.online_until > time.time()], plan)

    def one_round():
        record = RecordDict({"update": ArrayRecord([update])})
        replies = list(grid.send_and_receive([Message(record, node, "train", ttl=120) for node in nodes], timeout=120))
        assert len(replies) == len(nodes), replies
        assert all(reply.content["update"].to_numpy_ndarrays()[0].size == update.size for reply in replies)

    return one_round


def warm_round(grid, home, plan, update):
    from confide.client_node.wire.messages import Packet
    from confide.coordinator.fleet.flower import Fleet

    fleet = Fleet(grid, json.loads((home / "register.json").read_text()).get)
    nodes = wait_until(fleet.online, plan)

    def one_round():
        packet = Packet(b"{}", {"update": update.tobytes()})
        replies = dict(fleet.ask("round", dict.fromkeys(nodes, packet), 120))
        assert all(replies[name] == packet for name in nodes), {name: str(reply) for name, reply in replies.items()}

    return one_round


def wait_until(online, plan):
    end = time.monotonic() + 120
    while len(found := online()) < plan["sites"] and time.monotonic() < end:
        time.sleep(0.2)
    return found
