"""The main job in a local session: what it reads, what it writes, and what it does the second time."""

import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs import caption_images
from jobs.common import tables, waves
from jobs.common.captioning import CaptioningConfig, read_captioning
from jobs.common.files import Folder
from jobs.common.logs import Logging
from jobs.common.session import exit_status
from jobs.common.sources import ImageTable, spread
from jobs.common.storage import Access, SystemicError
from jobs.common.targets import ParquetTarget, TransactionTarget, find_target
from jobs.common.udfs import StatusCounts, Watch, import_workers, warm_worker
from nic_model.captioner import Captioner
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.vocabulary import Vocabulary
from tests.hostile_images import photographs as photos
from tests.hostile_images import write_hostile_folder
from tests.nic_model.test_captioner import photographs
from tests.tiny import CONFIG, WORDS, tiny_model_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them in a sub-folder, and a text file."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name, content in zip(("a.png", "_DSC1.PNG", "sub/c.png"), photographs(3), strict=True):
        (images / name).write_bytes(content)
    (images / "notes.txt").write_text("no image")
    return images


def run(model: Path, folder: Path | str, *options: object) -> int:
    """The job as spark-submit would run it."""
    arguments = ["--images", str(folder), "--model", str(model), *map(str, options)]
    return exit_status(lambda: caption_images.main(arguments))


def read(spark: SparkSession, location: Path | str) -> dict[str, dict[str, object]]:
    rows = spark.read.parquet(str(location)).collect()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row.asDict() for row in rows}


