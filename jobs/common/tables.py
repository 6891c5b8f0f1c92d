"""The tables: their columns, which are named here alone, and how they are read, written and replaced.

A location is a path (Parquet) or the name of a catalog table, `database.table` or `catalog.database.table`.
"""

import glob
import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyspark
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from jobs.common.files import Folder
from jobs.common.session import systemic
from jobs.common.storage import SystemicError


def _columns(*columns: tuple[str, T.DataType, str]) -> T.StructType:
    return T.StructType([T.StructField(name, kind, True, {"comment": comment}) for name, kind, comment in columns])


_STRING, _DOUBLE, _LONG, _TIME = T.StringType(), T.DoubleType(), T.LongType(), T.TimestampType()
_ALTERNATIVE = T.StructType([T.StructField("caption", _STRING), T.StructField("log_prob", _DOUBLE)])

IMAGES = _columns(
    (
        "image_id",
        _STRING,
        "what names the image: of a file or object its path below the folder, extension included",
    ),
    (
        "image_version",
        _STRING,
        "tells a changed image from the same one: of a file its modification time, of an object its ETag",
    ),
    ("uri", _STRING, "where the image is"),
    ("content", T.BinaryType(), "the encoded image"),
)

CAPTIONS = _columns(
    *((f.name, f.dataType, f.metadata["comment"]) for f in IMAGES if f.name != "content"),
    ("caption", _STRING, "null where status is not ok"),
    ("log_prob", _DOUBLE, "ln p(caption | image)"),
    ("alternatives", T.ArrayType(_ALTERNATIVE), "further captions, best first"),
    ("width", T.IntegerType(), "of the upright image, in pixels"),
    ("height", T.IntegerType(), "of the upright image, in pixels"),
    ("status", _STRING, "ok, or what failed: fetch_error, decode_error, too_large, invalid_id"),
    ("error_message", _STRING, "why, where status is not ok"),
    ("model_id", _STRING, "hash of the model's weights and configuration"),
    ("decode_id", _STRING, "hash of the decoding settings"),
    ("run_id", _STRING, "the run that wrote the row"),
    ("captioned_at", _TIME, "when"),
    ("attempts", T.IntegerType(), "how often this version of the image was tried, this time included"),
)

# What status may be; rows.STOPPED is in no table.
STATUSES = ("ok", "fetch_error", "decode_error", "too_large", "invalid_id")

# The columns that the first version wrote: a table of it is read, resumed and added to.
FIRST_CAPTIONS = T.StructType([f for f in CAPTIONS if f.name != "attempts"])

# What executors are given, and what they make of it; the rest of CAPTIONS is the same for a whole run.
TO_CAPTION = T.StructType([*IMAGES, CAPTIONS["attempts"]])
CAPTIONED = T.StructType([f for f in CAPTIONS if f.name not in ("model_id", "decode_id", "run_id")])

# What SQL's caption_details gives: what belongs to the image itself, whatever it is called. Without comments, or Spark
# takes it for another type than the Arrow struct of the same fields.
DETAILS = T.StructType(
    [
        T.StructField(f.name, f.dataType)
        for f in CAPTIONED
        if f.name not in ("image_id", "image_version", "uri", "captioned_at", "attempts")
    ]
)

# What a table or manifest of images may have, besides content.
MANIFEST = dict.fromkeys(("image_id", "image_version", "uri", "bucket", "key", "e_tag"), "string")

# What a report shows of an image.
THUMBNAILS = _columns(
    ("image_id", _STRING, "as in the captions table"),
    ("jpeg", T.BinaryType(), "null where there is no image to show"),
    ("width", T.IntegerType(), "of the JPEG, in pixels"),
    ("height", T.IntegerType(), "of the JPEG, in pixels"),
    ("words", T.ArrayType(_STRING), "tokens of the caption; null without attention"),
    ("attention", T.BinaryType(), "a byte for each token and cell of the grid, token by token"),
    ("problem", _STRING, "what ends the report, of no image; else null"),
)

REFERENCES = _columns(
    ("image_id", _STRING, "as in the captions table"),
    ("captions", T.ArrayType(_STRING), "what people wrote of the image"),
)

