"""Tables keep their contract, and are read, written and replaced whole."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import tables
from jobs.common.storage import SystemicError

# Users' scripts rely on these.
CONTRACTS = [
    (
        tables.CAPTIONS,
        "image_id:string,image_version:string,uri:string,caption:string,log_prob:double,"
        "alternatives:array<struct<caption:string,log_prob:double>>,width:int,height:int,status:string,"
        "error_message:string,model_id:string,decode_id:string,run_id:string,captioned_at:timestamp,"
        "attempts:int",
    ),
    (tables.REFERENCES, "image_id:string,captions:array<string>"),
    (
        tables.CORPUS,
        "model_id:string,decode_id:string,metric:string,score:double,ci_low:double,ci_high:double,n_segments:bigint,"
        "n_missing:bigint,signature:string,run_id:string,evaluated_at:timestamp",
    ),
]


@pytest.mark.parametrize(("schema", "expected"), CONTRACTS)
def test_contract(schema: T.StructType, expected: str) -> None:
    assert schema.simpleString() == f"struct<{expected}>"


@pytest.mark.parametrize("name", ["IMAGES", "CAPTIONS", "REFERENCES", "SEGMENTS", "CORPUS", "RUNS"])
def test_every_column_is_explained(name: str) -> None:
    assert all(field.metadata["comment"] for field in getattr(tables, name))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("db.captions", True),
        ("spark_catalog.db.captions", True),
        ("captions", False),  # one word is a folder
        ("a.b.c.d", False),
        ("out/captions", False),
        ("./db.captions", False),
        ("s3://bucket/db.captions", False),
        ("dev-*.parquet", False),
        ("dev.parquet", False),
        ("db.my-captions", False),
    ],
)
def test_is_table_name(location: str, expected: bool) -> None:
    assert tables.is_table_name(location) == expected


def test_what_exists_is_no_table_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tables.is_table_name("run.captions")
    (tmp_path / "run.captions").mkdir()
    assert not tables.is_table_name("run.captions")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("out/captions/", "out/captions_runs"),
        ("db.captions", "db.captions_runs"),
        ("captions.parquet", "./captions.parquet_runs"),
        ("s3://bucket/captions", "s3://bucket/captions_runs"),
    ],
)
def test_beside(location: str, expected: str) -> None:
    assert tables.beside(location, "runs") == expected
    assert tables.is_table_name(expected) == tables.is_table_name(location)


def test_check_readable(tmp_path: Path) -> None:
    for location in (
        str(tmp_path),
        f"file://{tmp_path}",
        f"file:{tmp_path}",
        f"{tmp_path.parent}/*",
        "db.captions",
        "s3://bucket/x",
    ):
        tables.check_readable(location, "--captions")
    for location in (f"{tmp_path}/none", f"{tmp_path}/*.parquet"):
        with pytest.raises(ValueError, match=r"^--captions .*: no such file or folder$"):
            tables.check_readable(location, "--captions")


def test_check_writable(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "part-0.snappy.parquet").touch()
    (tmp_path / "table" / "_SUCCESS").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    for location in ("table", "new", "new/deeper"):
        tables.check_writable(f"{tmp_path}/{location}", "--captions")
    for location, said in (
        ("photos", "holds holiday.jpg"),
        ("photos/holiday.jpg", "is a file"),
        ("*.parquet", "would be read as a glob"),
        ("br [x]/captions", "would be read as a glob"),
    ):
        with pytest.raises(ValueError, match=said):
            tables.check_writable(f"{tmp_path}/{location}", "--captions")


def test_check_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("captions", "a_b"):
        (tmp_path / name).mkdir()
    for target, read in (("captions/segments", "captions"), (f"file://{tmp_path}/captions", "cap*/"), ("a", "a/x")):
        with pytest.raises(ValueError, match=f"^--scores {target}: --captions .* is there, and is read"):
            tables.check_apart(target, "--scores", read, "--captions")
    for target, read in (("segments", "captions"), ("a", "a_b"), ("captions_scores/segments", "captions")):
        tables.check_apart(target, "--scores", read, "--captions")


def references(spark: SparkSession, *image_ids: str) -> DataFrame:
    return spark.createDataFrame([(image_id, [f"of {image_id}"]) for image_id in image_ids], tables.REFERENCES)


def ids(table: DataFrame) -> list[str]:
    return sorted(row["image_id"] for row in table.collect())


def test_read_table_says_what_is_wrong(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "names")
    spark.createDataFrame([("a", "A dog", 3)], "image_id string, captions string, likes int").write.parquet(path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no Parquet, though it is as long as the end of one")
    for location, said in (
        (str(tmp_path / "photos"), r"CANNOT_READ_FILE_FOOTER\] .*/a\.jpg"),
        (path, r"captions must be array<string>, is string; it has image_id string, captions string, likes int$"),
        (str(tmp_path / "none"), r"\[PATH_NOT_FOUND\] Path does not exist: "),
        (str(tmp_path / "empty"), "schema"),
        ("no_such_db.table", "NOT_FOUND|cannot be found"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            tables.read_table(spark, location, tables.REFERENCES, "--references")
        assert str(caught.value).startswith(f"--references {location}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="content must be binary, is missing"):
        tables.read_table(spark, path, T.StructType([tables.IMAGES["content"]]), "--images")
    for location, said in (("s3://b/t", "Hadoop calls S3 s3a://"), ("s3a://b/t", "give spark-submit --packages")):
        with pytest.raises(SystemicError, match=f"^--references {location}: .*: {said}"):
            tables.read_table(spark, location, tables.REFERENCES, "--references")
    needed = T.StructType([tables.REFERENCES["image_id"]])
    assert tables.read_table(spark, path, needed, "--images").columns == ["image_id", "captions", "likes"]


def test_write_and_read_a_path(spark: SparkSession, tmp_path: Path) -> None:
    """Overwriting leaves the new rows alone, also where they are made from the old ones; and nothing beside them."""
    target = tmp_path / "deep" / "table"
    tables.write_table(references(spark, "a", "b"), f"{target}/", "overwrite")
    tables.write_table(references(spark, "c"), str(target), "append")
    table = tables.read_table(spark, str(target), tables.REFERENCES, "--references")
    assert ids(table) == ["a", "b", "c"]
    assert table.schema["image_id"].metadata["comment"]
    tables.write_table(table.where(F.col("image_id") != "b"), str(target), "overwrite")
    assert ids(spark.read.parquet(str(target))) == ["a", "c"]
    assert ids(spark.read.parquet(f"{tmp_path}/d*/t*")) == ["a", "c"]
    tables.append_run(spark, str(target), {"run_id": "r"})
    assert ids(tables.read_table(spark, f"{tmp_path}/d*/t*", tables.REFERENCES, "--references")) == ["a", "c"]
    tables.drop_table(spark, f"{target}_runs")
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".crc")] == ["table"]


def test_a_write_that_fails_leaves_the_old_table(spark: SparkSession, tmp_path: Path) -> None:
    target = str(tmp_path / "table")
    tables.write_table(references(spark, "a"), target, "overwrite")
    broken = references(spark, "b").withColumn("image_id", F.raise_error(F.lit("broken")).cast("string"))
    with pytest.raises(Exception, match="broken"):
        tables.write_table(broken, target, "overwrite")
    assert ids(spark.read.parquet(target)) == ["a"]


def test_write_and_read_a_catalog_table(spark: SparkSession) -> None:
    spark.sql("CREATE DATABASE IF NOT EXISTS writing")
    tables.write_table(references(spark, "a"), "writing.refs", "overwrite")
    tables.write_table(references(spark, "b"), "writing.refs", "append")
    table = tables.read_table(spark, "writing.refs", tables.REFERENCES, "--references")
    assert ids(table) == ["a", "b"]
    tables.write_table(references(spark, "c"), "writing.refs", "overwrite")
    assert ids(spark.read.table("writing.refs")) == ["c"]


def test_append_run(spark: SparkSession, tmp_path: Path) -> None:
    at = f"{tmp_path}/captions"
    for run in ("1", "2"):
        values = {"run_id": run, "job": "caption_images", "counts": {"ok": 3}, "started_at": datetime.now(UTC)}
        tables.append_run(spark, at, values)
    runs = tables.read_table(spark, f"{at}_runs", tables.RUNS, "--captions").orderBy("run_id").collect()
    assert [(row["run_id"], row["counts"]) for row in runs] == [("1", {"ok": 3}), ("2", {"ok": 3})]
    assert all(row["spark_version"] and row["started_at"] <= row["finished_at"] for row in runs)


def test_runs_that_end_together_all_leave_a_row(spark: SparkSession, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: tables.append_run(spark, str(tmp_path / "t"), {"run_id": str(n)}), range(8)))
    assert sorted(row["run_id"] for row in spark.read.parquet(str(tmp_path / "t_runs")).collect()) == list("01234567")
    assert [path.name for path in tmp_path.iterdir()] == ["t_runs"]


def test_plain_paths_may_be_a_clusters(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hadoop's settings name another file system: nothing here tells what is there."""
    site = tmp_path / "core-site.xml"
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    for settings in ("", "<property><name>fs.defaultFS</name><value>file:///</value></property>"):
        site.write_text(f"<configuration>{settings}</configuration>")
        with pytest.raises(ValueError, match="no such file"):
            tables.check_readable("/no/such/table", "--captions")
    site.write_text(site.read_text().replace("file:///", "hdfs://name:8020"))
    tables.check_readable("/no/such/table", "--captions")
    with pytest.raises(ValueError, match=r"^--captions file:///no/such/table: no such file"):
        tables.check_readable("file:///no/such/table", "--captions")
    with pytest.raises(ValueError, match=r"^--captions /no/such/table: \[PATH_NOT_FOUND\]"):
        tables.read_table(spark, "/no/such/table", tables.REFERENCES, "--captions")
    spark.createDataFrame([("a", ["b"])], tables.REFERENCES).write.parquet(str(tmp_path / "there"))
    assert tables.read_table(spark, str(tmp_path / "there"), tables.REFERENCES, "--references").count() == 1


def test_nulls_are_values_too(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("m", "d"), (None, "d"), ("m", None)], "model_id string, decode_id string")
    assert rows.where(tables.having({"model_id": None, "decode_id": "d"})).count() == 1
