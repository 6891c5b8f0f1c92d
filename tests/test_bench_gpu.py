"""The GPU's benchmark goes the same way on a CPU."""

import re

import pytest

from tests.bench import bench_gpu


def test_it_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--images", "10", "--batch-size", "4", "--encoder", "tinynet_e", "--rounds", "1"]
    bench_gpu.main([*options, "--decoders", "show_attend_tell", "--tasks", "2", "--threads", "2"])
    printed = capsys.readouterr().out
    assert "2 tasks of 10 images, batches of 4" in printed
    rates = dict(re.findall(r"^(decode|encode|search|end to end) +(\d+) images/s$", printed, re.MULTILINE))
    assert rates.keys() == {"decode", "encode", "search", "end to end"}
    share = float(re.search(r"end to end is (\d+\.\d\d) of the slowest stage", printed)[1])  # type: ignore[index]
    slowest = min(int(rates[stage]) for stage in ("decode", "encode", "search"))
    assert share == pytest.approx(int(rates["end to end"]) / slowest, rel=0.2, abs=0.1)
