"""The short path of docs/operator.md and docs/site.md as it is written: five sites, three aggregators, 20 commands.

Commands run in this process, and enrolment goes through a real gate. Only what a run needs beside them (Flower's
server, the nodes' daemons) is not started: `run start` is the last step here.
"""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app as client_node
from confide.coordinator.cli.main import app as coordinator
from confide.machine import free_ports
from confide.models.backbones import pretraining
from confide.models.backbones.pretraining import PretrainingConfig

from ..coordinator.open_gate import open_gate

SITES, PARTIES = ("north", "south", "east", "west", "middle"), ("agg-a", "agg-b", "agg-c")
DICTIONARY = """name,kind,cuts,low,high,values,measured_in
age,number,,0,90,,years
TSH,number,0.4|4.0|10.0,,,,mIU/L
sex,category,,,,F|M,
fever,flag,,,,,
ill,label,,,,,
"""
UNITS = 120  # at each site
IN_A_DATABASE = "middle"  # the records of this site


class Steps:
    """Types commands, one a step, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def operator(self, *words: object) -> str:
        return self._type(coordinator, *words, "--home", self.folder / "coordinator")

    def at(self, node: str, *words: object) -> str:
        return self._type(client_node, *words, "--home", self.folder / node)

    def _type(self, app: object, *words: object) -> str:
        self.count += 1
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})  # type: ignore[arg-type]
        assert result.exit_code == 0, result.output
        return result.stdout


def write_table(path: Path, site: str) -> None:
    """Made-up records, as a German spreadsheet writes them, under the site's own names for columns."""
    rng = random.Random(site)
    rows = [
        f"{site}-{i};{rng.randrange(90)};{rng.randrange(1, 120) / 10:.1f};{rng.choice('FM')};{rng.choice('tf')};{i % 2}"
        for i in range(UNITS)
    ]
    path.write_text("Patient_ID;age;tsh_miu_l;sex;fever;ill\n" + "\n".join(rows).replace(".", ",") + "\n")


def in_a_database(folder: Path, site: str) -> tuple[object, ...]:
    """Puts a site's records into a database; returns how a node is told of the query on it."""
    lines = (folder / f"{site}.csv").read_text().replace(",", ".").splitlines()
    with closing(sqlite3.connect(folder / f"{site}.db")) as database, database:
        database.execute("CREATE TABLE lab (Patient_ID TEXT, age INTEGER, tsh REAL, sex TEXT, fever TEXT, ill INTEGER)")
        database.executemany("INSERT INTO lab VALUES (?, ?, ?, ?, ?, ?)", [line.split(";") for line in lines[1:]])
    (folder / f"{site}.sql").write_text("SELECT Patient_ID, age, tsh AS tsh_miu_l, sex, fever, ill FROM lab")
    return "--table", folder / f"{site}.sql", "--url", f"sqlite:///{folder / f'{site}.db'}"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[ExitStack]:
    """Closes what a test has served."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
def test_a_federation_is_founded_in_the_steps_that_the_pages_tell(
    tmp_path: Path, gate: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    served: list[Path] = []
    monkeypatch.setattr(
        "confide.coordinator.cli.main.serve_federation", lambda home, *, page: gate.enter_context(open_gate(home))
    )
    monkeypatch.setattr("confide.client_node.daemon.run", lambda home, stop, **how: served.append(home) or 0)
    steps, parcel = Steps(tmp_path), tmp_path / "parcel"
    (tmp_path / "fever.csv").write_text(DICTIONARY)
    port, superlink, *party_ports = free_ports(2 + len(PARTIES))

    invited = [word for site in SITES for word in ("--site", site)]
    invited += [word for party in PARTIES for word in ("--aggregator", party)]
    ports = ("--port", port, "--superlink-port", superlink)
    steps.operator("init", "--federation", "Fever 2026", *ports, *invited, "--out", parcel, "--then-serve")
    drafted = ("--units", UNITS * len(SITES), "--unit", "patient", "--out", parcel / "study.toml", "--build")
    steps.operator("study", "init", tmp_path / "fever.csv", *drafted)
    heard = []
    for site in SITES:
        write_table(tmp_path / f"{site}.csv", site)
        table = ("--table", tmp_path / f"{site}.csv") if site != IN_A_DATABASE else in_a_database(tmp_path, site)
        described = (*table, "--study", parcel / "study.toml", "--unit-column", "Patient_ID")
        words = ("enroll", parcel / f"{site}.join", *described, "--backbone", parcel / "backbone", "--json")
        heard += ["--confirm", f"{site}={json.loads(steps.at(site, *words))['fingerprint']}"]
    for party, party_port in zip(PARTIES, party_ports, strict=True):
        steps.at(party, "enroll", parcel / f"{party}.join", "--party-address", f"127.0.0.1:{party_port}")
    made = json.loads(steps.operator("study", "create", parcel / "study.toml", "--units", UNITS * len(SITES), "--json"))
    for node in (*SITES, *PARTIES):
        words = ("study", "approve", *made["words"].split(), "--yes", "--then-run")
        steps.at(node, *words, *(heard if node in PARTIES else ()))
    run = steps.operator("run", "start", "fever").strip()

    assert steps.count == 20
    assert served == [tmp_path / node for node in (*SITES, *PARTIES)]
    assert [row["run"] for row in json.loads(steps.operator("run", "list", "--json"))] == [run]
    shown = steps.at("north", "study", "show", "fever")
    assert "this table has 120." in shown
    assert "under a cap of 4" in shown
