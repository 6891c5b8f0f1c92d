"""Makes a page of a captions table: what ran, how good the captions are, and the images with their captions.

    ./spark-submit.sh jobs/report_captions.py --captions out/captions --images PHOTOS --out report.html

One HTML file that any browser opens from disk. With --references and --scores (as `jobs/evaluate_captions.py` writes
them) it shows what people wrote and how each caption scores; with --model, of a model whose decoder is
show_attend_tell, where the model looked at each word. It reports on one model and decoding: the one that captioned
last, unless --model-id or --decode-id name another.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import report, scores, tables
from jobs.common.files import Folder
from jobs.common.rows import CAPTIONED
from jobs.common.session import OptionParser, add_endpoint, build_session, exit_status, say
from jobs.common.sources import ImageObjects, Source, find_source, reaching, task_count
from jobs.common.storage import Access, SystemicError, hadoop_name, is_s3
from jobs.common.udfs import import_workers
from nic_model.model_files import ModelFiles

logger = logging.getLogger("jobs.report_captions")

PROJECT = Path(__file__).resolve().parents[1]
SIZES = range(32, 1025)  # of a thumbnail's longer side, in pixels


@dataclass(frozen=True)
class Job:
    """One report, checked before Spark starts."""

    options: argparse.Namespace
    source: Source
    access: Access
    files: ModelFiles | None


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(prog="report_captions.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--captions", default="out/captions", metavar="TABLE", help="captions table: a path or a name")
    parser.add_argument("--images", default=str(PROJECT / "samples" / "images"), metavar="IMAGES",
                        help="what was captioned, as caption_images.py was told")  # fmt: skip
    parser.add_argument("--allow-local-uris", action="store_true", help="read files that a table's uris name")
    parser.add_argument("--references", metavar="TABLE", help="image_id and captions, an array of strings")
    parser.add_argument("--scores", metavar="TABLE", help="where evaluate_captions.py wrote segments and corpus")
    parser.add_argument("--model", type=Path, metavar="DIR",
                        help="model directory, to show where it looked (decoder show_attend_tell)")  # fmt: skip
    parser.add_argument("--model-id", metavar="ID", help="report on this model (default: the one that captioned last)")
    parser.add_argument("--decode-id", metavar="ID", help="report on this decoding (default: the last)")
    parser.add_argument("--out", default="out/report.html", metavar="FILE",
                        help="page to write, a path of Spark's or s3a:// (default out/report.html)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=2000, metavar="N",
                        help="images in the gallery (default 2000): worst, best, failed and others")  # fmt: skip
    parser.add_argument("--thumbnail-size", type=int, default=192, metavar="N",
                        help="longer side of a picture, in pixels (default 192)")  # fmt: skip
    add_endpoint(parser)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> Job:
    """Everything that can be found wrong without Spark. Raises ValueError with one line that says what."""
    tables.check_readable(options.captions, "--captions")
    access = Access(options.s3_endpoint, options.allow_local_uris)
    source = find_source(options.images, access)
    source.check()
    access = reaching(source, access)
    if options.references:
        tables.check_readable(options.references, "--references")
    if options.scores:
        for name in ("segments", "corpus"):
            tables.check_readable(scores.part(options.scores, name), "--scores")
    if options.limit < 1:
        raise ValueError(f"--limit {options.limit}: must be at least 1")
    if options.thumbnail_size not in SIZES:
        raise ValueError(f"--thumbnail-size {options.thumbnail_size}: allowed are {SIZES[0]} to {SIZES[-1]}")
    if options.out.endswith("/") or Path(options.out).is_dir():
        raise ValueError(f"--out {options.out}: is a folder; name a file")
    if is_s3(options.out):
        raise ValueError(f"--out {options.out}: Hadoop writes to S3, and calls this {hadoop_name(options.out)}")
    files = ModelFiles.read(options.model) if options.model else None
    if files is not None:
        decoder = files.settings()[0].decoder
        if decoder != "show_attend_tell":
            raise ValueError(f"--model {options.model}: decoder {decoder} looks at no places; show_attend_tell does")
        if options.model_id not in (None, files.model_id):
            raise ValueError(f"--model-id {options.model_id}: --model {options.model} is {files.model_id}")
    return Job(options, source, access, files)


def choose(captions: DataFrame, job: Job) -> dict[str, str]:
    """The model and the decoding to report on. Raises ValueError where there is no such caption."""
    asked = {"model_id": job.files.model_id if job.files else job.options.model_id, "decode_id": job.options.decode_id}
    given = {name: value for name, value in asked.items() if value is not None}
    rows = captions.where(tables.having(given)) if given else captions
    last = rows.orderBy(F.desc("captioned_at")).select("model_id", "decode_id").head()
    if last is None:
        wanted = ", ".join(f"{name} {value}" for name, value in given.items())
        raise ValueError(f"--captions {job.options.captions}: no rows{' of ' if wanted else ''}{wanted}")
    return dict(last.asDict())


def gather(spark: SparkSession, job: Job) -> report.Report:
    options = job.options
    everything = tables.read_table(spark, options.captions, tables.FIRST_CAPTIONS, role="--captions")
    keys = choose(everything, job)
    captions = everything.where(tables.having(keys)).select(tables.FIRST_CAPTIONS.names)
    made = report.describe(captions, options.captions, keys)
    made.runs = last_runs(spark, options.captions, keys)
    rows = captions
    if options.scores:
        corpus = tables.read_table(spark, scores.part(options.scores, "corpus"), tables.CORPUS, role="--scores")
        made.models = report.corpus_scores(corpus, keys)
        needed = T.StructType([tables.SEGMENTS[name] for name in ("image_id", *keys)])
        segments = tables.read_table(spark, scores.part(options.scores, "segments"), needed, role="--scores")
        segments = segments.where(tables.having(keys))
        made.metrics = report.scored(segments)
        if not made.metrics:
            logger.warning("--scores %s: no scores of model %s, decoding %s", options.scores, *keys.values())
        made.histograms = [report.histogram(segments, name) for name in report.MAIN if name in made.metrics]
        rows = rows.join(segments.select("image_id", *made.metrics), "image_id", how="left")
    if options.references:
        references = tables.read_table(spark, options.references, tables.REFERENCES, role="--references")
        rows = rows.join(references.select("image_id", "captions"), "image_id", how="left")
    else:
        rows = rows.withColumn("captions", F.lit(None).cast(tables.REFERENCES["captions"].dataType))
    picked = report.pick(rows, made.main, options.limit)
    made.images = report.gallery(picked, make_thumbnails(spark, job, picked), made.metrics)
    return made


def last_runs(spark: SparkSession, captions: str, keys: dict[str, str]) -> list[Row]:
    """Runs that wrote these captions, newest first; none where the table has no runs table beside it."""
    try:
        runs = tables.read_table(spark, tables.beside(captions, "runs"), tables.RUNS, role="--captions")
    except ValueError:
        return []
    return runs.where(tables.having(keys)).orderBy(F.desc("started_at")).head(report.RUNS)


def make_thumbnails(spark: SparkSession, job: Job, picked: Sequence[Row]) -> dict[str, Row]:
    """A row of tables.THUMBNAILS by image_id, made on executors. Raises SystemicError where images cannot be had."""
    columns = T.StructType([tables.CAPTIONS[name] for name in ("image_id", "uri", "caption")])
    named = [{name: row[name] for name in columns.names} for row in picked if row["image_id"] is not None]
    wanted = tables.from_rows(spark, named, columns)
    if isinstance(job.source, ImageObjects):  # where each is, its row says: a large bucket takes long to list
        images, has_content = wanted, False
    else:
        read = job.source.read(spark)
        images, has_content = read.rows.join(F.broadcast(wanted.drop("uri")), "image_id", how="inner"), read.has_content
    if not has_content:
        images = images.withColumn("content", F.lit(None).cast("binary"))
        images = images.repartition(task_count(spark, len(picked)))
    images = images.select(CAPTIONED.names)
    files = spark.sparkContext.broadcast(job.files) if job.files else None
    size, access = job.options.thumbnail_size, job.access

    def make(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        workers = import_workers()
        from jobs.common.thumbnails import thumbnail_batches  # on executors alone, too

        return thumbnail_batches(batches, size, access, workers.attending_model(files) if files else None)

    made = images.mapInArrow(make, tables.THUMBNAILS).collect()
    for row in made:
        if row["problem"] is not None:
            raise SystemicError(row["problem"])
    return {row["image_id"]: row for row in made}


def main(arguments: Sequence[str] | None = None) -> int:
    job = check(parse_args(arguments))
    spark = build_session("report_captions", job.access.endpoint)
    place, slash, name = job.options.out.rpartition("/")
    folder = Folder(spark, place + slash or ".")
    made = gather(spark, job)
    page = report.render(made)
    folder.write_text(name, page)
    where = job.options.out if folder.is_local else folder.whole(name)
    say(f"{len(made.images)} of {made.n_images} images in {where}, {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
