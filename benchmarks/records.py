"""Measures how fast records are read from each kind of source, and how much memory that takes, beside pandas.

    python benchmarks/records.py DIRECTORY --rows 10000000
    python benchmarks/records.py DIRECTORY --rows 10000000 --url postgresql://node@/records?host=/run/postgresql

DIRECTORY gets the sources: a CSV file, a folder of Parquet parts and a SQLite file, all of the same made-up rows of
eight columns, 2.5 rows a person; and a FHIR export of the first million of them, each three observations and perhaps a
diagnosis and a medicine, of which lines are counted. `--url` names a PostgreSQL server to which the same rows are
written, as a table `visits` that is dropped first. Each figure is of a process of its own: wall time, and the most
memory that it ever had. `read` returns what a study trains on, `check` is that of `client-node data check`, `cover`
notes whose records they are, `pandas` is `pandas.read_sql` of the same query: all at once, and in parts of 10,000 rows
that are dropped. Rows a second are of the reading process's own processor time, so that other work on the machine
counts little; a server's own work is not in it.
"""

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import sqlalchemy as sa

from confide.client_node.data import check, read
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.data.tables import RowsDigest
from confide.client_node.policy import SitePolicy
from confide.client_node.study.study import load_draft

COLUMNS = ("patient_id", "age", "tsh", "t3", "t4", "sex", "sick", "diagnosis")
STUDY = """
name = "visits"
description = "made-up visits"
[model]
backbone = "none"
[adapter]
rank = 4
alpha = 4.0
targets = ["o_proj"]
head = "pooled"
seed = "visits"
[data]
label = "diagnosis"
unit = "patient"
max_records_per_unit = 4
max_tokens = 16
flags = ["sick"]
[data.numeric]
age = [20, 40, 60, 80]
tsh = [0.4, 4.0, 10.0]
t3 = [1.0, 2.0]
t4 = [60.0, 150.0]
[data.categorical]
sex = ["F", "M"]
[privacy]
mode = "distributed"
noise_multiplier = 1.2
clip_norm = 1.0
sample_rate = 0.2
delta = 1e-8
max_dropouts = 0
collusion = 1
[rounds]
rounds = 4
min_sites = 3
deadline_s = 60
batch_units = 1000
[optimizer]
lr = 0.3
head_lr = 10.0
momentum = 0.9
[participants]
sites = ["a", "b", "c"]
aggregators = ["x", "y", "z"]
"""
BATCH = 500_000
WAYS = {"csv": ("check", "read"), "parts": ("check", "read", "cover"), "sqlite": ("read", "pandas", "pandas parts"),
        "postgresql": ("read", "pandas", "pandas parts"), "fhir": ("check", "read")}  # fmt: skip
MOST_EXPORTED = 1_000_000  # rows
CODES = {"tsh": "3016-3", "t3": "3053-6", "t4": "3026-2"}  # LOINC's
LOINC, SNOMED, RXNORM = "http://loinc.org", "http://snomed.info/sct", "http://www.nlm.nih.gov/research/umls/rxnorm"


def batches(rows: int) -> Iterator[pd.DataFrame]:
    """Makes the rows up: the same ones for every source."""
    drawn = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        size = min(BATCH, rows - start)
        yield pd.DataFrame(
            {
                "patient_id": [f"p{unit:08d}" for unit in drawn.integers(0, max(1, int(rows / 2.5)), size)],
                "age": drawn.integers(0, 100, size),
                "tsh": drawn.lognormal(0, 1, size).round(3),
                "t3": drawn.normal(2, 0.5, size).round(2),
                "t4": drawn.normal(100, 30, size).round(1),
                "sex": drawn.choice(["F", "M"], size),
                "sick": drawn.random(size) < 0.1,
                "diagnosis": (drawn.random(size) < 0.2).astype(int),
            }
        )


