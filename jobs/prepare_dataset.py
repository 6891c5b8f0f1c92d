r"""Turns a set of captioned images into an images table and a references table.

    ./spark-submit.sh jobs/prepare_dataset.py --input Flickr8k.token.txt --images Flicker8k_Dataset \
        --split Flickr_8k.testImages.txt --out out/flickr8k-test

The input is a token or CSV file of Flickr8k or Flickr30k, or Karpathy's JSON or COCO's, which name image files below
--images that every executor can read; or Parquet or a catalog table with `image_id`, `content` and `captions`.

    OUT/images       image_id string, content binary, uri string
    OUT/references   image_id string, captions array<string>

Images that the input names but that do not exist, or that have no caption, are in neither table. Images that exist
but cannot be read stand in the references alone: a score then counts them as missing instead of passing them over.
"""

import argparse
import functools
import logging
import math
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from jobs.common import tables
from jobs.common.session import OptionParser, add_endpoint, build_session, exit_status, say
from nic_model.datasets import LISTING_SUFFIXES, Example, read_dataset

logger = logging.getLogger("jobs.prepare_dataset")

BATCH_BYTES = 32 * 1024 * 1024  # an Arrow batch of images is closed once it holds this much
MAX_BYTES = 256 * 1024 * 1024  # a larger file is not read: it is no photograph
LEAST_FILES, MOST_FILES = 100, 1000  # for a partition; of photographs some 10 to 200 MB
SHOWN = 10  # images named in a warning

IMAGES = T.StructType([tables.IMAGES[name] for name in ("image_id", "content", "uri")])
READ = T.StructType([*IMAGES, T.StructField("error_message", T.StringType())])
LISTED = T.StructType([tables.IMAGES["image_id"], tables.IMAGES["uri"], tables.REFERENCES["captions"]])


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(prog="prepare_dataset.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--input", nargs="+", required=True, metavar="DATA",
                        help="token or CSV file, Karpathy or COCO JSON, Parquet, or a catalog table")  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the image files that the input names")
    parser.add_argument("--split", help="a file that lists image names, or the split's name in a Karpathy JSON")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the two tables to write")
    add_endpoint(parser)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> list[Example] | None:
    """The images that the input names; None for Parquet and catalog tables, which Spark reads.

    Raises ValueError with one line that says what is wrong.
    """
    for name in ("images", "references"):
        tables.check_writable(f"{options.out}/{name}", "--out")
    listings = [spec for spec in options.input if Path(spec).suffix.lower() in LISTING_SUFFIXES]
    if len(listings) == len(options.input):
        return read_dataset(listings, options.split, options.images)
    if listings:
        raise ValueError(f"--input: either tables or files that name images, not both: {' '.join(options.input)}")
    if options.split or options.images:
        raise ValueError("--split and --images go with an input that names image files; a table holds its images")
    for location in options.input:
        tables.check_readable(location, "--input")
        for name in ("images", "references"):
            tables.check_apart(f"{options.out}/{name}", "--out", location, "--input")
    return None


def read_examples(spark: SparkSession, listed: Sequence[Example] | None, locations: Sequence[str]) -> DataFrame:
    """A row of LISTED for each image that is a file; with `content` too, for those of tables.

    Raises ValueError where a table is missing or lacks a column.
    """
    if listed is not None:
        columns = {
            "image_id": [example.image_id for example in listed],
            "uri": [Path(str(example.image)).absolute().as_uri() for example in listed],
            "captions": [list(example.captions) for example in listed],
        }
        fewest, most = math.ceil(len(listed) / MOST_FILES), math.ceil(len(listed) / LEAST_FILES)
        partitions = min(max(4 * spark.sparkContext.defaultParallelism, fewest), most)
        return spark.createDataFrame(pa.table(columns), LISTED).repartition(partitions)
    needed = T.StructType([*(tables.IMAGES[name] for name in ("image_id", "content")), LISTED["captions"]])
    examples = [tables.read_table(spark, location, needed, role="--input") for location in locations]
    # The contract of a table asks for no uri.
    examples = [e if "uri" in e.columns else e.withColumn("uri", F.lit(None).cast("string")) for e in examples]
    return functools.reduce(DataFrame.unionByName, (e.select(*IMAGES.names, "captions") for e in examples))


