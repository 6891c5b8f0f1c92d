"""GPUs given out by Spark, on a standalone cluster whose worker declares two that this machine need not have."""

import json
import os
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import standalone_cluster
from tests.e2e.test_caption import PROJECT, submit

DISCOVERY = PROJECT / "infra" / "docker" / "find-gpus.sh"
GPUS = ("--conf", "spark.executor.resource.gpu.amount=2", "--conf", "spark.executor.cores=4")


@pytest.fixture(scope="module")
def gpu_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker with four cores and, as our discovery script finds by asking a stand-in of nvidia-smi, two GPUs."""
    folder = tmp_path_factory.mktemp("gpus")
    stand_in = folder / "bin" / "nvidia-smi"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\n[ "$*" = "--query-gpu=index --format=csv,noheader" ] && printf "0\\n1\\n"\n')
    stand_in.chmod(0o755)
    declared = f"-Dspark.worker.resource.gpu.amount=2 -Dspark.worker.resource.gpu.discoveryScript={DISCOVERY}"
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    with standalone_cluster(
        folder, workers=1, cores=4, worker_env={"SPARK_WORKER_OPTS": declared, "PATH": path}
    ) as cluster:
        yield cluster.url


def together(tasks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The devices of each two tasks that ran at the same time."""
    return [
        (a["device"], b["device"])
        for a, b in combinations(tasks, 2)
        if a["started"] < b["ended"] and b["started"] < a["ended"]
    ]


def most_at_once(tasks: list[dict[str, Any]]) -> int:
    return max(sum(b["started"] <= a["started"] < b["ended"] for b in tasks) for a in tasks)


def test_gpus_go_to_the_tasks_that_caption(gpu_cluster: str, tmp_path: Path) -> None:
    done = submit(
        tmp_path, "--master", gpu_cluster, *GPUS, PROJECT / "tests" / "e2e" / "gpu_tasks.py", tmp_path / "seen.json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen) == 24
    assert len({task["executor"] for task in seen}) == 1
    halves, wholes, others = ([task for task in seen if task["share"] == share] for share in (0.5, 1.0, None))

    assert {task["device"] for task in wholes} == {task["device"] for task in halves} == {"cuda:0", "cuda:1"}
    assert all(a != b for a, b in together(wholes))
    assert (most_at_once(wholes), {task["cpus"] for task in wholes}) == (2, {2})

    assert (most_at_once(halves), {task["cpus"] for task in halves}) == (4, {1})
    for device in ("cuda:0", "cuda:1"):
        assert most_at_once([task for task in halves if task["device"] == device]) == 2

    # As many workers as GPUs, before and after tasks of others.
    assert len({task["worker"] for task in wholes}) == 2
    assert not {task["worker"] for task in wholes} & {task["worker"] for task in others}
    assert {task["device"] for task in others} == {"auto"}  # neither reading nor writing holds a GPU
    assert most_at_once(others) == 4


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_an_assigned_gpu_that_is_not_there_gets_one_line(gpu_cluster: str, tmp_path: Path) -> None:
    """Spark believes what discovery says; torch does not."""
    done = submit(tmp_path, "--master", gpu_cluster, *GPUS, "jobs/caption_images.py")
    assert done.returncode == 1
    printed = done.stdout + done.stderr  # Spark puts both into one
    [error] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert re.search(
        r"--device cuda:[01]: torch \S+ finds no CUDA GPU here; use --device cpu; the run has stopped", error
    )
    assert "Traceback" not in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["captions_runs"]
