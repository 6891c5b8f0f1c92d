"""The score tables: captions joined with references, counted on executors, summed by Spark, scored once."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from jobs.common import bootstrap, segments, slices, tables
from jobs.common.batches import settle, unpack
from jobs.common.bootstrap import Interval
from jobs.common.files import Folder, lease
from jobs.common.frequencies import OPTION, collect_frequencies, read_frequencies, sum_frequencies, write_frequencies
from jobs.common.session import threads
from nic_model.metrics import bleu
from nic_model.metrics.segments import KeyFrequencies

METRICS = ("bleu", "rouge_l", "cider")
KEYS = ("model_id", "decode_id")

# What is needed of the captions.
CAPTIONS = T.StructType([tables.CAPTIONS[n] for n in ("image_id", *KEYS, "caption", "status")])

_SUMS = from_arrow_schema(bootstrap.SUMS)
_GROUP = bootstrap.SUMS.names[:-1]


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
    lacks columns, where an image stands twice, where not one image with a caption is among the references, or where
    another run writes these scores.
    """
    place = _place(spark, scores)
    with lease(place, run_id, f"--scores {scores}"):
        return _evaluate(spark, captions, references, scores, run_id, evaluation or Evaluation())


def check_reached(spark: SparkSession, references: str, scores: str) -> None:
    """Raises ValueError or SystemicError where an evaluation would find no references, or nowhere to write."""
    tables.read_table(spark, references, tables.REFERENCES, role="--references")
    _place(spark, scores)


def _place(spark: SparkSession, scores: str) -> Folder:
    """Of the lease."""
    return Folder(spark, tables.staging(spark, scores))


def _evaluate(
    spark: SparkSession, captions: str, references: str, scores: str, run_id: str, how: Evaluation
) -> list[Score]:
    # Much of a small job is the driver's planning: what can be planned or written beside something else is.
    with threads(spark) as pool:
        reading = pool.submit(tables.read_table, spark, references, tables.REFERENCES, role="--references")
        written = tables.read_table(spark, captions, CAPTIONS, role="--captions")
        wanted = reading.result()
    slices.check_columns(wanted, how.by, f"--references {references}")
    with _kept(find_words(gather(written, wanted, how.by), how)) as words:
        models = find_models(words, f"--captions {captions}", f"--references {references}")
        with (
            _frequencies(spark, words, scores, how) as frequencies,
            _kept(count_segments(words, models, frequencies, how)) as figures,
            threads(spark) as pool,
        ):
            found = score_segments(figures, how)
            table = unpack_segments(figures).withColumn("run_id", F.lit(run_id)).select(tables.SEGMENTS.names)
            writing = pool.submit(tables.write_table, table, part(scores, "segments"), "overwrite", rebalance=False)
            tables.write_table(_corpus(spark, found, run_id, how), part(scores, "corpus"), "overwrite", rebalance=False)
            if how.by:
                tables.write_table(_slices(spark, found, run_id, how), part(scores, "slices"), "overwrite")
            else:
                tables.drop_table(spark, part(scores, "slices"))  # an earlier evaluation's
            writing.result()
    return [score for score in found if score.slice is None]


def gather(captions: DataFrame, references: DataFrame, by: Sequence[str] = ()) -> DataFrame:
    """A row of segments.IMAGES for each image of either table, by one shuffle. Rows without image_id stay apart."""
    listed = F.struct(F.col("captions").alias("references"), slices.values(references, by).alias("slices"))
    caption = F.struct(*KEYS, F.when(F.col("status") == "ok", F.col("caption")).alias("caption"))
    either = references.select(
        "image_id", listed.alias("listed"), F.lit(None).cast(_type(captions, caption)).alias("caption")
    )
    other = captions.select(
        "image_id", F.lit(None).cast(_type(references, listed)).alias("listed"), caption.alias("caption")
    )
    apart = F.when(F.col("image_id").isNull(), F.monotonically_increasing_id())
    rows = either.unionByName(other).withColumn("apart", apart)
    # Spark would not merge the small partitions of what is kept: as many as it reads, and one for each core.
    size = max(_partitions(rows), rows.sparkSession.sparkContext.defaultParallelism)
    images = (
        rows.repartition(size, "image_id", "apart")
        .groupBy("image_id", "apart")
        .agg(F.collect_list("listed").alias("listed"), F.collect_list("caption").alias("captions"))
    )
    first = F.get("listed", F.lit(0))
    return images.select(
        "image_id",
        F.xxhash64("image_id").alias("image"),
        F.size("listed").alias("n_listed"),
        first["slices"].alias("slices"),
        *(F.col("captions")[key].alias(f"{key}s") for key in KEYS),
        F.col("captions")["caption"].alias("captions"),
        first["references"].alias("references"),
    ).select(segments.IMAGES.names)


