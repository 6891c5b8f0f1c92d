"""How long a run takes to find the few images that are new among many that are captioned already.

    .venv/bin/python tests/bench/bench_resume.py --rows 10000000 --new 10000

Writes a manifest of uris and, directly, a captions table of all of it but `--new` rows, of which `--failed` may be
tried again; starts an S3 server with photographs; and runs jobs/caption_images.py twice on both cores, the driver and
executor in one process of `--memory`. The first run must caption exactly those rows, the second none. Prints what was
written, what both runs found and in how many seconds, and the largest memory of the Java process.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

from jobs import caption_images  # noqa: E402
from jobs.common import tables  # noqa: E402
from jobs.common.session import DELTA  # noqa: E402
from jobs.common.targets import FORMATS, PACKAGES  # noqa: E402
from tests.e2e.cluster import plain_environment  # noqa: E402
from tests.e2e.seaweed import Seaweed, seaweed  # noqa: E402
from tests.tiny import tiny_model_directory  # noqa: E402

SAMPLES = sorted((ROOT / "samples" / "images").iterdir())
ROWS_PER_FILE = 50_000  # of the captions table
CAPTIONS = ["a dog runs through the grass", "two people stand on a beach", "a man in a red hat", "a child on a swing"]


@dataclass(frozen=True)
class Case:
    """What is written and then found. Rows are numbered; those that are new or failed are spread over all of them."""

    folder: Path
    format: str
    rows: int
    new: int
    failed: int

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.parquet"

    @property
    def captions(self) -> str:
        return "lake.media.captions" if self.format == "iceberg" else str(self.folder / "captions")

    def is_new(self) -> Column:
        return self._every(self.new, 0)

    def has_failed(self) -> Column:
        return self._every(self.failed, 1)

    def _every(self, count: int, rest: int) -> Column:
        step = self.rows // count if count else self.rows
        return (F.col("id") % step == rest) & (F.col("id") < step * count)

    def settings(self) -> dict[str, str]:
        """Of Spark, for the format."""
        if self.format == "parquet":
            return {}
        jars = {"spark.jars.packages": PACKAGES[self.format][1], "spark.jars.ivy": str(ROOT / "build" / "ivy")}
        if self.format == "delta":
            return {**jars, **DELTA}
        catalog = "spark.sql.catalog.lake"
        return {
            **jars,
            catalog: "org.apache.iceberg.spark.SparkCatalog",
            f"{catalog}.type": "hadoop",
            f"{catalog}.warehouse": str(self.folder / "lake"),
        }


def name_of(row: Column) -> Column:
    """As keys are: a date and a number."""
    day = F.format_string("2026/%02d/%02d/", row % 12 + 1, row % 28 + 1)
    return F.concat(day, F.format_string("%012d.jpg", row))


def write(spark: SparkSession, case: Case, keys: dict[str, str]) -> None:
    ids = spark.range(0, case.rows, numPartitions=max(2, case.rows // ROWS_PER_FILE))
    photo = F.element_at(F.array([F.lit(path.name) for path in SAMPLES]), (F.col("id") % len(SAMPLES) + 1).cast("int"))
    manifest = ids.select(
        "id", name_of(F.col("id")).alias("image_id"), F.md5(F.col("id").cast("string")).alias("image_version"),
        F.concat(F.lit("s3://photos/"), photo).alias("uri"),
    )  # fmt: skip
    manifest.drop("id").coalesce(8).write.parquet(str(case.manifest))
    failed = case.has_failed()
    caption = F.element_at(F.array([F.lit(text) for text in CAPTIONS]), (F.col("id") % len(CAPTIONS) + 1).cast("int"))
    values = {
        "caption": F.when(~failed, caption),
        "log_prob": F.when(~failed, -F.rand(0) * 10),
        "width": F.when(~failed, 640),
        "height": F.when(~failed, 480),
        "status": F.when(failed, "fetch_error").otherwise("ok"),
        "error_message": F.when(failed, "ReadTimeoutError"),
        "captioned_at": F.current_timestamp(),
        "attempts": F.lit(1),
        "run_id": F.lit("before"),
        **{name: F.lit(value) for name, value in keys.items()},
    }
    done = manifest.where(~case.is_new()).withColumns(values)
    absent = {f.name: F.lit(None).cast(f.dataType) for f in tables.CAPTIONS if f.name not in done.columns}
    done = done.withColumns(absent).select(tables.CAPTIONS.names).to(tables.CAPTIONS)
    if case.format == "iceberg":
        spark.sql("CREATE NAMESPACE lake.media")
        done.writeTo(case.captions).using("iceberg").create()
    else:
        done.write.format(case.format).save(case.captions)


def check(spark: SparkSession, case: Case) -> str:
    """What the captions table holds. Raises AssertionError unless each image has a row, and exactly the right ones a
    new row."""
    table = (
        spark.table(case.captions) if case.format == "iceberg" else spark.read.format(case.format).load(case.captions)
    )
    ids = spark.range(case.rows)
    wanted = ids.where(case.is_new() | case.has_failed()).select(name_of(F.col("id")).alias("image_id"))
    found = table.where("run_id != 'before'")
    strange = found.join(wanted, "image_id", "left_anti").count()
    absent = wanted.join(found.where("status = 'ok'"), "image_id", "left_anti").count()
    total, distinct = table.agg(F.count("*"), F.count_distinct("image_id")).head() or (0, 0)
    assert (strange, absent, total, distinct) == (0, 0, case.rows, case.rows), (strange, absent, total, distinct)
    return f"table: {total} rows, {distinct} images, {found.count()} of them captioned by the runs"


@contextmanager
def session(case: Case) -> Iterator[SparkSession]:
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": "2g",
        **case.settings(),
    }
    spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def run(case: Case, s3: Seaweed, model: Path, memory: str, java: str | None) -> None:
    """The job as users run it; prints what it says and what it needs."""
    environment = plain_environment(NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **s3.environment())
    given = case.settings() | ({} if java is None else {"spark.driver.defaultJavaOptions": java})
    settings = [word for key, value in given.items() for word in ("--conf", f"{key}={value}")]
    command = [ROOT / "spark-submit.sh", "--master", "local[2]", "--driver-memory", memory, *settings]
    command += ["jobs/caption_images.py", "--images", case.manifest, "--captions", case.captions]
    command += ["--format", case.format, "--model", model, "--s3-endpoint", s3.endpoint]
    started = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], env=environment, cwd=case.folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    peak = [0]
    watching = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    watching.start()
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(said)
    lines = [line for line in said.splitlines() if re.search(r"to caption|images in |nothing to do|wave", line)]
    print(*(line.split(": ", 1)[-1] if " INFO " in line else line for line in lines), sep="\n")
    print(f"whole command {time.monotonic() - started:.1f} s; Java process at most {peak[0] / 1e9:.2f} GB resident")


def _watch(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    while process.poll() is None:
        try:
            java = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "java"]
            own = psutil.Process(process.pid)
            peak[0] = max(peak[0], *(p.memory_info().rss for p in [*java, own]))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--failed", type=int, default=0)
    parser.add_argument("--format", default="parquet", choices=FORMATS)
    parser.add_argument("--memory", default="2g", help="of the driver")
    parser.add_argument("--java", help="options of the driver's Java (default: those of infra/spark-defaults.conf)")
    parser.add_argument("--model", type=Path, help="default: a tiny one with random weights, since finding is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, seaweed(Path(temporary, "s3")) as s3:
        folder = Path(temporary)
        case = Case(folder, options.format, options.rows, options.new, options.failed)
        s3.admin().create_bucket(Bucket="photos")
        for path in SAMPLES:
            s3.admin().put_object(Bucket="photos", Key=path.name, Body=path.read_bytes())
        model = options.model.resolve() if options.model else tiny_model_directory(folder)
        arguments = ["--images", str(ROOT / "samples"), "--captions", case.captions, "--format", case.format]
        keys = caption_images.check(caption_images.parse_args([*arguments, "--model", str(model)])).captioning.keys()
        started = time.monotonic()
        with session(case) as spark:
            write(spark, case, keys)
        files = [file for file in folder.rglob("*.parquet") if file.is_file() and case.manifest not in file.parents]
        size = sum(file.stat().st_size for file in files)
        print(
            f"{case.format}: {case.rows} rows written in {time.monotonic() - started:.0f} s;"
            f" the captions {len(files)} files, {size / (case.rows - case.new):.0f} bytes a row",
            flush=True,
        )
        for _ in range(2):
            run(case, s3, model, options.memory, options.java)
        with session(case) as spark:
            print(check(spark, case))


if __name__ == "__main__":
    main()
