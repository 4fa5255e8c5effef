"""All rows of a database as lines of text, which are the same whatever database they come from or go to.

Lines of JSON: the format and the schema; for each table its name and columns, then its rows, one a line; last the
number of rows of each table. Bytes stand in base64. The dump is of one moment, whoever writes meanwhile, and is made
by the columns that the database really has, so that one of an earlier version can be kept before it is migrated.
"""

import base64
import binascii
import json
import re
from typing import Any, BinaryIO

from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, Table, delete, func, insert, select, text

from ..errors import Conflict, StateDamaged
from .store import SCHEMA, migrate_on

FORMAT = "confide-database-1"
_VERSIONS = "alembic_version"
_OF_PROCESSES = "server"  # whose rows are of processes that run now: where the dump is restored there are others
_MAX_LINE = 1 << 26  # bytes; the canonical form of a study holds its vocabularies
_AT_ONCE = 1000  # rows
_KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bytes: (str,)}


def write_dump(connection: Connection, out: BinaryIO) -> dict[str, int]:
    """Writes every row that `connection` sees, of `Store.moment`, but for servers; returns how many of each table."""
    schema = str(connection.scalar(text("SELECT version_num FROM alembic_version")))
    _write(out, {"format": FORMAT, "schema": schema})
    counts = {}
    for table in _tables(connection):
        _write(out, {"table": table.name, "columns": [column.name for column in table.columns]})
        counts[table.name] = 0
        chosen = select(table).order_by(*table.primary_key.columns).limit(0 if table.name == _OF_PROCESSES else None)
        rows = connection.execute(chosen, execution_options={"yield_per": _AT_ONCE})
        for row in rows:
            _write(out, [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in row])
            counts[table.name] += 1
    _write(out, {"rows": counts})
    return counts


def load_dump(connection: Connection, lines: BinaryIO) -> dict[str, int]:
    """Makes the tables in an empty database, fills them, and migrates them to this version's schema.

    All of it is in the transaction of `connection`, whose owner commits it.

    Returns:
        How many rows each table has got.

    Raises:
        StateDamaged: the dump is cut short, or holds what a database does not.
        Conflict: a later version wrote it.
    """
    head = _read(lines)
    if not (isinstance(head, dict) and head.keys() == {"format", "schema"} and head["format"] == FORMAT):
        raise StateDamaged(f"the first line of the database does not say {FORMAT}")
    schema = head["schema"]
    if not (isinstance(schema, str) and re.fullmatch("[0-9]{4}", schema)) or schema < "0001":
        raise StateDamaged("the database has no schema that is known")
    if schema > SCHEMA:
        raise Conflict("the database is a later version's; install that version to restore it. Nothing was changed")
    migrate_on(connection, schema)
    tables = _tables(connection)
    for table in reversed(tables):  # a migration may have begun a table with rows of its own, which the dump holds too
        connection.execute(delete(table))
    known = {table.name: table for table in tables}
    counts = _fill(connection, known, lines)
    _go_on_counting(connection, known)
    migrate_on(connection)
    return counts


def _fill(connection: Connection, known: dict[str, Table], lines: BinaryIO) -> dict[str, int]:
    counts: dict[str, int] = {}
    table: Table | None = None
    rows: list[dict[str, Any]] = []

    def store() -> None:
        if rows and table is not None:
            connection.execute(insert(table), rows)
            rows.clear()

    while True:
        line = _read(lines)
        if isinstance(line, list) and table is not None:
            rows.append(_row(table, line))
            counts[table.name] += 1
            if len(rows) >= _AT_ONCE:
                store()
            continue
        store()
        if isinstance(line, dict) and line.keys() == {"table", "columns"}:
            table = known.get(str(line["table"]))
            if table is None or table.name in counts or line["columns"] != [each.name for each in table.columns]:
                raise StateDamaged("the database has a table that its schema does not have")
            counts[table.name] = 0
        elif isinstance(line, dict) and line.keys() == {"rows"}:
            if line["rows"] != counts or counts.keys() != known.keys() or lines.read(1):
                raise StateDamaged("the database does not end with the number of its rows")
            return counts
        else:
            raise StateDamaged("the database holds a line that is neither a table nor a row")


def _row(table: Table, values: list[Any]) -> dict[str, Any]:
    if len(values) != len(table.columns):
        raise StateDamaged(f"a row of table {table.name} has {len(values)} values, not {len(table.columns)}")
    return {column.name: _value(column, value) for column, value in zip(table.columns, values, strict=True)}


def _value(column: "Column[Any]", value: Any) -> Any:
    kind = column.type.python_type
    if value is None and column.nullable:
        return None
    if isinstance(value, bool) or not isinstance(value, _KINDS[kind]):
        raise StateDamaged(f"a value of {column.table.name}.{column.name} is no {kind.__name__}")
    if kind is not bytes:
        return kind(value)
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error as err:
        raise StateDamaged(f"a value of {column.table.name}.{column.name} is not in base64") from err


def _tables(connection: Connection) -> list[Table]:
    """Lists the tables that are there, those first that others refer to."""
    found = MetaData()
    found.reflect(connection)
    for table in found.tables.values():
        for column in table.columns:
            if column.type.python_type is bytes:
                column.type = LargeBinary()
    return [table for table in found.sorted_tables if table.name != _VERSIONS]


def _go_on_counting(connection: Connection, tables: dict[str, Table]) -> None:
    """Lets PostgreSQL number new rows after those that came with their numbers; SQLite does so by itself."""
    if connection.dialect.name == "sqlite":
        return
    for table in tables.values():
        (*_, key) = table.primary_key.columns
        if isinstance(key.type, Integer) and key.server_default is not None:
            sequence = func.pg_get_serial_sequence(table.name, key.name)
            largest = select(func.coalesce(func.max(key), 0) + 1).scalar_subquery()
            connection.execute(select(func.setval(sequence, largest, False)))


def _write(out: BinaryIO, line: Any) -> None:
    out.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def _read(lines: BinaryIO) -> Any:
    line = lines.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise StateDamaged("the database ends in the middle, or has a line that is too long")
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise StateDamaged("the database has a line that is not JSON") from err


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
