"""How the job grows: from some thousand images to many, and from one worker to two.

    .venv/bin/python tests/bench/bench_growth.py --images 'flickr8k/train-*.parquet' --runs 1:5000 2:5000

Runs jobs/caption_images.py on a standalone cluster of so many workers over so many images, made by repetition, for
each of --runs; each worker has one core and is kept on it. For each run it prints images per second, start-up told
apart, the most memory that an executor held, its JVM and Python workers together, and what was shuffled.
"""

import argparse
import glob
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from bench_captioning import FEW, ROOT, machine, run_job, seconds_of, write_images
from pyspark.sql import SparkSession

from jobs.common.session import build_session
from tests.e2e.cluster import standalone_cluster

MIB = 1024 * 1024
SECONDS = 10.0  # between looks at memory, each of which stops what it looks at for a moment


@contextmanager
def watched(workers: list[psutil.Process], most: list[float]) -> Iterator[None]:
    """Keeps in `most` the largest memory, MiB, of what each worker started: shared pages are shared out (PSS)."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SECONDS):
            for number, worker in enumerate(workers):
                held = 0
                for process in worker.children(recursive=True):
                    with suppress(psutil.Error):
                        held += process.memory_full_info().pss
                most[number] = max(most[number], held / MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def shuffled(events: Path) -> int:
    """Bytes that all tasks of the application wrote to be shuffled."""
    total = 0
    for file in events.rglob("events_*"):
        with file.open() as lines:
            for line in lines:
                event = json.loads(line)
                metrics = event.get("Task Metrics") or {}
                total += metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
    return total


def run(options: argparse.Namespace, n_workers: int, rows: int, folder: Path) -> None:
    for name, number in (("few", FEW * n_workers), ("all", rows)):
        write_images(options.files, number, folder / f"{name}.parquet")
    (folder / "cluster").mkdir()
    (folder / "events").mkdir()
    with standalone_cluster(folder / "cluster", workers=n_workers, memory="3g") as cluster:
        workers = [psutil.Process(worker.pid) for worker in cluster.workers]
        for core, worker in enumerate(workers):
            for thread in worker.threads():
                os.sched_setaffinity(thread.id, {core % (os.cpu_count() or 1)})
        settings = {
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.executor.memory": "2g",
            "spark.executorEnv.PYTHONPATH": str(ROOT),
            "spark.driver.host": "127.0.0.1",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": f"{folder / 'events'}",
        }
        SparkSession.builder.master(cluster.url).config(map=settings).getOrCreate()
        spark = build_session("bench")
        most = [0.0] * n_workers
        with watched(workers, most):
            started = seconds_of(lambda: run_job(spark, options, folder / "few.parquet", folder))
            each = [
                seconds_of(lambda: run_job(spark, options, folder / "all.parquet", folder))
                for _ in range(options.rounds)
            ]
        spark.stop()
    moved, seconds = shuffled(folder / "events") / options.rounds, min(each)
    print(f"{n_workers:8}{rows:9}{rows / seconds:10.1f}{1000 * seconds / rows:14.2f}{started:12.1f}", end="")
    print(f"{max(most):16.0f}{moved / rows:20.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", nargs="+", required=True, help="Parquet files with `content`; globs")
    parser.add_argument("--runs", nargs="+", default=["1:5000", "2:5000", "2:20000"], help="WORKERS:ROWS")
    parser.add_argument("--rounds", type=int, default=1, help="of each; the shortest is told")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the job's own")
    options = parser.parse_args()
    options.files = sorted(file for pattern in options.images for file in glob.glob(pattern))  # noqa: PTH207
    options.model = options.model.resolve()
    print(machine())
    print(f"{'workers':>8}{'images':>9}{'images/s':>10}{'ms an image':>14}{'start-up s':>12}", end="")
    print(f"{'MiB an executor':>16}{'bytes shuffled each':>20}", flush=True)
    for text in options.runs:
        n_workers, rows = map(int, text.split(":"))
        with tempfile.TemporaryDirectory() as temporary:
            run(options, n_workers, rows, Path(temporary))


if __name__ == "__main__":
    sys.exit(main())
