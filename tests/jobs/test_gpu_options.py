"""GPUs asked for where there are none; tests/e2e/test_gpus.py has a cluster that declares some."""

import pytest
import torch
from pyspark.sql import SparkSession

from jobs.common.gpus import caption_profile, check_gpus
from jobs.common.storage import SystemicError


def test_a_gpu_that_no_executor_has_is_missed(spark: SparkSession) -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        SystemicError, match=rf"\S+: --device {beyond}: (torch \S+ finds no CUDA GPU|there are \d+ GPUs)"
    ):
        check_gpus(spark, beyond, None)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_none_is_missed_that_was_not_asked_for(spark: SparkSession, device: str) -> None:
    check_gpus(spark, device, None)
    assert caption_profile(spark, device, 1.0) is None
