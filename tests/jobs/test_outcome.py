"""What a run tells of its waves."""

from collections import Counter

import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs.common.outcome import Outcome
from jobs.common.rows import STOPPED
from jobs.common.storage import SystemicError


def wave(spark: SparkSession, *statuses: str) -> DataFrame:
    rows = [(f"{number:02}", status, "a dog", "torn") for number, status in enumerate(statuses)]
    return spark.createDataFrame(rows, "image_id string, status string, caption string, error_message string")


def test_rows_that_tasks_did_not_tell_of_are_counted(spark: SparkSession) -> None:
    rows = wave(spark, "ok", "ok", "decode_error")
    for told in ({"ok": 2, "decode_error": 1}, {}, {"ok": 2}, {"ok": 4, "decode_error": 2}):
        assert Outcome.count(rows, Counter(told), 3) == {"ok": 2, "decode_error": 1}


def test_the_failure_rate_is_without_what_is_known_to_fail(spark: SparkSession) -> None:
    outcome = Outcome()
    assert outcome.failure_rate == 0
    outcome.look(wave(spark, "ok", "ok", "decode_error"), Counter({"ok": 2, "decode_error": 1}))
    assert outcome.failure_rate == pytest.approx(1 / 3)
    rows = wave(spark, "decode_error", "ok", "fetch_error")
    known = spark.createDataFrame([("01",), ("02",), (None,)], "image_id string")
    outcome.look(rows, Counter({"decode_error": 1, "ok": 1, "fetch_error": 1}), known)
    assert outcome.failure_rate == pytest.approx(2 / 4)
    outcome.unknown = Counter({"ok": 7, "decode_error": 3})
    assert not outcome.failure_rate > 0.3


@pytest.mark.parametrize("told", [{"ok": 1, STOPPED: 1}, {"ok": 1}])
def test_a_stopped_row_ends_the_run(spark: SparkSession, told: dict[str, int]) -> None:
    with pytest.raises(SystemicError, match="torn"):
        Outcome.count(wave(spark, "ok", STOPPED), Counter(told), 2)


def test_the_first_waves_are_shown(spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome()
    for statuses in (["ok"] * 15 + ["decode_error"] * 4, ["ok"] * 15 + ["decode_error"] * 4, ["ok"] * 5):
        rows, counts = wave(spark, *statuses), Counter(statuses)
        outcome.look(rows, counts)
        outcome.counts.update(counts)
    outcome.show(1.0)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("  a dog") for line in lines) == 20
    assert "8 failed, among them:" in lines
    assert sum(line.endswith("decode_error: torn") for line in lines) == 5