def test_folder_to_table(spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "captions"
    assert run(model, folder, "--captions", out) == 0
    assert spark.read.parquet(str(out)).schema.simpleString() == tables.CAPTIONS.simpleString()
    rows = read(spark, out)
    assert sorted(rows) == ["_DSC1.PNG", "a.png", "sub/c.png"]
    for name, row in rows.items():
        assert row["status"] == "ok"
        assert row["caption"]
        assert row["uri"] == (folder / name).as_uri()
        assert (row["width"], row["height"]) == (90, 60)
    printed = capsys.readouterr().out
    assert f"a.png      {rows['a.png']['caption']}" in printed
    assert "3 images in" in printed
    assert printed.splitlines()[-2].endswith("): 3 ok")
    (record,) = spark.read.parquet(f"{out}_runs").collect()
    assert (record["job"], record["n_images"], record["counts"]) == ("caption_images", 3, {"ok": 3})
    assert record["run_id"] == rows["a.png"]["run_id"]
    assert json.loads(record["options"])["decode"]["beam_size"] == 2


def test_second_run_captions_only_what_is_new_changed_or_failed(
    spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "captions"
    (folder / "bad.jpg").write_bytes(b"")
    assert run(model, folder, "--captions", out) == 0
    first = read(spark, out)
    assert run(model, folder, "--captions", out, "--images", folder / "*.[Pp][Nn][Gg]") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert read(spark, out) == first

    (folder / "new.png").write_bytes(photographs(4)[3])
    (folder / "bad.jpg").write_bytes(photographs(5)[4])
    os.utime(folder / "a.png", (1, 1))
    assert run(model, folder, "--captions", out) == 0
    second = read(spark, out)
    changed = {name for name, row in second.items() if row != first.get(name)}
    assert changed == {"new.png", "bad.jpg", "a.png"}
    assert {row["status"] for row in second.values()} == {"ok"}
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_other_settings_stand_beside_and_overwrite_replaces(spark: SparkSession, model: Path, folder: Path) -> None:
    out = str(folder.parent / "captions")
    assert run(model, folder, "--captions", out) == 0
    assert run(model, folder, "--captions", out, "--beam-size", 1) == 0
    assert spark.read.parquet(out).groupBy("decode_id").count().collect()[1]["count"] == 3
    assert spark.read.parquet(out).count() == 6
    assert run(model, folder, "--captions", out, "--mode", "overwrite", "--limit", 2) == 0
    assert spark.read.parquet(out).count() == 2


def test_a_source_without_images_gives_an_empty_table(spark: SparkSession, model: Path, folder: Path) -> None:
    """And references that nothing is scored against are no matter."""
    top = folder.parent
    spark.createDataFrame([("a.png", ["a dog"])], tables.REFERENCES).write.parquet(f"{top}/refs")
    spark.createDataFrame([], "image_id string, content binary").write.parquet(f"{top}/none.parquet")
    for form in ("parquet", "delta"):
        given = ("--captions", f"{top}/out/{form}", "--format", form)
        for images, options, count in (
            (top / "none.parquet", ("--references", top / "refs"), 0),
            (folder, (), 3),
            (top / "none.parquet", ("--mode", "overwrite"), 0),
        ):
            assert run(model, images, *given, *options) == 0
            assert spark.read.format(form).load(f"{top}/out/{form}").count() == count


def test_delta_is_told_whole_paths(spark: SparkSession, tmp_path: Path) -> None:
    """It takes no others. A relative one is one below Spark's folder."""
    target = find_target(spark, "out/a`b", "delta", Folder(spark, str(tmp_path)))
    assert isinstance(target, TransactionTarget)
    assert re.fullmatch(r"delta\.`file:/.*/out/a``b`", target._name)


def test_a_run_that_stops_leaves_its_row(
    spark: SparkSession, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ParquetTarget.commit

    def failing(self: ParquetTarget, rows: DataFrame, name: str, replaces: Sequence[str]) -> None:
        if list(folder.parent.glob("captions/*.parquet")):
            raise SystemicError("no more room")
        commit(self, rows, name, replaces)

    monkeypatch.setattr(ParquetTarget, "commit", failing)
    out = folder.parent / "captions"
    spark.createDataFrame(
        [(name, bytearray(content)) for name, content in zip("ab", photographs(2), strict=True)],
        "image_id string, content binary",
    ).repartition(2, "image_id").write.parquet(str(folder.parent / "two.parquet"))
    assert run(model, folder.parent / "two.parquet", "--captions", out, "--wave-size", 1) == 1
    (record,) = spark.read.parquet(f"{out}_runs").collect()
    assert record["counts"] == {"ok": 1}
    assert json.loads(record["options"])["stopped"] == "no more room"


def test_parquet_on_s3_is_what_hadoop_calls_s3a(spark: SparkSession, model: Path, folder: Path) -> None:
    """Of Hadoop's own file systems one stands for s3a:// here, whose jar these tests do without."""
    stored, out = folder.parent / "stored", folder.parent / "captions"
    rows = [(name, bytearray(content)) for name, content in zip("ab", photographs(2), strict=True)]
    spark.createDataFrame(rows, "image_id string, content binary").write.parquet(f"{stored}/images.parquet")
    settings = spark._jsc.hadoopConfiguration()
    names = {
        "fs.s3a.impl": "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme",
        "fs.viewfs.overload.scheme.target.file.impl": "org.apache.hadoop.fs.LocalFileSystem",
        "fs.viewfs.mounttable.bucket.link./night": stored.as_uri(),
    }
    for name, value in names.items():
        settings.set(name, value)
    try:
        assert run(model, "s3://bucket/night/images.parquet", "--captions", out) == 0
    finally:
        for name in names:
            settings.unset(name)
    assert sorted(read(spark, out)) == ["a", "b"]


def test_a_partitioned_folder_is_no_parquet_table_of_captions(
    spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(folder.parent / "captions")
    spark.createDataFrame([("x", "ok")], "image_id string, status string").write.partitionBy("status").parquet(out)
    assert run(model, folder, "--captions", out) == 2
    assert "is partitioned, which a Parquet table of captions is not" in capsys.readouterr().err


def test_a_python_worker_loads_the_models_ahead(spark: SparkSession, tmp_path: Path) -> None:
    captioning = read_captioning([str(tiny_model_directory(tmp_path, seed=7))], CaptioningConfig(), {}, Access())
    recipe = captioning.recipe(spark)
    warm_worker(spark, recipe, Watch(spark.sparkContext.accumulator(Counter(), StatusCounts()), Logging("text")))

    def look(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        list(batches)
        yield pa.RecordBatch.from_pydict({"made": [len(import_workers()._captioners(recipe))]})

    end = time.monotonic() + 60
    while not (made := spark.range(1, numPartitions=1).mapInArrow(look, "made long").collect())[0]["made"]:
        assert time.monotonic() < end
    assert made[0]["made"] == 1


def test_hostile_folder_gives_a_row_each(spark: SparkSession, model: Path, tmp_path: Path) -> None:
    expected = write_hostile_folder(tmp_path / "hostile", photos(20))
    assert run(model, tmp_path / "hostile", "--captions", tmp_path / "out") == 0
    rows = read(spark, tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == expected
    for row in rows.values():
        assert (row["error_message"] is None) == (row["status"] == "ok")
    upright, turned = rows["photo_00.jpg"], rows["exif_orientation_6.jpg"]
    assert (turned["width"], turned["height"]) == (upright["width"], upright["height"])
    assert turned["caption"] == upright["caption"]


def image_table(path: Path, rows: Sequence[dict[str, object]], **columns: pa.DataType) -> Path:
    schema = pa.schema(list((columns or {"image_id": pa.string(), "content": pa.binary()}).items()))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def test_parquet_of_one_row_group_is_spread(spark: SparkSession, model: Path, tmp_path: Path) -> None:
    rows = [{"image_id": str(n), "content": content} for n, content in enumerate(photographs(9))]
    source = image_table(tmp_path / "images.parquet", [*rows, {"image_id": "none"}, {"content": b"x"}])
    images = ImageTable(str(source)).read(spark).rows
    for size, tasks in ((11, 1), (33, 2), (10_000, 8)):
        assert spread(images, images, size).rdd.getNumPartitions() == tasks
    assert run(model, source, "--captions", tmp_path / "out") == 0
    found = spark.read.parquet(str(tmp_path / "out")).groupBy("status").count().collect()
    assert {row["status"]: row["count"] for row in found} == {"ok": 9, "fetch_error": 1, "invalid_id": 1}


def test_arrow_batches_are_bounded_in_bytes(spark: SparkSession, tmp_path: Path) -> None:
    """A batch is closed once it has passed the limit: it holds no more than that and one row."""
    megabyte, limit = 1 << 20, 4 << 20
    rows = [{"image_id": str(n), "content": os.urandom(megabyte if n % 2 else 1000)} for n in range(40)]
    images = ImageTable(str(image_table(tmp_path / "images.parquet", rows))).read(spark).rows.repartition(1)
    before = spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch")
    spark.conf.set("spark.sql.execution.arrow.maxBytesPerBatch", str(limit))

    def sizes(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_pydict({"rows": [batch.num_rows], "bytes": [batch.nbytes]})

    try:
        found = images.mapInArrow(sizes, "rows long, bytes long").collect()
    finally:
        assert before is not None
        spark.conf.set("spark.sql.execution.arrow.maxBytesPerBatch", before)
    assert sum(row["rows"] for row in found) == 40
    assert len(found) > 3
    assert max(row["bytes"] for row in found) < limit + 2 * megabyte


def test_catalog_table_in_and_out(spark: SparkSession, model: Path, tmp_path: Path) -> None:
    rows = [(str(n), f"v{n}", bytearray(content)) for n, content in enumerate(photographs(3))]
    images: DataFrame = spark.createDataFrame(rows, "image_id string, image_version string, content binary")
    images.write.saveAsTable("default.images", mode="overwrite")
    for _ in range(2):
        assert run(model, Path("default.images"), "--captions", "default.captions") == 0
    assert spark.table("default.captions").count() == 3
    images.where("image_id != '1'").union(
        spark.createDataFrame([("1", "v9", rows[1][2])], images.schema)
    ).write.saveAsTable("default.images", mode="overwrite")
    assert run(model, Path("default.images"), "--captions", "default.captions") == 0
    versions = {row["image_id"]: row["image_version"] for row in spark.table("default.captions").collect()}
    assert versions == {"0": "v0", "1": "v9", "2": "v2"}


def test_references_in_the_same_run(
    spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = folder.parent / "references.parquet"
    rows = [{"image_id": name, "captions": ["a dog runs in the grass"]} for name in ("a.png", "_DSC1.PNG", "gone.png")]
    image_table(references, rows, image_id=pa.string(), captions=pa.list_(pa.string()))
    out = folder.parent / "captions"
    assert run(model, folder, "--captions", out, "--references", references) == 0
    corpus = spark.read.parquet(f"{out}_scores/corpus").collect()
    assert {row["metric"] for row in corpus} == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    assert {(row["n_segments"], row["n_missing"]) for row in corpus} == {(2, 2)}
    assert "BLEU-4" in capsys.readouterr().out


def test_failure_rate_decides_the_exit_status(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.png").write_bytes(photographs(1)[0])
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    assert run(model, tmp_path / "images", "--captions", tmp_path / "a", "--max-failure-rate", 0.5) == 0
    assert run(model, tmp_path / "images", "--captions", tmp_path / "b", "--max-failure-rate", 0.4) == 1
    assert "50% of the images failed, more than --max-failure-rate 0.4" in capsys.readouterr().err
    assert pq.read_table(tmp_path / "b").num_rows == 2


def test_what_failed_on_another_night_is_not_held_against_this_one(
    spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.png").write_bytes(b"")
    given = (model, folder, "--captions", folder.parent / "captions", "--max-attempts", 9, "--max-failure-rate", 0.3)
    assert run(*given) == 0
    assert run(*given) == 1  # as a scheduler that tries again at once
    assert "100% of the images failed" in capsys.readouterr().err
    monkeypatch.setattr(waves, "KNOWN", "INTERVAL 0 HOURS")
    assert run(*given) == 0
    assert "1 failed:" in capsys.readouterr().out
    assert read(spark, folder.parent / "captions")["bad.png"]["attempts"] == 3
    (folder / "a.png").write_bytes(b"")
    os.utime(folder / "a.png", (1, 1))  # a changed image is new
    assert run(*given) == 1


def test_staging_leaves_the_folder_that_it_is_below(
    spark: SparkSession, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch, out = folder.parent / "scratch", folder.parent / "captions"
    (scratch / "precious").mkdir(parents=True)
    assert run(model, folder, "--captions", out, "--staging", scratch) == 0
    assert len(read(spark, out)) == 3
    assert [path.name for path in scratch.iterdir()] == ["precious"]
    one, same, other = (tables.staging(spark, name, str(scratch)) for name in (str(out), f"{out}/", f"{out}2"))
    assert one == same != other

    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert run(model, folder, "--captions", out, "--staging", memory) == 2
        assert "cannot be moved there; --staging names a folder on that one" in capsys.readouterr().err
        assert run(model, folder, "--captions", out, "--staging", memory, "--mode", "overwrite") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam-size", "0"], "--beam-size 0: must be at least 1"),
        (["--images", "nothing/here"], "--images nothing/here: no such folder"),
        (["--images", "nothing/*.jpg"], "--images nothing/*.jpg: no image files there"),
        (["--images", "nothing.parquet"], "--images nothing.parquet: no such file"),
        (["--images", "ftp://host/folder"], "--images ftp://host/folder: allowed are a local folder"),
        (["--captions", "s3://bucket/out"], "Hadoop writes tables on S3, and calls this s3a://bucket/out"),
        (["--format", "iceberg"], "an Iceberg table is named by its catalog: catalog.database.table"),
        (["--max-attempts", "0"], "--max-attempts 0: must be at least 1"),
        (["--images", "tests/jobs"], "--images tests/jobs: no image files there; taken for images are .avif .bmp"),
        (["--model", "nothing"], "--model nothing: no such directory"),
        (["--gpu-share", "1.5"], "--gpu-share 1.5: must be above 0 and at most 1"),
        (["--precision", "int8"], "--precision int8: allowed are auto, fp32, fp16, bf16"),
        (["--device", "tpu"], "--device tpu: allowed are auto, cpu, cuda, or cuda:N"),
        (["--mode", "append"], "--mode append: allowed are resume, overwrite"),
        (["--format", "csv"], "--format csv: allowed are parquet, delta, iceberg"),
        (["--captions", "README.md"], "--captions README.md: is a file; a table is a folder"),
        (["--captions", "tests"], "which is of no table; choose an empty folder"),
        (["--references", "nothing"], "--references nothing: no such file or folder"),
        (["--alternatives", "5"], "--alternatives 5: must be below the beam size, 2"),
        (["--max-failure-rate", "-1"], "--max-failure-rate -1.0: must be at least 0"),
    ],
)
def test_bad_options_are_one_line_before_spark_starts(
    options: list[str], message: str, model: Path, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(caption_images, "build_session", lambda name: pytest.fail("Spark was started"))
    assert run(model, folder, "--captions", folder.parent / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_scores_are_written_over_no_other_folder(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_images, "build_session", lambda name: pytest.fail("Spark was started"))
    scores = folder.parent / "scores"
    (scores / "segments").mkdir(parents=True)
    (scores / "segments" / "mask.png").write_bytes(b"x")
    assert run(model, folder, "--references", folder, "--scores", scores) == 2
    assert f"--scores {scores}/segments: holds mask.png, which is of no table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image_id": pa.string()},
            "bucket must be string, is missing; key must be string, is missing; it has image_id",
        ),
        (
            {"image_id": pa.int64(), "content": pa.binary()},
            "image_id must be string, is bigint; it has image_id bigint",
        ),
        ({"content": pa.string()}, "image_id must be string, is missing; content must be binary, is string; it has"),
    ],
)
def test_tables_without_the_columns_are_refused(
    spark: SparkSession, columns: dict[str, pa.DataType], message: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = image_table(tmp_path / "images.parquet", [], **columns)
    assert run(model, source, "--captions", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_several_models_write_one_caption(
    spark: SparkSession, model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model_directory(tmp_path, seed=1)
    assert run(model, folder, "--model", other, "--captions", tmp_path / "out") == 0
    captioner = Captioner.load(model, other)
    names = ["_DSC1.PNG", "a.png"]
    right = captioner.caption([(folder / name).read_bytes() for name in names])
    rows = read(spark, tmp_path / "out")
    assert [rows[name]["caption"] for name in names] == [getattr(caption, "text", None) for caption in right]
    assert {row["model_id"] for row in rows.values()} == {captioner.model_id}
    (record,) = spark.read.parquet(f"{tmp_path / 'out'}_runs").collect()
    assert json.loads(record["options"])["models"] == [Captioner.load(path).model_id for path in (model, other)]

    strange = tmp_path / "strange"
    save_model(strange, CaptionModel(CONFIG, Vocabulary(WORDS[::-1])), DecodeConfig(), {})
    for second, message in ((model, "is given twice"), (strange, "must have the same vocabulary")):
        assert run(model, folder, "--model", second, "--captions", tmp_path / "none") == 2
        assert message in capsys.readouterr().err


def test_failures_are_shown_and_long_names_are_cut(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / f"{'long' * 20}.png").write_bytes(photographs(1)[0])
    for number in range(7):
        (images / f"bad_{number}.png").write_bytes(b"")
    assert run(model, images, "--captions", tmp_path / "out", "--max-failure-rate", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"…{('long' * 20)[-35:]}.png  ")
    assert lines[2:4] == ["7 failed, among them:", "bad_0.png  decode_error: the file is empty"]
    assert len([line for line in lines if line.startswith("bad_")]) == 5
    assert "8 images in" in lines[-2]
    assert lines[-2].endswith("): 7 decode_error, 1 ok")
