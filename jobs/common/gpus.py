"""GPUs as Spark gives them out: to the tasks that caption, and to no others."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pyspark import TaskContext
from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from jobs.common.storage import SystemicError

EXECUTOR, TASK = "spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount"
CAPTIONING = "NIC_CAPTIONING"


def task_device(requested: str) -> str:
    """`auto` and `cuda` are the GPU that Spark assigned to the task, where it assigned one."""
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    if not gpu or requested not in ("auto", "cuda"):
        return requested
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi, which discovery asks, numbers them
    return f"cuda:{gpu.addresses[0]}"


def caption_profile(spark: SparkSession, device: str, share: float) -> ResourceProfile | None:
    """What a captioning task is given where Spark's settings give GPUs to executors and none to tasks: `share` of a
    GPU, and that share of the executor's cores. The tasks of all other stages hold no GPU. Elsewhere None."""
    conf = spark.sparkContext.getConf()
    gpus = int(conf.get(EXECUTOR, "0") or 0)
    local = (spark.sparkContext.master or "").startswith("local")
    if not gpus or conf.contains(TASK) or device not in ("auto", "cuda") or local:
        return None
    cores = int(conf.get("spark.executor.cores", "0") or 0)
    cpus = max(int(conf.get("spark.task.cpus", "1") or 1), int(cores * share / gpus))
    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(cpus).resource("gpu", share)).build


@contextmanager
def own_workers(spark: SparkSession, profile: ResourceProfile | None) -> Iterator[None]:
    """Gives what is mapped in here Python workers of its own, where it has a `profile`: one for each task that captions
    at a time, with a model on its GPU. Spark has all idle workers of an executor, one a core, take turns."""
    if profile is None:
        yield
        return
    environment = spark.sparkContext.environment
    environment[CAPTIONING] = "1"  # a worker serves those that have the environment that it was started with
    try:
        yield
    finally:
        del environment[CAPTIONING]


def check_gpu_here(device: str) -> None:
    """Raises ValueError, in one line, where `device` asks for a GPU that this machine has not."""
    if device.startswith("cuda"):
        from nic_model.captioner import pick_device  # only now: torch takes seconds to import

        pick_device(device)


def check_gpus(spark: SparkSession, device: str, profile: ResourceProfile | None) -> None:
    """Asks an executor whether it has the GPU that `device` asks for, or that Spark assigns. Raises SystemicError, in
    one line, where it has not."""
    assigned = device == "auto" and spark.sparkContext.getConf().contains(EXECUTOR)
    if not (assigned or device.startswith("cuda")):
        return

    def missing(_: Iterable[int]) -> Iterator[str]:
        try:
            check_gpu_here(task_device(device))
        except ValueError as error:
            yield f"{socket.gethostname()}: {error}"

    asked = spark.sparkContext.parallelize([0], 1)
    if profile is not None:
        asked = asked.withResources(profile)
    for problem in asked.mapPartitions(missing).collect():
        raise SystemicError(problem)
