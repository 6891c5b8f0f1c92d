"""The captions table in its formats: how rows are read from it, and how a wave of them is committed.

Whatever the format, a commit is seen whole or not at all, and replaces the rows of the same image, model and decoding.

- Parquet, a path or a catalog table: a commit is one file, put in place in one step. Rows that are replaced stand in
  files of earlier commits, so a wave that replaces rows is a commit for each of these, which puts in its place a file
  of its other rows and the new ones. A reader that listed the folder before and opens that file after may have to try
  again; it never sees other rows than those before or after.
- Delta and Iceberg: a commit is a transaction, an INSERT of new images or a MERGE of rows that replace others.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.common import storage, tables
from jobs.common.files import Folder

FORMATS = ("parquet", "delta", "iceberg")
KEYS = ("image_id", "model_id", "decode_id")
PARTITIONED = "is partitioned, which a Parquet table of captions is not"
PACKAGES = {  # of the Spark version that pyproject.toml names
    "delta": ("io.delta.tables.DeltaTable", "io.delta:delta-spark_4.1_2.13:4.4.0"),
    "iceberg": ("org.apache.iceberg.spark.SparkCatalog", "org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0"),
}


@dataclass(frozen=True)
class Target:
    """What the two kinds of table have in common. `staging` is a folder for what is not committed yet."""

    spark: SparkSession
    location: str
    staging: Folder

    def open(self) -> DataFrame | None:
        """Makes the table where there is none, adds the columns that it lacks, and returns its rows as CAPTIONS,
        whatever version wrote them, with `commit`: what a wave that replaces a row has to name. None where there was no
        table. Raises ValueError where it is another one."""
        raise NotImplementedError

    def check_staging(self) -> None:
        """Raises ValueError where what is staged cannot be committed from there."""

    def commit(self, rows: DataFrame, name: str, replaces: Collection[str]) -> None:
        """Adds `rows`, which are staged, or puts them in the place of others: of those of the commits `replaces`.
        `name` is unique."""
        raise NotImplementedError

    def overwrite(self, rows: DataFrame) -> None:
        """Puts `rows` in the place of all others."""
        raise NotImplementedError

    def stage(self, rows: DataFrame, name: str, **options: Any) -> DataFrame:
        """`rows`, computed once and kept until the run ends."""
        path = self.staging.at(name)
        rows.write.options(**options).parquet(path)
        return self.spark.read.schema(rows.schema).parquet(path)


class ParquetTarget(Target):
    """A folder of Parquet files, which may be a catalog table's."""

    def _folder(self) -> Folder | None:
        if not tables.is_table_name(self.location):
            return Folder(self.spark, self.location)
        if not tables.table_exists(self.spark, self.location):
            return None
        about = tables.describe(self.spark, self.location)
        if about.get("Provider", "").lower() != "parquet":
            raise ValueError(
                f"--captions {self.location}: is a table of format {about.get('Provider')}; choose it by --format"
            )
        if "# Partition Information" in about:
            raise ValueError(f"--captions {self.location}: {PARTITIONED}")
        return Folder(self.spark, about["Location"])

    def open(self) -> DataFrame | None:
        rows = self._read()
        if tables.is_table_name(self.location):
            tables.create(self.spark, self.location, tables.CAPTIONS, "parquet")
        return rows

    def check_staging(self) -> None:
        folder = self._folder()
        assert folder is not None
        if not folder.shares_system(self.staging):
            raise ValueError(
                f"--captions {self.location}: rows wait in {self.staging.location}, on another file system than"
                f" {folder.location}, and cannot be moved there; --staging names a folder on that one"
            )

    def _read(self) -> DataFrame | None:
        folder = self._folder()
        names = folder.names() if folder is not None else []
        if folder is None or not names:
            return None
        if folder.exists("_delta_log"):
            raise ValueError(f"--captions {self.location}: is a Delta table; choose it by --format delta")
        if any("=" in name for name in names):
            raise ValueError(f"--captions {self.location}: {PARTITIONED}")
        tables.read_table(self.spark, self.location, tables.FIRST_CAPTIONS, "--captions")
        # Files of an earlier version lack columns: by the whole schema, these are null.
        rows = self.spark.read.schema(tables.CAPTIONS).parquet(folder.location)
        return rows.withColumn("commit", F.col("_metadata.file_name"))

    def commit(self, rows: DataFrame, name: str, replaces: Collection[str]) -> None:
        folder = self._folder()
        assert folder is not None
        if not replaces:
            self._place(rows, folder, name, f"{name}.parquet")
        else:
            cores = self.spark.sparkContext.defaultParallelism
            with ThreadPoolExecutor(min(len(replaces), cores)) as pool:  # each writes with one core

                def replace(number: int, file: str) -> None:
                    self._place(self._merged(rows, folder.at(file)), folder, f"{name}-{number}", file)

                for _ in pool.map(replace, range(len(replaces)), replaces):
                    pass  # raises what was raised there
        self._refresh()

    def _merged(self, rows: DataFrame, path: str) -> DataFrame:
        """The rows of the file, those of `rows` in the place of those that they replace."""
        before = self.spark.read.schema(tables.CAPTIONS).parquet(path)

        def matching(other: DataFrame) -> Column:
            return reduce(and_, (before[key].eqNullSafe(other[key]) for key in KEYS))

        keys = rows.select(*KEYS)
        others = before.join(keys, matching(keys), how="left_anti")
        return others.unionByName(rows.join(before, matching(rows), how="left_semi"))

    def _place(self, rows: DataFrame, folder: Folder, name: str, file: str) -> None:
        staged = Folder(self.spark, self.staging.at(f"{name}-whole"))
        tables.place_file(rows.to(tables.CAPTIONS), staged, folder, file)

    def overwrite(self, rows: DataFrame) -> None:
        folder = self._folder()
        assert folder is not None
        tables.replace_path(rows.to(tables.CAPTIONS).hint("rebalance"), folder.location)
        self._refresh()

    def _refresh(self) -> None:
        if tables.is_table_name(self.location):
            self.spark.catalog.refreshTable(self.location)


