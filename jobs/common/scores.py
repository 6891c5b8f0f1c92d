"""The score tables: captions joined with references, counted on executors, summed by Spark, scored once."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from jobs.common import bootstrap, segments, slices, tables
from jobs.common.bootstrap import Interval
from jobs.common.frequencies import OPTION, collect_frequencies, read_frequencies, write_frequencies
from nic_model.metrics import bleu
from nic_model.metrics.segments import KeyFrequencies

METRICS = ("bleu", "rouge_l", "cider")
KEYS = ("model_id", "decode_id")

# What is needed of the captions.
CAPTIONS = T.StructType([tables.CAPTIONS[n] for n in ("image_id", *KEYS, "caption", "status")])


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how. Raises ValueError with what is allowed."""

    metrics: tuple[str, ...] = METRICS
    by: tuple[str, ...] = ()
    frequencies: str | None = None  # table of document frequencies; None: of the images scored
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"--metrics {','.join(self.metrics)}: must be some of {', '.join(METRICS)}")
        if self.frequencies and "cider" not in self.metrics:
            raise ValueError(f"{OPTION} are of no use without cider among --metrics")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: must be at least 0 and less than 2 ** 63")

    def names(self) -> list[str]:
        """Of the metrics, as tables have them."""
        of = {"bleu": [f"bleu_{n}" for n in range(1, bleu.ORDER + 1)]}
        return [name for metric in METRICS if metric in self.metrics for name in of.get(metric, [metric])]

    def signature(self, metric: str) -> str:
        """What the figure depends on, to be printed with it."""
        return f"{signature(metric, self.frequencies)}|{bootstrap.signature(self.seed)}"


@dataclass(frozen=True)
class Score:
    """The figures of one model with one set of decoding settings, of all images or a slice of them."""

    model_id: str | None
    decode_id: str | None
    slice: str | None  # None: all images
    value: str | None
    scores: dict[str, Interval]  # by metric
    n_segments: int
    n_missing: int


def signature(metric: str, frequencies: str | None) -> str:
    """What a score without its interval depends on."""
    if metric.startswith("bleu_"):
        return bleu.signature()
    of = {"rouge_l": "rouge:l|beta:1.2", "cider": f"cider:d|n:1-4|sigma:6|df:{frequencies or 'evaluated-references'}"}
    return f"{of[metric]}|tok:ptb-coco|case:lower|version:1"


def evaluate(
    spark: SparkSession, captions: str, references: str, scores: str, run_id: str, evaluation: Evaluation | None = None
) -> list[Score]:
    """Scores the captions table at `captions` and writes the tables segments, corpus and, with slices, slices.

    Returns the scores of all images, model by model. Raises ValueError, before it writes, where a table is missing or
    lacks columns, where an image stands twice, or where not one image with a caption is among the references.
    """
    how = evaluation or Evaluation()
    written = tables.read_table(spark, captions, CAPTIONS, role="--captions")
    wanted = tables.read_table(spark, references, tables.REFERENCES, role="--references")
    slices.check_columns(wanted, how.by, f"--references {references}")
    with ThreadPoolExecutor(1) as pool, _kept(find_words(gather(written, wanted, how.by), how)) as worded:
        models = pool.submit(find_models, written)  # meanwhile: much of a small job is the driver's planning
        _check_rows(worded, f"--captions {captions}", f"--references {references}")
        frequencies = _frequencies(spark, worded, scores, how)
        counted = count_segments(worded, models.result(), frequencies, how).withColumn("run_id", F.lit(run_id))
        target = part(scores, "segments")
        tables.write_table(counted.select(tables.SEGMENTS.names), target, mode="overwrite", rebalance=False)
    found = score_segments(tables.read_again(spark, target, tables.SEGMENTS), how)
    tables.write_table(_corpus(spark, found, run_id, how), part(scores, "corpus"), mode="overwrite", rebalance=False)
    if how.by:
        tables.write_table(_slices(spark, found, run_id, how), part(scores, "slices"), mode="overwrite")
    return [score for score in found if score.slice is None]


def find_models(captions: DataFrame) -> list[tuple[str, str]]:
    """All that have a row, be it one without a caption: model_id and decode_id."""
    found = captions.select(*KEYS).distinct().collect()
    return sorted(
        ((row["model_id"], row["decode_id"]) for row in found), key=lambda ids: [(i is not None, i) for i in ids]
    )


