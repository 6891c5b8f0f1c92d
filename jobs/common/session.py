"""The Spark session of a job, its logging, and what it says on the terminal."""

import logging
import os
import re
import sys
from collections.abc import Callable

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from jobs.common.storage import SystemicError

# Set where the user has not. Rows that carry images are large: what Spark counts in rows by default must be small.
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 1024 * 1024),
    "spark.sql.parquet.columnarReaderBatchSize": "64",
    "spark.sql.orc.columnarReaderBatchSize": "64",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}

# Set where Delta's jar is among those of the application: its tables need both.
DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}

# Set where hadoop-aws is among those jars: keys, profile and role come from where boto3 looks for them too.
S3A = {
    "spark.hadoop.fs.s3a.aws.credentials.provider": "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
}


def build_session(name: str, s3_endpoint: str | None = None) -> SparkSession:
    """The session that spark-submit configured, with SETTINGS where it left them open. `s3_endpoint` is the URL of the
    server behind `s3a://`, where that is not Amazon's."""
    builder = SparkSession.builder.appName(name)
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # before that is connected to, a SparkConf does not know spark-submit's
        SparkContext._ensure_initialized()
    conf = SparkConf()
    jars = " ".join(conf.get(key) or "" for key in ("spark.jars", "spark.jars.packages"))
    settings = {**(DELTA if "delta-spark" in jars else {}), **(S3A if "hadoop-aws" in jars else {})}
    if s3_endpoint:
        settings["spark.hadoop.fs.s3a.endpoint"] = s3_endpoint
        settings["spark.hadoop.fs.s3a.path.style.access"] = "true"  # as storage.py asks other servers
    for key, value in settings.items():
        if not conf.contains(key):
            builder = builder.config(key, value)
    spark = builder.getOrCreate()
    given = dict(spark.sparkContext.getConf().getAll())
    for key, value in SETTINGS.items():
        if key not in given:
            spark.conf.set(key, value)
    spark.sparkContext.setLogLevel("WARN")
    return spark


# What a Python worker, a disk or a store of tables says that ends a run, whatever the image: not a bug of the job.
SYSTEMIC = re.compile(
    r"(?:SystemicError|OutOfMemoryError|AccessDeniedException|UnknownHostException|UnknownStoreException): ([^\n]*)"
)
PLACES = re.compile(
    r"[^\n]*(?:No space left on device|Disk quota exceeded|Permission denied|Read-only file system"
    r"|Connection refused)[^\n]*"
)
NO_KEYS = re.compile(r"No AWS Credentials provided by \w+")


def systemic(error: BaseException) -> str | None:
    """In one line, what the run cannot go on without, if `error`, raised here or on an executor, says so."""
    if isinstance(error, SystemicError):
        return str(error)
    if found := NO_KEYS.search(str(error)):
        return found[0]
    if found := SYSTEMIC.search(str(error)):
        return found[1] or "out of memory"
    if found := PLACES.search(str(error)):
        return found[0].strip().rpartition("Exception: ")[2]
    return None


def configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("py4j", "botocore", "boto3", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def say(line: str) -> None:
    """Prints a line of the job's result, which is not logging."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def exit_status(main: Callable[[], int]) -> int:
    """Runs a job. A ValueError is the user's to mend: one line on stderr and status 2, no traceback."""
    configure_logging()
    try:
        return main()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
