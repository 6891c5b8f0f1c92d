"""Captions images and writes a captions table.

    ./spark-submit.sh jobs/caption_images.py --images PHOTOS --captions out/captions

PHOTOS is a folder or glob of image files, `s3://bucket/prefix`, or Parquet, a catalog table or a manifest of content or
uris. The captions table (its columns: `jobs/common/tables.py`) gets exactly one row for each image, bad ones included,
in waves of which each is committed whole. Beside it a runs table gets one row, and, with --references, the score tables
are written too.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs.common import scores, storage, tables, waves
from jobs.common.executor import INPUT, STOPPED
from jobs.common.files import Folder, lease
from jobs.common.gpus import caption_profile, check_gpus
from jobs.common.session import build_session, exit_status, say, systemic
from jobs.common.sources import Source, find_source, reaching
from jobs.common.storage import Access, SystemicError
from jobs.common.targets import FORMATS, Target, check_target, find_target
from jobs.common.udfs import CaptionerRecipe, caption_udf
from nic_model.captioner import check_device, pick_device
from nic_model.checkpoint import FILES, ModelFiles
from nic_model.config import DECODE_ON, PRECISIONS, Config, DecodeConfig, add_options, given_options, option

logger = logging.getLogger("jobs.caption_images")

PROJECT = Path(__file__).resolve().parents[1]
SHOWN = 20  # captions printed at the end


@dataclass(frozen=True)
class JobConfig(Config):
    """Resources and behaviour. What to read and write, and the decoding, stand beside it in `Job`."""

    format: str = option("parquet", "format of the captions table: parquet, delta, iceberg", choices=FORMATS)
    device: str = option("auto", "auto takes the GPU that Spark assigned to the task, or any; cpu, cuda, cuda:N")
    gpu_share: float = option(
        1.0,
        "of a GPU for each captioning task, where Spark gives GPUs to executors and none to tasks; 0.25: four share it",
    )
    precision: str = option("auto", "auto is fp16 on a GPU, fp32 on a CPU", choices=PRECISIONS)
    batch_size: int = option(0, "images captioned at once; 0: 256 on a GPU, 32 on a CPU", least=0)
    decode_on: str = option(
        "cpu", "gpu: JPEGs are decoded by nvJPEG, to pixels and captions that differ a little", choices=DECODE_ON
    )
    limit: int = option(0, "caption at most this many images; 0: all", least=0)
    mode: str = option(
        "resume",
        "resume: caption what this model and these decoding settings have not captioned yet, and retry what failed;"
        " overwrite: replace the whole table",
        choices=("resume", "overwrite"),
    )
    wave_size: int = option(0, "images committed at once; 0: some minutes of work, 10000 for each core", least=0)
    max_attempts: int = option(3, "runs that try an image before its failure is final", least=1)
    s3_endpoint: str = option("", "the S3 server's URL where it is not that of the AWS configuration")
    staging: str = option(
        "",
        "folder, seen by all executors, for rows that are not committed yet; empty: beside the table, or in Spark's"
        " warehouse for a table of a catalog",
    )
    max_failure_rate: float = option(
        0.5, "exit with status 1 where a larger share of the images failed; all rows are written anyway", least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"--gpu-share {self.gpu_share}: must be above 0 and at most 1")


@dataclass(frozen=True)
class Job:
    """One run, checked before Spark starts."""

    source: Source
    access: Access
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
                        help="folder or glob of image files; s3://bucket/prefix; Parquet, catalog table or manifest"
                             " (.csv, .jsonl) with image_id and content, or uri, or bucket and key"
                             " (default: the project's samples)")  # fmt: skip
    parser.add_argument("--allow-local-uris", action="store_true",
                        help="let the uris of a table or manifest name files of the executors' machines")  # fmt: skip
    parser.add_argument("--captions", default="out/captions", metavar="", help="table to write (default out/captions)")
    parser.add_argument("--model", default=str(PROJECT / "models" / "attention"), metavar="",
                        help="model directory, local or on s3:// (default: the one that ships)")  # fmt: skip
    parser.add_argument("--references", metavar="", help="references table: also write the score tables")
    parser.add_argument("--scores", metavar="", help="where to write them (default: --captions with _scores after it)")
    add_options(parser, JobConfig, DecodeConfig)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> Job:
    """Everything that can be found wrong without Spark. Raises ValueError with one line that says what."""
    config = JobConfig(**given_options(options, JobConfig))
    access = Access(config.s3_endpoint or None, options.allow_local_uris)
    source = find_source(options.images, access)
    source.check()
    access = reaching(source, access)
    model = Path(options.model)
    if storage.is_s3(options.model):
        model = storage.download_model(options.model, access, FILES)
    files = ModelFiles.read(model)
    _, defaults = files.settings()
    decode = defaults.replace(**given_options(options, DecodeConfig))
    check_target(options.captions, config.format)
    if options.references:
        tables.check_readable(options.references, "--references")
    written = options.scores or tables.beside(options.captions, "scores")
    return Job(source, access, options.captions, files, decode, config, options.references, written)


def transform(images: DataFrame, job: Job) -> DataFrame:
    """A row of the captions table for each row of `images`, lazily."""
    config, keys = job.config, job.keys()
    recipe = CaptionerRecipe(
        keys["model_id"],
        job.decode,
        config.device,
        config.precision,
        config.batch_size,
        config.decode_on,
        files=images.sparkSession.sparkContext.broadcast(job.files),
    )
    udf = caption_udf(recipe, job.access)
    profile = caption_profile(images.sparkSession, config.device, config.gpu_share)
    captioned = images.select(INPUT.names).mapInArrow(udf, tables.CAPTIONED, profile=profile)
    constants = {name: F.lit(value) for name, value in {**keys, "run_id": job.run_id}.items()}
    return captioned.withColumns(constants).select(tables.CAPTIONS.names)


@dataclass
class Outcome:
    """What a run did: rows by status, some of them, and how many rows of the source it left out as duplicates."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[Row] = field(default_factory=list)
    duplicates: int = 0

    def add(self, rows: DataFrame) -> None:
        """Counts a staged wave. Raises SystemicError where executors had to stop."""
        counts = {row["status"]: row["count"] for row in rows.groupBy("status").count().collect()}
        if STOPPED in counts:
            stopped = rows.where(F.col("status") == STOPPED).head()
            assert stopped is not None
            raise SystemicError(stopped["error_message"])
        self.counts.update(counts)
        columns = ("image_id", "status", "caption", "error_message")
        some = rows.select(*columns).orderBy("image_id").head(SHOWN + 1)
        self.first = sorted([*self.first, *some], key=lambda row: row["image_id"] or "")[: SHOWN + 1]


