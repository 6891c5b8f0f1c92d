"""Spark's side of captioning: broadcasts the model, and gives mapInArrow a function for the executors."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from pyspark import Broadcast, TaskContext

from jobs.common.executor import caption_batches
from jobs.common.storage import Access
from nic_model.captioner import Captioner
from nic_model.checkpoint import ModelFiles
from nic_model.config import DecodeConfig

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
    files: "Broadcast[ModelFiles]" = field(compare=False)


def caption_udf(recipe: CaptionerRecipe, access: Access) -> ArrowFunction:
    """A function for `mapInArrow` from executor.INPUT to executor.OUTPUT."""

    def caption(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return caption_batches(batches, _captioner(recipe, _task_device(recipe.device)), access)

    return caption


@functools.lru_cache(maxsize=1)
def _captioner(recipe: CaptionerRecipe, device: str) -> Captioner:
    """Made once in each Python worker, which Spark keeps for many tasks."""
    use_task_cores()
    return Captioner(recipe.files.value, recipe.decode, device, recipe.precision, recipe.batch_size)


def use_task_cores() -> None:
    """As many threads as cores that Spark gave the task, or the workers of one machine fight over them."""
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context else 1))


def _task_device(requested: str) -> str:
    """`auto` and `cuda` are the GPU that Spark assigned to the task, where it assigned one."""
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    return f"cuda:{gpu.addresses[0]}" if gpu and requested in ("auto", "cuda") else requested