SEGMENTS = _columns(
    ("image_id", _STRING, "as in the captions table"),
    ("model_id", _STRING, "hash of the model's weights and configuration"),
    ("decode_id", _STRING, "hash of the decoding settings"),
    ("caption", _STRING, "what was scored"),
    ("n_references", T.IntegerType(), "references it was scored against"),
    ("missing", _STRING, "null, or what the score lacks: caption, references"),
    *((f"bleu_{n}", _DOUBLE, "0 to 100, of this image alone") for n in (1, 2, 3, 4)),
    ("rouge_l", _DOUBLE, "0 to 100; a corpus scores the mean"),
    ("cider", _DOUBLE, "CIDEr-D, 0 to 1000, with document frequencies of all images scored; a corpus scores the mean"),
    ("n_words", T.IntegerType(), "of the caption, punctuation not counted"),
    ("bleu_counts", T.ArrayType(_LONG), "what sums to the corpus's BLEU; see nic_model/metrics/bleu.py"),
    ("slices", T.MapType(_STRING, _STRING), "values of the references table's columns that --by names"),
    ("run_id", _STRING, "the run that wrote the row"),
)

CORPUS = _columns(
    ("model_id", _STRING, "hash of the model's weights and configuration"),
    ("decode_id", _STRING, "hash of the decoding settings"),
    ("metric", _STRING, "bleu_1 to bleu_4, rouge_l, cider"),
    ("score", _DOUBLE, "0 to 100; cider to 1000"),
    ("ci_low", _DOUBLE, "from here"),
    ("ci_high", _DOUBLE, "to here 95 % of the bootstrap's scores are"),
    ("n_segments", _LONG, "images scored"),
    ("n_missing", _LONG, "images with references but no caption, or the other way round"),
    ("signature", _STRING, "what the score depends on: tokeniser, references, smoothing, version"),
    ("run_id", _STRING, "the run that wrote the row"),
    ("evaluated_at", _TIME, "when"),
)

SLICES = _columns(
    ("slice", _STRING, "a column of the references table, or caption_length"),
    ("value", _STRING, "its value; null where there is none, as for missing captions' lengths"),
    *((f.name, f.dataType, f.metadata["comment"]) for f in CORPUS),
)

FREQUENCIES = _columns(
    ("ngram", _LONG, "key of the n-gram (nic_model/metrics/ngrams.py); null stands for all images"),
    ("n_images", _LONG, "images with a reference that has it; those of which there is one may be left out"),
)

COMPARISONS = _columns(
    ("baseline_model_id", _STRING, "hash of the model's weights and configuration"),
    ("baseline_decode_id", _STRING, "hash of the decoding settings"),
    ("candidate_model_id", _STRING, "hash of the model's weights and configuration"),
    ("candidate_decode_id", _STRING, "hash of the decoding settings"),
    ("metric", _STRING, "bleu_1 to bleu_4, rouge_l, cider"),
    ("baseline", _DOUBLE, "score of the images that both captioned"),
    ("candidate", _DOUBLE, "score of the images that both captioned"),
    ("difference", _DOUBLE, "candidate - baseline"),
    ("ci_low", _DOUBLE, "from here"),
    ("ci_high", _DOUBLE, "to here 95 % of the bootstrap's differences are"),
    ("p_value", _DOUBLE, "two-sided, of the paired bootstrap"),
    ("n_segments", _LONG, "images that both captioned"),
    ("n_missing", _LONG, "images of which only one has a score"),
    ("signature", _STRING, "what the scores and the interval depend on"),
    ("run_id", _STRING, "the run that wrote the row"),
    ("compared_at", _TIME, "when"),
)

RUNS = _columns(
    ("run_id", _STRING, "as in the tables that the run wrote"),
    ("job", _STRING, "what ran"),
    ("started_at", _TIME, "when"),
    ("finished_at", _TIME, "when"),
    ("seconds", _DOUBLE, "between the two, Spark's own start not counted"),
    ("n_images", _LONG, "rows written"),
    ("images_per_second", _DOUBLE, "n_images / seconds"),
    ("counts", T.MapType(_STRING, _LONG), "rows by status"),
    ("model_id", _STRING, "hash of the model's weights and configuration"),
    ("decode_id", _STRING, "hash of the decoding settings"),
    ("source", _STRING, "where the images came from"),
    ("target", _STRING, "where the captions went"),
    ("options", _STRING, "all settings, as JSON"),
    ("spark_version", _STRING, "of Spark"),
)


