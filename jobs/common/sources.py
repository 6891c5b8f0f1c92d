"""Where images come from: a folder or glob of files, a prefix on S3, or a table or manifest of bytes or uris.

Each source becomes `Images`: which they are and where, and their content where the source has it.
"""

import glob
import math
import os
import re
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from jobs.common import storage, tables
from jobs.common.files import Folder
from jobs.common.storage import Access, Listed, SystemicError

TASKS_PER_CORE = 4
IMAGES_PER_TASK = 32  # a Python worker takes longer to start than to caption fewer

# In a folder these are taken for images; a glob takes whatever it matches.
JPEGS = {".jpg", ".jpeg", ".jpe", ".jfif"}
EXTENSIONS = frozenset({*JPEGS, ".png", ".gif", ".webp", ".avif", ".heic", ".heif", ".hif", ".bmp", ".tif", ".tiff"})

MANIFESTS = (".csv", ".jsonl", ".ndjson")

# What a listing holds, and a manifest of uris.
LISTED = T.StructType([f for f in tables.IMAGES if f.name != "content"])

START_PATIENCE_SECONDS = 15.0

# A listing of S3 is parted into about so many, where there are folders to part it by.
LISTINGS = 64
PARTS = T.StructType([T.StructField("prefix", T.StringType()), T.StructField("delimiter", T.StringType())])

# Units that images are parted into by their ids, where Spark cannot read some files of a source alone.
BUCKETS = 256

# What an S3 Inventory has, and a list made by hand has not.
INVENTORY = {"is_latest", "is_delete_marker", "last_modified_date", "storage_class"}


