"""The Spark session of a job, and of others that use its code, and what a job says on the terminal."""

import argparse
import contextlib
import hashlib
import io
import logging
import os
import re
import signal
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from jobs.common import logs
from jobs.common.storage import SystemicError

logger = logging.getLogger("jobs")

# Rows that carry images are large: what Spark counts in rows by default must be small. Set where the user has not.
BOUNDS = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 1024 * 1024),
    "spark.sql.parquet.columnarReaderBatchSize": "64",
    "spark.sql.orc.columnarReaderBatchSize": "64",
}

SETTINGS = {"spark.sql.session.timeZone": "UTC", "spark.sql.execution.arrow.pyspark.enabled": "true", **BOUNDS}

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
    _set_where_open(spark, SETTINGS)
    spark.sparkContext.setLogLevel("WARN")
    return spark


class OptionParser(argparse.ArgumentParser):
    """Tells of options that it does not know as of others that will not do."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists all options")


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """The option of a job that takes no other settings of S3."""
    parser.add_argument("--s3-endpoint", metavar="URL", help="the S3 server, where it is not Amazon's")


def bound_batches(spark: SparkSession) -> None:
    """Lets a session that no job has made take images, in batches of BOUNDS, where it has no settings of its own."""
    _set_where_open(spark, BOUNDS)


def _set_where_open(spark: SparkSession, settings: dict[str, str]) -> None:
    given = spark.conf.getAll
    for key, value in settings.items():
        if key not in given:
            spark.conf.set(key, value)


def threads(spark: SparkSession) -> ThreadPoolExecutor:
    """Threads in which `spark` is the active session, as it is here: Delta looks for it."""

    def activate() -> None:
        assert spark._jvm is not None
        spark._jvm.SparkSession.setActiveSession(spark._jsparkSession)

    return ThreadPoolExecutor(initializer=activate)


def ship_code(spark: SparkSession) -> None:
    """Hands executors the packages `jobs` and `nic_model` as a zip, as spark-submit.sh does for a job: where this code
    itself comes from such a zip, they have it."""
    root = Path(__file__).parents[2]
    files = sorted(file for package in ("jobs", "nic_model") for file in (root / package).rglob("*.py"))
    if not files:
        return
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            packed.writestr(zipfile.ZipInfo(file.relative_to(root).as_posix()), file.read_bytes())
    name = f"nic-{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.zip"
    if not any(there.endswith(f"/{name}") for there in spark.sparkContext.listFiles):
        archive = Path(spark.sparkContext._temp_dir) / name  # where Spark's server reads it, and which Spark deletes
        archive.write_bytes(content.getvalue())
        spark.sparkContext.addPyFile(str(archive))


HADOOP_AWS = "org.apache.hadoop:hadoop-aws:3.4.2"  # of the Hadoop that Spark 4.1 has

# What Hadoop says where it cannot know a location, and what helps.
UNKNOWN = {
    'No FileSystem for scheme "s3"': "Hadoop calls S3 s3a://",
    "Class org.apache.hadoop.fs.s3a.S3AFileSystem not found": f"give spark-submit --packages {HADOOP_AWS}",
}

# What a Python worker, a disk or a store of tables says that ends a run, whatever the image: not a bug of the job.
SYSTEMIC = re.compile(
    r"(?:SystemicError|OutOfMemoryError|AccessDeniedException|UnknownHostException|UnknownStoreException"
    r"|UnsupportedFileSystemException): ([^\n]*)"
)
HEADERS = re.compile(r"(CSV header does not conform to the schema).*?CSV file: ([^\n]*)", re.DOTALL)
PLACES = re.compile(
    r"[^\n]*(?:No space left on device|Disk quota exceeded|Permission denied|Read-only file system"
    r"|Connection refused)[^\n]*"
)
NO_KEYS = re.compile(r"No AWS Credentials provided by \w+")


def systemic(error: BaseException) -> str | None:
    """In one line, what the run cannot go on without, if `error`, raised here or on an executor, says so."""
    if isinstance(error, SystemicError):
        return str(error)
    text = str(error)
    for said, help_ in UNKNOWN.items():
        if said in text:
            return f"{said}: {help_}"
    if found := HEADERS.search(text):
        return f"{found[1]}, in {found[2]}: all files must have the same columns in the same order"
    if "[FAILED_READ_FILE.FILE_NOT_EXIST]" in text:
        return "a table was replaced while it was read: run it again"
    if found := NO_KEYS.search(text):
        return found[0]
    if found := SYSTEMIC.search(text):
        return found[1] or "out of memory"
    if found := PLACES.search(text):
        return found[0].strip().rpartition("Exception: ")[2]
    return None


def say(line: str) -> None:
    """Prints a line of the job's result. With JSON logs it is one of them, since Spark puts both into one stream."""
    if logs.are_json():
        logger.info("%s", line.strip())
    else:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def complain(line: str) -> None:
    """Says on stderr, or in JSON logs, why the job's exit status is not 0."""
    if logs.are_json():
        logger.error("%s", line)
    else:
        sys.stderr.write(f"error: {line}\n")


def end_at_signals(spark: SparkSession) -> None:
    """Lets Ctrl-C, and who ends processes, end this one with a line, where Spark would print traces for pages."""

    def silence() -> None:
        with contextlib.suppress(Exception):  # Java may have ended
            spark.sparkContext.setLogLevel("OFF")

    def end(number: int, _: object) -> None:
        # In a thread: this one may be in the middle of another call.
        silencing = threading.Thread(target=silence, daemon=True)
        silencing.start()
        silencing.join(2)
        complain("stopped: what was committed stays, and the same command goes on from there")
        os._exit(128 + number)  # and with it Java, which has started this process

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)


def exit_status(main: Callable[[], int]) -> int:
    """Runs a job. A ValueError is the user's to mend: one line on stderr and status 2, no traceback; what no job can go
    on without ends it with one line and status 1."""
    try:
        logs.configure(logs.Logging(logs.chosen_format()))
        return main()
    except ValueError as error:
        complain(str(error))
        return 2
    except Exception as error:
        if (why := systemic(error)) is None:
            raise
        complain(why)
        return 1