def metrics_of(segments: DataFrame) -> list[str]:
    """The columns of a segments table that are scores of single images: all that are fractions."""
    return [f.name for f in segments.schema if isinstance(f.dataType, T.DoubleType)]


def is_table_name(location: str) -> bool:
    """Whether `location` names a catalog table: two or three plain words with dots between, and no such file."""
    return bool(re.fullmatch(r"\w+(\.\w+){1,2}", location)) and not (
        os.path.exists(location) or location.endswith(".parquet")  # noqa: PTH110 - a location may be no local path
    )


def local_path(location: str) -> str | None:
    """The local path that `location` is, or None where it is a table's name or another file system's, or may be: that
    of a cluster, which Hadoop's settings name, takes plain paths for its own."""
    if location.startswith("file:"):
        return location.removeprefix("file:").removeprefix("//")
    return None if "://" in location or is_table_name(location) or _plain_paths_are_hadoops() else location


def _plain_paths_are_hadoops() -> bool:
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        site = Path(os.environ.get(name) or "none", "core-site.xml")
        for entry in ElementTree.parse(site).iter("property") if site.is_file() else ():
            if (entry.findtext("name") or "").strip() == "fs.defaultFS":
                return not (entry.findtext("value") or "").strip().startswith("file:")
    return False


def absolute(location: str) -> str:
    """The same for each way to write a local path."""
    path = local_path(location)
    return (location if path is None else os.path.abspath(path)).rstrip("/")  # noqa: PTH100


def check_apart(location: str, role: str, read: str, role_read: str) -> None:
    """Raises ValueError where the path that a table is to be written to would replace, or lie in, what is read, which
    may be a glob."""
    target = absolute(location)
    for source in map(absolute, files_of(read)):
        if f"{source}/".startswith(f"{target}/") or f"{target}/".startswith(f"{source}/"):
            raise ValueError(f"{role} {location}: {role_read} {read} is there, and is read; name another place")


def check_readable(location: str, role: str) -> None:
    """Raises ValueError, before Spark runs, for a local path where there is nothing. `role` is the option's name."""
    path = local_path(location)
    if path is not None and not glob.glob(path):  # noqa: PTH207
        raise ValueError(f"{role} {location}: no such file or folder")


def check_plain(location: str, role: str) -> None:
    """Raises ValueError for a local path that Hadoop would not read as it stands."""
    path = local_path(location)
    if path is not None and set(whole := os.path.abspath(path)) & set("*?[]{}\\"):  # noqa: PTH100
        raise ValueError(f"{role} {location}: {whole} would be read as a glob; write to a path without *?[]{{}}\\")


def check_writable(location: str, role: str) -> None:
    """Raises ValueError, before Spark runs, for a local path that something else than a table stands at."""
    path = local_path(location)
    if path is None:
        return
    check_plain(location, role)
    if os.path.isfile(path):  # noqa: PTH113
        raise ValueError(f"{role} {location}: is a file; a table is a folder")
    names = [name for name in (os.listdir(path) if os.path.isdir(path) else []) if name[0] not in "._"]  # noqa: PTH208, PTH112
    if os.path.isdir(f"{path}/_delta_log"):  # noqa: PTH112
        return  # Delta keeps files of several kinds
    strangers = [name for name in names if ".parquet" not in name and "=" not in name]
    if strangers:
        raise ValueError(f"{role} {location}: holds {strangers[0]}, which is of no table; choose an empty folder")


def read_table(spark: SparkSession, location: str, needed: T.StructType, role: str) -> DataFrame:
    """Parquet, or a catalog table. Raises ValueError with one line where it is missing, or lacks one of `needed`;
    SystemicError where the place it is in cannot be reached."""
    try:
        table = spark.read.table(location) if is_table_name(location) else _read_path(spark, location)
    except (PySparkException, Py4JJavaError) as error:  # no such table; files that are not Parquet
        if why := systemic(error):
            raise SystemicError(f"{role} {location}: {why}") from None
        raise ValueError(f"{role} {location}: {_reason(error)}") from None
    there = {f.name: f.dataType.simpleString() for f in table.schema}
    wanted = {f.name: f.dataType.simpleString() for f in needed}
    bad = [name for name, kind in wanted.items() if there.get(name) != kind]
    if bad:
        describe = "; ".join(f"{name} must be {wanted[name]}, is {there.get(name, 'missing')}" for name in bad)
        raise ValueError(f"{role} {location}: {describe}; it has {', '.join(f'{n} {k}' for n, k in there.items())}")
    return table