def make(folder: Path, rows: int, url: str | None) -> None:
    """Writes every source that is not there yet."""
    folder.mkdir(exist_ok=True)
    parts, database = folder / "parts", folder / "visits.db"
    if not parts.exists():
        parts.mkdir()
        with pyarrow.csv.CSVWriter(folder / "visits.csv", pa.schema(_fields())) as csv:
            for number, frame in enumerate(batches(rows)):
                table = pa.Table.from_pandas(frame, schema=pa.schema(_fields()), preserve_index=False)
                csv.write_table(table)
                pyarrow.parquet.write_table(table, parts / f"part-{number:04}.parquet")
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE visits (patient_id, age, tsh, t3, t4, sex, sick, diagnosis)")
            for frame in batches(rows):
                values = zip(*(frame[name].tolist() for name in COLUMNS), strict=True)
                connection.executemany("INSERT INTO visits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            connection.commit()
    if not (folder / "export").exists():
        export(folder / "export", rows)
    if url is not None:
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS visits")
            connection.exec_driver_sql(
                "CREATE TABLE visits (patient_id text, age int, tsh float8, t3 float8, t4 float8, sex text, sick bool, "
                "diagnosis int)"
            )
            driver = connection.connection.driver_connection
            for frame in batches(rows):
                with driver.cursor().copy("COPY visits FROM STDIN (FORMAT csv)") as copy:
                    copy.write(frame.to_csv(header=False, index=False))
        engine.dispose()


def export(folder: Path, rows: int) -> None:
    """Writes the first rows as a FHIR export; a person's age and sex are those of the first visit."""
    folder.mkdir()
    known: set[str] = set()
    kinds = ("Patient", "Observation", "Condition", "MedicationRequest")
    with ExitStack() as stack:
        files = {kind: stack.enter_context((folder / f"{kind}.ndjson").open("w")) for kind in kinds}

        def write(kind: str, **resource: object) -> None:
            files[kind].write(json.dumps({"resourceType": kind, **resource}) + "\n")

        for frame in batches(min(rows, MOST_EXPORTED)):
            for number, row in enumerate(frame.itertuples()):
                subject = {"reference": f"Patient/{row.patient_id}"}
                if row.patient_id not in known:
                    known.add(row.patient_id)
                    gender = {"F": "female", "M": "male"}[row.sex]
                    write("Patient", id=row.patient_id, gender=gender, birthDate=str(2026 - row.age))
                for name, code in CODES.items():
                    write("Observation", id=f"{number}-{name}", status="final", code=_coded(LOINC, code),
                          subject=subject, effectiveDateTime=f"2025-01-{1 + number % 28:02}T08:00:00Z",
                          valueQuantity={"value": getattr(row, name), "code": "[arb'U]"})  # fmt: skip
                if row.diagnosis:
                    write("Condition", code=_coded(SNOMED, "40930008"), subject=subject)
                if row.sick:
                    write("MedicationRequest", status="active", intent="order", subject=subject,
                          medicationCodeableConcept=_coded(RXNORM, "10582"))  # fmt: skip


def _coded(system: str, code: str) -> dict[str, list[dict[str, str]]]:
    return {"coding": [{"system": system, "code": code}]}


def _fields() -> list[tuple[str, pa.DataType]]:
    kinds = (pa.string(), pa.int64(), *[pa.float64()] * 3, pa.string(), pa.bool_(), pa.int64())
    return list(zip(COLUMNS, kinds, strict=True))


def policy_of(folder: Path, source: str, url: str | None) -> SitePolicy:
    """Makes the policy of a site whose records lie in one of the sources."""
    where = {
        "csv": {"path": folder / "visits.csv"},
        "parts": {"path": folder / "parts"},
        "sqlite": {"sql": {"url": f"sqlite:///{folder / 'visits.db'}", "query": "SELECT * FROM visits"}},
        "postgresql": {"sql": {"url": url, "query": "SELECT * FROM visits"}},
        "fhir": {
            "values": {"sex": {"female": "F", "male": "M"}},
            "fhir": {
                "folder": folder / "export",
                "columns": {
                    "age": {"patient": "age", "at": "2026-01-01"},
                    "sex": {"patient": "gender"},
                    **{name: {"observation": f"{LOINC}|{code}"} for name, code in CODES.items()},
                    "sick": {"medication": f"{RXNORM}|10582"},
                    "diagnosis": {"condition": f"{SNOMED}|40930008"},
                },
            },
        },
    }
    return SitePolicy.model_validate(
        {
            "data": {
                **where[source],
                "name": "visits",
                "unit": "patient",
                "unit_column": "patient" if source == "fhir" else "patient_id",
            },
            "budget": {"epsilon": 3.0, "delta": 1e-8},
            "backbone": {"directory": folder},
        }
    )


def measure(folder: Path, source: str, way: str, url: str | None) -> dict[str, float | int]:
    """Measures one way of reading one source, in this process."""
    policy = policy_of(folder, source, url)
    with tempfile.TemporaryDirectory(dir=folder) as home:
        study = Path(home) / "study.toml"
        study.write_text(STUDY)
        draft = load_draft(study)
        began, processor = time.perf_counter(), time.process_time()
        if way == "read":
            digest = None if policy.data.sql is None else RowsDigest(bytes(32))  # as a node does
            rows = len(read(policy, draft, site=None, in_order=True, digest=digest).units)
        elif way == "check":
            report = check(policy.data.source, policy, draft)
            assert report.is_fit, report.problems
            rows = report.rows
        elif way == "cover":
            KnownUnits(Path(home)).cover(policy)
            rows = -1
        else:
            rows = with_pandas(policy, way)
        seconds, own = time.perf_counter() - began, time.process_time() - processor
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if policy.data.fhir is not None:
        rows = sum(path.read_bytes().count(b"\n") for path in policy.data.fhir.folder.iterdir())
    return {"rows": rows, "seconds": seconds, "processor seconds": own, "gib": most}


def with_pandas(policy: SitePolicy, way: str) -> int:
    """Reads the same query with pandas, from a cursor on the server as well where parts are asked for."""
    assert policy.data.sql is not None
    url, query = sa.make_url(policy.data.sql.url), policy.data.sql.query
    driver = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}[url.drivername]
    engine = sa.create_engine(url.set(drivername=driver))
    with engine.connect() as connection:
        if way == "pandas":
            return len(pd.read_sql(query, connection))
        streamed = connection.execution_options(stream_results=True)
        return sum(len(part) for part in pd.read_sql(query, streamed, chunksize=10_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url", help="of a PostgreSQL database, without a password, that the rows may be written to")
    parser.add_argument("--sources", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.directory.resolve()
    if given.one:
        print(json.dumps(measure(folder, *given.one, given.url)))
        return
    make(folder, given.rows, given.url)
    print(
        "| source | way | rows/s of a processor | its seconds | by the clock | most memory |\n|---|---|---|---|---|---|"
    )
    for source in given.sources:
        for way in WAYS[source] if source != "postgresql" or given.url else ():
            command = [sys.executable, __file__, str(folder), "--one", source, way]
            command += ["--url", given.url] if given.url else []
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            own, clock = found["processor seconds"], found["seconds"]
            rows = found["rows"] if source == "fhir" else given.rows
            row = f"{rows / own:,.0f} | {own:.1f} | {clock:.1f} | {found['gib']:.2f} GiB"
            print(f"| {source} | {way} | {row} |", flush=True)


if __name__ == "__main__":
    main()
