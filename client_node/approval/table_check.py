"""Checks of a table for the people of a site, before a study asks for it."""

from pathlib import Path

from ..data import DataReport, check
from ..policy import load_policy
from ..study import load_draft
from .catalogue import find_study


def check_table(home: Path, table: Path, study: str | None = None) -> DataReport:
    """Checks a table by the site's policy, and for the columns of a study if one is named.

    Args:
        study: name or hash of a study that the node has fetched, or path of a study.toml.
    """
    policy = load_policy(home)
    if study is None:
        return check(table.resolve(), policy)
    return check(
        table.resolve(), policy, load_draft(Path(study)) if study.endswith(".toml") else find_study(home, study)
    )
