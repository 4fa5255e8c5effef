"""The queries of docs/records.md on a small OMOP database, by SQLite and by a real PostgreSQL server."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from confide.client_node.data.tables import Problems, open_table
from confide.client_node.policy.sources import SqlQuery

from ...system.postgresql import postgresql_server

pytestmark = pytest.mark.process
PAGE = (Path(__file__).parents[3] / "docs" / "records.md").read_text()
QUERIES = dict(re.findall(r"<!-- omop: (\w+) -->\n```sql\n(.*?)^```$", PAGE, re.M | re.S))
# Columns that the queries need, named and typed as in the CDM 5.4.
TABLES = {
    "person": "person_id integer, gender_concept_id integer, year_of_birth integer",
    "measurement": "measurement_id integer, person_id integer, measurement_concept_id integer, measurement_date date, "
    "value_as_number numeric, unit_concept_id integer, visit_occurrence_id integer",
    "condition_occurrence": "condition_occurrence_id integer, person_id integer, condition_concept_id integer, "
    "condition_start_date date, visit_occurrence_id integer",
    "drug_exposure": "drug_exposure_id integer, person_id integer, drug_concept_id integer, "
    "drug_exposure_start_date date",
    "visit_occurrence": "visit_occurrence_id integer, person_id integer, visit_concept_id integer, "
    "visit_start_date date",
    "concept_ancestor": "ancestor_concept_id integer, descendant_concept_id integer",
}
ROWS = {
    "person": [(1, 8532, 1980), (2, 8507, 1950), (3, 0, 2000)],
    "measurement": [
        (1, 1, 3009201, "2023-05-01", 2.5, 9040, 11),
        (2, 1, 3009201, "2024-05-01", 4.5, 9040, 12),
        (3, 1, 3009201, "2024-05-01", 3.5, 9040, 12),  # on the same day: the larger counts
        (4, 1, 3009201, "2025-02-01", 9.5, 9040, 13),  # after what is read
        (5, 2, 3009201, "2024-05-01", 7.5, 8840, None),  # in another unit
        (6, 2, 3009201, "2024-05-01", None, 9040, None),
        (7, 2, 3004501, "2024-06-01", 99.5, 8840, 21),
    ],
    "condition_occurrence": [
        (1, 1, 140673, "2025-03-01", 13), (2, 2, 140673, "2024-03-01", 21), (3, 3, 1, "2025-03-01", None),
    ],
    "drug_exposure": [(1, 2, 40163924, "2024-01-01"), (2, 2, 40163924, "2024-02-01"), (3, 3, 40163924, "2025-02-01")],
    "visit_occurrence": [
        (11, 1, 9202, "2023-05-01"), (12, 1, 9201, "2024-05-01"), (13, 1, 9201, "2025-03-01"),
        (21, 2, 9201, "2024-06-01"),
    ],
    "concept_ancestor": [(1501700, 40163924), (1501700, 1501700)],
}  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            place = f"sqlite:///{folder}/omop.db"
            fill(place)
            yield place
    else:
        with postgresql_server() as place:
            fill(place.replace("postgresql:", "postgresql+psycopg:"))
            yield place


def fill(url: str) -> None:
    engine = sa.create_engine(url)
    mark = "?" if url.startswith("sqlite") else "%s"
    with engine.begin() as connection:
        for name, columns in TABLES.items():
            connection.exec_driver_sql(f"CREATE TABLE {name} ({columns})")
            places = ", ".join([mark] * len(columns.split(", ")))
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES ({places})", ROWS[name])
    engine.dispose()


def answer(url: str, name: str) -> set[tuple[str, ...]]:
    table = open_table(SqlQuery(url, QUERIES[name], None, None, 60.0))
    batches = list(table.batches(table.names, Problems()))
    rows = [row for batch in batches for row in zip(*(batch[each].to_pylist() for each in table.names), strict=True)]
    assert len(set(rows)) == len(rows)
    return set(rows)


def test_the_page_has_both_queries():
    assert QUERIES.keys() == {"persons", "visits"}


def test_a_person_is_one_record_of_what_was_known_before_the_label(url):
    assert answer(url, "persons") == {
        ("1", "45", "F", "4.5", "0", "1", "1"),
        ("2", "75", "M", "", "1", "1", "0"),  # ill before: no new case
        ("3", "25", "", "", "0", "0", "0"),
    }


def test_a_visit_is_one_row_with_its_measurements(url):
    assert answer(url, "visits") == {
        ("1", "45", "F", "20230501", "2.5", "", "0"),
        ("1", "45", "F", "20240501", "4.5", "", "0"),
        ("1", "45", "F", "20250301", "9.5", "", "1"),
        ("2", "75", "M", "20240601", "", "99.5", "1"),
    }
