"""A Spark job for tests: which GPU each of its tasks was given, and when.

    spark-submit gpu_tasks.py OUT

runs six tasks with each of the profiles that `jobs.common.gpus` makes for half a GPU and for a whole one, and six that
are of no profile, and writes to OUT, as JSON, what each of the 18 saw. The first tasks wait until as many are there as
should run at once.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession

from jobs.common.gpus import caption_profile, task_device

SEEN = "share double, device string, cpus long, executor string, started double, ended double"
COLUMNS = [column.split()[0] for column in SEEN.split(", ")]
AT_ONCE = {0.5: 4, 1.0: 2, None: 4}  # two GPUs, four cores
SECONDS = 120


def main(out: Path) -> None:
    spark = SparkSession.builder.getOrCreate()
    rows = []
    for share, at_once in AT_ONCE.items():
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
            row = [share, task_device("auto"), context.cpus(), str(Path.cwd()), started, time.time()]
            yield pa.RecordBatch.from_arrays([pa.array([value]) for value in row], COLUMNS)

        profile = caption_profile(spark, "auto", share) if share else None
        rows += spark.range(0, 6, 1, 6).mapInArrow(look, SEEN, profile=profile).collect()
        shutil.rmtree(met)
    out.write_text(json.dumps([row.asDict() for row in rows]))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
