"""Nothing lost, nothing twice: a job captions from S3 while processes are killed at random and the server goes away.

    .venv/bin/python -m tests.e2e.soak --format delta

For each seed a table is written by the job on a standalone cluster, as users start it. Meanwhile Python workers,
executors, Spark workers and the driver are killed and the S3 server is killed and started again, when and in which
order the seed says; and somebody reads the table. The same command is run again until it ends well. Then the table must
have the rows of an undisturbed run. Images are read from a prefix by even seeds, and from a manifest with objects that
are missing, denied or refused by odd ones; the job has one executor, every fifth time two. With --tables s3 the tables
stand on the same server (the default; the jars of `s3a://` are fetched once, some 600 MB), with --tables local on this
disk. Ends with 1 where a row is lost or twice.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from jobs import caption_images
from jobs.common import storage, tables
from jobs.common.session import DELTA, exit_status
from jobs.common.targets import FORMATS, PACKAGES
from tests.e2e.cluster import BRIEF, Cluster, plain_environment, standalone_cluster, stop_group
from tests.e2e.havoc import KINDS, Havoc
from tests.e2e.seaweed import BUCKETS, Seaweed, seaweed
from tests.e2e.watching import Watcher, differences
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory

PROJECT = Path(__file__).parents[2]
IVY = PROJECT / "build" / "ivy"
S3A = "org.apache.hadoop:hadoop-aws:3.4.2"  # of Spark's Hadoop
KEYS = "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
IMAGES, WAVE = 60, 20
EVENTS = 3  # in a seed, while its job runs
RUNS = 10  # of the same command, at most
RUN_SECONDS = 240


@dataclass
class Place:
    """Where a soak happens: its images, its tables, who reads them, and how jobs are started."""

    cluster: Cluster
    server: Seaweed
    spark: SparkSession
    folder: Path
    format: str
    tables: str  # where paths are, and the warehouse of the Iceberg catalog `ice`
    model: Path
    settings: dict[str, str] = field(default_factory=dict)  # of Spark, for the job

    def table(self, name: str) -> str:
        return f"ice.soak.{name}" if self.format == "iceberg" else f"{self.tables}/{name}"

    def load(self, name: str) -> DataFrame:
        at = self.table(name)
        return self.spark.table(at) if tables.is_table_name(at) else self.spark.read.format(self.format).load(at)

    def staging(self, name: str) -> str:
        return f"{self.tables}/staging-{name}"

    def options(self, images: str, name: str, wave_size: int) -> list[str]:
        """Of the job."""
        given = {
            "images": images, "captions": self.table(name), "format": self.format, "model": self.model,
            "staging": self.staging(name), "s3-endpoint": self.server.endpoint, "wave-size": wave_size,
            "batch-size": 8, "device": "cpu", "max-failure-rate": 1,
        }  # fmt: skip
        return [str(word) for option, value in given.items() for word in (f"--{option}", value)]

    def start(self, images: str, name: str, cores: int) -> subprocess.Popen[bytes]:
        """The job on `cores` of the cluster, as users start it; what it prints is added to `<name>.log`."""
        given = self.settings | {"spark.cores.max": str(cores)}
        settings = [word for key, value in given.items() for word in ("--conf", f"{key}={value}")]
        job = ["jobs/caption_images.py", *self.options(images, name, WAVE)]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [PROJECT / "spark-submit.sh", "--master", self.cluster.url, *settings, *job],
                cwd=self.folder,
                env=plain_environment(
                    NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **self.server.environment()
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@dataclass
class Outcome:
    """Of one seed, or of all together."""

    seeds: int = 0
    runs: int = 0
    waves: int = 0
    polls: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        for name in ("seeds", "runs", "waves", "polls"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kills += other.kills
        self.rows += other.rows
        self.problems += other.problems

    def __str__(self) -> str:
        killed = ", ".join(f"{self.kills[kind]} {kind}" for kind in KINDS)
        rows = f"{self.rows['lost']} rows lost, {self.rows['twice']} twice"
        wrong = f", {self.rows['strange']} strange, {self.rows['different']} different"
        return f"killed {killed}; {self.runs} runs, {self.waves} waves, {self.polls} readings; {rows}{wrong}"

    @property
    def is_good(self) -> bool:
        return not self.problems and not +self.rows


def put_images(server: Seaweed, folder: Path, count: int = IMAGES) -> tuple[str, str]:
    """A prefix of small images, some of them corrupt; and a manifest of these and of others that cannot be had."""
    good, names, client = photographs(count), [], server.admin()
    for number, content in enumerate(good):
        names.append(f"{number % 5}/{number:04}.png")
        bad = (b"", b"no image", content[:40])[number % 3]
        body = bad if number % 25 == 7 else content
        client.put_object(Bucket="photos", Key=f"soak/{names[-1]}", Body=body)
    client.put_object(Bucket="locked", Key="a.png", Body=good[0])
    rows: list[dict[str, str | None]] = [{"image_id": name, "uri": f"s3://photos/soak/{name}"} for name in names]
    rows += [{"image_id": f"missing {n}", "uri": f"s3://photos/none/{n}.png"} for n in range(3)]
    rows += [{"image_id": f"denied {n}", "uri": "s3://locked/a.png"} for n in range(3)]
    rows += [
        {"image_id": "refused", "uri": "file:///etc/passwd"},
        {"image_id": None, "uri": "s3://photos/soak/0/0000.png"},
    ]
    random.Random(0).shuffle(rows)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return "s3://photos/soak", str(manifest)


def undisturbed(place: Place, images: str, name: str) -> None:
    """The same job in this process, in one wave. Raises RuntimeError where it does not end well."""
    before = dict(os.environ)
    os.environ.update(place.server.environment())
    place.spark.sparkContext.environment.update(place.server.environment())
    storage.forget_clients()
    try:
        if exit_status(lambda: caption_images.main(place.options(images, name, 0))) != 0:
            raise RuntimeError("the undisturbed run did not end well")
    finally:
        os.environ.clear()
        os.environ.update(before)
        storage.forget_clients()


def soak(place: Place, seed: int, images: str, expected: str, kinds: Sequence[str] = ()) -> Outcome:
    """One table, written while what `kinds` says happens, or some of all KINDS."""
    name = f"seed_{seed}"
    chance = random.Random(seed)
    havoc = Havoc(place.cluster, place.server, chance)
    staging = tables.staging(place.spark, place.table(name), place.staging(name))
    watcher = Watcher(place.spark, partial(place.load, name), staging)
    outcome = Outcome(seeds=1)
    left = [*reversed(kinds)] or [chance.choice(KINDS) for _ in range(EVENTS)]
    watcher.start()
    try:
        while outcome.runs < RUNS:
            outcome.runs += 1
            driver = place.start(images, name, cores=2 if seed % 5 == 0 else 1)
            try:
                _disturb(havoc, driver, watcher, left)
                status = driver.wait(RUN_SECONDS)
            finally:
                stop_group(driver)
            if status == 0:
                break
        else:
            outcome.problems.append(f"it did not end well in {RUNS} runs")
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"a run did not end in {RUN_SECONDS} s")
    finally:
        watcher.finish()
    outcome.kills, outcome.waves, outcome.polls = havoc.done, len(watcher.waves), watcher.polls
    outcome.problems += watcher.problems
    outcome.rows = differences(place.load(expected), place.load(name))
    return outcome


def _disturb(havoc: Havoc, driver: subprocess.Popen[bytes], watcher: Watcher, left: list[str]) -> None:
    """Causes what is `left` to be caused as long as the driver runs: now and then at any time, mostly while waves are
    being written."""
    chance = havoc.random
    while left and driver.poll() is None:
        if chance.random() < 0.25:
            _wait(driver, chance.uniform(0, 6))
        else:
            rows, patience = watcher.rows, time.monotonic() + RUN_SECONDS
            while watcher.rows == rows and driver.poll() is None and time.monotonic() < patience:
                time.sleep(0.05)
            _wait(driver, chance.uniform(0, 2))
        if driver.poll() is None and havoc.cause(left[-1], driver):
            left.pop()


def _wait(driver: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        driver.wait(seconds)


@contextmanager
def session(folder: Path, on_s3: bool) -> Iterator[SparkSession]:
    """The reader's, with the jars of all formats."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    packages = [package for _, package in PACKAGES.values()] + ([S3A] if on_s3 else [])
    builder = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.jars.packages", ",".join(packages))
        .config("spark.jars.ivy", str(IVY))
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
    )
    for key, value in DELTA.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def table_settings(server: Seaweed, form: str, at: str) -> dict[str, str]:
    """Spark's, of whoever reads or writes the tables `at` a place."""
    settings = {"spark.sql.shuffle.partitions": "4"}
    if form == "delta":
        settings["spark.databricks.delta.snapshotPartitions"] = "1"
    if form == "iceberg":
        catalog = "spark.sql.catalog.ice"
        settings |= {
            catalog: "org.apache.iceberg.spark.SparkCatalog",
            f"{catalog}.type": "hadoop",
            f"{catalog}.warehouse": at,
            f"{catalog}.cache-enabled": "false",  # a reader sees each commit at once
        }
    if at.startswith("s3a:"):
        s3a = "spark.hadoop.fs.s3a"
        settings |= {
            f"{s3a}.endpoint": server.endpoint,
            f"{s3a}.endpoint.region": "us-east-1",
            f"{s3a}.path.style.access": "true",
            # Hadoop's own chain does not read the file that the AWS configuration names.
            f"{s3a}.aws.credentials.provider": KEYS,
        }
    return settings