def find_words(images: DataFrame, how: Evaluation) -> DataFrame:
    """Rows of segments.WORDS."""
    with_rouge, with_frequencies = "rouge_l" in how.metrics, "cider" in how.metrics and not how.frequencies

    def find(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        settle()
        return segments.find_words(batches, with_rouge, with_frequencies)

    return images.mapInArrow(find, from_arrow_schema(segments.WORDS))


def find_models(words: DataFrame, here: str, there: str) -> list[tuple[str, str]]:
    """All that have a row, be it one without a caption: model_id and decode_id. `words` has rows of segments.WORDS.

    Raises ValueError for an image that stands twice, or where captions and references have none in common.
    """
    seen = words.where(F.col("matched").isNotNull()).select(segments.SEEN.names).toArrow().to_pylist()
    for what, most, image in ((there, "n_listed", "listed"), (here, "n_same", "same")):
        worst = max(seen, key=lambda row: row[most], default={most: 0})
        if worst[most] > 1:
            raise ValueError(f"{what}: image_id {worst[image]} is there {worst[most]} times; once is allowed")
    if not any(row["matched"] for row in seen):
        raise ValueError(_unmatched(seen, here, there))
    models = {pair for row in seen for pair in zip(row["model_ids"], row["decode_ids"], strict=True)}
    return sorted(models, key=lambda ids: [(i is not None, i) for i in ids])


def count_segments(
    words: DataFrame, models: Sequence[tuple[str, str]], frequencies: KeyFrequencies | None, how: Evaluation
) -> DataFrame:
    """Rows of segments.FIGURES."""
    sent = words.sparkSession.sparkContext.broadcast(frequencies)
    with_bleu, by, seed = "bleu" in how.metrics, how.by, how.seed

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return segments.count_segments(batches, models, sent.value, with_bleu, by, seed)

    worded = words.select("worded").where(F.col("worded").isNotNull())
    return worded.mapInArrow(count, from_arrow_schema(segments.FIGURES))


def unpack_segments(figures: DataFrame) -> DataFrame:
    """The table of segments without the run."""
    counted = figures.select("counted").where(F.col("counted").isNotNull())
    return counted.mapInArrow(unpack, from_arrow_schema(segments.COUNTED))


def sum_segments(table: DataFrame, seed: int) -> list[tuple[bootstrap.Group, np.ndarray]]:
    """For each model and decoding of a table of segments the sums (1 + REPLICATES, WIDTH): see bootstrap.py."""

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return bootstrap.sum_segments(batches, (), seed)

    needed = table.select(F.xxhash64("image_id").alias("image"), *KEYS, *("missing", "bleu_counts", "rouge_l", "cider"))
    return _collect_sums(needed.mapInArrow(add, _SUMS))


def score_segments(figures: DataFrame, how: Evaluation) -> list[Score]:
    """Of all images and of slices, for each model and decoding. `figures` has rows of segments.FIGURES."""
    metrics = how.names()

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return bootstrap.score_sums(batches, metrics)  # the driver has no room for the sums of many slices

    scored = _by_group(figures.where(F.col("sums").isNotNull())).mapInArrow(score, from_arrow_schema(bootstrap.SCORES))
    rows = scored.toArrow().sort_by([(name, "ascending") for name in _GROUP]).to_pylist()
    found = []
    for group, same in groupby(rows, itemgetter(*_GROUP)):
        model_id, decode_id, name, value = group
        of = {row["metric"]: row for row in same}
        one, intervals = of[metrics[0]], {m: Interval(of[m]["score"], of[m]["low"], of[m]["high"]) for m in metrics}
        found.append(Score(model_id, decode_id, name, value, intervals, one["n_segments"], one["n_missing"]))
    return found


def _by_group(parts: DataFrame) -> DataFrame:
    """Rows of bootstrap.SUMS, those of a group one after another."""
    return parts.select(bootstrap.SUMS.names).repartition(*_GROUP).sortWithinPartitions(*_GROUP)


def _collect_sums(parts: DataFrame) -> list[tuple[bootstrap.Group, np.ndarray]]:
    """The sums of each group, in order. `parts` has rows of bootstrap.SUMS."""
    total = _by_group(parts).mapInArrow(bootstrap.add_sums, _SUMS).toArrow()
    total = total.sort_by([(name, "ascending") for name in _GROUP])
    names = zip(*(total[name].to_pylist() for name in _GROUP), strict=True)
    return list(zip(names, map(bootstrap.read_sums, total["sums"]), strict=True))


def check_writable(scores: str, captions: str, references: str) -> None:
    """Raises ValueError, before Spark runs, where something else than a table stands in the place of one, or a table
    that is read."""
    for name in ("segments", "corpus", "slices", "document_frequencies"):
        tables.check_writable(part(scores, name), "--scores")
        if not tables.is_table_name(scores):
            tables.check_apart(part(scores, name), "--scores", captions, "--captions")
            tables.check_apart(part(scores, name), "--scores", references, "--references")


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


@contextmanager
def _frequencies(
    spark: SparkSession, words: DataFrame, scores: str, how: Evaluation
) -> Iterator[KeyFrequencies | None]:
    """Those of the table that was given; or of all images scored, which are written beside the scores meanwhile."""
    if "cider" not in how.metrics:
        yield None
    elif how.frequencies:
        yield read_frequencies(spark, how.frequencies)
    else:
        with _kept(sum_frequencies(words)) as packed, threads(spark) as pool:
            found = collect_frequencies(packed)
            writing = pool.submit(write_frequencies, packed, part(scores, "document_frequencies"))
            yield found
            writing.result()


def _corpus(spark: SparkSession, scores: list[Score], run_id: str, how: Evaluation) -> DataFrame:
    rows = [row for score in scores if score.slice is None for row in _score_rows(score, run_id, how)]
    return tables.from_rows(spark, rows, tables.CORPUS)


def _slices(spark: SparkSession, scores: list[Score], run_id: str, how: Evaluation) -> DataFrame:
    sliced = [score for score in scores if score.slice is not None]
    rows = [
        {"slice": score.slice, "value": score.value, **row}
        for score in sliced
        for row in _score_rows(score, run_id, how)
    ]
    return tables.from_rows(spark, rows, tables.SLICES)


def _score_rows(score: Score, run_id: str, how: Evaluation) -> list[dict[str, Any]]:
    """Rows of CORPUS."""
    now = datetime.now(UTC)
    return [
        {
            "model_id": score.model_id,
            "decode_id": score.decode_id,
            "metric": metric,
            "score": of.score,
            "ci_low": of.low,
            "ci_high": of.high,
            "n_segments": score.n_segments,
            "n_missing": score.n_missing,
            "signature": how.signature(metric),
            "run_id": run_id,
            "evaluated_at": now,
        }
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


def _partitions(table: DataFrame) -> int:
    return table._jdf.queryExecution().toRdd().getNumPartitions()


def _unmatched(seen: list[dict[str, Any]], here: str, there: str) -> str:
    """Why captions and references have no image in common."""
    first = [min((row[name] for row in seen if row[name] is not None), default=None) for name in ("here", "there")]
    for what, image, lacks in zip((here, there), first, ("a caption", "references"), strict=True):
        if image is None:
            return f"{what}: no row with {lacks}"
    return (
        f"{here} and {there} have not one image_id in common, which must be the same, file extension included:"
        f" {first[0]!r} in the one, {first[1]!r} in the other"
    )
