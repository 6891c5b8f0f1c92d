"""Where images come from: how sources are told apart, and what a folder or glob holds."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from jobs.common.session import systemic
from jobs.common.sources import (
    ImageFiles,
    ImageObjects,
    ImageTable,
    Source,
    _may_be_image,
    _modified,
    _of_inventory,
    find_source,
    image_columns,
)
from jobs.common.storage import Access, SystemicError


def listed(source: Source) -> list[str]:
    """The image_ids that an executor lists."""
    assert isinstance(source, ImageFiles)
    return [image_id for batch in source._list([]) for image_id in batch["image_id"].to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them in a sub-folder, and a text file."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.JPG", "notes.txt"):
        (images / name).write_bytes(b"x")
    return images


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("a.parquet", ImageTable),
        ("data/part-*.parquet", ImageTable),
        ("database.images", ImageTable),
        ("catalog.database.images", ImageTable),
        ("photos", ImageFiles),
        ("photos/*.jpg", ImageFiles),
        ("file:///photos", ImageFiles),
        ("s3://bucket/photos", ImageObjects),
        ("s3://bucket/list.parquet", ImageTable),
        ("list.csv", ImageTable),
        ("lists/*.jsonl", ImageTable),
        ("LIST.CSV", ImageTable),
        ("list.ndjson.gz", ImageTable),
        ("s3a://bucket/table", ImageTable),
        ("hdfs://name/table", ImageTable),
    ],
)
def test_sources_are_told_apart(location: str, kind: type) -> None:
    nowhere = Access("http://127.0.0.1:9", patience=0)
    assert isinstance(find_source(location, nowhere), kind)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("part-0.snappy.parquet", ImageTable),
        ("year=2026/month=11/part-0.parquet", ImageTable),
        ("_delta_log/0.json", ImageTable),
        ("captions.parquet/part-0.parquet", ImageFiles),
        ("captions/part-0.parquet", ImageFiles),  # written below the photographs, by the night before
    ],
)
def test_a_folder_of_images_stays_one(folder: Path, file: str, kind: type) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"")
    assert isinstance(find_source(str(folder)), kind)


def test_dangling_links_and_odd_names_are_not_lost(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "a #%41 ü?.png").write_bytes(b"x")
    for name in (b"caf\xe8.png", b"caf\xe9.png"):  # Latin-1
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x")
    found = listed(ImageFiles(str(folder)))
    assert sorted(found) == sorted(["a #%41 ü?.png", "a.png", "caf\\xe8.png", "caf\\xe9.png", "gone.jpg", "sub/b.JPG"])


@pytest.mark.parametrize("location", ["images", "images/**/*.[pJ]*", "images/**/**/*.[pJ]*", "./images/"])
def test_a_relative_location_is_the_drivers(
    folder: Path, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever an executor works, and each file once."""
    monkeypatch.chdir(folder.parent)
    source = find_source(location)
    source.check()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert sorted(listed(source)) == ["a.png", "sub/b.JPG"]


def test_linked_folders_are_searched_too(folder: Path) -> None:
    for other in ("one", "two"):
        (folder.parent / other).mkdir()
        (folder.parent / other / "c.png").write_bytes(b"x")
    (folder / "linked").symlink_to(folder.parent / "one")
    (folder.parent / "one" / "on").symlink_to(folder.parent / "two")
    for back in (folder / "sub" / "back", folder.parent / "two" / "back"):  # or there would be no end to it
        back.symlink_to(folder)
    found = listed(ImageFiles(str(folder)))
    assert sorted(found) == ["a.png", "linked/c.png", "linked/on/c.png", "sub/b.JPG"]


def test_a_folder_whose_name_could_be_a_glob(folder: Path) -> None:
    source = find_source(str(folder.rename(folder.with_name("Holiday [2026]"))))
    assert isinstance(source, ImageFiles)
    source.check()
    assert sorted(listed(source)) == ["a.png", "sub/b.JPG"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b.jpg", True),
        ("a/_MG_1.JPG", True),
        ("a/3f5e", True),
        ("a/notes.txt", False),
        ("a/_SUCCESS", False),
        ("a/.DS_Store", False),
        ("a.jpg/", False),
    ],
)
def test_of_all_that_is_in_a_bucket_images_are_taken(spark: SparkSession, key: str, expected: bool) -> None:
    """In a listing and in an S3 Inventory; a list made by hand is taken at its word."""
    if not key.endswith("/"):  # which a listing leaves out
        assert _may_be_image(key) == expected
    rows = [("b", key, "new", True, False), ("b", key, "old", False, False), ("b", key, "gone", True, True)]
    columns = "bucket string, key string, e_tag string, is_latest boolean, is_delete_marker boolean"
    inventory = spark.createDataFrame(rows, columns)
    assert [row["e_tag"] for row in _of_inventory(inventory).collect()] == ["new"] * expected
    assert _of_inventory(inventory.select("bucket", "key")).count() == 3


def test_columns_of_other_meaning_are_no_matter(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("a", bytearray(b"x"), 1, 2)], "image_id string, content binary, bucket int, key int")
    columns, has_content = image_columns(rows, "--images x")
    assert has_content
    assert rows.select(*columns).collect()[0].asDict() == {
        "image_id": "a",
        "image_version": None,
        "uri": None,
        "content": b"x",
    }


def test_ids_that_are_not_utf_8_are_ids(spark: SparkSession) -> None:
    """Python would not read them. They stay apart."""
    values = "(X'636166E9'), (X'636166E8'), (X'636166C3A9')"
    rows = spark.sql(f"SELECT CAST(col1 AS STRING) image_id, X'00' content FROM VALUES {values}")
    columns, _ = image_columns(rows, "--images x")
    found = [row["image_id"] for row in rows.select(*columns).collect()]
    assert found == ["caf\ufffd 636166E9", "caf\ufffd 636166E8", "café"]


def test_manifests_whose_columns_differ_in_order_are_not_mixed_up(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,uri\none,s3://b/1.jpg\n")
    (tmp_path / "b.csv").write_text("uri,image_id\ns3://b/2.jpg,two\n")
    source = find_source(f"{tmp_path}/*.csv")
    with pytest.raises(Exception, match="CSV header does not conform") as caught:
        source.read(spark).rows.collect()
    assert (systemic(caught.value) or "").startswith("CSV header does not conform to the schema, in file:")


@pytest.mark.parametrize("location", ["images", "images/*.png", "images/a.png"])
def test_a_machine_that_does_not_have_the_files_ends_the_run(folder: Path, location: str) -> None:
    source = ImageFiles(str(folder.parent / location))
    source.check()
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(SystemicError, match="has no image files there, and the driver has"):
        listed(source)


def test_a_time_that_no_year_has_is_a_version_too() -> None:
    file: Any = SimpleNamespace(stat=lambda: SimpleNamespace(st_mtime=1e12))  # few file systems keep such a time
    assert _modified(file) == "1000000000000.0"