def _reason(error: Exception) -> str:
    """In one line. An executor's words are deep in the trace, those that Spark has a name for deepest."""
    text = str(error)
    found = re.search(r"\[[A-Z_]{2}[A-Z_.]*\] [^\n]*", text) or re.search(r"(?<=Exception: )[^\n]*", text)
    return (found[0] if found else text.splitlines()[0]).split(" SQLSTATE")[0]


def read_again(spark: SparkSession, location: str, columns: T.StructType) -> DataFrame:
    """A table that this run wrote with these columns: as `read_table`, without a look into its files first."""
    return spark.read.table(location) if is_table_name(location) else spark.read.schema(columns).parquet(location)


def _read_path(spark: SparkSession, location: str) -> DataFrame:
    """Parquet, or Delta where the folder has Delta's log."""
    if not glob.has_magic(location) and Folder(spark, location).exists("_delta_log"):
        return spark.read.format("delta").load(location)
    return spark.read.parquet(*files_of(location))


def files_of(location: str) -> list[str]:
    """What a local glob matches, in order, but for the tables of runs and scores beside others that it matches; any
    other path is left to Spark, which warns at length of a glob."""
    path = local_path(location)
    found = sorted(glob.glob(path)) if path is not None and glob.has_magic(path) else []  # noqa: PTH207
    of_others = {f"{name}_{what}" for name in found for what in ("runs", "scores")}
    return [name for name in found if name not in of_others] or [location]


def table_exists(spark: SparkSession, name: str) -> bool:
    """Whether the catalog has it. Raises ValueError where there is no such catalog."""
    try:
        return bool(spark.catalog.tableExists(name))
    except AnalysisException as error:
        raise ValueError(f"{name}: {_reason(error)}") from None


def describe(spark: SparkSession, name: str) -> dict[str, str]:
    """What the catalog says of a table: Provider, Location and more."""
    return {row["col_name"]: row["data_type"] for row in spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()}


def create(spark: SparkSession, name: str, schema: T.StructType, provider: str) -> None:
    """Makes the table where there is none, with its columns' comments; adds the columns that an older one lacks.
    Raises ValueError where the catalog refuses."""

    def define(fields: list[T.StructField]) -> str:
        return ", ".join(f"{f.name} {f.dataType.simpleString()} COMMENT '{_quoted(f)}'" for f in fields)

    try:
        spark.sql(f"CREATE TABLE IF NOT EXISTS {name} ({define(schema.fields)}) USING {provider}")
        there = spark.table(name).columns
        if absent := [f for f in schema if f.name not in there]:
            spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({define(absent)})")
    except AnalysisException as error:
        raise ValueError(f"{name}: {_reason(error)}") from None


def _quoted(field: T.StructField) -> str:
    return str(field.metadata["comment"]).replace("'", "\\'")


def from_rows(spark: SparkSession, rows: list[dict[str, Any]], columns: T.StructType) -> DataFrame:
    """A table that is part of the plan: Spark starts no Python for it, as it does for one made from a list. What a row
    does not have is null."""
    unknown = {name for row in rows for name in row} - set(columns.names)
    assert not unknown, unknown
    return spark.createDataFrame(pa.Table.from_pylist(rows, to_arrow_schema(columns)), columns)


def write_table(table: DataFrame, location: str, mode: str, rebalance: bool = True) -> None:
    """Writes `table`; `mode` is append or overwrite. Files come out at the size that Spark's advisory size says, or,
    without `rebalance`, one for each partition, which saves a shuffle."""
    rows = table.hint("rebalance") if rebalance else table
    if is_table_name(location):
        rows.write.mode(mode).saveAsTable(location)
    elif mode == "append":
        append_path(table, location)
    else:
        replace_path(rows, location)


