"""The score tables: captions joined with references, counted on executors, summed by Spark, scored once."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from jobs.common import bootstrap, segments, tables
from jobs.common.bootstrap import Interval
from nic_model.metrics import bleu
from nic_model.metrics.segments import KeyFrequencies

METRICS = ("bleu", "rouge_l", "cider")
KEYS = ("model_id", "decode_id")

# What --by names beside columns of the references table: words of the caption, in these steps.
CAPTION_LENGTH = "caption_length"
_LENGTHS = (0, 6, 9, 12, 15, 20)

# What is needed of the captions.
CAPTIONS = T.StructType([tables.CAPTIONS[n] for n in ("image_id", *KEYS, "caption", "status")])

# Document frequencies go to every Python worker, 12 bytes each. References of a million images have some 5 million
# n-grams in more than one of them.
MOST_NGRAMS = 30_000_000
MOST_VALUES = 1_000  # of a column that --by names


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
            raise ValueError("--document-frequencies are of no use without cider among --metrics")
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
    _check_columns(wanted, how.by, f"--references {references}")
    models = sorted(
        ((row["model_id"], row["decode_id"]) for row in written.select(*KEYS).distinct().collect()),
        key=lambda pair: [(key is not None, key) for key in pair],
    )
    with _kept(find_words(gather(written, wanted, how.by), how)) as worded:
        _check_rows(worded, f"--captions {captions}", f"--references {references}")
        frequencies = _frequencies(spark, worded, scores, how) if "cider" in how.metrics else None
        counted = count_segments(worded, models, frequencies, how).withColumn("run_id", F.lit(run_id))
        target = part(scores, "segments")
        tables.write_table(counted.select(tables.SEGMENTS.names), target, mode="overwrite")
    found = score_segments(tables.read_table(spark, target, tables.SEGMENTS, role="--scores"), how)
    tables.write_table(_corpus(spark, found, run_id, how), part(scores, "corpus"), mode="overwrite")
    if how.by:
        tables.write_table(_slices(spark, found, run_id, how), part(scores, "slices"), mode="overwrite")
    return [score for score in found if score.slice is None]


def captioned(captions: DataFrame) -> DataFrame:
    """The captions that there are: what failed is left out."""
    return captions.where((F.col("status") == "ok") & F.col("caption").isNotNull())


def gather(captions: DataFrame, references: DataFrame, by: Sequence[str] = ()) -> DataFrame:
    """A row of segments.IMAGES for each image of either table, by one shuffle. Rows without image_id stay apart."""
    slices = [name for name in by if name != CAPTION_LENGTH]
    values = [item for name in slices for item in (F.lit(name), references[name].cast("string"))]
    listed = F.struct(F.col("captions").alias("references"), _map(values).alias("slices"))
    caption = F.struct(*KEYS, "caption")
    either = references.select(
        "image_id", listed.alias("listed"), F.lit(None).cast(_type(captions, caption)).alias("caption")
    )
    other = captioned(captions).select(
        "image_id", F.lit(None).cast(_type(references, listed)).alias("listed"), caption.alias("caption")
    )
    apart = F.when(F.col("image_id").isNull(), F.monotonically_increasing_id())
    images = (
        either.unionByName(other)
        .withColumn("apart", apart)
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
        *((_length() if name == CAPTION_LENGTH else F.col("slices")[name]).alias(name) for name in by),
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
    names = total.filter(pa.compute.equal(total["replicate"], 0)).select(group).to_pylist()
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
    """A line or two for people."""
    figures = "  ".join(
        f"{title(metric)} {'-' if of.score is None else f'{of.score:.1f} [{of.low:.1f}, {of.high:.1f}]'}"
        for metric, of in score.scores.items()
    )
    missing = f", {score.n_missing} without caption or without references" if score.n_missing else ""
    return f"model {score.model_id}, decoding {score.decode_id}, {score.n_segments} images{missing}:\n  {figures}"


def title(metric: str) -> str:
    """As people write it."""
    return "CIDEr" if metric == "cider" else metric.upper().replace("_", "-")


def _frequencies(spark: SparkSession, worded: DataFrame, scores: str, how: Evaluation) -> KeyFrequencies:
    """Those of the table that was given, or else of the references of all images that have a caption. The latter are
    written beside the scores first."""
    location = how.frequencies or part(scores, "document_frequencies")
    if not how.frequencies:
        parts = worded.select("reference_words", "reference_lengths").mapInArrow(
            segments.count_frequencies, tables.FREQUENCIES
        )
        sums = parts.groupBy("ngram").agg(F.sum("n_images").alias("n_images"))
        shared = sums.where((F.col("n_images") > 1) | F.col("ngram").isNull())
        tables.write_table(shared.select(tables.FREQUENCIES.names), location, mode="overwrite")
    table = tables.read_table(spark, location, tables.FREQUENCIES, role="--document-frequencies")
    return _collect_frequencies(table, f"--document-frequencies {location}")


def _collect_frequencies(table: DataFrame, what: str) -> KeyFrequencies:
    """Raises ValueError where it is no table of frequencies."""
    shared = table.where((F.col("n_images") > 1) | F.col("ngram").isNull()).select(*tables.FREQUENCIES.names)
    if shared.count() > MOST_NGRAMS:
        raise ValueError(f"{what}: has more than {MOST_NGRAMS} n-grams of more than one image, which is too many")
    found = shared.toArrow()
    every = found.filter(found["ngram"].is_null())["n_images"].to_pylist()
    counts = found.filter(found["ngram"].is_valid())
    keys = counts["ngram"].to_numpy().view(np.uint64)
    order = np.argsort(keys)
    keys, n_images = keys[order], counts["n_images"].to_numpy()[order]
    if len(every) != 1 or n_images.max(initial=1) > every[0] or np.any(keys[1:] == keys[:-1]):
        raise ValueError(f"{what}: must have each ngram once, and one row with null for it that counts all images")
    return KeyFrequencies(keys, n_images.astype(np.uint32), every[0])


def _corpus(spark: SparkSession, scores: list[Score], run_id: str, how: Evaluation) -> DataFrame:
    rows = [row for score in scores if score.slice is None for row in _score_rows(score, run_id, how)]
    return spark.createDataFrame(rows, tables.CORPUS)


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


def _map(items: list[Column]) -> Column:
    return F.create_map(*items) if items else F.lit(None).cast(T.MapType(T.StringType(), T.StringType()))


def _type(table: DataFrame, column: Column) -> T.DataType:
    return table.select(column.alias("it")).schema["it"].dataType


def _length() -> Column:
    """The step that a segment's caption is in, as text that sorts: 00-05, 06-08, ..., 20-."""
    step = F.when(F.col("missing").isNotNull(), None)
    for low, high in zip(_LENGTHS, (*_LENGTHS[1:], None), strict=True):
        name = f"{low:02}-{'' if high is None else format(high - 1, '02')}"
        step = step.when(F.lit(True) if high is None else F.col("n_words") < high, name)
    return step


def _check_columns(references: DataFrame, by: Sequence[str], what: str) -> None:
    """Raises ValueError for a slice that is no column, or a column with too many values."""
    names = [name for name in by if name != CAPTION_LENGTH]
    for name in names:
        if name not in references.columns or name in tables.REFERENCES.names:
            others = [other for other in references.columns if other not in tables.REFERENCES.names]
            raise ValueError(
                f"--by {name}: must be {CAPTION_LENGTH} or a column of {what}: {', '.join(others) or 'it has none'}"
            )
        if not isinstance(references.schema[name].dataType, T.AtomicType):
            raise ValueError(
                f"--by {name}: is {references.schema[name].dataType.simpleString()}; must be a plain value"
            )
    if names:
        counts = references.select(*(F.approx_count_distinct(name).alias(name) for name in names)).head()
        assert counts is not None
        for name in names:
            if counts[name] > MOST_VALUES:
                raise ValueError(f"--by {name}: has about {counts[name]} values; {MOST_VALUES} are allowed")


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
