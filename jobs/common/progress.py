"""What a run has done so far: a live line on a terminal, lines of the log elsewhere, and counters for Spark's metrics.

Tasks count their rows by status in an accumulator, which Spark adds up as they end. Of tasks that still run, the rows
that mapInArrow has given come from Spark's own status, every few seconds, with the executors' heartbeats. What has
been committed is exact and takes their place.
"""

import functools
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import SparkSession
from tqdm import tqdm

from jobs.common.tables import STATUSES
from jobs.common.udfs import StatusCounts, describe

logger = logging.getLogger("jobs.progress")

SHOW_SECONDS = 1.0
ASK_SECONDS = 5.0  # heartbeats come every 10 s from each executor, and asking takes the driver some of a core
LOG_SECONDS = 300.0  # without a terminal, a line so often while a wave goes on
LOOKING = "looking for images to caption"
LINE = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """Of one run. `counts` is for the tasks, the rest for the driver."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self.counts = spark.sparkContext.accumulator(Counter[str](), StatusCounts())
        self._committed, self._before = Counter[str](), Counter[str]()
        self._total = self._waves = self._wave = 0
        self._started = self._logged = time.monotonic()
        self._lock = threading.Lock()
        self._terminal = find_terminal()
        self._bar: Any = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows progress, in a thread, while the context lasts."""
        done = threading.Event()
        watching = threading.Thread(target=self._watch, args=(done,), name="progress", daemon=True)
        # Closed and made anew once the total is known, so that the rate is that of captioning.
        self._bar = self._make_bar(None, LOOKING + " ({elapsed})")
        self._describe_jobs(LOOKING)
        watching.start()
        try:
            with _logging_above(self._terminal) if self._terminal else nullcontext():
                yield
        finally:
            done.set()
            watching.join()
            self._bar.close()
            self._describe_jobs(None)

    def planned(self, total: int, waves: int) -> None:
        """So many images are to be captioned, in so many waves."""
        with self._lock:
            self._bar.close()
            self._total, self._waves = total, waves
            self._started = self._logged = time.monotonic()
            if total:
                self._bar = self._make_bar(total, LINE)

    def begin_wave(self, size: int) -> None:
        self._wave += 1
        self._before = Counter(self.counts.value)
        self._describe_jobs(f"wave {self._wave} of {self._waves}: {size} images")

    def committed(self, counts: Counter[str]) -> None:
        """The wave is in the table, with rows of these statuses."""
        with self._lock:
            self._committed.update(counts)
            self._before = Counter(self.counts.value)
            self._show(0)
        if self._terminal is None and self._waves > 1:
            self._log(f"wave {self._wave} of {self._waves} is committed: ", 0)

    def now(self, running: int = 0) -> tuple[int, Counter[str]]:
        """How many images are done, and the statuses of those whose tasks have ended; `running` rows are known of."""
        ended = self.ended()
        return self._committed.total() + max(running, ended.total()), self._committed + ended

    def ended(self) -> Counter[str]:
        """Rows by status of the wave's tasks that have ended well."""
        return Counter(self.counts.value) - self._before

    def _watch(self, done: threading.Event) -> None:
        asked, committed, running = time.monotonic(), 0, 0
        while not done.wait(SHOW_SECONDS):
            if time.monotonic() - asked >= ASK_SECONDS:
                committed, running = self._committed.total(), running_rows(self._spark)
                asked = time.monotonic()
            with self._lock:
                if committed != self._committed.total():
                    running = 0  # those rows have been committed meanwhile
                self._show(running)
            if self._terminal is None and self._total and time.monotonic() - self._logged > LOG_SECONDS:
                self._log("", running)

    def _show(self, running: int) -> None:
        if not self._total:
            self._bar.refresh()
            return
        images, counts = self.now(running)
        publish(self._spark.sparkContext, counts, self._total - images)
        failures = Counter({status: n for status, n in counts.items() if status != "ok"})
        self._bar.set_postfix_str(describe(failures), refresh=False)
        if images > self._bar.n:
            self._bar.update(images - self._bar.n)
        self._bar.refresh()

    def _log(self, prefix: str, running: int) -> None:
        self._logged = time.monotonic()
        images, counts = self.now(running)
        rate = images / max(self._logged - self._started, 1e-9)
        left = tqdm.format_interval((self._total - images) / rate) if rate else "?"
        logger.info(
            "%s%d of %d images, %.1f images/s, %s left: %s", prefix, images, self._total, rate, left, describe(counts),
            extra={"context": {"images": str(images), "total": str(self._total)}},
        )  # fmt: skip

    def _make_bar(self, total: int | None, line: str) -> Any:
        return tqdm(
            total=total, bar_format=line, unit=" images", leave=False, dynamic_ncols=True, file=self._terminal,
            disable=self._terminal is None,
        )  # fmt: skip

    def _describe_jobs(self, text: str | None) -> None:
        """Spark's pages say so beside each job."""
        self._spark.sparkContext.setJobDescription(text)  # type: ignore[arg-type]