def captioned(captions: DataFrame) -> DataFrame:
    """The captions that there are: what failed is left out."""
    return captions.where((F.col("status") == "ok") & F.col("caption").isNotNull())


def gather(captions: DataFrame, references: DataFrame, by: Sequence[str] = ()) -> DataFrame:
    """A row of segments.IMAGES for each image of either table, by one shuffle. Rows without image_id stay apart."""
    listed = F.struct(F.col("captions").alias("references"), slices.values(references, by).alias("slices"))
    caption = F.struct(*KEYS, "caption")
    either = references.select(
        "image_id", listed.alias("listed"), F.lit(None).cast(_type(captions, caption)).alias("caption")
    )
    other = captioned(captions).select(
        "image_id", F.lit(None).cast(_type(references, listed)).alias("listed"), caption.alias("caption")
    )
    apart = F.when(F.col("image_id").isNull(), F.monotonically_increasing_id())
    rows = either.unionByName(other).withColumn("apart", apart)
    # Spark would not merge the small partitions of what is kept: as many as it reads, and one for each core.
    size = max(rows.rdd.getNumPartitions(), rows.sparkSession.sparkContext.defaultParallelism)
    images = (
        rows.repartition(size, "image_id", "apart")
        .groupBy("image_id", "apart")
        .agg(F.collect_list("listed").alias("listed"), F.collect_list("caption").alias("captions"))
    )
    first = F.get("listed", F.lit(0))
    return images.select(
        "image_id",
        F.size("listed").alias("n_listed"),
        first["slices"].alias("slices"),
        *(F.col("captions")[key].alias(f"{key}s") for key in KEYS),
        F.col("captions")["caption"].alias("captions"),
        first["references"].alias("references"),
    ).select(segments.IMAGES.names)