def drop_table(spark: SparkSession, location: str) -> None:
    """Removes the table, where there is one."""
    if is_table_name(location):
        spark.sql(f"DROP TABLE IF EXISTS {location}")
    else:
        Folder(spark, location).delete()


def append_path(table: DataFrame, location: str) -> None:
    """Adds a file of `table`'s rows, whoever else adds one meanwhile: what Spark itself appends to a folder waits in
    one place there for all runs, and the first to end removes it."""
    staged = Folder(table.sparkSession, sibling(location, f"new-{uuid.uuid4().hex}"))
    place_file(table, staged, Folder(table.sparkSession, location))
    staged.delete()


def place_file(table: DataFrame, staged: Folder, folder: Folder, file: str = "") -> None:
    """Writes `table` as one file to the folder `staged`, and moves it into `folder`, as `file` or by Spark's name."""
    table.coalesce(1).write.option("maxRecordsPerFile", 0).parquet(staged.location)
    [name] = staged.names()
    folder.place(staged, name, file or name)


def replace_path(table: DataFrame, location: str) -> None:
    """Writes `table` beside `location` and then puts it in its place by two renames.

    Whoever starts reading finds the old table or the new one whole, but for the moment between the renames, when
    there is none; who was reading the old one may find its files gone. `table` may be made from what it replaces.
    """
    spark = table.sparkSession
    unique = uuid.uuid4().hex
    staged, old = sibling(location, f"new-{unique}"), sibling(location, f"old-{unique}")
    table.write.parquet(staged)
    target = _hadoop_path(spark, location)
    file_system = target.getFileSystem(spark._jsc.hadoopConfiguration())
    file_system.mkdirs(target.getParent())
    if file_system.exists(target):
        _rename(file_system, target, _hadoop_path(spark, old))
    _rename(file_system, _hadoop_path(spark, staged), target)
    file_system.delete(_hadoop_path(spark, old), True)


def having(keys: Mapping[str, str | None]) -> Column:
    """The rows that have all of these values, which may be null."""
    return reduce(and_, (F.col(name).eqNullSafe(F.lit(value)) for name, value in keys.items()))


def append_run(spark: SparkSession, captions: str, values: dict[str, Any]) -> None:
    """Leaves a row in the runs table, which stands beside the captions: their location with _runs after it."""
    row = {"spark_version": pyspark.__version__, "finished_at": datetime.now(UTC), **values}
    table = from_rows(spark, [row], RUNS)
    write_table(table, beside(captions, "runs"), "append", rebalance=False)


def beside(location: str, name: str) -> str:
    """Where the table `name` that belongs to the one at `location` is."""
    place = f"{location.rstrip('/')}_{name}"
    # Beside the file `captions.parquet`, `captions.parquet_runs` would read as a table in the catalog.
    return f"./{place}" if is_table_name(place) and not is_table_name(location) else place


def staging(spark: SparkSession, location: str, below: str = "") -> str:
    """Where rows are kept until they are committed: a hidden folder of the table's own, whatever else is there, below
    `below`, or else beside the table or, where Hadoop does not reach it, in Spark's warehouse."""
    if below:
        whole = absolute(location)
        name = whole.rpartition("/")[2]
        return f"{below.rstrip('/')}/.{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}-staging"
    if is_table_name(location):
        place = describe(spark, location).get("Location", "") if table_exists(spark, location) else ""
        if Folder.is_reached(spark, place):
            return sibling(place, "staging")
        return f"{spark.conf.get('spark.sql.warehouse.dir')}/.{location}-staging"
    return sibling(location, "staging")


def sibling(location: str, what: str) -> str:
    """A hidden name beside `location`, which no reader takes for data."""
    folder, _, name = location.rstrip("/").rpartition("/")
    return f"{folder}{'/' if folder or location.startswith('/') else ''}.{name}-{what}"


def _hadoop_path(spark: SparkSession, location: str) -> Any:
    assert spark._jvm is not None
    return spark._jvm.org.apache.hadoop.fs.Path(location)


def _rename(file_system: Any, source: Any, target: Any) -> None:
    if not file_system.rename(source, target):
        raise OSError(f"{source} could not be renamed to {target}")