@dataclass(frozen=True)
class Images:
    """What a source holds: `rows` of image_id, image_version, uri, unit and, with `has_content`, content. A `unit` is
    the file that the row stands in, so that a wave can read its files alone, or a share of all rows."""

    rows: DataFrame
    has_content: bool
    unique: bool  # whether each image_id stands there once, by what the source is
    whole: bool = False  # whether Spark reads the whole source for each wave


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a local folder: all of them, or those that match a glob. A relative `location` is one below
    `here`, wherever it is listed."""

    location: str
    here: str = field(default_factory=os.getcwd)

    def check(self) -> None:
        """Raises ValueError where there is no such folder, or not one image file in it."""
        if not self._is_glob() and not Path(self.here, self.location).exists():
            raise ValueError(f"--images {self.location}: no such folder")
        if next(self._walk(), None) is None:
            kinds = "" if self._is_glob() else f"; taken for images are {' '.join(sorted(EXTENSIONS))}"
            raise ValueError(f"--images {self.location}: no image files there{kinds}")

    def _is_glob(self) -> bool:
        return glob.has_magic(self.location) and not Path(self.here, self.location).exists()

    def read(self, spark: SparkSession) -> Images:
        """Paths only, without content. An executor lists the files, so that the driver never holds their names."""
        return _listing(spark.range(1, numPartitions=1).mapInArrow(self._list, LISTED))

    def _list(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        deque(batches, maxlen=0)  # Spark ends a Python worker that leaves input unread, and starts another
        rows: list[dict[str, str | None]] = []
        walked = self._walk()
        if (first := next(walked, None)) is None:
            raise SystemicError(
                f"--images {self.location}: {socket.gethostname()} has no image files there, and the driver has: a path"
                " must mean the same on all machines"
            )
        for file, image_id in chain([first], walked):
            rows.append({
                "image_id": os.fsencode(image_id).decode("utf-8", errors="backslashreplace"),
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
        folder = place = Path(self.here, self.location)
        if self._is_glob():
            fixed = []
            for part in Path(self.location).parts[:-1]:
                if glob.has_magic(part):
                    break
                fixed.append(part)
            folder = Path(self.here, *fixed)
            # pathlib's wants the fixed part told apart.
            names: Iterable[str] = glob.iglob(self.location, root_dir=self.here, recursive=True)  # noqa: PTH207
            if self.location.count("**") > 1:
                names = dict.fromkeys(names)  # some of which it finds several times
            files = (path for path in (Path(self.here, name) for name in names) if not path.is_dir())
        elif place.is_dir():
            files = (
                Path(parent, name)
                for parent, names in _walk_all(folder)
                for name in names
                if Path(name).suffix.lower() in EXTENSIONS
            )
        else:
            folder, files = place.parent, iter([place] if place.exists() else [])
        for file in files:
            yield file, str(file.relative_to(folder))


@dataclass(frozen=True)
class ImageObjects:
    """The objects below a prefix on S3 whose keys end in an image's extension, or in none."""

    location: str
    access: Access

    def _place(self) -> tuple[str, str]:
        bucket, _, prefix = self.location.removeprefix("s3://").partition("/")
        return bucket, f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""

    def check(self) -> None:
        """Raises ValueError where the bucket cannot be listed, or has nothing there."""
        try:
            keys = self._first_keys()
        except SystemicError as error:
            raise ValueError(f"--images {self.location}: {error}") from None
        if not keys:
            raise ValueError(f"--images {self.location}: no objects there")
        if not any(map(_may_be_image, keys)) and any("_delta_log/" in key or ".parquet" in key for key in keys):
            name = storage.hadoop_name(self.location)
            raise ValueError(f"--images {self.location}: holds a table, which Spark reads as {name}")

    def seem_images(self) -> bool:
        """Whether objects can be listed there, and some are named as images are."""
        try:
            return any(PurePosixPath(key).suffix.lower() in EXTENSIONS for key in self._first_keys())
        except SystemicError:
            return False

    def _first_keys(self) -> list[str]:
        """A page of them. Raises SystemicError."""
        # Who has mistyped the server's name should not wait for it.
        access = replace(self.access, patience=min(START_PATIENCE_SECONDS, self.access.patience))
        pages = storage.list_objects(*self._place(), access)
        first = next((page for page in pages if page), [])
        return [one.key for one in first if isinstance(one, Listed)]

    def read(self, spark: SparkSession) -> Images:
        """Executors list, each its part of the folders: the driver never holds the keys."""
        found = storage.split_listing(*self._place(), self.access, LISTINGS)
        parts = [{"prefix": prefix, "delimiter": delimiter} for prefix, delimiter in found]
        parted = tables.from_rows(spark, parts, PARTS).repartition(min(len(parts), LISTINGS))
        return _listing(parted.mapInArrow(self._list, LISTED))

    def _list(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        bucket, top = self._place()
        for part in (part for batch in batches for part in batch.to_pylist()):
            for page in storage.list_objects(bucket, part["prefix"], self.access, part["delimiter"]):
                objects = (one for one in page if isinstance(one, Listed))
                yield _uris([
                    {
                        "image_id": one.key.removeprefix(top),
                        "image_version": one.version,
                        "uri": f"s3://{bucket}/{one.key}",
                    }
                    for one in objects
                    if _may_be_image(one.key)
                ])  # fmt: skip


@dataclass(frozen=True)
class ImageTable:
    """Parquet or a catalog table, or a CSV or JSON-lines manifest: with image_id and content; or uri; or bucket and
    key, as an S3 Inventory has. Without image_id, the uri names the image; its version is image_version or e_tag."""

    location: str

    def check(self) -> None:
        """Raises ValueError where there is no such file; the rest is found by `read`."""
        tables.check_readable(self.location, "--images")

    def read(self, spark: SparkSession) -> Images:
        """Raises ValueError where the table is missing or lacks the columns."""
        table = self._load(spark)
        columns, has_content = image_columns(table, f"--images {self.location}")
        whole, unit = False, F.lit(None).cast("string")
        if has_content:
            whole = not self._is_plain(spark)
            share = F.pmod(F.xxhash64(columns[0]), F.lit(BUCKETS)).cast("string")
            unit = share if whole else F.col("_metadata.file_path")
        rows = table if has_content or "uri" in table.columns else _of_inventory(table)
        return Images(rows.select(*columns, unit.alias("unit")), has_content, unique=False, whole=whole)

    def _is_plain(self, spark: SparkSession) -> bool:
        """Whether it is Parquet, of which Spark reads some files alone; of Delta, Iceberg and views it does not."""
        if tables.is_table_name(self.location):
            return tables.describe(spark, self.location).get("Provider", "").lower() == "parquet"
        folder = storage.hadoop_name(self.location)
        return glob.has_magic(folder) or not Folder(spark, folder).exists("_delta_log")

    def _load(self, spark: SparkSession) -> DataFrame:
        location = storage.hadoop_name(self.location)
        suffix = _manifest_suffix(location)
        if suffix is None or tables.is_table_name(location):
            return tables.read_table(spark, location, T.StructType(), role="--images")
        files = tables.files_of(location)
        try:
            if suffix == ".csv":
                # Of files whose columns stand in other orders, Spark would else read all by the first one's header.
                return spark.read.csv(files, header=True, escape='"', enforceSchema=False)
            # Spark takes a column's type from the values, which are text here, whatever they look like.
            return spark.read.json(files, primitivesAsString=True)
        except AnalysisException as error:
            raise ValueError(f"--images {self.location}: {str(error).splitlines()[0]}") from None


Source = ImageFiles | ImageObjects | ImageTable


def image_columns(table: DataFrame, what: str) -> tuple[list[Column], bool]:
    """Of a table of images, image_id, image_version, uri and, where it has it, which is told too, content. Raises
    ValueError, beginning with `what`, where it lacks the columns."""
    kinds = {f.name: f.dataType.simpleString() for f in table.schema}
    has_content = "content" in kinds
    choice = ("image_id", "content") if has_content else ("uri",) if "uri" in kinds else ("bucket", "key")
    needed = {**tables.MANIFEST, "content": "binary"}
    if "key" not in choice:  # these may be anything
        kinds = {name: kind for name, kind in kinds.items() if name not in ("bucket", "key") or kind == "string"}
    bad = [n for n in needed if kinds.get(n, needed[n] if n not in choice else None) != needed[n]]
    if bad:
        wrong = "; ".join(f"{name} must be {needed[name]}, is {kinds.get(name, 'missing')}" for name in bad)
        raise ValueError(
            f"{what}: needed are image_id and content, or uri, or bucket and key: {wrong};"
            f" it has {', '.join(f'{name} {kind}' for name, kind in kinds.items())}"
        )
    column = {name: _text(F.col(name)) if name in kinds else F.lit(None).cast("string") for name in tables.MANIFEST}
    uri = F.coalesce(column["uri"], F.concat(F.lit("s3://"), column["bucket"], F.lit("/"), column["key"]))
    columns = [
        (column["image_id"] if "image_id" in kinds else uri).alias("image_id"),
        F.coalesce(column["image_version"], column["e_tag"]).alias("image_version"),
        uri.alias("uri"),
        *([F.col("content")] if has_content else []),
    ]
    return columns, has_content


def _text(column: Column) -> Column:
    """As it is where it is UTF-8. What is not, Python would not read: told apart by its bytes."""
    told = F.concat(F.make_valid_utf8(column), F.lit(" "), F.hex(column))
    return F.when(F.is_valid_utf8(column), column).otherwise(told)


def _of_inventory(table: DataFrame) -> DataFrame:
    """Rows of bucket and key. Of an S3 Inventory, which lists all that is in a bucket, those that a listing would give:
    the latest version of each object whose key may be an image's."""
    if not INVENTORY & set(table.columns):
        return table
    name = F.element_at(F.split("key", "/"), -1)
    suffix = F.lower(F.regexp_extract(name, r"[^.](\.[^.]*)$", 1))
    rows = table.where(suffix.isin(*EXTENSIONS) | ((suffix == "") & name.rlike("^[^._]")))
    for column, value in (("is_latest", "true"), ("is_delete_marker", "false")):
        if column in table.columns:
            rows = rows.where(F.col(column).isNull() | (F.lower(F.col(column).cast("string")) == value))
    return rows


def _may_be_image(key: str) -> bool:
    """By its extension; or where it has none, and is no file that a program keeps for itself (_SUCCESS, .DS_Store)."""
    path = PurePosixPath(key)
    suffix = path.suffix.lower()
    return suffix in EXTENSIONS or (not suffix and path.name[:1] not in "._")


def _manifest_suffix(location: str) -> str | None:
    """Of MANIFESTS, if the location has it, compressed or not."""
    found = re.search(r"(\.csv|\.jsonl|\.ndjson)(\.gz|\.bz2|\.zst)?$", location, re.IGNORECASE)
    return found[1].lower() if found else None


def find_source(location: str, access: Access | None = None) -> Source:
    """The source that `location` names. Raises ValueError where it can be none."""
    if location.startswith("file:"):
        location = location.removeprefix("file://") if location.startswith("file://") else location[len("file:") :]
    plain = location.rstrip("*/")
    is_table = plain.endswith(".parquet") or _manifest_suffix(plain) is not None
    if storage.is_s3(location) and not is_table:
        return ImageObjects(location, access or Access())
    if location.startswith(("http:", "https:", "ftp:")):
        raise ValueError(
            f"--images {location}: allowed are a local folder or glob of image files, s3://bucket/prefix, Parquet, a"
            f" catalog table, and manifests ({', '.join(MANIFESTS)})"
        )
    if location.startswith("s3a://") and not is_table:  # as Spark calls S3, whatever is there
        objects = ImageObjects(f"s3://{location[6:]}", access or Access())
        if objects.seem_images():
            return objects
    # On Hadoop's other file systems there are tables alone.
    if "://" in location or is_table or tables.is_table_name(location) or _has_parquet(location):
        return ImageTable(location)
    return ImageFiles(location)


def reaching(source: Source, access: Access) -> Access:
    """`access`, and to local files where the job itself names them."""
    return replace(access, local=True) if isinstance(source, ImageFiles) else access


def task_count(spark: SparkSession, size: int) -> int:
    """In how many tasks `size` images are captioned: several for each core, so that all end at about the same time."""
    wanted = max(1, math.ceil(size / IMAGES_PER_TASK))
    return min(wanted, TASKS_PER_CORE * spark.sparkContext.defaultParallelism)


def spread(picked: DataFrame, rows: DataFrame, size: int) -> DataFrame:
    """`picked`, which are `size` images out of `rows`, in `task_count` tasks where `rows` come in fewer pieces: a
    Parquet file of one row group is one piece, however many images it holds. What comes in few pieces is small enough
    to be moved."""
    count = task_count(rows.sparkSession, size)
    return picked if rows.rdd.getNumPartitions() >= count else picked.repartition(count)


def _listing(rows: DataFrame) -> Images:
    return Images(rows.withColumn("unit", F.lit(None).cast("string")), has_content=False, unique=True)


def _has_parquet(location: str) -> bool:
    """Whether Spark would read the folder as Parquet: by files in it, or in folders that name a partition. One deeper
    down, as a captions table below the photographs, does not make a table of them."""
    folder = Path(location)
    if glob.has_magic(location) or not folder.is_dir():
        return False
    files = (file for pattern in ("*.parquet", "*=*/**/*.parquet") for file in folder.glob(pattern))
    return (folder / "_delta_log").is_dir() or any(file.is_file() for file in files)


def _walk_all(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders, linked ones too, and the names of what else is in each; no link back to a folder that it is in."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        links = [link for name in folders if (link := Path(parent, name)).is_symlink()]
        back = {link.name for link in links if link.resolve() in {above.resolve() for above in link.parents}}
        folders[:] = [name for name in folders if name not in back]
        yield parent, names


def _modified(file: Path) -> str | None:
    """When the file last changed, which tells a changed image from the same one; null for a dangling link."""
    try:
        changed = file.stat().st_mtime
    except OSError:
        return None
    try:
        return datetime.fromtimestamp(changed, UTC).isoformat()
    except (ValueError, OverflowError):  # in no year that a datetime has
        return str(changed)


def _uris(rows: list[dict[str, str | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=to_arrow_schema(LISTED))


def _raise(error: OSError) -> None:
    raise error
