"""Captions images and writes a captions table.

    ./spark-submit.sh jobs/caption_images.py --images PHOTOS --captions out/captions

PHOTOS is a folder or glob of image files, `s3://bucket/prefix`, or Parquet, a catalog table or a manifest of content or
uris. The captions table (its columns: `jobs/common/tables.py`) gets exactly one row for each image, bad ones included,
in waves of which each is committed whole. Beside it a runs table gets one row, and, with --references, the score tables
are written too.
"""

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pyspark.sql import SparkSession

from jobs.common import logs, scores, storage, tables, waves
from jobs.common.captioning import (
    DEFAULT_MODEL,
    PROJECT,
    Captioning,
    CaptioningConfig,
    caption_dataframe,
    read_captioning,
    register_sql,
    transform,
)
from jobs.common.files import Folder, lease
from jobs.common.gpus import check_gpu_here, check_gpus
from jobs.common.logs import Logging
from jobs.common.outcome import Outcome
from jobs.common.progress import Progress
from jobs.common.session import (
    OptionParser,
    build_session,
    complain,
    end_at_signals,
    exit_status,
    say,
    systemic,
    threads,
)
from jobs.common.sources import START_PATIENCE_SECONDS, ImageFiles, Source, find_source, reaching
from jobs.common.storage import Access
from jobs.common.targets import FORMATS, Target, check_target, find_target, prepare_target
from jobs.common.udfs import Watch, caption_udf, warm_worker
from nic_model.config import Config, DecodeConfig, add_options, given_options, option

__all__ = ["caption_dataframe", "main", "register_sql"]  # for notebooks; for spark-submit

logger = logging.getLogger("jobs.caption_images")


@dataclass(frozen=True)
class JobConfig(Config):
    """How a run goes. What to read and write, and how to caption, stand beside it in `Job`."""

    format: str = option("parquet", "format of the captions table", choices=FORMATS)
    limit: int = option(0, "caption at most this many images; 0: all", least=0)
    mode: str = option(
        "resume",
        "resume: caption what this model and these decoding settings have not captioned yet, and retry what failed;"
        " overwrite: replace the whole table",
        choices=("resume", "overwrite"),
    )
    wave_size: int = option(
        0, "images committed at once; 0: some minutes of work, 10000 for each core (infra/TUNING.md)", least=0
    )
    max_attempts: int = option(3, "runs that try an image before its failure is final", least=1)
    staging: str = option(
        "",
        "folder, seen by all executors, below which rows wait for their commit; empty: beside the table, or in Spark's"
        " warehouse where Hadoop does not reach that",
    )
    max_failure_rate: float = option(
        0.5,
        "exit with status 1 where a larger share of the images failed, without those that failed on another night"
        " already; all rows are written anyway",
        least=0,
    )


@dataclass(frozen=True)
class Job:
    """One run, checked before Spark starts."""

    source: Source
    captioning: Captioning
    captions: str
    config: JobConfig
    references: str | None
    scores: str


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(
        prog="caption_images.py",
        usage="spark-submit.sh [SPARK OPTIONS] jobs/caption_images.py [OPTIONS]",
        description=(__doc__ or "").split("\n")[0],
        epilog="Without options, the samples of the project are captioned. README.md explains the tables.",
    )
    parser.add_argument("--images", default=str(PROJECT / "samples" / "images"), metavar="PLACE",
                        help="folder or glob of image files; s3://bucket/prefix; Parquet, catalog table or manifest"
                             " (.csv, .jsonl) with image_id and content, or uri, or bucket and key"
                             " (default: the project's samples)")  # fmt: skip
    parser.add_argument("--allow-local-uris", action="store_true",
                        help="let the uris of a table or manifest name files of the executors' machines")  # fmt: skip
    parser.add_argument("--captions", default="out/captions", metavar="TABLE",
                        help="table to write, a path or a catalog's table (default out/captions)")  # fmt: skip
    parser.add_argument("--model", action="append", metavar="DIR",
                        help="model directory, local or on s3://; given twice or more, an ensemble, which takes the"
                             " mean of the models' probabilities of a word (default: the one that ships)")  # fmt: skip
    parser.add_argument("--references", metavar="TABLE", help="references table: also write the score tables")
    parser.add_argument("--scores", metavar="TABLE",
                        help="where to write them (default: --captions with _scores after it)")  # fmt: skip
    add_options(parser, JobConfig, CaptioningConfig)
    add_options(parser, DecodeConfig, default="the model's")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> Job:
    """Everything that can be found wrong without Spark. Raises ValueError with one line that says what."""
    config = JobConfig(**given_options(options, JobConfig))
    means = CaptioningConfig(**given_options(options, CaptioningConfig))
    access = Access(means.s3_endpoint or None, options.allow_local_uris)
    source = find_source(options.images, access)
    source.check()
    decode = given_options(options, DecodeConfig)
    captioning = read_captioning(options.model or [DEFAULT_MODEL], means, decode, reaching(source, access))
    check_target(options.captions, config.format)
    if config.staging:
        tables.check_plain(config.staging, "--staging")
    written = options.scores or tables.beside(options.captions, "scores")
    if options.references:
        tables.check_readable(options.references, "--references")
        scores.check_writable(written, options.captions, options.references)
    return Job(source, captioning, options.captions, config, options.references, written)


