"""Thousands of objects on a real S3 server, captioned by a cluster into tables that lie on that server themselves.

    .venv/bin/python tests/e2e/bulk.py --images 'flickr8k/train-*.parquet' --objects 20000

Puts photographs, repeated with small changes, into SeaweedFS: some corrupt, some where the reader may not get them, and
some only named by the manifest; and captions the manifest on a standalone cluster of two workers of a core each into
every table of `--tables`, through hadoop-aws: Delta, Iceberg, and Iceberg in SeaweedFS's REST catalog. Checks that each
table has one row for each image, with the right status, and prints what each executor's processes held in each wave.
"""

import argparse
import glob
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

from jobs.common.targets import PACKAGES  # noqa: E402
from tests.e2e.cluster import plain_environment, standalone_cluster, stop_group  # noqa: E402
from tests.e2e.memory import Held, Memory, growth  # noqa: E402
from tests.e2e.seaweed import ADMIN_KEY, ADMIN_SECRET, Seaweed, seaweed  # noqa: E402

HADOOP_AWS = "org.apache.hadoop:hadoop-aws:3.4.2"
IVY = ROOT / "build" / "ivy"
LAKE = "spark.sql.catalog.lake"
PREFIX = "bulk"  # of all objects

# Of a hundred rows of the manifest so many are...
CORRUPT, DENIED, MISSING = 2, 1, 1
STATUSES = {"corrupt": "decode_error", "denied": "fetch_error AccessDenied", "missing": "fetch_error NoSuchKey"}


def kind_of(number: int) -> str:
    rest = number % 100
    if rest < CORRUPT:
        return "corrupt"
    if rest < CORRUPT + DENIED:
        return "denied"
    return "missing" if rest < CORRUPT + DENIED + MISSING else "good"


def name_of(number: int) -> str:
    return f"{number // 1000:03}/{number:06}.jpg"


