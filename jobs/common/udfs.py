"""Spark's side of captioning: broadcasts the models, and gives mapInArrow a function for the executors. Without torch,
which a driver does not need."""

import contextlib
import functools
import gc
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import Accumulator, AccumulatorParam, Broadcast
from pyspark.sql import SparkSession

from jobs.common import logs
from jobs.common.logs import Logging
from jobs.common.rows import STOPPED
from jobs.common.storage import Access, SystemicError
from nic_model.config import DecodeConfig
from nic_model.model_files import ModelFiles

ArrowFunction = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

logger = logging.getLogger("jobs.executor")


@dataclass(frozen=True)
class CaptionerRecipe:
    """All that an executor needs to make its captioner. Equal recipes make equal captioners, so the broadcast, of
    whose hashes `models` are, does not count in comparing."""

    models: tuple[str, ...]
    decode: DecodeConfig
    device: str
    precision: str
    batch_size: int
    decode_on: str
    files: "Broadcast[tuple[ModelFiles, ...]]" = field(compare=False)


class StatusCounts(AccumulatorParam["Counter[str]"]):
    """Of an accumulator of rows by status. Spark adds what a task counted once it has ended well."""

    def zero(self, value: "Counter[str]") -> "Counter[str]":
        return Counter()

    def addInPlace(self, value1: "Counter[str]", value2: "Counter[str]") -> "Counter[str]":  # noqa: N802
        value1.update(value2)
        return value1


@dataclass(frozen=True)
class Watch:
    """How a run is watched: where tasks count their rows, and how executors log."""

    counts: "Accumulator[Counter[str]]"
    logging: Logging


def caption_udf(recipe: CaptionerRecipe, access: Access, watch: Watch | None = None) -> ArrowFunction:
    """A function for `mapInArrow` from rows.INPUT to rows.OUTPUT. Without `watch` nobody looks for rows that
    are STOPPED: the task ends with SystemicError in their place."""

    def caption(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        caption_task = import_workers().caption_task
        if watch is not None:
            logs.configure(watch.logging)
        captioned = caption_task(batches, recipe, access)
        return none_stopped(captioned) if watch is None else _counted(captioned, watch.counts)

    return caption


def warm_worker(spark: SparkSession, recipe: CaptionerRecipe, watch: Watch) -> None:
    """Has one Python worker load the models while the driver looks for what to caption. Only where Spark runs on this
    machine alone: of a cluster's workers, one would be another's."""
    context = spark.sparkContext
    kept = context.getConf().get("spark.python.worker.reuse", "true").lower() == "true"
    if not (kept and (context.master or "").startswith("local")):
        return

    def begin(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        deque(batches, maxlen=0)  # Spark ends a Python worker that leaves input unread
        logs.configure(watch.logging)
        # The task ends at once: its core, and this worker, list the images meanwhile.
        threading.Thread(target=load, name="warm", daemon=True).start()
        return iter(())

    def load() -> None:
        with contextlib.suppress(Exception):  # the task that needs the models meets it too, and says so
            import_workers().make_captioner(recipe)

    rows = spark.range(1, numPartitions=1)
    rows.mapInArrow(begin, rows.schema).write.format("noop").mode("overwrite").save()


@functools.cache
def import_workers() -> Any:
    """jobs.common.workers, on executors alone: PyTorch takes seconds to import. A third of them would go to looking for
    garbage among what stays, and a third of a second after each task, when Spark has the worker look."""
    gc.disable()
    try:
        from jobs.common import workers

        gc.freeze()
    finally:
        gc.enable()
    return workers


def none_stopped(captioned: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """As it is. Raises SystemicError at the first row that is STOPPED."""
    for batch in captioned:
        if rows := batch.filter(pc.equal(batch["status"], STOPPED)).to_pylist():
            raise SystemicError(rows[0]["error_message"])
        yield batch


def _counted(captioned: Iterable[pa.RecordBatch], counts: "Accumulator[Counter[str]]") -> Iterator[pa.RecordBatch]:
    started, task = time.monotonic(), Counter[str]()
    for batch in captioned:
        some = {row["values"]: row["counts"] for row in pc.value_counts(batch["status"]).to_pylist()}
        counts.add(Counter(some))
        task.update(some)
        yield batch
    logger.info("captioned %d images in %.1f s: %s", task.total(), time.monotonic() - started, describe(task))


def describe(counts: "Counter[str]") -> str:
    """`98 ok, 2 decode_error`."""
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
