"""Private sums of one site in which every unit takes part, so that no sampling amplifies anything.

A histogram counts units by label and bin; a prototype says where records lie. Privacy unit: all records of one unit id,
added or removed together. A unit moves either sum by at most 1 in L2, whatever its records say and however many it has.
"""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..accounting import Mode
from ..errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from .noise import MAX_SIGMA, discrete_gaussian
from .sampling import Integers, RandomBytes, uniform_words

_SHORTER = 1 - 1e-9  # no rounding of a root or a mean makes a vector longer than 1


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsampledTerms:
    """The terms of a histogram or a prototype, the same at all sites of a study. A unit moves either by at most 1."""

    mode: Mode
    dim: int  # how many numbers it has
    site_noise_int: int  # std of this site's noise in ring units; 0 exactly in mode "none"
    scale_bits: int  # 1 is 2**scale_bits ring units

    def __post_init__(self) -> None:
        low, high = (0, 0) if self.mode == "none" else (1, MAX_SIGMA)
        checks = {
            f"site_noise_int must be in [{low}, {high}] in mode {self.mode}": low <= self.site_noise_int <= high,
            "dim must be at least 1": self.dim >= 1,
            "scale_bits must be in [0, 30]": 0 <= self.scale_bits <= 30,  # 2**33 units still fit
        }
        for claim, holds in checks.items():
            if not holds:
                raise InvalidPrivacyParameter(f"{claim}, got {self}")

    def refuse_source(self, source: RandomBytes) -> None:
        """Raises `SourceRefused` for a mode with noise and a source other than the operating system's."""
        if self.mode != "none" and source is not os.urandom:
            raise SourceRefused(f"mode {self.mode} draws its choices and noise from the operating system only")


def private_histogram(
    cell_of_row: npt.ArrayLike,
    unit_of_row: npt.ArrayLike,
    *,
    terms: UnsampledTerms,
    source: RandomBytes = os.urandom,
) -> Integers:
    """Counts of units by cell with this site's noise, as int64 [cells] in ring units.

    A unit with several records is counted for one of them, drawn at random. In mode "distributed" the noise of one
    site does not suffice: the result must go nowhere but into secret sharing.

    Args:
        cell_of_row: [rows], 0 to cells - 1: where each record falls.
        unit_of_row: [rows], any ids.

    Raises:
        BatchMalformed: shapes do not fit together, or a cell does not exist.
        SourceRefused: a mode with noise and a source other than the operating system's.
    """
    terms.refuse_source(source)
    cells, units = np.asarray(cell_of_row, dtype=np.int64), np.asarray(unit_of_row)
    if cells.ndim != 1 or cells.shape != units.shape:
        raise BatchMalformed(f"cells {cells.shape} and units {units.shape} do not fit together")
    if cells.size and not 0 <= cells.min() <= cells.max() < terms.dim:
        raise BatchMalformed(f"a record falls outside of the {terms.dim} cells")
    order = np.argsort(uniform_words(len(units), source), kind="stable")  # a random order; the first record counts
    first_of_unit = np.unique(units[order], return_index=True)[1]
    counts = np.bincount(cells[order][first_of_unit], minlength=terms.dim).astype(np.int64) << terms.scale_bits
    if terms.mode == "none":
        return counts
    return counts + discrete_gaussian(terms.site_noise_int, terms.dim, source)


def private_prototype(
    vectors: npt.ArrayLike,
    unit_of_row: npt.ArrayLike,
    *,
    terms: UnsampledTerms,
    source: RandomBytes = os.urandom,
) -> Integers:
    """Sums, over units, the mean of a unit's vectors, with this site's noise, as int64 [dim] in ring units.

    Vectors are cut to length 1 first, so their mean is no longer. It is rounded towards zero before it is added, in
    whole numbers: the order of units says nothing, and none adds more than 1 in L2. In mode "distributed" the noise of
    one site does not suffice: the result must go nowhere but into secret sharing.

    Args:
        vectors: [rows, dim], one of each record; zeros count as nothing, and so does one with a number that is not
            finite: else one unit's record would decide whether the others' are released.
        unit_of_row: [rows], any ids.

    Raises:
        BatchMalformed: shapes do not fit together.
        SourceRefused: a mode with noise and a source other than the operating system's.
    """
    terms.refuse_source(source)
    rows, units = np.asarray(vectors, dtype=np.float64), np.asarray(unit_of_row)
    if rows.shape != (len(units), terms.dim) or units.ndim != 1:
        raise BatchMalformed(f"vectors {rows.shape} of {terms.dim} numbers and units {units.shape} do not fit together")
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    rows = rows * (_SHORTER / np.maximum(np.linalg.norm(rows, axis=1), 1.0))[:, None]
    _, numbers, counts = np.unique(units, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    total = np.zeros(terms.dim, dtype=np.int64)
    for own in np.split(order, np.cumsum(counts)[:-1]) if len(units) else ():
        total += np.trunc(np.ldexp(rows[own].mean(axis=0), terms.scale_bits)).astype(np.int64)
    if terms.mode == "none":
        return total
    return total + discrete_gaussian(terms.site_noise_int, terms.dim, source)
