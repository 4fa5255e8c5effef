"""Writes numbers of databases and Parquet files as text, a whole number as an integer.

One person may be 1 in one table, 1.0 in another and Decimal('1.00') in a third: all of them are written "1". A binary
float that cannot tell two neighbouring integers apart, or that is not whole, is no id.
"""

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

NO_CELL = "\0"  # text that fits nothing
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}  # below it a float of so many bits tells all integers apart


def floats(column: pa.Array, *, are_ids: bool = False) -> pa.Array:
    """Writes floats as text; a null stays one.

    Args:
        are_ids: True to write `NO_CELL` for one that is not whole, or too large to be exact.
    """
    limit = float(_EXACT[column.type.bit_width])
    wide = pc.cast(column, pa.float64())
    is_whole = pc.and_(pc.equal(wide, pc.floor(wide)), pc.less(pc.abs(wide), limit))  # false of NaN and infinity
    integers = pc.cast(pc.if_else(is_whole, wide, 0.0), pa.int64())
    others = pa.scalar(NO_CELL) if are_ids else pc.cast(column, pa.string())
    return pc.if_else(is_whole, pc.cast(integers, pa.string()), others)


def decimal(cell: Decimal, *, is_id: bool = False) -> str:
    """Writes an exact number; with `is_id`, `NO_CELL` for one that is not whole."""
    if not cell.is_finite():
        return NO_CELL if is_id else "nan" if cell.is_nan() else "inf"
    whole = cell.to_integral_value()
    if cell == whole:
        return format(whole, "f") if whole else "0"
    return NO_CELL if is_id else format(cell, "f")
