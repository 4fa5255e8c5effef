"""Trains one model for an insurer and a hospital on the people that both know; neither shows the other a row.

    python examples/fraud/run.py            # three processes on this machine, under a minute
    python examples/fraud/run.py --smoke    # a tenth of the people and three steps

Prepares the two tables, makes three parties with keys of their own, runs them over TLS, and compares their model with
baselines. Only this program sees both tables, to compute the baselines.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from baselines import Joined, in_the_clear, repeated, without_privacy
from cost import DELTA, cost, noise_for
from model import Optimizer
from prepare import prepare
from rich.console import Console
from rich.table import Table
from terms import ROLES, Terms

from confide.machine import free_ports
from confide.models.evaluation.metrics import Estimate
from confide.models.rounding import rounded_up
from confide.mpc.links.certificates import make_certificate

MAX_IDS = 6_000
EXPECTED_PEOPLE = 3_000  # common and not held out, as a round number: the true one is not public
TIMEOUT_S = 120.0
REPEATS = 20
HERE = Path(__file__).resolve().parent


class PartyFailed(Exception):
    """A party's process ended without a result."""


def run_parties(directory: Path, tables: tuple[Path, Path], terms: Terms, max_epsilon: float) -> list[dict[str, Any]]:
    """Starts the three parties below `directory` and returns what each wrote.

    Args:
        max_epsilon: what each party's operator would let it spend.

    Raises:
        PartyFailed: one did not finish; all are ended then.
    """
    folders = [directory / role for role in ROLES]
    for folder, role in zip(folders, ROLES, strict=True):
        folder.mkdir(parents=True)
        make_certificate(folder, role)
    pins = [(folder / "party.pem").read_text() for folder in folders]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(ROLES))]
    processes = []
    try:
        for party, folder in enumerate(folders):
            table = str(tables[party]) if party < len(tables) else None
            config = {
                "party": party,
                "addresses": addresses,
                "pins": pins,
                "timeout_s": TIMEOUT_S,
                "table": table,
                "max_epsilon": max_epsilon,
                "allow_unprotected": True,  # the table is public, and the run without noise is there to compare with
                "terms": asdict(terms),
            }
            (folder / "config.json").write_text(json.dumps(config))
            with (folder / "log.txt").open("wb") as log:
                command = [sys.executable, str(HERE / "party.py"), str(folder / "config.json")]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        _wait(processes, folders)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
    return [json.loads((folder / "result.json").read_text()) for folder in folders]


