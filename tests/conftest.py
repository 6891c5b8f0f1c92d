"""Fixtures that all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from pyspark.sql import SparkSession

from tests.e2e.cluster import BRIEF, JAVA_OPTIONS

os.environ |= dict.fromkeys(JAVA_OPTIONS, BRIEF)  # of all JVMs that tests start
# Threads that wait for each other by spinning take five times as long where other tests want the same cores.
os.environ["OMP_NUM_THREADS"] = "1"

IVY = Path(__file__).parents[1] / "build" / "ivy"  # jars are fetched once for all tests


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One local session for all tests, with the settings that the jobs set, Delta, and an Iceberg catalog `ice`."""
    from jobs.common.session import DELTA, build_session
    from jobs.common.targets import PACKAGES

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    iceberg = "spark.sql.catalog.ice"
    builder = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.shuffle.partitions", "4")
        # To compile each query takes longer than these few rows do. What tests/e2e launches, compiles.
        .config("spark.sql.codegen.wholeStage", "false")
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.jars.packages", ",".join(package for _, package in PACKAGES.values()))
        .config("spark.jars.ivy", str(IVY))
        .config("spark.databricks.delta.snapshotPartitions", "1")  # 50 are for tables of millions of files
        .config(iceberg, "org.apache.iceberg.spark.SparkCatalog")
        .config(f"{iceberg}.type", "hadoop")
        .config(f"{iceberg}.warehouse", str(tmp_path_factory.mktemp("iceberg")))
    )
    for key, value in DELTA.items():
        builder = builder.config(key, value)
    IVY.parent.mkdir(exist_ok=True)
    with FileLock(f"{IVY}.lock"):  # tests run in several processes, each of which would fetch the same files
        session = builder.getOrCreate()
    build_session("tests")
    yield session
    session.stop()
