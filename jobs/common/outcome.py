"""What a run of captioning did, as it is told at the end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from jobs.common.rows import STOPPED
from jobs.common.session import say
from jobs.common.storage import SystemicError, printable
from jobs.common.udfs import describe

SHOWN = 20  # captions printed, of the first waves that have so many
FAILED = 5  # failures printed, likewise
WIDEST = 40  # characters of an image_id printed: of a longer one, the last


@dataclass
class Outcome:
    """Rows by status, of all images committed and of those that are not known to fail; some of them; how many rows of
    the source were left out as duplicates; and whether the table has no row, before and after."""

    counts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    captioned: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    duplicates: int = 0
    empty: bool = False

    @property
    def failure_rate(self) -> float:
        """The share of images that failed, without those that failed on another night already: one with nothing else is
        no worse than that. 0 where there were none."""
        total = self.unknown.total()
        return (total - self.unknown["ok"]) / total if total else 0.0

    @staticmethod
    def count(rows: DataFrame, told: Counter[str], size: int) -> Counter[str]:
        """The rows by status of a staged wave of `size` images: as its tasks `told`, where these told of so many, or
        else counted. Raises SystemicError where executors had to stop."""
        counts = told
        if told.total() != size:
            counts = _by_status(rows)
        if STOPPED in counts:
            stopped = rows.where(F.col("status") == STOPPED).head()
            assert stopped is not None
            raise SystemicError(stopped["error_message"])
        return counts

    def look(self, rows: DataFrame, counts: Counter[str], known: DataFrame | None = None) -> None:
        """Takes some rows of a staged wave to show, unless there are enough; and counts all but those of image_ids in
        `known`, where any may be."""
        ok = F.col("status") == "ok"
        if known is not None:
            others = rows.join(known, rows["image_id"].eqNullSafe(known["image_id"]), how="left_anti")
        self.unknown.update(counts if known is None else _by_status(others))
        if counts["ok"] and len(self.captioned) <= SHOWN:
            self.captioned = _first([*self.captioned, *_some(rows.where(ok), SHOWN + 1)], SHOWN + 1)
        if counts.total() > counts["ok"] and len(self.failed) < FAILED:
            self.failed = _first([*self.failed, *_some(rows.where(~ok), FAILED)], FAILED)

    def show(self, seconds: float) -> None:
        """Prints captions, failures and a summary of a run that took so long."""
        _say_table([(row["image_id"], row["caption"]) for row in self.captioned[:SHOWN]])
        if len(self.captioned) > SHOWN:
            say("...")
        total = self.counts.total()
        n_failed = total - self.counts["ok"]
        if n_failed:
            say(f"\n{n_failed} failed{', among them' if n_failed > len(self.failed) else ''}:")
            _say_table([(row["image_id"], f"{row['status']}: {row['error_message']}") for row in self.failed])
        if total:
            rate = f"{total / seconds:.1f} images/s, the start included"
            say(f"\n{total} images in {seconds:.1f} s ({rate}): {describe(self.counts)}")
        else:
            say("nothing to do: for this model and these settings, no image is new, changed or to be tried again")
        if self.duplicates:
            say(f"{self.duplicates} rows were left out, since their image_id stands in another row as well")


def _by_status(rows: DataFrame) -> Counter[str]:
    return Counter({row["status"]: row["count"] for row in rows.groupBy("status").count().collect()})


def _some(rows: DataFrame, count: int) -> list[Row]:
    return list(rows.select("image_id", "status", "caption", "error_message").orderBy("image_id").head(count))


def _first(rows: list[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: row["image_id"] or "")[:count]


def _say_table(rows: Iterable[tuple[str | None, str]]) -> None:
    """A hostile id or uri cannot write to the terminal."""
    named = [(_shown(image_id or ""), text) for image_id, text in rows]
    width = max((len(name) for name, _ in named), default=0)
    for name, text in named:
        say(f"{name:{width}}  {printable(text)}")


def _shown(image_id: str) -> str:
    name = printable(image_id)
    return name if len(name) <= WIDEST else f"…{name[1 - WIDEST :]}"
