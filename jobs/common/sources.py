"""Where images come from: a folder or glob of files, or Parquet or a catalog table with their bytes.

Each source becomes a DataFrame of image_id, image_version, uri and content, the columns of executor.INPUT.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import tables
from jobs.common.executor import INPUT

# Enough for the last tasks of a run to end at about the same time.
TASKS_PER_CORE = 4

# In a folder these are taken for images; a glob takes whatever it matches.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a local folder: all of them, or those that match a glob."""

    location: str

    def check(self) -> None:
        """Raises ValueError where there is no such folder, or not one image file in it."""
        if not glob.has_magic(self.location) and not Path(self.location).exists():
            raise ValueError(f"--images {self.location}: no such folder")
        if next(self._walk(), None) is None:
            kinds = "" if glob.has_magic(self.location) else f"; taken for images are {' '.join(sorted(EXTENSIONS))}"
            raise ValueError(f"--images {self.location}: no image files there{kinds}")

    def read(self, spark: SparkSession) -> DataFrame:
        """Paths only, without content. An executor lists the files, so that the driver never holds their names."""
        return spark.range(1, numPartitions=1).mapInArrow(self._list, tables.IMAGES)

    def _list(self, _: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, str | None]] = []
        for file, image_id in self._walk():
            rows.append({
                "image_id": os.fsencode(image_id).decode("utf-8", errors="replace"),
                "image_version": _modified(file),
                "uri": file.as_uri(),
            })  # fmt: skip
            if len(rows) == 10_000:
                yield _uris(rows)
                rows = []
        yield _uris(rows)

    def _walk(self) -> Iterator[tuple[Path, str]]:
        """Absolute path and image_id of each file: its path below the folder, or below the fixed part of the glob."""
        files: Iterator[Path]
        if glob.has_magic(self.location):
            fixed = []
            for part in Path(self.location).parts[:-1]:
                if glob.has_magic(part):
                    break
                fixed.append(part)
            folder = Path(*fixed).absolute()
            names = glob.iglob(self.location, recursive=True)  # noqa: PTH207 - pathlib's wants the fixed part told apart
            files = (Path(name).absolute() for name in names if not Path(name).is_dir())
        elif Path(self.location).is_dir():
            folder = Path(self.location).absolute()
            files = (
                Path(parent, name)
                for parent, _, names in os.walk(folder, onerror=_raise)
                for name in names
                if Path(name).suffix.lower() in EXTENSIONS
            )
        else:
            folder = Path(self.location).absolute().parent
            files = iter([Path(self.location).absolute()])
        for file in files:
            yield file, str(file.relative_to(folder))


@dataclass(frozen=True)
class ImageTable:
    """Parquet or a catalog table with image_id and content, and, where it has them, image_version and uri."""

    location: str

    def check(self) -> None:
        """Raises ValueError where there is no such file; the rest is found by `read`."""
        tables.check_readable(self.location, "--images")

    def read(self, spark: SparkSession) -> DataFrame:
        """Raises ValueError where the table is missing or lacks a column."""
        needed = T.StructType([tables.IMAGES["image_id"], tables.IMAGES["content"]])
        images = _spread(tables.read_table(spark, self.location, needed, role="--images"))
        optional = (name for name in ("image_version", "uri") if name not in images.columns)
        images = images.withColumns({name: F.lit(None).cast("string") for name in optional})
        return images.select(*(F.col(f.name).cast(f.dataType) for f in tables.IMAGES))


def find_source(location: str) -> ImageFiles | ImageTable:
    """The source that `location` names. Raises ValueError where it can be none."""
    if location.startswith("file:"):
        location = location.removeprefix("file://") if location.startswith("file://") else location[len("file:") :]
    if "://" in location:
        raise ValueError(
            f"--images {location}: allowed are a local folder or glob of image files, Parquet, and a catalog table"
        )
    if tables.is_table_name(location) or location.rstrip("*/").endswith(".parquet") or _has_parquet(location):
        return ImageTable(location)
    return ImageFiles(location)


def _spread(images: DataFrame) -> DataFrame:
    """Several tasks for each core where the table comes in fewer pieces: a Parquet file of one row group is one piece,
    however many images it holds. What comes in few pieces is small enough to be moved."""
    wanted = TASKS_PER_CORE * images.sparkSession.sparkContext.defaultParallelism
    return images if images.rdd.getNumPartitions() >= wanted else images.repartition(wanted)


def _has_parquet(location: str) -> bool:
    folder = Path(location)
    return not glob.has_magic(location) and folder.is_dir() and next(folder.rglob("*.parquet"), None) is not None


def _modified(file: Path) -> str | None:
    """When the file last changed, which tells a changed image from the same one; null for a dangling link."""
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat()
    except OSError:
        return None


def _uris(rows: list[dict[str, str | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=INPUT)


def _raise(error: OSError) -> None:
    raise error