def find_words(images: DataFrame, how: Evaluation) -> DataFrame:
    with_rouge = "rouge_l" in how.metrics

    def find(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return segments.find_words(batches, with_rouge)

    return images.mapInArrow(find, from_arrow_schema(segments.WORDED))


def count_segments(
    worded: DataFrame, models: Sequence[tuple[str, str]], frequencies: KeyFrequencies | None, how: Evaluation
) -> DataFrame:
    """The table of segments without the run."""
    sent = worded.sparkSession.sparkContext.broadcast(frequencies)
    with_bleu = "bleu" in how.metrics

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return segments.count_segments(batches, models, sent.value, with_bleu)

    return worded.mapInArrow(count, from_arrow_schema(segments.COUNTED))


def sum_segments(table: DataFrame, by: Sequence[str], seed: int) -> list[tuple[tuple[str | None, ...], np.ndarray]]:
    """For each model and decoding, and each value of what `by` names: model_id, decode_id, slice, value; and the sums
    (1 + REPLICATES, WIDTH) of segments: see bootstrap.py."""

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return bootstrap.sum_segments(batches, by, seed)

    needed = table.select(
        F.xxhash64("image_id").alias("image"),
        *KEYS,
        *("missing", "bleu_counts", "rouge_l", "cider"),
        *(slices.value(name).alias(f"slice:{name}") for name in by),
    )
    group = ("model_id", "decode_id", "slice", "value")
    parts = needed.mapInArrow(add, from_arrow_schema(bootstrap.SUMS))
    sums = [F.sum(F.col("sums")[at]).alias(f"sum_{at}") for at in range(bootstrap.WIDTH)]
    total = (
        parts.groupBy(*group, "replicate")
        .agg(*sums)
        .toArrow()
        .sort_by([(n, "ascending") for n in (*group, "replicate")])
    )
    numbers = np.stack([total[f"sum_{at}"].to_numpy() for at in range(bootstrap.WIDTH)], axis=1)
    names = total.filter(pc.equal(total["replicate"], 0)).select(group).to_pylist()
    blocks = numbers.reshape(len(names), 1 + bootstrap.REPLICATES, bootstrap.WIDTH)
    return [(tuple(name.values()), block) for name, block in zip(names, blocks, strict=True)]


def score_segments(table: DataFrame, how: Evaluation) -> list[Score]:
    """Of all images and of slices, for each model and decoding."""
    found = []
    for (model_id, decode_id, name, value), sums in sum_segments(table, how.by, how.seed):
        scores = bootstrap.scores_of(sums)
        intervals = {metric: bootstrap.interval(scores[metric]) for metric in how.names()}
        found.append(Score(model_id, decode_id, name, value, intervals, int(sums[0, 0]), int(sums[0, 1])))
    return found


def part(scores: str, name: str) -> str:
    """Where the table `name` of the scores at `scores` is."""
    return f"{scores}_{name}" if tables.is_table_name(scores) else f"{scores.rstrip('/')}/{name}"


def describe(score: Score) -> str:
    """Lines for people."""
    missing = f", {score.n_missing} without caption or without references" if score.n_missing else ""
    lines = [f"model {score.model_id}, decoding {score.decode_id}, {score.n_segments} images{missing}:"]
    for metric, of in score.scores.items():
        figures = "-" if of.score is None else f"{of.score:<5.1f} [{of.low:.1f}, {of.high:.1f}]"
        lines.append(f"{title(metric):>9} {figures}")
    return "\n".join(lines)


def title(metric: str) -> str:
    """As people write it."""
    return "CIDEr" if metric == "cider" else metric.upper().replace("_", "-")


def _frequencies(spark: SparkSession, worded: DataFrame, scores: str, how: Evaluation) -> KeyFrequencies | None:
    """Those of the table that was given, or else of all images scored, which are written beside the scores first."""
    if "cider" not in how.metrics:
        return None
    if how.frequencies:
        return read_frequencies(spark, how.frequencies)
    location = part(scores, "document_frequencies")
    write_frequencies(worded, location)
    return collect_frequencies(tables.read_again(spark, location, tables.FREQUENCIES), location)


def _corpus(spark: SparkSession, scores: list[Score], run_id: str, how: Evaluation) -> DataFrame:
    rows = [row for score in scores if score.slice is None for row in _score_rows(score, run_id, how)]
    return spark.createDataFrame(rows, tables.CORPUS).coalesce(1)


def _slices(spark: SparkSession, scores: list[Score], run_id: str, how: Evaluation) -> DataFrame:
    sliced = [score for score in scores if score.slice is not None]
    rows = [(score.slice, score.value, *row) for score in sliced for row in _score_rows(score, run_id, how)]
    return spark.createDataFrame(rows, tables.SLICES)


def _score_rows(score: Score, run_id: str, how: Evaluation) -> list[tuple[Any, ...]]:
    """Rows of CORPUS."""
    now, counts = datetime.now(UTC), (score.n_segments, score.n_missing)
    return [
        (
            score.model_id,
            score.decode_id,
            metric,
            of.score,
            of.low,
            of.high,
            *counts,
            how.signature(metric),
            run_id,
            now,
        )
        for metric, of in score.scores.items()
    ]


@contextmanager
def _kept(table: DataFrame) -> Iterator[DataFrame]:
    """`table` computed once, on the executors' disks, for as long as the context lasts."""
    table.persist(StorageLevel.DISK_ONLY)
    try:
        yield table
    finally:
        table.unpersist()


def _type(table: DataFrame, column: Column) -> T.DataType:
    return table.select(column.alias("it")).schema["it"].dataType


def _check_rows(worded: DataFrame, here: str, there: str) -> None:
    """Raises ValueError for an image that stands twice, or where captions and references have none in common."""
    usable = F.col("n_references") > 0
    found = worded.agg(
        F.max(F.struct("n_listed", "image_id")).alias("listed"),
        F.max(F.struct("n_same", "image_id")).alias("same"),
        F.min(F.when(F.col("n_same") > 0, F.col("image_id"))).alias("here"),
        F.min(F.when(usable, F.col("image_id"))).alias("there"),
        F.max(usable & (F.col("n_same") > 0)).alias("matched"),
    ).head()
    assert found is not None
    for what, most in ((there, found["listed"]), (here, found["same"])):
        if most is not None and most[0] > 1:
            raise ValueError(f"{what}: image_id {most['image_id']} is there {most[0]} times; once is allowed")
    if found["matched"]:
        return
    for what, first, lacks in ((here, found["here"], "a caption"), (there, found["there"], "references")):
        if first is None:
            raise ValueError(f"{what}: no row with {lacks}")
    raise ValueError(
        f"{here} and {there} have not one image_id in common, which must be the same, file extension included:"
        f" {found['here']!r} in the one, {found['there']!r} in the other"
    )