def run(spark: SparkSession, job: Job, logging_of_executors: Logging, outcome: Outcome) -> None:
    """Reads, captions and commits, wave by wave, which `outcome` tells of. Raises SystemicError where the run had to
    stop: what was committed stays, and the next run goes on from there."""
    run_id, means = job.captioning.run_id, job.captioning.config
    check_gpus(spark, means.device, means.profile(spark))
    if job.references:  # better said before a night of captioning than after it
        scores.check_reached(spark, job.references, job.scores)
    prepare_target(spark, job.captions, job.config.format)
    place = Folder(spark, tables.staging(spark, job.captions, job.config.staging))
    target = find_target(spark, job.captions, job.config.format, Folder(spark, place.at(run_id)))
    progress = Progress(spark)
    with lease(place, run_id, f"--captions {job.captions}") as held, progress.shown():
        for left in place.names():
            if left != held.NAME:
                place.delete(left)  # by a run that was killed
        watch = Watch(progress.counts, logging_of_executors)
        _run_waves(spark, job, target, held.check, progress, watch, outcome)
        place.delete(run_id)


def _run_waves(
    spark: SparkSession,
    job: Job,
    target: Target,
    check: Callable[[], None],
    progress: Progress,
    watch: Watch,
    outcome: Outcome,
) -> None:
    config, captioning = job.config, job.captioning
    recipe = captioning.recipe(spark)
    if not config.limit:  # which ends the listing, and with it the Python worker, half way
        warm_worker(spark, recipe, watch)
    images = job.source.read(spark)
    existing = target.open()
    size = config.wave_size
    if config.mode == "overwrite":
        existing, size = None, sys.maxsize  # what is replaced at once is one wave
    else:
        target.check_staging()
    limits = waves.Limits(config.limit, size, config.max_attempts)
    clock = time.monotonic()
    plan = waves.plan(images, target, existing, captioning.keys(), limits)
    outcome.duplicates = plan.duplicates
    total, seconds = sum(wave.size for wave in plan.waves), time.monotonic() - clock
    logger.info("%d images to caption, found in %.1f s; waves: %d", total, seconds, len(plan.waves))
    if not isinstance(job.source, ImageFiles):
        storage.probe(plan.some_objects(), replace(captioning.access, patience=START_PATIENCE_SECONDS))
    progress.planned(total, len(plan.waves))
    caption = caption_udf(recipe, captioning.access, watch)
    for number, wave in enumerate(plan.waves):
        progress.begin_wave(wave.size)
        # In Parquet each commit that is replaced is a wave of its own; they are captioned together.
        name = f"{captioning.run_id}-{number:05}{'-together' if len(wave.replaces) > 1 else ''}"
        rows = target.stage(transform(plan.read(wave), captioning, caption), name)
        counts = outcome.count(rows, progress.ended(), wave.size)
        check()
        with threads(spark) as beside:
            looked = beside.submit(outcome.look, rows, counts, plan.known() if wave.replaces else None)
            if config.mode == "overwrite":
                target.overwrite(rows)
            else:
                target.commit(rows, name, wave.replaces)
        outcome.counts.update(counts)
        looked.result()
        progress.committed(counts)
    if existing is None and not plan.waves:  # a table of no rows is one, too
        target.overwrite(tables.from_rows(spark, [], tables.CAPTIONS))
        outcome.empty = True


def record(
    spark: SparkSession, job: Job, outcome: Outcome, started: datetime, seconds: float, stopped: str | None = None
) -> None:
    """Leaves a row in the runs table; `stopped` is why the run did not come to its end."""
    captioning, total = job.captioning, outcome.counts.total()
    decode = captioning.decode.to_dict()
    options = {"decode": decode, **captioning.config.to_dict(), **job.config.to_dict()}
    if len(captioning.files) > 1:
        options["models"] = [files.model_id for files in captioning.files]
    if stopped:
        options["stopped"] = stopped
    values = {
        "run_id": captioning.run_id,
        "job": "caption_images",
        "started_at": started,
        "finished_at": datetime.now(UTC),
        "seconds": seconds,
        "n_images": total,
        "images_per_second": total / seconds,
        "counts": dict(outcome.counts),
        **captioning.keys(),
        "source": job.source.location,
        "target": job.captions,
        "options": json.dumps(options, sort_keys=True),
    }
    tables.append_run(spark, job.captions, values)


def main(arguments: Sequence[str] | None = None) -> int:
    job = check(parse_args(arguments))
    captioning = job.captioning
    how = Logging(logs.chosen_format(), context={"run_id": captioning.run_id})
    logs.configure(how)
    spark = build_session("caption_images", captioning.access.endpoint)
    master = spark.sparkContext.master or ""
    if master.startswith("local"):
        check_gpu_here(captioning.config.device)  # the executor is here, so what it lacks can be said now
        if how.format == "text":
            how = replace(how, level=logging.WARNING)  # of the executor, whose terminal is ours
    logger.info("run %s: captioning %s with model %s on %s", captioning.run_id, job.source.location,
                captioning.model_id, master)  # fmt: skip
    started, clock, outcome = datetime.now(UTC), time.monotonic(), Outcome()
    end_at_signals(spark)
    try:
        run(spark, job, how, outcome)
    except Exception as error:
        if (why := systemic(error)) is None:
            raise
        complain(f"{why}; the run has stopped, and goes on from there when it is run again")
        with contextlib.suppress(Exception):  # what has stopped it may be the place of this table
            record(spark, job, outcome, started, time.monotonic() - clock, why)
        return 1
    seconds = time.monotonic() - clock
    outcome.show(seconds)
    say(f"captions are in {job.captions} (model {captioning.model_id}, decoding {captioning.decode.decode_id})")
    record(spark, job, outcome, started, seconds)
    if job.references and not outcome.empty:
        for score in scores.evaluate(spark, job.captions, job.references, job.scores, captioning.run_id):
            say(scores.describe(score))
    if outcome.failure_rate > job.config.max_failure_rate:
        complain(
            f"{outcome.failure_rate:.0%} of the images failed, more than --max-failure-rate"
            f" {job.config.max_failure_rate}; their status and error_message stand in {job.captions}"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
