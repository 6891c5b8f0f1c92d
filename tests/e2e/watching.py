"""A reader of a captions table who looks again and again while it is being written: all it ever sees is whole waves."""

import threading
from collections import Counter
from collections.abc import Callable

from pyspark.sql import DataFrame, Row, SparkSession

from jobs.common.files import Folder

POLL_SECONDS = 0.5

Key = tuple[str | None, ...]


class Watcher(threading.Thread):
    """Polls the table that `load` reads until `finish`. What each wave holds, it learns from the rows that runs stage
    below `staging` before they commit them."""

    def __init__(self, spark: SparkSession, load: Callable[[], DataFrame], staging: str) -> None:
        super().__init__(name="watcher", daemon=True)
        self.spark, self.load, self.staging = spark, load, staging
        self.polls = self.retries = 0
        self.rows = 0  # in the table when it was last read
        self.problems: list[str] = []
        self.waves: dict[tuple[str, str], frozenset[str | None]] = {}  # run_id and name: image_ids
        self._runs: list[str] = []  # in the order that they were seen
        self._before: set[str | None] = set()
        self._done = threading.Event()

    def run(self) -> None:
        self.spark.sparkContext.setLogLevel("OFF")  # of pages of traces while there is no table
        while not self._done.wait(POLL_SECONDS):
            try:
                rows = self.load().select("image_id", "run_id").collect()
                self._learn()
            except Exception:  # no table yet, its file just replaced, or no server
                self.retries += 1
                continue
            self.polls += 1
            self.rows = len(rows)
            self._check(rows)

    def finish(self) -> None:
        self._done.set()
        self.join()
        self.spark.sparkContext.setLogLevel("WARN")

    def _learn(self) -> None:
        staging = Folder(self.spark, self.staging)
        for run_id in staging.names():
            for wave in staging.names(run_id) if run_id != "lock" else []:
                # <run_id>-<number> is a wave; beside it are the list of what to do and files on their way.
                if not wave.removeprefix(f"{run_id}-").isdigit() or (run_id, wave) in self.waves:
                    continue
                if staging.exists(f"{run_id}/{wave}/_SUCCESS"):
                    staged = self.spark.read.parquet(staging.at(f"{run_id}/{wave}")).select("image_id").collect()
                    self.waves[run_id, wave] = frozenset(row["image_id"] for row in staged)
                    if run_id not in self._runs:
                        self._runs.append(run_id)

    def _check(self, rows: list[Row]) -> None:
        runs = {row["image_id"]: row["run_id"] for row in rows}
        if len(runs) < len(rows):
            self.problems.append(f"{len(rows) - len(runs)} rows twice while it was written")
        if gone := self._before - runs.keys():
            self.problems.append(f"{len(gone)} rows gone while it was written")
        self._before = set(runs)
        for (run_id, wave), image_ids in self.waves.items():
            later = set(self._runs[self._runs.index(run_id) + 1 :])  # what replaces its failed rows
            shown = sum(runs.get(image_id) == run_id for image_id in image_ids)
            hidden = sum(runs.get(image_id) not in {run_id, *later} for image_id in image_ids)
            if shown and hidden:
                self.problems.append(f"half of wave {wave}: {shown} rows of {len(image_ids)}")


def differences(expected: DataFrame, found: DataFrame) -> Counter[str]:
    """Rows of `found` that are lost, there twice, or other than those of `expected`."""
    wanted = {_key(row): row for row in expected.collect()}
    rows = found.collect()
    times = Counter(map(_key, rows))
    counts = Counter(
        lost=sum(key not in times for key in wanted),
        twice=sum(n - 1 for n in times.values()),
        strange=sum(key not in wanted for key in times),
    )
    counts["different"] = sum(_differs(row, wanted[_key(row)]) for row in rows if _key(row) in wanted)
    return counts


def _key(row: Row) -> Key:
    return (row["image_id"], row["model_id"], row["decode_id"])


def _differs(row: Row, other: Row) -> bool:
    """But for what tells when, by whom and at which attempt it was written."""
    same = ("image_version", "uri", "caption", "width", "height", "status", "error_message")
    if any(row[name] != other[name] for name in same):
        return True
    # Summed in another order, in a batch of other images, it has other last digits.
    return row["status"] == "ok" and abs(row["log_prob"] - other["log_prob"]) > 1e-3
