"""Spark's side of captioning: broadcasts the models, and gives mapInArrow a function for the executors."""

import functools
import logging
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark import Accumulator, AccumulatorParam, Broadcast, TaskContext

from jobs.common import logs
from jobs.common.executor import STOPPED, caption_batches, stopped
from jobs.common.gpus import task_device
from jobs.common.logs import Logging
from jobs.common.storage import Access, SystemicError
from nic_model.captioner import Captioner
from nic_model.checkpoint import CaptionModel, ModelFiles
from nic_model.config import DecodeConfig
from nic_model.mapping import MappedModel

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
    """A function for `mapInArrow` from executor.INPUT to executor.OUTPUT. Without `watch` nobody looks for rows that
    are STOPPED: the task ends with SystemicError in their place."""

    def caption(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if watch is not None:
            logs.configure(watch.logging)
        try:
            captioned = caption_batches(batches, make_captioner(recipe), access)
        except (ValueError, torch.OutOfMemoryError) as error:  # no GPU here, or one that others have filled
            captioned = iter([stopped(f"{socket.gethostname()}: {error}")])
        return none_stopped(captioned) if watch is None else _counted(captioned, watch.counts)

    return caption


def make_captioner(recipe: CaptionerRecipe) -> Captioner:
    """For the task that this is called in."""
    return _captioner(recipe, task_device(recipe.device))


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


def _captioner(recipe: CaptionerRecipe, device: str) -> Captioner:
    """Made once for each GPU in each Python worker, which Spark keeps for many tasks, on this GPU or that."""
    made = _captioners(recipe)
    if device not in made:
        use_task_cores()
        started = time.monotonic()
        # The broadcast is read by one worker of a machine, and its weights are in the memory of all but once.
        models = [
            MappedModel(_shared_folder(), model_id, partial(_broadcast_files, recipe, number))
            for number, model_id in enumerate(recipe.models)
        ]
        made[device] = Captioner(
            models, recipe.decode, device, recipe.precision, recipe.batch_size, decode_on=recipe.decode_on
        )
        seconds = time.monotonic() - started
        logger.info("model %s is ready on %s after %.1f s", made[device].model_id, made[device].device, seconds)
    return made[device]


@functools.lru_cache(maxsize=1)
def _captioners(recipe: CaptionerRecipe) -> dict[str, Captioner]:
    return {}


def _broadcast_files(recipe: CaptionerRecipe, number: int) -> ModelFiles:
    return recipe.files.value[number]


def _shared_folder() -> Path:
    """A folder that goes when the application does: one for all of its executors on this machine where Spark gave them
    one (standalone, YARN), else this executor's."""
    own = Path(os.environ["SPARK_LOCAL_DIRS"].split(",")[0])
    shared = own.parent
    ours = os.access(shared, os.W_OK) and not shared.stat().st_mode & stat.S_IWOTH
    return shared if ours else own


def use_task_cores() -> None:
    """As many threads as cores that Spark gave the task, or the workers of one machine fight over them."""
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context else 1))


@functools.lru_cache(maxsize=1)
def attending_model(files: "Broadcast[ModelFiles]") -> CaptionModel:
    """Built once in each Python worker. Not in the job: what a job's own file caches, executors cannot find."""
    use_task_cores()
    return files.value.build()
