"""The records of simulated sites: all records of a study in one table, and the rows of each site in it.

Records are divided by unit, never by row: a unit is at one site with all that it has. Which site has which units
follows from the split and a seed alone. Held-out records are divided in the same proportions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...client_node.data import Records, read
from ...client_node.study import Study
from ...client_node.study.terms import MOST_SITES
from ...client_node.training.study_model import StudyModel
from ...models.records.kind import Examples
from ..comparison.task import digest_of, policies
from ..errors import StudyRefused
from ..studies.held_out import RECORDS

_MOST_CLASSES = 1000  # by which units are divided
_BINS = 10  # of a number, as classes
_TABLES = ("train.csv", "train.parquet", RECORDS)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """A way to divide units among sites: "iid", "dirichlet:ALPHA" or "by-column:NAME"."""

    kind: str
    alpha: float = 0.0  # of dirichlet: small for sites that have few classes each
    column: str = ""  # of by-column

    @classmethod
    def parse(cls, text: str) -> "Split":
        """Reads a split. Raises `StudyRefused` for any other text."""
        kind, _, rest = text.partition(":")
        if kind == "iid" and not rest:
            return cls(kind)
        if kind == "by-column" and rest:
            return cls(kind, column=rest)
        try:
            alpha = float(rest) if kind == "dirichlet" else 0.0
        except ValueError:
            alpha = 0.0
        if not 1e-3 <= alpha <= 1e6:  # NaN fails too
            raise StudyRefused(
                f"--split {text!r}: give iid, dirichlet:ALPHA with ALPHA from 0.001 to 1000000, or by-column:NAME"
            )
        return cls(kind, alpha=alpha)


@dataclass(frozen=True, slots=True)
class Table:
    """Records of all sites, and which of them each site has."""

    examples: Examples
    rows_of_site: tuple[Rows, ...]

    def of(self, site: int) -> Examples:
        """Copies the records of one site, in their order."""
        return rows_of(self.examples, self.rows_of_site[site])

    def units(self, site: int) -> int:
        """Number of units at one site."""
        return len(np.unique(self.examples.units[self.rows_of_site[site]]))


@dataclass(frozen=True, slots=True)
class Sites:
    """The names of sites, and their records."""

    names: tuple[str, ...]
    train: Table
    held_out: Table
    digest: str  # SHA-256 over all files


@dataclass(frozen=True, slots=True)
class _Pool:
    examples: Examples
    sources: Rows  # [rows], the number of the folder that a record is from
    groups: npt.NDArray[np.str_]  # [rows], the value by which sites are made; empty text without one


def rows_of(examples: Examples, rows: Rows) -> Examples:
    """Copies some records."""
    return Examples(examples.ids[rows], examples.targets[rows], examples.units[rows])


def read_sites(
    study: Study,
    model: StudyModel,
    folder: Path,
    *,
    split: Split | None,
    sites: int | None,
    seed: int,
    unit_column: str | None = None,
) -> Sites:
    """Reads all records below `folder`, and divides them.

    Args:
        study: whose records they are; its participants matter without a split alone.
        split: None: each site of the study has the records of its own folder, as its node reads them.
        sites: number of them; None, by-column only: one for each value.

    Raises:
        DataInvalid: a cell does not fit.
        StudyRefused: no records are there, or fewer units than sites, or they cannot be divided so.
    """
    folder, names = (folder, study.site_names()) if split is None else sources(folder)
    parts = policies(study, folder, names, unit_column)
    column = split.column if split else ""
    pools = []
    for part in parts:
        found = [
            read(policy, study, site=site if split is None else None, in_order=True) for site, policy in part.items()
        ]
        pools.append(_pooled(model, found, column))
    digest = hashlib.sha256((digest_of(parts[0]) + digest_of(parts[1])).encode()).hexdigest()
    train, held_out = pools
    if split is None:
        as_they_are = [_table(pool, pool.sources, len(names)) for pool in pools]
        return Sites(tuple(names), as_they_are[0], as_they_are[1], digest)
    if split.kind == "by-column":
        homes = _by_column(train, held_out, sites)
        count = max(map(max, homes)) + 1 if sites is None else sites
    else:
        if sites is None:
            raise StudyRefused(f"--split {split.kind} divides among a number of sites: give --sites, too")
        count = sites
        alpha = split.alpha if split.kind == "dirichlet" else None
        homes = [_by_chance(pool, count, alpha, seed) for pool in pools]
    units = len(_first_rows(train.examples))
    if not 2 <= count <= min(units, MOST_SITES):
        raise StudyRefused(f"{count} sites: a simulation has 2 to {MOST_SITES}, and no more than its {units:,} units")
    _fill_empty(homes[0], count)
    digits = max(4, len(str(count)))
    divided = [_table(pool, _of_rows(pool, home), count) for pool, home in zip(pools, homes, strict=True)]
    return Sites(tuple(f"site-{n:0{digits}d}" for n in range(1, count + 1)), divided[0], divided[1], digest)


def sources(folder: Path) -> tuple[Path, list[str]]:
    """Finds folders of records: those inside `folder`, or itself."""
    if any((folder / name).is_file() for name in _TABLES):
        return folder.resolve().parent, [folder.resolve().name]
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [each.name for each in inside if any((each / name).is_file() for name in _TABLES)]
    if not found:
        raise StudyRefused(f"{folder} holds no records: neither train.csv nor folders with a train.csv")
    return folder, found


def _pooled(model: StudyModel, tables: Sequence[Records], column: str) -> _Pool:
    """Puts all tables in one, their units numbered one after the other: nobody is at two of them."""
    parts = [model.examples(records) for records in tables]
    width = max(part.ids.shape[1] for part in parts)
    first = np.cumsum([0, *(records.num_units for records in tables)])
    units = [part.units + start for part, start in zip(parts, first, strict=False)]
    targets = [np.asarray(part.targets) for part in parts]
    return _Pool(
        Examples(
            np.concatenate([_widened(part.ids, width) for part in parts]),
            np.concatenate([each if each.ndim == 1 else _widened(each, width) for each in targets]),
            np.concatenate(units),
        ),
        np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts]),
        np.concatenate([_groups(records, column, len(records.units)) for records in tables]),
    )


def _widened(array: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.generic]:
    missing = [(0, 0), (0, width - array.shape[1]), *((0, 0) for _ in array.shape[2:])]
    return np.pad(array, missing)


def _groups(records: Records, column: str, rows: int) -> npt.NDArray[np.str_]:
    if not column:
        return np.full(rows, "")
    if column not in records.columns:
        raise StudyRefused(
            f"--split by-column:{column}: the study reads no column of that name; it reads "
            f"{', '.join(sorted(records.columns))}"
        )
    return np.array([str(value) for value in records.columns[column]])


def _first_rows(examples: Examples) -> Rows:
    """[units], a row of each unit, the first."""
    return np.unique(examples.units, return_index=True)[1]


def _by_chance(pool: _Pool, count: int, alpha: float | None, seed: int) -> Rows:
    """[units], the site of each: alike by chance, or each class in proportions drawn from a Dirichlet distribution.

    The second is that of Hsu et al. 2019 (arXiv:1909.06335) and Yurochkin et al. 2019: of every class, a vector of
    shares over the sites. Training and held-out records draw the same shares.
    """
    first = _first_rows(pool.examples)
    order = np.random.default_rng([seed, 0]).permutation(len(first))
    homes = np.empty(len(first), dtype=np.int64)
    if alpha is None:
        homes[order] = np.arange(len(first)) % count
        return homes
    classes = _classes(np.asarray(pool.examples.targets)[first])
    for label in np.unique(classes):
        shares = np.random.default_rng([seed, 1, int(label) % 2**32]).dirichlet(np.full(count, alpha))
        own = order[classes[order] == label]
        homes[own] = np.searchsorted(np.cumsum(shares), (np.arange(len(own)) + 0.5) / len(own)).clip(0, count - 1)
    return homes


def _classes(targets: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """[units], by what their records tell, whole numbers: a label or class, a tenth of a scale."""
    if targets.ndim != 1:
        raise StudyRefused("--split dirichlet needs a label, a class or a number to learn; divide by-column or iid")
    if targets.dtype.kind != "f":
        return targets.astype(np.int64)
    found: npt.NDArray[np.int64] = ((targets.clip(-1, 1) + 1) / 2 * _BINS).astype(np.int64)
    return found.clip(0, _BINS - 1)


def _by_column(train: _Pool, held_out: _Pool, sites: int | None) -> list[Rows]:
    """[units] of both tables, the site of each: a value is at one site, the most frequent ones first."""
    own = [pool.groups[_first_rows(pool.examples)] for pool in (train, held_out)]
    values, counts = np.unique(own[0], return_counts=True)
    if not 2 <= len(values) <= _MOST_CLASSES or (sites or 0) > len(values):
        raise StudyRefused(
            f"--split by-column finds {len(values)} values; a site needs one of its own, and there may be 2 to "
            f"{_MOST_CLASSES}"
        )
    filled = np.zeros(sites or len(values), dtype=np.int64)
    home_of = {}
    for place in np.argsort(-counts, kind="stable"):
        home_of[str(values[place])] = int(filled.argmin())
        filled[filled.argmin()] += counts[place]
    return [np.array([home_of.get(str(value), 0) for value in groups], dtype=np.int64) for groups in own]


def _fill_empty(homes: Rows, count: int) -> None:
    """Gives each site without a unit one of the site that has the most: a site without records takes no part."""
    held = np.bincount(homes, minlength=count)
    for site in np.flatnonzero(held == 0):
        largest = int(held.argmax())
        homes[np.flatnonzero(homes == largest)[-1]] = site
        held[largest], held[site] = held[largest] - 1, 1


def _of_rows(pool: _Pool, homes: Rows) -> Rows:
    """[rows], the site of each record, from that of its unit."""
    found: Rows = homes[np.unique(pool.examples.units, return_inverse=True)[1]]
    return found


def _table(pool: _Pool, homes: Rows, count: int) -> Table:
    order = np.argsort(homes, kind="stable")
    ends = np.cumsum(np.bincount(homes, minlength=count))
    return Table(pool.examples, tuple(np.split(order, ends[:-1])))