def transform(examples: DataFrame) -> tuple[DataFrame, DataFrame]:
    """The rows of READ and the references of the images that have a caption; files are read by executors."""
    stripped = F.transform("captions", lambda caption: F.regexp_replace(caption, r"^\s+|\s+$", ""))
    captions = F.filter(stripped, lambda caption: caption != "")
    captioned = examples.withColumn("captions", captions).where(F.size("captions") > 0)
    if "content" in examples.columns:
        empty = F.coalesce(F.length("content"), F.lit(0)) == 0
        images = captioned.withColumn("error_message", F.when(empty, "content is null or empty"))
    else:
        images = captioned.select("image_id", "uri").mapInArrow(read_images, READ)
    return images.select(READ.names), captioned.select(tables.REFERENCES.names)


def read_images(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """From (image_id, uri), a row of READ each, in batches that hold little more than BATCH_BYTES."""
    rows: list[dict[str, str | bytes | None]] = []
    size = 0
    for batch in batches:
        for row in batch.to_pylist():
            try:
                row["content"] = _read(row["uri"])
                size += len(row["content"])
            except (OSError, ValueError) as error:
                row["error_message"] = str(error)
            rows.append(row)
            if size >= BATCH_BYTES:
                yield _record_batch(rows)
                rows, size = [], 0
    yield _record_batch(rows)


def _read(uri: str) -> bytes:
    """The bytes of a file. Raises OSError if it cannot be read, ValueError if it is empty or too large."""
    # Not executor.fetch: it brings torch, which takes every Python worker seconds to import.
    file = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path))
    n_bytes = file.stat().st_size
    if not 0 < n_bytes <= MAX_BYTES:
        raise ValueError(f"the file has {n_bytes} bytes: read are 1 to {MAX_BYTES}")
    return file.read_bytes()


def _record_batch(rows: list[dict[str, str | bytes | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, to_arrow_schema(READ))


def write(examples: DataFrame, out: str) -> None:
    """Writes both tables and says what they hold. Raises ValueError where an image_id is null or not unique."""
    images, references = transform(examples)
    _check_ids(references)
    seen = Observation()
    failure = F.when(F.col("error_message").isNotNull(), F.concat_ws(": ", "image_id", "error_message"))
    # collect_list passes over nulls: one pass over the images both writes them and tells which are lacking.
    images = images.observe(seen, F.count("image_id").alias("n"), F.collect_list(failure).alias("unreadable"))
    readable = images.where(F.col("error_message").isNull()).select(IMAGES.names)
    tables.write_table(readable, f"{out}/images", mode="overwrite")
    tables.write_table(references, f"{out}/references", mode="overwrite")
    n, unreadable = seen.get["n"], sorted(seen.get["unreadable"])
    if unreadable:
        first = "; ".join(unreadable[:SHOWN]) + ("; ..." if len(unreadable) > SHOWN else "")
        logger.warning("%d of %d images cannot be read, and have references only: %s", len(unreadable), n, first)
    if captionless := examples.count() - n:
        logger.warning("left out %d of %d images, which have no caption", captionless, n + captionless)
    say(f"{n - len(unreadable)} images in {out}/images, references of {n} in {out}/references")


def _check_ids(references: DataFrame) -> None:
    counts = references.groupBy("image_id").count()
    wrong = counts.where((F.col("count") > 1) | F.col("image_id").isNull()).orderBy("image_id").first()
    if wrong is not None:
        raise ValueError(f"--input: image_id {wrong['image_id']} stands in {wrong['count']} rows: it must be unique")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    listed = check(options)
    spark = build_session("prepare_dataset", options.s3_endpoint)
    write(read_examples(spark, listed, options.input), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
