"""The Spark session of a job, its logging, and what it says on the terminal."""

import logging
import sys
from collections.abc import Callable

from pyspark.sql import SparkSession

# Set where the user has not. Rows that carry images are large: what Spark counts in rows by default must be small.
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 1024 * 1024),
    "spark.sql.parquet.columnarReaderBatchSize": "64",
    "spark.sql.orc.columnarReaderBatchSize": "64",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


def build_session(name: str) -> SparkSession:
    """The session that spark-submit configured, with SETTINGS where it left them open."""
    spark = SparkSession.builder.appName(name).getOrCreate()
    given = dict(spark.sparkContext.getConf().getAll())
    for key, value in SETTINGS.items():
        if key not in given:
            spark.conf.set(key, value)
    spark.sparkContext.setLogLevel("WARN")
    return spark


def configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)


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