@dataclass(frozen=True)
class TransactionTarget(Target):
    """A table whose format has transactions: Delta, at a path or in a catalog, or Iceberg, in a catalog."""

    format: str

    @property
    def _name(self) -> str:
        if tables.is_table_name(self.location):
            return self.location
        whole = Folder(self.spark, self.location).whole("")  # Delta takes no relative path
        return f"delta.`{whole.replace('`', '``')}`"

    def _exists(self) -> bool:
        if tables.is_table_name(self.location):
            return tables.table_exists(self.spark, self.location)
        return Folder(self.spark, self.location).exists("_delta_log")

    def open(self) -> DataFrame | None:
        there = self._read() is not None
        tables.create(self.spark, self._name, tables.CAPTIONS, self.format)
        provider = tables.describe(self.spark, self._name).get("Provider", self.format)
        if provider.lower() != self.format:
            raise ValueError(f"--captions {self.location}: is a table of format {provider}; choose it by --format")
        return self._read() if there else None  # which may have more columns now

    def _read(self) -> DataFrame | None:
        if not self._exists():
            return None
        rows = tables.read_table(self.spark, self.location, tables.FIRST_CAPTIONS, "--captions")
        absent = {f.name: F.lit(None).cast(f.dataType) for f in tables.CAPTIONS if f.name not in rows.columns}
        return rows.withColumns(absent).select(*tables.CAPTIONS.names, F.lit("table").alias("commit"))

    def commit(self, rows: DataFrame, name: str, replaces: Collection[str]) -> None:
        columns = ", ".join(tables.CAPTIONS.names)
        view = f"rows_{name.replace('-', '_')}"
        rows.select(tables.CAPTIONS.names).hint("rebalance").createOrReplaceTempView(view)
        if not replaces:
            self.spark.sql(f"INSERT INTO {self._name} ({columns}) SELECT {columns} FROM {view}")
        else:
            same = " AND ".join(f"old.{key} <=> new.{key}" for key in KEYS)
            values = ", ".join(f"{column} = new.{column}" for column in tables.CAPTIONS.names)
            added = ", ".join(f"new.{column}" for column in tables.CAPTIONS.names)
            self.spark.sql(
                f"MERGE INTO {self._name} old USING {view} new ON {same} WHEN MATCHED THEN UPDATE SET {values}"
                f" WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({added})"
            )
        self.spark.catalog.dropTempView(view)

    def overwrite(self, rows: DataFrame) -> None:
        rows.select(tables.CAPTIONS.names).hint("rebalance").createOrReplaceTempView("all_rows")
        columns = ", ".join(tables.CAPTIONS.names)
        self.spark.sql(f"INSERT OVERWRITE {self._name} ({columns}) SELECT {columns} FROM all_rows")
        self.spark.catalog.dropTempView("all_rows")


def check_target(location: str, form: str) -> None:
    """Raises ValueError, before Spark runs, for a table that cannot be written."""
    if storage.is_s3(location):
        name = storage.hadoop_name(location)
        raise ValueError(f"--captions {location}: Hadoop writes tables on S3, and calls this {name}")
    if form == "iceberg" and not tables.is_table_name(location):
        raise ValueError(f"--captions {location}: an Iceberg table is named by its catalog: catalog.database.table")
    tables.check_writable(location, "--captions")


def prepare_target(spark: SparkSession, location: str, form: str) -> None:
    """Makes a table of a catalog where there is none, so that all runs find the lease where it is. Raises ValueError
    where this Spark lacks the format's jar, or the catalog."""
    if form in PACKAGES:
        needed, package = PACKAGES[form]
        assert spark._jvm is not None
        if not spark._jvm.org.apache.spark.util.Utils.classIsLoadable(needed):
            raise ValueError(f"--format {form}: this Spark has no {needed}; give spark-submit --packages {package}")
    if tables.is_table_name(location) and not tables.table_exists(spark, location):
        tables.create(spark, location, tables.CAPTIONS, form)


def find_target(spark: SparkSession, location: str, form: str, staging: Folder) -> Target:
    """The table at `location`."""
    if form == "parquet":
        return ParquetTarget(spark, location, staging)
    return TransactionTarget(spark, location, staging, form)