def changed(content: bytes, number: int) -> bytes:
    """The photograph, cut by some pixels at the edges, so that no two are the same."""
    with Image.open(io.BytesIO(content)) as image:
        left, top = number % 7, number // 7 % 7
        cut = image.convert("RGB").crop((left, top, image.width - number // 49 % 7, image.height - number // 343 % 7))
    stream = io.BytesIO()
    cut.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def put_objects(s3: Seaweed, photographs: list[bytes], count: int) -> int:
    """A manifest of `count` images and the objects that it names, but for the missing; how many these are."""
    client = s3.admin()

    def put(number: int) -> bool:
        kind = kind_of(number)
        if kind == "missing":
            return False
        content = changed(photographs[number % len(photographs)], number)
        bucket = "locked" if kind == "denied" else "photos"
        client.put_object(
            Bucket=bucket,
            Key=f"{PREFIX}/{name_of(number)}",
            Body=content[: len(content) // 3 if kind == "corrupt" else None],
        )
        return True

    with ThreadPoolExecutor(4) as pool:
        n_put = sum(pool.map(put, range(count)))
    buckets = {"denied": "locked"}
    lines = (
        json.dumps({"image_id": name_of(n), "uri": f"s3://{buckets.get(kind_of(n), 'photos')}/{PREFIX}/{name_of(n)}"})
        for n in range(count)
    )
    client.put_object(Bucket="tables", Key="manifest.jsonl", Body="\n".join(lines).encode())
    return n_put


@dataclass(frozen=True)
class Table:
    """A kind of captions table: what it is called, and what Spark needs to be told of it."""

    format: str
    location: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def packages(self) -> str:
        return f"{HADOOP_AWS},{PACKAGES[self.format][1]}"


def tables_on(s3: Seaweed) -> dict[str, Table]:
    catalog = {LAKE: "org.apache.iceberg.spark.SparkCatalog"}
    rest = {
        f"{LAKE}.type": "rest",
        f"{LAKE}.uri": s3.catalog,
        f"{LAKE}.warehouse": "s3://lake",
        f"{LAKE}.credential": f"{ADMIN_KEY}:{ADMIN_SECRET}",
        f"{LAKE}.io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
    }
    return {
        "delta": Table("delta", "s3a://tables/delta"),
        "iceberg": Table(
            "iceberg",
            "lake.media.captions",
            {**catalog, f"{LAKE}.type": "hadoop", f"{LAKE}.warehouse": "s3a://tables/lake"},
        ),
        "rest": Table("iceberg", "lake.media.captions", {**catalog, **rest}),
    }


def launcher(s3: Seaweed, table: Table, master: str) -> tuple[list[str], dict[str, str]]:
    """The command up to the job, and its environment."""
    aws = s3.environment()
    settings = {**table.settings, "spark.jars.ivy": str(IVY)}
    settings |= {f"spark.executorEnv.{name}": value for name, value in aws.items()}  # no secret: a file's name
    command = [str(ROOT / "spark-submit.sh"), "--master", master]
    command += [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    return command, plain_environment(NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **aws)


def query(s3: Seaweed, table: Table, statement: str) -> list[dict[str, str]]:
    command, environment = launcher(s3, table, "local[1]")
    command += ["--packages", table.packages, str(ROOT / "tests" / "e2e" / "sql.py"), s3.endpoint, statement]
    done = subprocess.run(command, env=environment, cwd=s3.folder, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(s3: Seaweed, table: Table, numbers: Collection[int]) -> Counter[str]:
    """Rows by status. Raises AssertionError unless the table is of these images, each with one row, the right one."""
    name = f"delta.`{table.location}`" if table.format == "delta" else table.location
    found = query(s3, table, f"SELECT image_id, status, error_message, caption FROM {name}")
    by_id = {row["image_id"]: row for row in found}
    assert len(by_id) == len(found) == len(numbers), (len(by_id), len(found), len(numbers))
    for number in numbers:
        row, wanted = by_id[name_of(number)], STATUSES.get(kind_of(number), "ok")
        said = f"{row['status']} {row.get('error_message', '')}"
        assert said.startswith(wanted), (name_of(number), said)
        assert bool(row.get("caption")) == (wanted == "ok"), name_of(number)
    return Counter(row["status"] for row in found)


def caption(s3: Seaweed, table: Table, cluster: tuple[str, Path], options: list[str]) -> list[Held]:
    """Runs the job as users do; prints waves, and returns what executors held in each."""
    url, folder = cluster
    command, environment = launcher(s3, table, url)
    command += [
        "--packages",
        table.packages,
        "jobs/caption_images.py",
        "--images",
        "s3://tables/manifest.jsonl",
        "--s3-endpoint",
        s3.endpoint,
    ]
    command += ["--format", table.format, "--captions", table.location, *options]
    if table.format == "iceberg":
        command += ["--staging", "s3a://tables/staging"]
    held: list[Held] = []
    said: list[str] = []
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        with Memory(folder) as memory:
            for line in process.stdout:
                said.append(line)
                if " to caption, found in " in line:
                    memory.wave()  # what was held before
                    print(line.split(": ", 1)[-1].strip())
                elif re.search(r": wave \d+ of \d+", line):
                    held.append(memory.wave())
                    sizes = ", ".join(f"{' '.join(of)} {size / 1e6:.0f} MB" for of, size in sorted(held[-1].items()))
                    print(f"{line.split(': ', 1)[-1].strip()}: {sizes}", flush=True)
                elif re.search(r"^\d+ images in ", line):
                    print(line.strip())
        if process.wait():
            raise RuntimeError("".join(said[-100:]))
    finally:
        stop_group(process)
    return held


def bulk(s3: Seaweed, cluster: tuple[str, Path], names: list[str], count: int, options: list[str]) -> None:
    """Captions the manifest into each of the tables, and checks it. `cluster` is its URL and its folder."""
    for name in names:
        table = tables_on(s3)[name]
        started = time.monotonic()
        if name == "rest":
            s3.create_table_bucket("lake")
            s3.create_namespace("lake", "media")  # which must exist
        before = s3.requests()
        held = caption(s3, table, cluster, options)
        print("S3 requests:", ", ".join(f"{n} {of}" for of, n in sorted((s3.requests() - before).items())))
        counts = ", ".join(f"{n} {status}" for status, n in sorted(check(s3, table, range(count)).items()))
        print(
            f"{name}: {count} images, one row each, statuses right: {counts}; {time.monotonic() - started:.0f} s in all"
        )
        if len(held) > 1:
            print(f"{name}: most held after the first wave, compared with it: {growth(held)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", nargs="+", required=True, help="Parquet files with `content`; globs")
    parser.add_argument("--objects", type=int, default=20_000, help="objects on the server")
    parser.add_argument("--tables", nargs="+", default=["delta", "rest"], choices=["delta", "iceberg", "rest"])
    parser.add_argument("--wave-size", type=int, default=2000)
    parser.add_argument("--model", type=Path, help="default: the one that ships")
    options = parser.parse_args()
    files = sorted(file for pattern in options.images for file in glob.glob(pattern))  # noqa: PTH207
    photographs = [
        content for file in files for content in pq.read_table(file, columns=["content"])["content"].to_pylist()
    ]
    count = options.objects * 100 // (100 - MISSING)
    given = [
        "--wave-size",
        str(options.wave_size),
        *(["--model", str(options.model.resolve())] if options.model else []),
    ]
    with tempfile.TemporaryDirectory() as temporary, seaweed(Path(temporary, "s3")) as s3:
        for bucket in ("photos", "tables", "locked"):
            s3.admin().create_bucket(Bucket=bucket)
        started = time.monotonic()
        n_put = put_objects(s3, photographs, count)
        print(
            f"{n_put} objects of {len(photographs)} photographs put in {time.monotonic() - started:.0f} s", flush=True
        )
        folder = Path(temporary, "cluster")
        folder.mkdir()
        with standalone_cluster(folder) as cluster:
            bulk(s3, (cluster.url, folder), options.tables, count, given)


if __name__ == "__main__":
    main()
