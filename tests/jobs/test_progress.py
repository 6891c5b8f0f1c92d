"""What a run shows while it goes on, and how it logs."""

import io
import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from jobs.common import logs
from jobs.common.logs import Json, Logging, Text
from jobs.common.progress import Progress, running_rows

DEADLINE = 60  # seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """All that was ever shown, without what moves the cursor."""
        return [line.strip() for line in re.sub(r"\x1b\[\w+", "", self.getvalue()).split("\r") if line.strip()]


def test_a_terminal_has_a_line(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(spark)
    with progress.shown():
        progress.planned(200, 2)
        progress.begin_wave(100)
        progress.counts.add(Counter(ok=40, decode_error=3))
        assert progress.now() == (43, Counter(ok=40, decode_error=3))
        assert progress.now(running=60)[0] == 60  # of tasks that have not ended, statuses are not known
        progress.counts.add(Counter(ok=57))
        progress.committed(Counter(ok=97, decode_error=3))
        progress.begin_wave(100)
        assert progress.now() == (100, Counter(ok=97, decode_error=3))
    assert terminal.lines()[0].startswith("looking for images to caption")
    last = terminal.lines()[-1]
    assert re.fullmatch(r"50%\|.*\| 100 of 200, .*images/s, .* left, 3 decode_error", last), last
    assert terminal.getvalue().endswith("\r")  # what comes after stands in its place


def test_without_a_terminal_waves_are_logged(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    progress = Progress(spark)
    with caplog.at_level(logging.INFO), progress.shown():
        progress.planned(4, 2)
        for wave in (Counter(ok=2), Counter(ok=1, too_large=1)):
            progress.begin_wave(2)
            progress.committed(wave)
    first, second = (record.getMessage() for record in caplog.records if record.name == "jobs.progress")
    assert first.startswith("wave 1 of 2 is committed: 2 of 4 images, ")
    assert first.endswith(" left: 2 ok")
    assert second.endswith(" left: 3 ok, 1 too_large")


def test_rows_of_a_query_are_seen_while_it_runs(spark: SparkSession, tmp_path: Path) -> None:
    """Two of its three tasks have ended, one waits."""
    go = tmp_path / "go"

    def wait(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            end = time.monotonic() + DEADLINE
            while TaskContext.get().partitionId() == 2 and not go.exists() and time.monotonic() < end:  # type: ignore[union-attr]
                time.sleep(0.05)
            yield batch

    query = spark.range(0, 30, 1, 3).mapInArrow(wait, "id long").write.format("noop").mode("overwrite")
    running = threading.Thread(target=query.save)
    running.start()
    end, seen = time.monotonic() + DEADLINE, 0
    try:
        while seen != 20 and time.monotonic() < end:
            seen = running_rows(spark)
            time.sleep(0.05)
    finally:
        go.touch()
        running.join()
    assert seen == 20
    while running_rows(spark) and time.monotonic() < end:
        time.sleep(0.05)  # Spark's status hears a moment later that the query has ended
    assert running_rows(spark) == 0


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("jobs.some", logging.WARNING, "file.py", 1, message, (), None)
    made.__dict__.update(more)
    return made


def test_json_lines_have_sparks_fields() -> None:
    line = Json({"run_id": "abc"}).format(record('a "quoted"\nline', context={"images": "3"}))
    found = json.loads(line)
    assert "\n" not in line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("ts"))
    context = {"run_id": "abc", "images": "3"}
    assert found == {"level": "WARNING", "logger": "jobs.some", "msg": 'a "quoted"\nline', "context": context}


def test_text_has_the_context_on_an_executor(spark: SparkSession) -> None:
    text, made = Text({"run_id": "abc"}), record("done")
    assert text.format(made).endswith(" WARNING jobs.some: done")
    there = spark.sparkContext.parallelize([0], 1).map(lambda _: text.format(made)).first()
    assert re.search(r"WARNING jobs\.some: done \(run_id=abc stage=\d+ partition=0 attempt=0\)$", there), there


def test_unknown_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIC_LOG_FORMAT", "xml")
    with pytest.raises(ValueError, match="NIC_LOG_FORMAT=xml: allowed are text, json"):
        logs.chosen_format()


def test_a_process_that_logs_keeps_its_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that does not is set up, and changed by a second call."""
    root = logging.getLogger()
    before = list(root.handlers)  # pytest's
    logs.configure(Logging())
    assert root.handlers == before
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        logs.configure(Logging("json"))
        logs.configure(Logging("text", logging.ERROR))
        (handler,) = root.handlers
        assert isinstance(handler.formatter, Text)
        assert root.level == logging.ERROR
    finally:
        root.setLevel(level)
