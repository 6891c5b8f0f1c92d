"""Captions against references: counts of each segment, summed by Spark, scored once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import tables
from nic_model.metrics.bleu import ORDER, SIZE, bleu, segment_counts, signature
from nic_model.metrics.tokenizer import tokenize

METRICS = tuple(f"bleu_{n}" for n in range(1, ORDER + 1))
KEYS = ("model_id", "decode_id")

# What is needed of the captions; what goes into count_segments, and what comes out.
CAPTIONS = T.StructType([tables.CAPTIONS[n] for n in ("image_id", *KEYS, "caption", "status")])
PAIRS = T.StructType([*(tables.SEGMENTS[n] for n in ("image_id", *KEYS, "caption")), tables.REFERENCES["captions"]])
COUNTED = T.StructType([f for f in tables.SEGMENTS if f.name != "run_id"])


@dataclass(frozen=True)
class Score:
    """The figures of one model with one set of decoding settings."""

    model_id: str
    decode_id: str
    scores: dict[str, float | None]  # 0 to 100, by metric; None where nothing could be scored
    n_segments: int
    n_missing: int


def count_segments(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """For each row of PAIRS one of COUNTED. Runs on executors; no Spark in it."""
    schema = pa.schema([
        *((name, pa.string()) for name in ("image_id", *KEYS, "caption")),
        ("n_references", pa.int32()),
        ("missing", pa.string()),
        *((metric, pa.float64()) for metric in METRICS),
        ("bleu_counts", pa.list_(pa.int64())),
    ])  # fmt: skip
    for batch in batches:
        yield pa.RecordBatch.from_pylist([_count(row) for row in batch.to_pylist()], schema=schema)


def _count(pair: dict[str, object]) -> dict[str, object]:
    caption, given = pair["caption"], pair.pop("captions")
    assert isinstance(given, list | None)
    references = [tokenize(text) for text in given or [] if text is not None]
    missing = "caption" if caption is None else None if references else "references"
    row = {**pair, "n_references": len(references), "missing": missing}
    if missing is None:
        counts = segment_counts(tokenize(str(caption)), references)
        row |= dict(zip(METRICS, bleu(counts), strict=True)) | {"bleu_counts": counts.tolist()}
    return row


def captioned(captions: DataFrame) -> DataFrame:
    """The captions that there are: what failed is left out."""
    return captions.where((F.col("status") == "ok") & F.col("caption").isNotNull())


def pair(captions: DataFrame, references: DataFrame) -> DataFrame:
    """A row of PAIRS for each image of `references` and each model and decoding of `captions`, and one for each
    caption whose image has no references. What one side lacks is null."""
    models = F.broadcast(captions.select(*KEYS).distinct())
    wanted = references.select("image_id", "captions").join(models, how="cross")
    return captioned(captions).join(wanted, ["image_id", *KEYS], how="full").select(PAIRS.names)


def score_segments(segments: DataFrame) -> list[Score]:
    """Sums of the segments' counts, scored, for each model and decoding."""
    sums = [F.sum(F.col("bleu_counts")[at]).alias(f"count_{at}") for at in range(SIZE)]
    totals = segments.groupBy(*KEYS).agg(
        F.count("bleu_counts").alias("n_segments"), F.count("missing").alias("n_missing"), *sums
    )
    return [_score(row) for row in totals.orderBy(*KEYS).collect()]


def _score(row: Row) -> Score:
    scores: Sequence[float | None] = [None] * ORDER
    if row["n_segments"]:
        scores = bleu([row[f"count_{at}"] for at in range(SIZE)])
    return Score(
        row["model_id"], row["decode_id"], dict(zip(METRICS, scores, strict=True)), row["n_segments"], row["n_missing"]
    )


def evaluate(spark: SparkSession, captions: str, references: str, scores: str, run_id: str) -> list[Score]:
    """Scores the captions table at `captions` and writes the tables segments and corpus at `scores`.

    Raises ValueError, before it writes, where a table is missing or lacks columns, where an image stands twice, or
    where not one image with a caption is among the references.
    """
    written = tables.read_table(spark, captions, CAPTIONS, role="--captions")
    wanted = tables.read_table(spark, references, tables.REFERENCES, role="--references")
    _check_unique(wanted, ["image_id"], f"--references {references}")
    _check_unique(captioned(written), ["image_id", *KEYS], f"--captions {captions}")
    _check_match(captioned(written), wanted, f"--captions {captions}", f"--references {references}")
    counted = pair(written, wanted).mapInArrow(count_segments, COUNTED)
    target = part(scores, "segments")
    segments = counted.withColumn("run_id", F.lit(run_id)).select(tables.SEGMENTS.names)
    tables.write_table(segments, target, mode="overwrite")
    found = score_segments(tables.read_table(spark, target, tables.SEGMENTS, role="--scores"))
    tables.write_table(_corpus(spark, found, run_id), part(scores, "corpus"), mode="overwrite")
    return found


def part(scores: str, name: str) -> str:
    """Where the table `name` of the scores at `scores` is."""
    return f"{scores}_{name}" if tables.is_table_name(scores) else f"{scores.rstrip('/')}/{name}"


def describe(score: Score) -> str:
    """A line or two for people."""
    figures = "  ".join(
        f"{metric.upper().replace('_', '-')} {'-' if value is None else format(value, '.1f')}"
        for metric, value in score.scores.items()
    )
    missing = f", {score.n_missing} without caption or without references" if score.n_missing else ""
    return f"model {score.model_id}, decoding {score.decode_id}, {score.n_segments} images{missing}:\n  {figures}"


def _corpus(spark: SparkSession, scores: list[Score], run_id: str) -> DataFrame:
    now, name = datetime.now(UTC), signature()
    rows = [
        (s.model_id, s.decode_id, metric, value, None, None, s.n_segments, s.n_missing, name, run_id, now)
        for s in scores
        for metric, value in s.scores.items()
    ]
    return spark.createDataFrame(rows, tables.CORPUS)


def _check_unique(table: DataFrame, keys: list[str], what: str) -> None:
    named = table.where(F.col("image_id").isNotNull())
    twice = named.groupBy(*keys).count().where(F.col("count") > 1).orderBy(*keys).head(1)
    if twice:
        raise ValueError(f"{what}: image_id {twice[0]['image_id']} is there {twice[0]['count']} times; once is allowed")


def _check_match(captions: DataFrame, references: DataFrame, here: str, there: str) -> None:
    usable = references.where(F.size("captions") > 0)
    if not captions.join(usable, "image_id", how="left_semi").isEmpty():
        return
    images = []
    for table, what in ((captions, f"{here}: no row with a caption"), (usable, f"{there}: no row with references")):
        first = table.select("image_id").where(F.col("image_id").isNotNull()).head()
        if first is None:
            raise ValueError(what)
        images.append(first["image_id"])
    raise ValueError(
        f"{here} and {there} have not one image_id in common, which must be the same, file extension included:"
        f" {images[0]!r} in the one, {images[1]!r} in the other"
    )
