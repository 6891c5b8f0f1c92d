"""Slices: the images of each value of a column of the references table, or of captions of like length."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import tables
from jobs.common.segments import CAPTION_LENGTH

MOST_VALUES = 1_000  # of a column


def check_columns(references: DataFrame, by: Sequence[str], what: str) -> None:
    """Raises ValueError for a name in `by` that is no column of plain values, or of one with too many of them."""
    names = [name for name in by if name != CAPTION_LENGTH]
    for name in names:
        if name not in references.columns or name in tables.REFERENCES.names:
            others = [other for other in references.columns if other not in tables.REFERENCES.names]
            allowed = f"{CAPTION_LENGTH} or a column of {what}: {', '.join(others) or 'it has none'}"
            raise ValueError(f"--by {name}: must be {allowed}")
        kind = references.schema[name].dataType
        if not isinstance(kind, T.AtomicType):
            raise ValueError(f"--by {name}: must be a plain value, is {kind.simpleString()}")
    if names:
        counts = references.select(*(F.approx_count_distinct(_column(name)).alias(name) for name in names)).head()
        assert counts is not None
        for name in names:
            if counts[name] > 1.1 * MOST_VALUES:  # the count is about right
                raise ValueError(f"--by {name}: {MOST_VALUES} values are allowed; it has about {counts[name]}")


def _column(name: str) -> Column:
    """Of that name, though it has dots in it."""
    return F.col(f"`{name.replace('`', '``')}`")


def values(references: DataFrame, by: Sequence[str]) -> Column:
    """A map of the values, as text, of each row of `references`."""
    # Of binary, and of what was made of it, some are no UTF-8.
    texts = ((F.lit(name), F.make_valid_utf8(_column(name).cast("string"))) for name in by if name != CAPTION_LENGTH)
    items = [item for pair in texts for item in pair]
    kind = T.MapType(T.StringType(), T.StringType())
    return F.create_map(*items).cast(kind) if items else F.lit(None).cast(kind)
