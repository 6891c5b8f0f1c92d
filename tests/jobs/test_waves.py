"""Waves and resuming, in each format: one row for each image, whatever was captioned, failed or changed before."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs import caption_images
from jobs.common import files, tables, waves
from jobs.common.files import Folder, lease
from jobs.common.session import exit_status
from jobs.common.sources import Images, ImageTable
from jobs.common.targets import FORMATS, find_target
from jobs.common.waves import Wave
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory


@pytest.mark.parametrize(
    ("units", "size", "expected"),
    [
        ([], 10, []),
        ([(None, "a", 3), (None, "b", 7)], 10, [Wave((), ("a", "b"), 10)]),
        ([(None, "a", 3), (None, "b", 8)], 10, [Wave((), ("a",), 3), Wave((), ("b",), 8)]),
        ([(None, "a", 30)], 10, [Wave((), ("a",), 30)]),
        ([(None, None, 5)], 10, [Wave((), (None,), 5)]),
        # Commits are replaced whole, several at once...
        (
            [("old", "a", 1), (None, "a", 1), ("older", "a", 1), ("older", "b", 1)],
            10,
            [Wave((), ("a",), 1), Wave(("old", "older"), ("a", "b"), 3)],
        ),
        # ...as many as a wave holds; and what is cut within a commit is by itself, or units would be taken twice.
        (
            [("1", "a", 4), ("2", "b", 7), ("3", "a", 6), ("3", "b", 6), ("4", "b", 1)],
            10,
            [Wave(("1",), ("a",), 4), Wave(("2",), ("b",), 7), Wave(("3",), ("a",), 6), Wave(("3",), ("b",), 6),
             Wave(("4",), ("b",), 1)],
        ),
    ],
)  # fmt: skip
def test_cut(units: list[tuple[str | None, str | None, int]], size: int, expected: list[Wave]) -> None:
    assert waves.cut(units, size) == expected


def test_only_what_holds_duplicates_is_moved_to_drop_them(spark: SparkSession, tmp_path: Path) -> None:
    for number, ids in enumerate(("aab", "cd")):
        rows = spark.createDataFrame([(image_id, b"x") for image_id in ids], "image_id string, content binary")
        rows.coalesce(1).write.parquet(str(tmp_path / "images.parquet" / f"part={number}"))
    images = ImageTable(str(tmp_path / "images.parquet")).read(spark)
    target = find_target(spark, str(tmp_path / "captions"), "parquet", Folder(spark, str(tmp_path / "staging")))
    plan = waves.plan(images, target, None, {}, waves.Limits(images=0, wave=2, max_attempts=3))
    assert plan.duplicates == 1
    read = [plan.read(wave) for wave in plan.waves]
    assert sorted(sorted(row["image_id"] for row in rows.collect()) for rows in read) == [["a", "b"], ["c", "d"]]
    plans = [rows._jdf.queryExecution().toString() for rows in read]
    assert sorted("Deduplicate" in text for text in plans) == [False, True]


def test_tables_of_which_no_part_is_read_alone_are_read_seldom(spark: SparkSession, tmp_path: Path) -> None:
    """Of Delta, each wave reads all files: waves are as large as can be, and by what the images are called."""
    location = str(tmp_path / "images")
    rows = [(f"{number}", bytearray(b"x")) for number in range(40)] + [("7", bytearray(b"y"))]
    spark.createDataFrame(rows, "image_id string, content binary").repartition(5).write.format("delta").save(location)
    images = ImageTable(location).read(spark)
    assert images.whole
    target = find_target(spark, str(tmp_path / "captions"), "parquet", Folder(spark, str(tmp_path / "staging")))
    plan = waves.plan(images, target, None, {}, waves.Limits(images=0, wave=0, max_attempts=3))
    assert [wave.size for wave in plan.waves] == [40]
    target = find_target(spark, str(tmp_path / "captions"), "parquet", Folder(spark, str(tmp_path / "other")))
    plan = waves.plan(images, target, None, {}, waves.Limits(images=0, wave=10, max_attempts=3))
    assert len(plan.waves) >= 4
    assert plan.duplicates == 1
    read = [row["image_id"] for wave in plan.waves for row in plan.read(wave).collect()]
    assert sorted(read) == sorted({image_id for image_id, _ in rows})


def test_an_image_that_stands_in_the_table_twice_is_captioned_once(spark: SparkSession) -> None:
    """As two runs at once may have left it."""
    rows = [("a", "decode_error", day, 1, f"commit-{day}") for day in (1, 2, 3)] + [("b", "ok", 1, 1, "commit-1")]
    columns = "image_id string, status string, captioned_at int, attempts int, commit string"
    existing = spark.createDataFrame(rows, columns).withColumns({
        "captioned_at": F.timestamp_seconds("captioned_at"), "image_version": F.lit("1"), "model_id": F.lit("m"),
    })  # fmt: skip
    images = spark.createDataFrame([("a", "1", None, None), ("b", "1", None, None)], LISTED_WITH_UNIT)
    todo = waves.find_todo(Images(images, False, unique=True), existing, {"model_id": "m"}, 3).collect()
    assert [(row["image_id"], row["attempts"]) for row in todo] == [("a", 2)]


LISTED_WITH_UNIT = "image_id string, image_version string, uri string, unit string"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("model"))


# Tables of a catalog differ in how they are named: the test with fewest runs covers them.
PATHS = pytest.mark.parametrize("table", FORMATS, indirect=True)


@pytest.fixture(params=[*FORMATS, "parquet table", "delta table"])
def table(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> tuple[str, str]:
    """Format and location of a captions table that is not there yet."""
    form, _, named = request.param.partition(" ")
    if form == "iceberg":
        spark.sql("CREATE NAMESPACE IF NOT EXISTS ice.nights")
        spark.sql("DROP TABLE IF EXISTS ice.nights.captions")
        spark.sql("DROP TABLE IF EXISTS ice.nights.captions_runs")
        return form, "ice.nights.captions"
    if named:
        spark.sql("CREATE DATABASE IF NOT EXISTS nights")
        return form, f"nights.{form}_{uuid.uuid4().hex}"  # `nights.parquet` alone would be a path
    return form, str(tmp_path / "captions")


def load(spark: SparkSession, form: str, location: str) -> DataFrame:
    """What a user who knows nothing of us reads."""
    return spark.table(location) if tables.is_table_name(location) else spark.read.format(form).load(location)


def name_of(form: str, location: str) -> str:
    """As SQL names it."""
    return location if tables.is_table_name(location) else f"{form}.`{location}`"


def read(spark: SparkSession, form: str, location: str) -> dict[str, Row]:
    found = load(spark, form, location).collect()
    assert len({(row["image_id"], row["model_id"], row["decode_id"]) for row in found}) == len(found)
    return {row["image_id"]: row for row in found}


def run(model: Path, images: Path, table: tuple[str, str], *options: object) -> int:
    given = ["--images", images, "--model", model, "--format", table[0], "--captions", table[1], *options]
    return exit_status(lambda: caption_images.main([*map(str, given)]))


@PATHS
def test_nights(
    spark: SparkSession, model: Path, table: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New, failed and changed images are captioned, and nothing else; a failure is final after its last attempt."""
    images = tmp_path / "images"
    images.mkdir()
    good = photographs(6)
    for number in range(4):
        (images / f"{number}.png").write_bytes(good[number])
    for name in ("bad.png", "worse.png"):
        (images / name).write_bytes(b"no image")
    assert run(model, images, table, "--wave-size", 2, "--max-attempts", 2) == 0
    first = read(spark, *table)
    assert {name: row["status"] for name, row in first.items()} == {
        **{f"{number}.png": "ok" for number in range(4)}, "bad.png": "decode_error", "worse.png": "decode_error",
    }  # fmt: skip
    assert {row["attempts"] for row in first.values()} == {1}

    (images / "bad.png").write_bytes(good[4])  # mended, and so another version
    (images / "new.png").write_bytes(good[5])
    os.utime(images / "0.png", (1, 1))
    (images / "1.png").unlink()
    assert run(model, images, table, "--wave-size", 2, "--max-attempts", 2) == 0
    second = read(spark, *table)
    assert {name for name, row in second.items() if row != first.get(name)} == {
        "bad.png",
        "new.png",
        "0.png",
        "worse.png",
    }
    assert (second["worse.png"]["status"], second["worse.png"]["attempts"]) == ("decode_error", 2)
    assert (second["bad.png"]["status"], second["bad.png"]["attempts"]) == ("ok", 1)

    if table[0] == "delta":  # a user's own column stays, and is in nobody's way
        spark.sql(f"ALTER TABLE {name_of(*table)} ADD COLUMNS (mine STRING FIRST)")
        second = read(spark, *table)
    capsys.readouterr()
    assert run(model, images, table, "--max-attempts", 2) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert read(spark, *table) == second
    assert run(model, images, table, "--beam-size", 1, "--max-attempts", 2) == 0
    rows = load(spark, *table)
    assert sorted(row["count"] for row in rows.groupBy("decode_id").count().collect()) == [6, 7]
    assert run(model, images, table, "--mode", "overwrite", "--limit", 2) == 0
    assert len(read(spark, *table)) == 2
    assert rows.schema["caption"].metadata.get("comment")
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left == []


