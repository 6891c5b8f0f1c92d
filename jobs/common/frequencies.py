"""CIDEr's document frequencies: of the references that are scored, or from a table."""

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.common import documents, tables
from nic_model.metrics.segments import KeyFrequencies

# They go by way of the driver to every Python worker, 12 bytes each.
MOST = 30_000_000

OPTION = "--document-frequencies"


def write_frequencies(words: DataFrame, location: str) -> None:
    """Of the references of all images that have a caption. `words` has rows of segments.WORDS."""
    counts = words.select(documents.COUNTS.names).where(F.col("part").isNotNull())
    # Few long rows: Spark only carries them.
    sums = (
        counts.repartition("part")
        .sortWithinPartitions("part")
        .mapInArrow(documents.sum_frequencies, tables.FREQUENCIES)
    )
    tables.write_table(sums, location, mode="overwrite", rebalance=False)


def read_frequencies(spark: SparkSession, location: str) -> KeyFrequencies:
    """Raises ValueError where it is no table of frequencies, or too large a one."""
    return collect_frequencies(tables.read_table(spark, location, tables.FREQUENCIES, role=OPTION), location)


def collect_frequencies(table: DataFrame, location: str) -> KeyFrequencies:
    """Of the table at `location`. Raises ValueError where it is none of frequencies, or too large a one."""
    what = f"{OPTION} {location}"
    found = _shared(table).select(tables.FREQUENCIES.names).limit(MOST + 2).toArrow()
    if found.num_rows > MOST + 1:
        raise ValueError(f"{what}: {MOST} n-grams of more than one image are allowed; it has more")
    every = found.filter(found["ngram"].is_null())["n_images"].to_pylist()
    counts = found.filter(found["ngram"].is_valid())
    keys = counts["ngram"].to_numpy().view(np.uint64)
    order = np.argsort(keys)
    keys, n_images = keys[order], counts["n_images"].to_numpy()[order]
    if len(every) != 1 or n_images.max(initial=1) > every[0] or np.any(keys[1:] == keys[:-1]):
        raise ValueError(f"{what}: must have each ngram once, and one row with null for it that counts all images")
    return KeyFrequencies(keys, n_images.astype(np.uint32), every[0])


def _shared(table: DataFrame) -> DataFrame:
    """Without the n-grams of one image: they weigh as much as those that are not there."""
    return table.where((F.col("n_images") > 1) | F.col("ngram").isNull())