def find_place(
    spark: SparkSession, cluster: Cluster, server: Seaweed, folder: Path, form: str, on_s3: bool = False
) -> Place:
    """Tables of format `form` in `folder`, or on `server`, that `spark` reads and jobs on `cluster` write."""
    at = "s3a://tables/soak" if on_s3 else str(folder / "tables")
    reading = table_settings(server, form, at)
    for key, value in reading.items():
        spark.conf.set(key, value)
        if key.startswith("spark.hadoop."):
            spark._jsc.hadoopConfiguration().set(key.removeprefix("spark.hadoop."), value)
    settings = reading | {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "512m",
        "spark.driver.extraJavaOptions": BRIEF,
        "spark.executor.extraJavaOptions": BRIEF,
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
    }
    if form != "parquet" or on_s3:
        jars = sorted((IVY / "jars").glob("*.jar"))
        settings["spark.jars"] = ",".join(f"local:{jar}" for jar in jars)  # there on all machines, and not copied
    settings |= {f"spark.executorEnv.{name}": value for name, value in server.environment().items()}
    if form == "iceberg":
        spark.sql("CREATE NAMESPACE IF NOT EXISTS ice.soak")
    return Place(cluster, server, spark, folder, form, at, tiny_model_directory(folder), settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--format", choices=FORMATS, default="parquet")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--tables", choices=("s3", "local"), default="s3", help="where the tables stand (default s3)")
    parser.add_argument("--minutes", type=float, default=14, help="begin no further seed after these (default 14)")
    parser.add_argument("--keep", type=Path, help="folder for logs and tables (default: a temporary one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cluster").mkdir()
        with seaweed(folder / "s3") as server, standalone_cluster(folder / "cluster") as cluster:
            for bucket in BUCKETS:
                server.admin().create_bucket(Bucket=bucket)
            os.environ.update(server.environment())  # before Java starts, which reads tables on S3
            total = soak_all(cluster, server, folder, options, end)
    print(f"{total.seeds} of {options.seeds} seeds {options.format}: {total}")
    return 0 if total.is_good and total.seeds == options.seeds else 1


def soak_all(cluster: Cluster, server: Seaweed, folder: Path, options: argparse.Namespace, end: float) -> Outcome:
    """Seed after seed, until `end`."""
    total, on_s3 = Outcome(), options.tables == "s3"
    with session(folder, on_s3) as spark:
        at = find_place(spark, cluster, server, folder, options.format, on_s3)
        sources = put_images(server, folder)
        for number, images in enumerate(sources):
            undisturbed(at, images, f"undisturbed_{number}")
        for seed in range(options.first, options.first + options.seeds):
            if time.monotonic() > end:
                break
            begun = time.monotonic()
            outcome = soak(at, seed, sources[seed % 2], f"undisturbed_{seed % 2}")
            print(f"seed {seed:2} {options.format} {time.monotonic() - begun:3.0f} s: {outcome}", flush=True)
            for problem in dict.fromkeys(outcome.problems):
                print(f"  {problem}", flush=True)
            total.add(outcome)
    return total


if __name__ == "__main__":
    sys.exit(main())
