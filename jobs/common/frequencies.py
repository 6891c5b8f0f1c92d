"""CIDEr's document frequencies: of the references that are scored, or from a table."""

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from jobs.common import documents, tables
from jobs.common.batches import unpack
from nic_model.metrics.segments import KeyFrequencies

# They go by way of the driver to every Python worker, 12 bytes each.
MOST = 30_000_000

OPTION = "--document-frequencies"


def sum_frequencies(words: DataFrame) -> DataFrame:
    """Of the references of all images that have a caption: rows of documents.PACKED for rows of segments.WORDS."""
    counts = words.select(documents.COUNTS.names).where(F.col("part").isNotNull())
    # Few long rows, which Spark only carries. It would not merge small partitions of what is kept.
    size = min(documents.PARTS, words.sparkSession.sparkContext.defaultParallelism)
    parts = counts.repartition(size, "part").sortWithinPartitions("part")
    return parts.mapInArrow(documents.pack_frequencies, from_arrow_schema(documents.PACKED))


def collect_frequencies(packed: DataFrame) -> KeyFrequencies:
    """Of rows of documents.PACKED. Raises ValueError where there are too many."""
    if sum(packed.select("n_rows").toArrow()["n_rows"].to_pylist()) > MOST + 1:
        raise ValueError(f"the references have more than {MOST} n-grams of more than one image: {OPTION} is needed")
    batches = unpack(packed.select("frequencies").toArrow().to_batches())
    return _sorted(pa.Table.from_batches(batches, documents.FREQUENCIES), OPTION)


def write_frequencies(packed: DataFrame, location: str) -> None:
    """The table, of rows of documents.PACKED."""
    rows = packed.select("frequencies").mapInArrow(unpack, tables.FREQUENCIES)
    tables.write_table(rows, location, mode="overwrite", rebalance=False)


def read_frequencies(spark: SparkSession, location: str) -> KeyFrequencies:
    """Of the table at `location`. Raises ValueError where it is none of frequencies, or too large a one."""
    what = f"{OPTION} {location}"
    table = tables.read_table(spark, location, tables.FREQUENCIES, role=OPTION)
    # Those of one image weigh as much as those that are not there.
    shared = table.where((F.col("n_images") > 1) | F.col("ngram").isNull())
    found = shared.select(tables.FREQUENCIES.names).limit(MOST + 2).toArrow()
    if found.num_rows > MOST + 1:
        raise ValueError(f"{what}: {MOST} n-grams of more than one image are allowed; it has more")
    return _sorted(found, what)


def _sorted(found: pa.Table, what: str) -> KeyFrequencies:
    """Of rows of FREQUENCIES."""
    every = found.filter(found["ngram"].is_null())["n_images"].to_pylist()
    counts = found.filter(found["ngram"].is_valid())
    keys = counts["ngram"].to_numpy().view(np.uint64)
    order = np.argsort(keys)
    keys, n_images = keys[order], counts["n_images"].to_numpy()[order]
    if len(every) != 1 or n_images.max(initial=1) > every[0] or np.any(keys[1:] == keys[:-1]):
        raise ValueError(f"{what}: must have each ngram once, and one row with null for it that counts all images")
    return KeyFrequencies(keys, n_images.astype(np.uint32), every[0])
