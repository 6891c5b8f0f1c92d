"""Logs on stderr, of the driver and of its Python workers: text for people, or JSON lines for what collects them.

The driver's environment variable NIC_LOG_FORMAT, `text` or `json`, chooses. A JSON line has the fields of Spark's own
structured logs (`pyspark.logger.SPARK_LOG_SCHEMA`): ts, level, logger, msg, context and, of an error, exception.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark import TaskContext
from pyspark.logger.logger import JSONFormatter

VARIABLE = "NIC_LOG_FORMAT"
FORMATS = ("text", "json")


@dataclass(frozen=True)
class Logging:
    """How to log: everything from `level` up, with `context` beside each message."""

    format: str = "text"
    level: int = logging.INFO
    context: Mapping[str, str] = field(default_factory=dict)


def chosen_format() -> str:
    """Raises ValueError where the environment names an unknown one."""
    name = os.environ.get(VARIABLE) or "text"
    if name not in FORMATS:
        raise ValueError(f"{VARIABLE}={name}: allowed are {', '.join(FORMATS)}")
    return name


def configure(how: Logging) -> None:
    """Sets up the root logger of this process, or changes what an earlier call set up. Where the process logs in a way
    of its own, as a notebook's may, that stays."""
    root = logging.getLogger()
    if any(not isinstance(handler.formatter, Json | Text) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((Json if how.format == "json" else Text)(how.context))
    logging.basicConfig(level=how.level, handlers=[handler], force=True)
    logging.getLogger("DataFrameQueryContextLogger").setLevel(logging.CRITICAL)  # of errors that are raised as well
    for chatty in ("py4j", "botocore", "boto3", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def are_json() -> bool:
    """Whether this process logs as JSON."""
    return any(isinstance(handler.formatter, Json) for handler in logging.getLogger().handlers)


def _task() -> dict[str, str]:
    """Which task of Spark this is; empty on the driver."""
    task = TaskContext.get()
    if task is None:
        return {}
    names = {"stage": task.stageId(), "partition": task.partitionId(), "attempt": task.attemptNumber()}
    return {name: str(value) for name, value in names.items()}


class Json(JSONFormatter):
    """A line for each record, in UTC. A record may bring its own `context`, by `extra`."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, context: Mapping[str, str]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        own = getattr(record, "context", {})
        record.context = {**self._context, **_task(), **own}
        try:
            return super().format(record)
        finally:
            record.context = own


class Text(logging.Formatter):
    """As people read it; on an executor with the context, since logs of many runs and tasks meet there."""

    def __init__(self, context: Mapping[str, str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        message, task = super().formatMessage(record), _task()
        return f"{message} ({' '.join(f'{n}={v}' for n, v in {**self._context, **task}.items())})" if task else message
