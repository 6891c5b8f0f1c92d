"""Where images come from: how sources are told apart, and what a folder or glob holds."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.common.sources import ImageFiles, ImageObjects, ImageTable, Source, _modified, find_source
from jobs.common.storage import SystemicError


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
    ],
)
def test_sources_are_told_apart(location: str, kind: type) -> None:
    assert isinstance(find_source(location), kind)


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
