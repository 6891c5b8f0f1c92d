"""What a Python worker of Spark runs and keeps: captioners, each made once, of the models that the driver broadcast."""

import functools
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark import Broadcast, TaskContext

from jobs.common import tables
from jobs.common.executor import caption_batches, stopped
from jobs.common.gpus import task_device
from jobs.common.rows import INPUT
from jobs.common.storage import Access
from jobs.common.udfs import CaptionerRecipe, none_stopped
from nic_model.captioner import Captioner
from nic_model.checkpoint import CaptionModel
from nic_model.mapping import MappedModel
from nic_model.model_files import ModelFiles

logger = logging.getLogger("jobs.executor")

_making = threading.Lock()  # a task may come while the models are being loaded ahead of it


def caption_task(
    batches: Iterable[pa.RecordBatch], recipe: CaptionerRecipe, access: Access
) -> Iterator[pa.RecordBatch]:
    """caption_batches, by the recipe's captioner. Where it cannot be made here, one row that is STOPPED."""
    try:
        return caption_batches(batches, make_captioner(recipe), access)
    except (ValueError, torch.OutOfMemoryError) as error:  # no GPU here, or one that others have filled
        return iter([stopped(f"{socket.gethostname()}: {error}")])


def caption_details(contents: Iterator[pa.Array], recipe: CaptionerRecipe) -> Iterator[pa.StructArray]:
    """Of each encoded image a struct of tables.DETAILS; null for null. Raises SystemicError."""
    for rows in none_stopped(caption_batches(map(_as_input, contents), make_captioner(recipe))):
        absent = pc.equal(rows["status"], "fetch_error")  # nothing is fetched: what has this status is null
        yield pa.StructArray.from_arrays(
            [rows[name] for name in tables.DETAILS.names],
            fields=[rows.schema.field(name) for name in tables.DETAILS.names],
            mask=absent,
        )


def _as_input(contents: pa.Array) -> pa.RecordBatch:
    kind = contents.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise ValueError(f"caption takes the bytes of an encoded image, binary, not {kind}")
    given = {"image_id": pa.array(["-"] * len(contents)), "content": contents.cast(pa.binary())}
    absent = {f.name: pa.nulls(len(contents), f.type) for f in INPUT if f.name not in given}
    return pa.RecordBatch.from_arrays([(given | absent)[name] for name in INPUT.names], schema=INPUT)


def make_captioner(recipe: CaptionerRecipe) -> Captioner:
    """For the task that this is called in."""
    with _making:
        return _captioner(recipe, task_device(recipe.device))


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
    one (standalone's executor-..., YARN's application_...), else this executor's."""
    own = Path(os.environ["SPARK_LOCAL_DIRS"].split(",")[0])
    shared = own.parent
    ours = shared.name.startswith(("executor-", "application_")) and os.access(shared, os.W_OK)
    return shared if ours and not shared.stat().st_mode & stat.S_IWOTH else own


def use_task_cores() -> None:
    """As many threads as cores that Spark gave the task, or the workers of one machine fight over them."""
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context else 1))


@functools.lru_cache(maxsize=1)
def attending_model(files: "Broadcast[ModelFiles]") -> CaptionModel:
    """Built once in each Python worker. Not in the job: what a job's own file caches, executors cannot find."""
    use_task_cores()
    return files.value.build()
