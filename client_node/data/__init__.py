"""A site's records: reads and checks its table and cells.

`check` reads a file by the site's policy and counts the cells that do not fit. `read` returns the `Records` that a
study trains on. `archive` searches a folder of pictures, sounds and texts. `known_units` remembers whose records an
account has paid for. `kept_files` holds states of records between rounds. `tables` opens files and reads their columns
as text. `site_draft` writes a first site.toml from a table. Messages name lines and columns and never show a cell.

Three rows of a table, of which the last one has no id of a person:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.data import check
>>> from confide.client_node.policy import SitePolicy
>>> with TemporaryDirectory() as home:
...     table = Path(home) / "patients.csv"
...     _ = table.write_text("id,age\\np1,61\\np1,62\\n,40\\n")
...     policy = SitePolicy.model_validate({
...         "data": {"path": table, "name": "patients", "unit": "patient", "unit_column": "id"},
...         "budget": {"epsilon": 3.0, "delta": 1e-5}, "backbone": {"directory": Path(home) / "backbone"},
...     })
...     report = check(table, policy)
>>> report.rows, report.units
(3, 2)
>>> print(*report.problems)
line 4, column id: expected an id of at most 256 printable characters, found nothing
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .records import DataReport, Records, check, read
else:
    __getattr__ = lazy(__name__, records="DataReport Records check read")

__all__ = [
    "DataReport", "Records", "archive", "check", "kept_files", "known_units", "named_files", "read", "site_draft",
    "tables",
]  # fmt: skip
