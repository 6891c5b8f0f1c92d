"""A Spark job for tests: which GPU each of its tasks was given, and when.

    spark-submit gpu_tasks.py OUT

runs six tasks with the profile that `jobs.common.gpus` makes for a whole GPU, six of no profile, six for a whole one
again and six for half of one, and writes to OUT, as JSON, what each of the 24 saw. The first tasks wait until as many
are there as should run at once.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession

from jobs.common.gpus import caption_profile, own_workers, task_device

SEEN = "share double, device string, cpus long, executor string, worker long, started double, ended double"
COLUMNS = [column.split()[0] for column in SEEN.split(", ")]
AT_ONCE = ((1.0, 2), (None, 4), (1.0, 2), (0.5, 4))  # share of a GPU, tasks: of two GPUs and four cores
SECONDS = 120


def main(out: Path) -> None:
    spark = SparkSession.builder.getOrCreate()
    rows = []
    for share, at_once in AT_ONCE:
        met = Path(tempfile.mkdtemp())

        def look(
            batches: Iterable[pa.RecordBatch], share: float | None = share, at_once: int = at_once, met: Path = met
        ) -> Iterator[pa.RecordBatch]:
            started = time.time()
            for _ in batches:
                pass
            context = TaskContext.get()
            assert context is not None
            (met / str(context.partitionId())).touch()
            while len(list(met.iterdir())) < at_once and time.time() < started + SECONDS:
                time.sleep(0.1)
            row = [share, task_device("auto"), context.cpus(), str(Path.cwd()), os.getpid(), started, time.time()]
            yield pa.RecordBatch.from_arrays([pa.array([value]) for value in row], COLUMNS)

        profile = caption_profile(spark, "auto", share) if share else None
        with own_workers(spark, profile):
            seen = spark.range(0, 6, 1, 6).mapInArrow(look, SEEN, profile=profile)
        rows += seen.collect()
        shutil.rmtree(met)
    out.write_text(json.dumps([row.asDict() for row in rows]))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
