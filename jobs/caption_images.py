"""Captions images and writes a captions table.

    ./spark-submit.sh jobs/caption_images.py --images PHOTOS --captions out/captions

PHOTOS is a folder or glob of image files, or Parquet or a catalog table with `image_id` and `content`. The captions
table (its columns: `jobs/common/tables.py`) gets exactly one row for each image, bad ones included. Beside it a runs
table gets one row, and, with --references, the score tables are written too.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.common import scores, tables
from jobs.common.executor import INPUT
from jobs.common.session import build_session, exit_status, say
from jobs.common.sources import TASKS_PER_CORE, ImageFiles, ImageTable, find_source
from jobs.common.udfs import CaptionerRecipe, caption_udf
from nic_model.captioner import check_device, pick_device
from nic_model.checkpoint import ModelFiles
from nic_model.config import PRECISIONS, Config, DecodeConfig, add_options, given_options, option

logger = logging.getLogger("jobs.caption_images")

PROJECT = Path(__file__).resolve().parents[1]
SHOWN = 20  # captions printed at the end


@dataclass(frozen=True)
class JobConfig(Config):
    """Resources and behaviour. What to read and write, and the decoding, stand beside it in `Job`."""

    format: str = option("parquet", "format of the captions table", choices=("parquet",))
    device: str = option("auto", "auto takes the GPU that Spark assigned to the task, or any; cpu, cuda, cuda:N")
    precision: str = option("auto", "auto is bf16 on a GPU, fp32 on a CPU", choices=PRECISIONS)
    batch_size: int = option(32, "images captioned at once", least=1)
    limit: int = option(0, "caption at most this many images; 0: all", least=0)
    mode: str = option(
        "resume",
        "resume: caption what this model and these decoding settings have not captioned yet, and retry what failed;"
        " overwrite: replace the whole table",
        choices=("resume", "overwrite"),
    )
    max_failure_rate: float = option(
        0.5, "exit with status 1 where a larger share of the images failed; all rows are written anyway", least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)


@dataclass(frozen=True)
class Job:
    """One run, checked before Spark starts."""

    source: ImageFiles | ImageTable
    captions: str
    files: ModelFiles
    decode: DecodeConfig
    config: JobConfig
    references: str | None
    scores: str
    run_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def keys(self) -> dict[str, str]:
        """What the rows of this run have in common with those of other runs of the same model and settings."""
        return {"model_id": self.files.model_id, "decode_id": self.decode.decode_id}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="caption_images.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", default=str(PROJECT / "samples" / "images"), metavar="",
                        help="folder or glob of image files; Parquet or catalog table with image_id and content"
                             " (default: the project's samples)")  # fmt: skip
    parser.add_argument("--captions", default="out/captions", metavar="", help="table to write (default out/captions)")
    parser.add_argument("--model", type=Path, default=PROJECT / "models" / "nic", metavar="",
                        help="model directory (default: the one that ships)")  # fmt: skip
    parser.add_argument("--references", metavar="", help="references table: also write the score tables")
    parser.add_argument("--scores", metavar="", help="where to write them (default: --captions with _scores after it)")
    add_options(parser, JobConfig, DecodeConfig)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> Job:
    """Everything that can be found wrong without Spark. Raises ValueError with one line that says what."""
    config = JobConfig(**given_options(options, JobConfig))
    source = find_source(options.images)
    source.check()
    files = ModelFiles.read(options.model)
    _, defaults = files.settings()
    decode = defaults.replace(**given_options(options, DecodeConfig))
    tables.check_writable(options.captions, "--captions")
    if options.references:
        tables.check_readable(options.references, "--references")
    written = options.scores or tables.beside(options.captions, "scores")
    return Job(source, options.captions, files, decode, config, options.references, written)


def transform(images: DataFrame, job: Job) -> DataFrame:
    """A row of the captions table for each row of `images`, lazily."""
    config, keys = job.config, job.keys()
    recipe = CaptionerRecipe(
        keys["model_id"],
        job.decode,
        config.device,
        config.precision,
        config.batch_size,
        files=images.sparkSession.sparkContext.broadcast(job.files),
    )
    udf = caption_udf(recipe, read_files=isinstance(job.source, ImageFiles))
    captioned = images.select(INPUT.names).mapInArrow(udf, tables.CAPTIONED)
    constants = {name: F.lit(value) for name, value in {**keys, "run_id": job.run_id}.items()}
    return captioned.withColumns(constants).select(tables.CAPTIONS.names)


def run(spark: SparkSession, job: Job) -> DataFrame:
    """Reads, captions and writes. Returns the rows of this run, as they stand in the table."""
    images = job.source.read(spark)
    existing = tables.read_captions(spark, job.captions) if job.config.mode == "resume" else None
    if existing is not None:
        images = not_captioned(images, existing, job.keys())
    if job.config.limit:
        images = images.limit(job.config.limit)
    if job.config.limit or isinstance(job.source, ImageFiles):
        # A limit leaves one task, as listing does. What is moved is little: so many images, or paths.
        images = images.repartition(TASKS_PER_CORE * spark.sparkContext.defaultParallelism)
    if existing is None:
        tables.write_table(transform(images, job), job.captions, mode="overwrite")
    elif not images.isEmpty():
        tables.merge_captions(transform(images, job), existing, job.captions)
    written = tables.read_captions(spark, job.captions)
    assert written is not None
    return written.where(F.col("run_id") == job.run_id)


def not_captioned(images: DataFrame, captions: DataFrame, keys: dict[str, str]) -> DataFrame:
    """The images that have no caption yet under `keys`, or only one of another version of the image."""
    done = captions.where((F.col("status") == "ok") & tables.having(keys)).select("image_id", "image_version")
    same = images["image_id"].eqNullSafe(done["image_id"])
    same_version = images["image_version"].eqNullSafe(done["image_version"])
    return images.join(done, same & same_version, how="left_anti")


def report(spark: SparkSession, job: Job, rows: DataFrame, started: datetime, seconds: float) -> float:
    """Prints captions and a summary, leaves a row in the runs table, returns the share of images that failed."""
    counts = {row["status"]: row["count"] for row in rows.groupBy("status").count().collect()}
    total = sum(counts.values())
    failed = total - counts.get("ok", 0)
    captions = tables.read_captions(spark, job.captions)
    assert captions is not None
    first = captions.where(tables.having(job.keys())).orderBy("image_id").head(SHOWN + 1)
    shown = first[:SHOWN]
    width = max((len(row["image_id"] or "") for row in shown), default=0)
    for row in shown:
        text = row["caption"] if row["status"] == "ok" else f"[{row['status']}] {row['error_message']}"
        say(f"{row['image_id'] or '':{width}}  {text}")
    if len(first) > SHOWN:
        say("...")
    if total:
        rate = f"{total} images in {seconds:.1f} s, {total / seconds:.1f} images/s"
        by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        say(f"\n{rate}: {by_status}")
    else:
        say("\nnothing to do: this model has captioned all of these images with these settings already")
    say(f"captions are in {job.captions} (model {job.files.model_id}, decoding {job.decode.decode_id})")
    options = {"decode": job.decode.to_dict(), **job.config.to_dict()}
    tables.append_run(
        spark,
        job.captions,
        {
            "run_id": job.run_id,
            "job": "caption_images",
            "started_at": started,
            "finished_at": datetime.now(UTC),
            "seconds": seconds,
            "n_images": total,
            "images_per_second": total / seconds,
            "counts": counts,
            **job.keys(),
            "source": job.source.location,
            "target": job.captions,
            "options": json.dumps(options, sort_keys=True),
        },
    )
    return failed / total if total else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    job = check(parse_args(arguments))
    spark = build_session("caption_images")
    master = spark.sparkContext.master or ""
    if master.startswith("local"):
        pick_device(job.config.device)  # the executor is here, so what it lacks can be said now
    logger.info("captioning %s with model %s on %s", job.source.location, job.files.model_id, master)
    started, clock = datetime.now(UTC), time.monotonic()
    rows = run(spark, job)
    failure_rate = report(spark, job, rows, started, time.monotonic() - clock)
    if job.references:
        for score in scores.evaluate(spark, job.captions, job.references, job.scores, job.run_id):
            say(scores.describe(score))
    if failure_rate > job.config.max_failure_rate:
        sys.stderr.write(
            f"error: {failure_rate:.0%} of the images failed, more than --max-failure-rate"
            f" {job.config.max_failure_rate}; their status and error_message stand in {job.captions}\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