class BehindSpark:
    """Standard error where it leads to a terminal by way of spark-submit, which prints what it reads from a job."""

    def __init__(self, terminal: str) -> None:
        """Raises OSError where there is no such terminal."""
        self._terminal = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)

    @property
    def encoding(self) -> str:
        return sys.stderr.encoding

    def fileno(self) -> int:
        return self._terminal  # which is asked for its width

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def find_terminal() -> TextIO | BehindSpark | None:
    """Where a live line can be shown; spark-submit.sh names the terminal behind Spark in NIC_TERMINAL."""
    if sys.stderr.isatty():
        return sys.stderr
    try:
        return BehindSpark(os.environ["NIC_TERMINAL"])
    except (KeyError, OSError):
        return None


class _Above:
    """A stream that writes lines above the live one."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def write(self, text: str) -> None:
        tqdm.write(text, file=self._terminal, end="")

    def flush(self) -> None:
        self._terminal.flush()


@contextmanager
def _logging_above(terminal: Any) -> Iterator[None]:
    """What is logged to standard error meanwhile does not break the live line."""
    streams = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    handlers = [handler for handler in streams if handler.stream is sys.stderr]
    for handler in handlers:
        handler.setStream(_Above(terminal))
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.stderr)


def running_rows(spark: SparkSession) -> int:
    """Rows that mapInArrow has given so far in the queries that are running, from executors' heartbeats. 0 where this
    Spark does not tell."""
    rows = 0
    try:
        store = spark._jsparkSession.sharedState().statusStore()
        last = store.executionsCount()
        for execution in _each(store.executionsList(max(0, last - 5), 5)):
            if execution.completionTime().isEmpty():
                values = store.executionMetrics(execution.executionId())
                for node in _each(store.planGraph(execution.executionId()).allNodes()):
                    if node.name() == "MapInArrow":
                        metrics = {m.name(): values.get(m.accumulatorId()) for m in _each(node.metrics())}
                        given = metrics.get("number of output rows")
                        rows += int(given.get().replace(",", "")) if given and given.isDefined() else 0
    except (Py4JError, TypeError, ValueError):  # not part of Spark's public interface
        return 0
    return rows


def _each(sequence: Any) -> Iterator[Any]:
    """Of a Scala Seq."""
    return (sequence.apply(number) for number in range(sequence.size()))


def publish(context: SparkContext, counts: Counter[str], left: int) -> None:
    """Sets what Spark's metrics sinks show of the driver: images left, and rows by status since the session began."""
    values = {"left": left, **{status: counts[status] for status in STATUSES}}
    for name, accumulator in _accumulators(context).items():
        accumulator.add(values[name] - accumulator.value())


@functools.lru_cache(maxsize=1)
def _accumulators(context: SparkContext) -> dict[str, Any]:
    """Accumulators of the JVM, registered as a source of metrics, images.ok and the like; none where it refuses."""
    try:
        scala, jvm = context._jsc.sc(), context._jvm
        assert jvm is not None
        made = {name: scala.longAccumulator(f"images.{name}") for name in ("left", *STATUSES)}
        named = jvm.java.util.HashMap()
        for name, accumulator in made.items():
            named.put(f"images.{name}", accumulator)
        source = getattr(jvm.org.apache.spark.metrics.source, "LongAccumulatorSource$")
        getattr(source, "MODULE$").register(scala, jvm.PythonUtils.toScalaMap(named))
    except (Py4JError, TypeError):
        return {}
    return made
