"""One private histogram of one site: how many units fall into each bin, by label, with noise.

Privacy unit: all records of one unit id, added or removed together. A unit counts once, in one bin, whatever its
records say, so it moves the histogram by at most 1 in L2; every unit takes part, so there is no sampling to amplify.
"""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..accounting import Mode
from ..errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from .noise import MAX_SIGMA, discrete_gaussian
from .sampling import Integers, RandomBytes, uniform_words


@dataclass(frozen=True, kw_only=True, slots=True)
class HistogramTerms:
    """The terms of a histogram, the same at all sites of a study."""

    mode: Mode
    cells: int  # how many counts it has
    site_noise_int: int  # std of this site's noise in ring units; 0 exactly in mode "none"
    scale_bits: int  # a count of 1 is 2**scale_bits ring units

    def __post_init__(self) -> None:
        low, high = (0, 0) if self.mode == "none" else (1, MAX_SIGMA)
        checks = {
            f"site_noise_int must be in [{low}, {high}] in mode {self.mode}": low <= self.site_noise_int <= high,
            "cells must be at least 1": self.cells >= 1,
            "scale_bits must be in [0, 30]": 0 <= self.scale_bits <= 30,  # 2**33 units still fit
        }
        for claim, holds in checks.items():
            if not holds:
                raise InvalidPrivacyParameter(f"{claim}, got {self}")


def private_histogram(
    cell_of_row: npt.ArrayLike,
    unit_of_row: npt.ArrayLike,
    *,
    terms: HistogramTerms,
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
    if terms.mode != "none" and source is not os.urandom:
        raise SourceRefused(f"mode {terms.mode} draws its choices and noise from the operating system only")
    cells, units = np.asarray(cell_of_row, dtype=np.int64), np.asarray(unit_of_row)
    if cells.ndim != 1 or cells.shape != units.shape:
        raise BatchMalformed(f"cells {cells.shape} and units {units.shape} do not fit together")
    if cells.size and not 0 <= cells.min() <= cells.max() < terms.cells:
        raise BatchMalformed(f"a record falls outside of the {terms.cells} cells")
    order = np.argsort(uniform_words(len(units), source), kind="stable")  # a random order; the first record counts
    first_of_unit = np.unique(units[order], return_index=True)[1]
    counts = np.bincount(cells[order][first_of_unit], minlength=terms.cells).astype(np.int64) << terms.scale_bits
    if terms.mode == "none":
        return counts
    return counts + discrete_gaussian(terms.site_noise_int, terms.cells, source)