def compare(directory: Path, *, share: float, optimizer: Optimizer, target_epsilon: float) -> dict[str, Any]:
    """Prepares, runs and measures; everything that the tables below show.

    Raises:
        PartyFailed: a party did not finish.
    """
    report = prepare(directory / "tables", share=share)
    tables = Path(report["insurer"]["path"]), Path(report["hospital"]["path"])
    data = Joined.of(*tables)
    dim = data.train.shape[1]
    noise = noise_for(target_epsilon, optimizer.steps, dim)
    terms = Terms(
        study="fraud example",
        max_ids=MAX_IDS,
        features=(data.insurers, dim - data.insurers),
        optimizer=optimizer,
        site_noise=noise,
        is_measured=True,
    )
    begin = time.monotonic()
    results = run_parties(directory / "parties", tables, terms, max_epsilon=3 * target_epsilon)
    seconds = time.monotonic() - begin
    if any(result["weights"] != results[0]["weights"] for result in results):
        raise PartyFailed("the three parties learned different weights")
    private, plain = (np.array(results[0][name]) for name in ("weights", "weights_without_noise"))
    again = repeated(data, optimizer, noise, REPEATS)
    return {
        "people": {
            "insurer": report["insurer"]["people"],
            "hospital": report["hospital"]["people"],
            "common": report["common"],
            "trained on": results[0]["people"],
            "held out": len(data.held_out),
        },
        "auc": {
            **{name: asdict(value) for name, value in without_privacy(data).items()},
            "joint, no noise": asdict(data.score(plain)),
            "joint": asdict(data.score(private)),
        },
        "joint_repeated": {"times": REPEATS, "mean": float(np.mean(again)), "least": min(again)},
        "equal_to_the_last_bit": plain.tolist() == in_the_clear(data, optimizer).tolist(),
        "epsilon": asdict(cost(noise, results[0]["releases"], dim)),
        "delta": DELTA,
        "released": {"vectors": results[0]["releases"], "numbers": dim},
        "seconds": seconds,
        "parts": {role: result["parts"] for role, result in zip(ROLES, results, strict=True)},
        "ids_per_second": report["insurer"]["people"] / results[0]["parts"]["intersection"]["seconds"],
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    people, epsilon = found["people"], found["epsilon"]
    console.print(
        f"The insurer knows {people['insurer']:,} people, the hospital {people['hospital']:,}, both "
        f"{people['common']:,}. Of these {people['trained on']:,} are trained on and {people['held out']:,} held out.\n"
    )
    quality = Table("trained", "AUC", "95 % interval", "epsilon", title="On the held-out people", title_justify="left")
    for name, value in found["auc"].items():
        estimate = Estimate(**value)
        shown = rounded_up(epsilon["party"]) if name == "joint" else "none"
        quality.add_row(name, f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}", shown)
    console.print(quality)
    again = found["joint_repeated"]
    console.print(
        f"joint, repeated in the clear {again['times']} times: mean {again['mean']:.3f}, least {again['least']:.3f}"
    )
    same = "equal" if found["equal_to_the_last_bit"] else "NOT EQUAL"
    console.print(f"joint without noise, against the same training in the clear: {same} to the last bit\n")
    private = Table("who looks", "protected", "epsilon", title=f"delta {found['delta']:g}", title_justify="left")
    private.add_row("somebody outside", "whether a person was trained on", rounded_up(epsilon["outsider"]))
    private.add_row("the helper, which knows its own noise", "the same", rounded_up(epsilon["party"]))
    private.add_row("one owner, which knows its own noise", "the other's columns", rounded_up(epsilon["other_owner"]))
    console.print(private)
    released = found["released"]
    console.print(f"opened of the data: {released['vectors']} noised vectors of {released['numbers']} numbers\n")
    cost = Table("part", "seconds", *(f"MB {role}" for role in ROLES), "rounds", title="Cost", title_justify="left")
    for part, values in found["parts"]["insurer"].items():
        sent = [f"{found['parts'][role][part]['bytes_sent'] / 1e6:.2f}" for role in ROLES]
        cost.add_row(part, f"{values['seconds']:.2f}", *sent, f"{values['rounds']:.0f}")
    console.print(cost)
    console.print(f"{found['ids_per_second']:,.0f} ids a second; {found['seconds']:.0f} s with starting the processes")


def _wait(processes: list[subprocess.Popen[bytes]], folders: list[Path]) -> None:
    is_running = True
    while is_running:
        codes = [process.poll() for process in processes]
        for code, folder in zip(codes, folders, strict=True):
            if code:
                lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise PartyFailed(f"the {folder.name} failed: {lines[-1]}\nIts log is {folder / 'log.txt'}")
        is_running = None in codes
        time.sleep(0.05)


def main(
    smoke: Annotated[
        bool, typer.Option(help="A tenth of the people and three steps: seconds, and no figures.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    epsilon: Annotated[
        float, typer.Option(min=0.01, help="Target for who knows one party's noise, at delta 1e-5.")
    ] = 1.0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Opened gradients.")] = 10,
    directory: Annotated[
        Path | None, typer.Option(help="New folder for tables, keys, logs; temporary if none.")
    ] = None,
) -> None:
    """Runs the three parties on this machine and prints what came out."""
    share, expected = (0.1, EXPECTED_PEOPLE // 10) if smoke else (1.0, EXPECTED_PEOPLE)
    optimizer = Optimizer(
        steps=min(steps, 3) if smoke else steps, learning_rate=10.0, momentum=0.5, expected_people=expected
    )
    if directory is not None and directory.exists():
        typer.echo(f"{directory} is there already: name a new folder", err=True)
        raise typer.Exit(2)
    place = directory or Path(tempfile.mkdtemp(prefix="confide-fraud-"))
    try:
        found = compare(place, share=share, optimizer=optimizer, target_epsilon=epsilon)
    except (PartyFailed, FileNotFoundError) as err:
        typer.echo(f"{err}\nThere is no model; tables, keys and logs are kept in {place}", err=True)
        raise typer.Exit(1) from None
    if directory is None:
        shutil.rmtree(place)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found, Console())


if __name__ == "__main__":
    typer.run(main)