@PATHS
def test_fifty_new_and_ten_failed(
    spark: SparkSession, model: Path, table: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among many that are done exactly these are captioned, whatever files their rows stand in."""
    images = tmp_path / "images.parquet"
    photograph = photographs(1)[0]
    failed = {f"{number}.png" for number in range(0, 100, 10)}

    def write(count: int, bad: set[str]) -> None:
        names = [f"{number}.png" for number in range(count)]
        rows = [(name, "1", bytearray(b"no image" if name in bad else photograph)) for name in names]
        columns = "image_id string, image_version string, content binary"
        spark.createDataFrame(rows, columns).repartition(5).write.mode("overwrite").parquet(str(images))

    def n_files() -> int:
        return load(spark, *table).select(F.input_file_name()).distinct().count()

    write(100, failed)
    assert run(model, images, table, "--wave-size", 40) == 0
    assert n_files() == 3  # one for each wave, of two of the five files with 20 images each
    first = read(spark, *table)
    assert {name for name, row in first.items() if row["status"] != "ok"} == failed
    write(150, set())
    capsys.readouterr()
    assert run(model, images, table) == 0
    assert "\n60 images in " in capsys.readouterr().out
    second = read(spark, *table)
    assert {name for name, row in second.items() if row != first.get(name)} == failed | second.keys() - first.keys()
    assert len(second) == 150
    assert {row["status"] for row in second.values()} == {"ok"}
    assert {row["attempts"] for name, row in second.items() if name in failed} == {2}
    assert n_files() <= 4


def test_a_table_of_the_first_version_grows(
    spark: SparkSession, model: Path, table: tuple[str, str], tmp_path: Path
) -> None:
    """Rows without the columns of later versions are resumed and replaced like others."""
    form, location = table
    images = tmp_path / "images"
    images.mkdir()
    for number, content in enumerate(photographs(3)):
        (images / f"{number}.png").write_bytes(content)
    assert run(model, images, table, "--wave-size", 100) == 0
    rows = load(spark, *table)
    old = spark.createDataFrame(rows.drop("attempts").where("image_id != '2.png'").collect(), tables.FIRST_CAPTIONS)
    if tables.is_table_name(location):
        spark.sql(f"DROP TABLE {location}")
        old.write.format(form).saveAsTable(location)
    else:
        old.write.format(form).mode("overwrite").option("overwriteSchema", "true").save(location)
    os.utime(images / "0.png", (1, 1))
    assert run(model, images, table) == 0
    found = read(spark, form, location)
    assert sorted(found) == ["0.png", "1.png", "2.png"]
    assert {row["status"] for row in found.values()} == {"ok"}
    if form != "parquet" or tables.is_table_name(location):
        assert {name: row["attempts"] for name, row in found.items()} == {"0.png": 1, "1.png": None, "2.png": 1}


def test_a_table_of_another_format_is_refused(
    spark: SparkSession, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(photographs(1)[0])
    spark.range(1).write.format("delta").save(str(tmp_path / "delta"))
    spark.sql("CREATE DATABASE IF NOT EXISTS nights")
    spark.sql("DROP TABLE IF EXISTS nights.other")
    spark.sql("CREATE TABLE nights.other (image_id STRING) USING delta")
    for form, location, said in (
        ("parquet", str(tmp_path / "delta"), "is a Delta table; choose it by --format delta"),
        ("parquet", "nights.other", "is a table of format delta; choose it by --format"),
        ("delta", str(tmp_path / "delta"), "image_version must be string, is missing"),
    ):
        assert run(model, tmp_path / "images", (form, location)) == 2
        assert said in capsys.readouterr().err


def test_a_run_does_not_take_its_own_beat_for_anothers(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file that is being written is there and empty, as on HDFS."""
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.002)
    spark._jsc.hadoopConfiguration().set("fs.viewfs.mounttable.beat.link./all", tmp_path.as_uri())
    with lease(Folder(spark, "viewfs://beat/all/staging"), "mine", "--captions t") as held:
        for _ in range(200):
            held.check()


def test_one_run_at_a_time(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(files, "WATCH_SECONDS", 1.0)
    folder = Folder(spark, str(tmp_path / ".staging"))

    def take(owner: str) -> Callable[[], None]:
        with lease(folder, owner, "--captions t") as held:
            return held.check

    with lease(folder, "first", "--captions t") as held:
        with pytest.raises(ValueError, match=r"^--captions t is being written by run first \(process \d+ on .*\): try"):
            take("second")
        held.check()
    take("second")
    assert not folder.exists("lock")
    for dead in (
        f"gone {os.uname().nodename} 4194999 7",
        f"gone {os.uname().nodename} {os.getpid()} 7",
        "gone far 1 7",
        "",
    ):
        folder.write_text("lock", dead)
        with lease(folder, "third", "--captions t") as held:
            held.check()
            folder.write_text("lock", "fourth elsewhere 1 1")
            with pytest.raises(ValueError, match="another run has taken over --captions t"):
                held.check()
        assert folder.read_text("lock") == "fourth elsewhere 1 1"
