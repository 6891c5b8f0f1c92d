"""What executors run, without Spark: one row out for each row in, whatever the rows are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from jobs.common import storage, workers
from jobs.common.executor import Row, caption_batches, fetch, fetch_ahead
from jobs.common.rows import INPUT, OUTPUT, STOPPED
from jobs.common.storage import Access
from jobs.common.udfs import CaptionerRecipe
from nic_model.captioner import Captioner, Failure
from nic_model.model_files import ModelFiles
from tests.nic_model.test_captioner import SmallGpu, photographs
from tests.tiny import tiny_model_directory


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner.load(tiny_model_directory(tmp_path_factory.mktemp("model")), batch_size=4)


def record_batch(*rows: tuple[str | None, str | None, str | None, bytes | None]) -> pa.RecordBatch:
    names = INPUT.names[:4]
    return pa.RecordBatch.from_pylist([{**dict(zip(names, row, strict=True)), "attempts": 1} for row in rows], INPUT)


def test_content_that_is_there_is_not_held_ahead() -> None:
    taken: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(300):
            taken.append(number)
            yield {"image_id": str(number), "uri": None, "content": b"x"}

    found = fetch_ahead(rows(), Access())
    assert next(found) == ({"image_id": "0", "uri": None}, b"x")
    assert taken == [0]
    assert len(list(found)) == 299


def test_rows_keep_their_order_and_names(captioner: Captioner, tmp_path: Path) -> None:
    good = photographs(5)
    (tmp_path / "a b.png").write_bytes(good[0])
    uri = (tmp_path / "a b.png").as_uri()
    batches = [
        record_batch(("1", "v1", None, good[1]), ("2", None, uri, None), ("3", None, None, b"no image")),
        record_batch(),
        record_batch((None, None, None, good[2]), ("5", None, None, None)),
        record_batch(("6", None, "file:///nowhere/at/all.jpg", None)),
    ]
    found = list(caption_batches(batches, captioner, Access(local=True)))
    assert all(batch.schema == OUTPUT for batch in found)
    rows = [row for batch in found for row in batch.to_pylist()]
    assert [(row["image_id"], row["status"]) for row in rows] == [
        ("1", "ok"),
        ("2", "ok"),
        ("3", "decode_error"),
        (None, "invalid_id"),
        ("5", "fetch_error"),
        ("6", "fetch_error"),
    ]
    assert rows[0]["image_version"] == "v1"
    assert rows[1]["uri"] == uri
    for row in rows:
        good_row = row["status"] == "ok"
        assert (row["caption"] is not None) == (row["log_prob"] is not None) == (row["width"] == 90) == good_row
        assert (row["error_message"] is None) == good_row
        assert row["captioned_at"] is not None


def test_files_are_read_only_where_the_job_listed_them(captioner: Captioner, tmp_path: Path) -> None:
    """A table's uri must not make an executor read its own disk."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(photographs(1)[0])
    (batch,) = caption_batches([record_batch(("1", None, secret.as_uri(), None))], captioner)
    assert batch.to_pylist()[0]["status"] == "fetch_error"


def test_a_gpu_without_room_for_one_image_stops_the_run(tmp_path: Path) -> None:
    captioner = Captioner.load(tiny_model_directory(tmp_path), batch_size=4, engine="pytorch")
    captioner._execution = SmallGpu(captioner._execution, room=0)
    images = [(str(number), None, None, content) for number, content in enumerate(photographs(3))]
    (batch,) = caption_batches([record_batch(*images)], captioner)
    (row,) = batch.to_pylist()
    assert (row["status"], row["image_id"]) == (STOPPED, None)
    assert row["error_message"] == "no room for one image on cpu: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_tasks_at_once_share_one_captioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may come while the models are being loaded ahead of it."""
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path / "local"))
    files = ModelFiles.read(tiny_model_directory(tmp_path / "model"))
    broadcast: Any = SimpleNamespace(value=(files,))
    recipe = CaptionerRecipe((files.model_id,), files.settings()[1], "cpu", "fp32", 2, "cpu", broadcast)
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: workers.make_captioner(recipe), range(4)))
    assert [captioner.model_id for captioner in made] == [files.model_id]


def test_no_batches_no_batches(captioner: Captioner) -> None:
    assert list(caption_batches([], captioner)) == []


@pytest.mark.parametrize(
    ("image_id", "content", "name", "expected"),
    [
        ("a", b"bytes", None, b"bytes"),
        ("a", b"", None, b""),
        (None, b"bytes", None, Failure("invalid_id", "image_id is null")),
        ("a", None, None, Failure("fetch_error", "content and uri are null")),
        ("a", None, "file", b"on disk"),
        ("a", None, "missing", Failure("fetch_error", "FileNotFoundError: No such file or directory")),
        ("a", None, "folder", Failure("fetch_error", "OSError: not a regular file")),
        ("a", None, "large", Failure("too_large", "33 bytes; at most 32 are read")),
        ("a", b"x" * 33, None, Failure("too_large", "33 bytes; at most 32 are read")),
        ("a", None, "ünï %41 #?.jpg", b"odd name"),
    ],
)
def test_fetch(
    image_id: str | None, content: bytes | None, name: str | None, expected: bytes | Failure,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(storage, "MAX_BYTES", 32)
    (tmp_path / "file").write_bytes(b"on disk")
    (tmp_path / "large").write_bytes(b"x" * 33)
    (tmp_path / "ünï %41 #?.jpg").write_bytes(b"odd name")
    (tmp_path / "folder").mkdir()
    uri = (tmp_path / name).as_uri() if name else None
    assert fetch(image_id, content, uri, Access(local=True))[0] == expected


@pytest.mark.parametrize(
    ("folder", "shared"),
    [
        ("spark-1/executor-2/blockmgr-3", True),  # standalone
        ("appcache/application_1/blockmgr-3", True),  # YARN
        ("scratch/blockmgr-3", False),  # of spark.local.dir, which outlives the application
    ],
)
def test_weights_are_shared_where_they_go_with_the_application(
    folder: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / folder
    own.mkdir(parents=True)
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{own},/elsewhere")
    assert workers._shared_folder() == (own.parent if shared else own)
    own.parent.chmod(0o777)
    assert workers._shared_folder() == own
