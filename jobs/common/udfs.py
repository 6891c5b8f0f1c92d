"""Spark's side of captioning: broadcasts the model, and gives mapInArrow a function for the executors."""

import functools
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import torch
from pyspark import Broadcast, TaskContext

from jobs.common.executor import caption_batches, stopped
from jobs.common.gpus import task_device
from jobs.common.storage import Access
from nic_model.captioner import Captioner
from nic_model.checkpoint import ModelFiles
from nic_model.config import DecodeConfig
from nic_model.mapping import MappedModel

ArrowFunction = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class CaptionerRecipe:
    """All that an executor needs to make its captioner. Equal recipes make equal captioners, so the broadcast, of
    which `model_id` is the hash, does not count in comparing."""

    model_id: str
    decode: DecodeConfig
    device: str
    precision: str
    batch_size: int
    decode_on: str
    files: "Broadcast[ModelFiles]" = field(compare=False)


def caption_udf(recipe: CaptionerRecipe, access: Access) -> ArrowFunction:
    """A function for `mapInArrow` from executor.INPUT to executor.OUTPUT."""

    def caption(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        device = task_device(recipe.device)
        try:
            captioner = _captioner(recipe, device)
        except (ValueError, torch.OutOfMemoryError) as error:  # no GPU here, or one that others have filled
            return iter([stopped(f"{socket.gethostname()}: {error}")])
        return caption_batches(batches, captioner, access)

    return caption


def _captioner(recipe: CaptionerRecipe, device: str) -> Captioner:
    """Made once for each GPU in each Python worker, which Spark keeps for many tasks, on this GPU or that."""
    made = _captioners(recipe)
    if device not in made:
        use_task_cores()
        # The broadcast is read by one worker of a machine, and its weights are in the memory of all but once.
        model = MappedModel(_shared_folder(), recipe.model_id, lambda: recipe.files.value)
        made[device] = Captioner(
            model, recipe.decode, device, recipe.precision, recipe.batch_size, decode_on=recipe.decode_on
        )
    return made[device]


@functools.lru_cache(maxsize=1)
def _captioners(recipe: CaptionerRecipe) -> dict[str, Captioner]:
    return {}


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