def run(spark: SparkSession, job: Job) -> Outcome:
    """Reads, captions and commits, wave by wave. Raises SystemicError where the run had to stop: what was committed
    stays, and the next run goes on from there."""
    config = job.config
    check_gpus(spark, config.device, caption_profile(spark, config.device, config.gpu_share))
    place = Folder(spark, config.staging or tables.staging(spark, job.captions))
    target = find_target(spark, job.captions, config.format, Folder(spark, place.at(job.run_id)))
    with lease(place, job.run_id, f"--captions {job.captions}") as held:
        for left in place.names():
            if left != held.NAME:
                place.delete(left)  # by a run that was killed
        outcome = _run_waves(spark, job, target, held.check)
        place.delete(job.run_id)
    place.delete_empty()
    return outcome


def _run_waves(spark: SparkSession, job: Job, target: Target, check: Callable[[], None]) -> Outcome:
    config, outcome = job.config, Outcome()
    images = job.source.read(spark)
    existing = target.read()  # refuses what is no table of captions
    target.create()
    if existing is not None:
        existing = target.read()  # which may have more columns now
    size = config.wave_size or waves.IMAGES_PER_CORE * spark.sparkContext.defaultParallelism
    if config.mode == "overwrite":
        existing, size = None, sys.maxsize  # what is replaced at once is one wave
    clock = time.monotonic()
    plan = waves.plan(images, target, existing, job.keys(), waves.Limits(config.limit, size, config.max_attempts))
    outcome.duplicates = plan.duplicates
    total, seconds = sum(wave.size for wave in plan.waves), time.monotonic() - clock
    logger.info("%d images to caption, found in %.1f s; waves: %d", total, seconds, len(plan.waves))
    storage.probe(plan.some_objects(), job.access)
    for number, wave in enumerate(plan.waves):
        # In Parquet each commit that is replaced is a wave of its own; they are captioned together.
        name = f"{job.run_id}-{number:05}{'-together' if len(wave.replaces) > 1 else ''}"
        rows = target.stage(transform(plan.read(wave), job), name)
        outcome.add(rows)
        check()
        if config.mode == "overwrite":
            target.overwrite(rows)
        else:
            target.commit(rows, name, wave.replaces)
        if len(plan.waves) > 1:
            logger.info("wave %d of %d: %d images", number + 1, len(plan.waves), wave.size)
    return outcome


def report(spark: SparkSession, job: Job, outcome: Outcome, started: datetime, seconds: float) -> float:
    """Prints captions and a summary, leaves a row in the runs table, returns the share of images that failed."""
    total = outcome.counts.total()
    _show(outcome.first)
    if total:
        rate = f"{total} images in {seconds:.1f} s, {total / seconds:.1f} images/s"
        by_status = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items()))
        say(f"\n{rate}: {by_status}")
    else:
        say("\nnothing to do: this model has captioned all of these images with these settings already")
    if outcome.duplicates:
        say(f"{outcome.duplicates} rows were left out, since their image_id stands in another row as well")
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
            "counts": dict(outcome.counts),
            **job.keys(),
            "source": job.source.location,
            "target": job.captions,
            "options": json.dumps(options, sort_keys=True),
        },
    )
    return 1 - outcome.counts["ok"] / total if total else 0.0


def _show(rows: Iterable[Row]) -> None:
    """Prints images and captions; a hostile id cannot write to the terminal."""
    names = [row["image_id"] or "" for row in rows]
    names = [name if name.isprintable() else ascii(name)[1:-1] for name in names]
    width = max(map(len, names[:SHOWN]), default=0)
    for name, row in list(zip(names, rows, strict=True))[:SHOWN]:
        text = row["caption"] if row["status"] == "ok" else f"[{row['status']}] {row['error_message']}"
        say(f"{name:{width}}  {text}")
    if len(names) > SHOWN:
        say("...")


def main(arguments: Sequence[str] | None = None) -> int:
    job = check(parse_args(arguments))
    spark = build_session("caption_images", job.access.endpoint)
    master = spark.sparkContext.master or ""
    if master.startswith("local"):
        pick_device(job.config.device)  # the executor is here, so what it lacks can be said now
    logger.info("captioning %s with model %s on %s", job.source.location, job.files.model_id, master)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        outcome = run(spark, job)
    except Exception as error:
        if (why := systemic(error)) is None:
            raise
        sys.stderr.write(f"error: {why}; the run has stopped, and goes on from there when it is run again\n")
        return 1
    failure_rate = report(spark, job, outcome, started, time.monotonic() - clock)
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
