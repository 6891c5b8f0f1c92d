"""Images on a real S3 server: found, fetched, refused; and what happens when the server or the keys are not well."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs import caption_images
from jobs.common import executor, storage
from jobs.common.executor import fetch_ahead
from jobs.common.session import exit_status
from jobs.common.storage import Access, Download, Listed, ObjectError, SystemicError
from nic_model.captioner import Failure
from tests.e2e.flaky import flaky
from tests.e2e.seaweed import SECRET, Seaweed
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory

REFUSED = "fetch_error"
NO_KEYS = ("nobody", "")


@contextmanager
def configured(s3: Seaweed, *identity: str) -> Iterator[None]:
    """This process's AWS configuration is that of the reader, or of another `identity`; or it has no keys."""
    before = dict(os.environ)
    os.environ.update(s3.environment(*identity))
    if identity == NO_KEYS:
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(s3.folder / "no-credentials")
    storage.forget_clients()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        storage.forget_clients()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photos(s3: Seaweed) -> dict[str, bytes]:
    """Objects below s3://photos/night, by their image_id."""
    good = photographs(4)
    found = {"a.png": good[0], "sub/b.png": good[1], "sub/deep/c #%41+ü.png": good[2], "no_extension": good[3]}
    found |= {"corrupt.jpg": b"no image", "empty.jpg": b""}
    for name, content in (found | {"notes.txt": b"no image", "sub/": b""}).items():
        s3.admin().put_object(Bucket="photos", Key=f"night/{name}", Body=content)
    s3.admin().put_object(Bucket="photos", Key="nightly/other.png", Body=good[0])
    s3.admin().put_object(Bucket="locked", Key="a.png", Body=good[0])
    return found


def run(s3: Seaweed, spark: SparkSession | None, *options: object) -> int:
    """The job, with the reader's configuration on the executors too."""
    if spark is not None:
        spark.sparkContext.environment.update(s3.environment())
    return exit_status(lambda: caption_images.main(["--s3-endpoint", s3.endpoint, *map(str, options)]))


def read(spark: SparkSession, path: Path) -> dict[str | None, tuple[str, str | None]]:
    rows = spark.read.parquet(str(path)).collect()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: (row["status"], row["error_message"]) for row in rows}


def test_a_prefix_is_captioned(
    s3: Seaweed, spark: SparkSession, photos: dict[str, bytes], model: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """And a model on S3, which is the same as the local one; and no secret stands anywhere."""
    for file in model.iterdir():
        s3.admin().put_object(Bucket="photos", Key=f"models/tiny/{file.name}", Body=file.read_bytes())
    out = tmp_path / "captions"
    with configured(s3):
        given = ["--images", "s3://photos/night", "--captions", out]
        assert run(s3, spark, *given, "--model", "s3://photos/models/tiny") == 0
        (tmp_path / "first").write_text(capfd.readouterr().out)
        given[1] = "s3a://photos/night"  # as Spark calls it
        assert run(s3, spark, *given, "--model", model, "--max-attempts", 1) == 0
        assert "nothing to do" in capfd.readouterr().out
    rows = {row["image_id"]: row for row in spark.read.parquet(str(out)).collect()}
    assert sorted(rows) == sorted(photos)
    for name, content in photos.items():
        row = rows[name]
        assert row["status"] == ("ok" if len(content) > 8 else "decode_error")
        assert row["image_version"] == hashlib.md5(content).hexdigest()
        assert row["uri"] == f"s3://photos/night/{name}"
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    settings = str(spark.sparkContext.getConf().getAll())
    assert not any(SECRET.encode() in content for content in [*written, settings.encode()])


@pytest.mark.parametrize(("wanted", "expected"), [(1, 1), (2, 4), (64, 7)])
def test_a_listing_is_parted(s3: Seaweed, wanted: int, expected: int) -> None:
    """By folders, so that executors share them; and together the parts are the whole, each key once."""
    keys = [f"parted/{name}" for name in ("1", "a/2", "a/b/3", "a/b/c/4", "a/bc/5", "d/6", "d-/7")]
    for key in keys:
        s3.admin().put_object(Bucket="photos", Key=key, Body=b"x")
    with configured(s3):
        access = Access(s3.endpoint)
        parts = storage.split_listing("photos", "parted/", access, wanted)
        pages = [
            page for prefix, delimiter in parts for page in storage.list_objects("photos", prefix, access, delimiter)
        ]
    assert len(parts) == expected
    assert sorted(one.key for page in pages for one in page if isinstance(one, Listed)) == sorted(keys)


def test_a_listing_of_many_small_folders_is_parted_above_them(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MOST_PARTS", 3)
    for key in ("a/1/x", "a/2/x", "b/1/x", "b/2/x"):
        s3.admin().put_object(Bucket="photos", Key=f"small/{key}", Body=b"x")
    with configured(s3):
        parts = storage.split_listing("photos", "small/", Access(s3.endpoint), 64)
    assert parts == [("small/", "/"), ("small/a/", ""), ("small/b/", "")]


def test_a_manifest_is_captioned(
    s3: Seaweed, spark: SparkSession, photos: dict[str, bytes], model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = "s3://photos/night/a.png"
    cases: list[tuple[dict[str, str | None], str | None, tuple[str, str | None]]] = [
        ({"image_id": "good", "uri": good}, "good", ("ok", None)),
        ({"image_id": "pair", "bucket": "photos", "key": "night/sub/b.png"}, "pair", ("ok", None)),
        ({"image_id": "missing", "uri": "s3://photos/none.png"}, "missing", (REFUSED, "NoSuchKey")),
        ({"image_id": "denied", "uri": "s3://locked/a.png"}, "denied", (REFUSED, "AccessDenied")),
        ({"image_id": "no bucket", "uri": "s3://nothing-here/a.png"}, "no bucket", (REFUSED, "AccessDenied")),
        ({"image_id": "spaces", "uri": "s3://photos/\u3000a\u202fAM.png"}, "spaces", (REFUSED, "NoSuchKey")),
        ({"image_id": "file", "uri": "file:///etc/passwd"}, "file", (REFUSED, "uri refused: file://")),
        ({"image_id": "path", "uri": "/etc/passwd"}, "path", (REFUSED, "uri refused: a local path")),
        ({"image_id": "up", "uri": "s3://photos/night/../a.png"}, "up", (REFUSED, "uri refused: it has a . or ..")),
        ({"image_id": "bell\u0007", "uri": good}, "bell\u0007", ("invalid_id", "control characters")),
        ({"image_id": "no uri"}, "no uri", (REFUSED, "content and uri are null")),
        ({"image_id": None, "uri": good}, None, ("invalid_id", "image_id is null")),
    ]
    lines = [json.dumps(row) for row, _, _ in cases]
    lines += [json.dumps({"image_id": "good", "uri": good}), "{no json", json.dumps({"other": 1})]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    out = tmp_path / "captions"
    with configured(s3):
        given = ["--images", tmp_path / "list.jsonl", "--model", model, "--captions", out, "--max-failure-rate", 1]
        assert run(s3, spark, *given) == 0
    assert "3 rows were left out, since their image_id stands in another row as well" in capsys.readouterr().out
    found = read(spark, out)
    assert set(found) == {image_id for _, image_id, _ in cases}
    for _, image_id, (status, message) in cases:
        assert found[image_id][0] == status
        assert message is None or message in str(found[image_id][1])


def rows(s3: Seaweed, count: int, size: int = 1000) -> list[executor.Row]:
    """Objects that exist, as executors are given them."""
    for number in range(count):
        s3.admin().put_object(Bucket="photos", Key=f"many/{number}", Body=bytes([number % 256]) * size)
    return [{"image_id": str(n), "uri": f"s3://photos/many/{n}", "content": None} for n in range(count)]


@pytest.mark.parametrize("behaviour", [{"failing": 1 / 3}, {"silence": 3.0, "after": 10}])
def test_a_slow_server_loses_nothing(s3: Seaweed, behaviour: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "READ_SECONDS", 1)
    wanted = rows(s3, 60)
    with configured(s3), flaky(s3.ports[0], **behaviour) as server:
        access = Access(server.endpoint)
        # A budget of three objects: what is behind waits for what is before it.
        found = list(fetch_ahead((dict(row) for row in wanted), access, limit=3000))
    assert [row["image_id"] for row, _ in found] == [row["image_id"] for row in wanted]
    assert [content for _, content in found] == [bytes([number % 256]) * 1000 for number in range(60)]
    assert server.failed + server.hung >= 4


def test_a_silent_server_is_waited_for(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """By those too who have little patience with one that is not there, as who begins to list has."""
    monkeypatch.setattr(storage, "READ_SECONDS", 1)
    rows(s3, 3)
    with configured(s3), flaky(s3.ports[0], silence=3.0) as server:
        (objects, _) = storage.list_objects("photos", "many/", Access(server.endpoint, patience=0.5))
    assert len(objects) >= 3
    assert server.hung > 1


def test_an_outage_is_waited_for(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests fail meanwhile: more than one image's TRIES, and than botocore would send again."""
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.1)
    wanted = rows(s3, 40)
    with configured(s3), flaky(s3.ports[0], outage=400) as server:
        found = list(fetch_ahead((dict(row) for row in wanted), Access(server.endpoint)))
    assert [content for _, content in found] == [bytes([number]) * 1000 for number in range(40)]
    assert server.failed == 400


def test_one_broken_object_is_a_row(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the server says that it fails for the moment, for ever."""
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.1)
    wanted = rows(s3, 5)
    with configured(s3), flaky(s3.ports[0], broken="/many/3") as server:
        found = [content for _, content in fetch_ahead(wanted, Access(server.endpoint))]
    assert found[3] == Failure("fetch_error", "SlowDown: Please reduce your request rate. (14 tries)")
    assert all(isinstance(content, bytes) for content in found[:3] + found[4:])


def test_too_large_is_known_before_it_is_read(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = rows(s3, 1, size=2000)
    monkeypatch.setattr(storage, "MAX_BYTES", 1999)
    with configured(s3):
        ((_, found),) = fetch_ahead(wanted, Access(s3.endpoint))
    assert found == Failure("too_large", "2000 bytes; at most 1999 are read")


@pytest.mark.parametrize(
    ("identity", "bucket", "said"),
    [
        (("reader-key", "wrong"), "photos", "SignatureDoesNotMatch"),
        (("nobody", "wrong"), "photos", "InvalidAccessKeyId"),
        (NO_KEYS, "photos", "NoCredentialsError: Unable to locate credentials"),
        ((), "nothing-here", "AccessDenied"),  # as S3 answers who may not know whether there is such a bucket
        (("admin-key", "admin-secret"), "nothing-here", "NoSuchBucket"),
        ((), "locked/denied", "none of 3 objects tried can be read"),
    ],
)
def test_what_no_image_can_help_ends_the_run_with_one_line(
    s3: Seaweed, spark: SparkSession, identity: tuple[str, ...], bucket: str, said: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in "abc":
        s3.admin().put_object(Bucket="locked", Key=f"denied/{name}.png", Body=b"x")
    with configured(s3, *identity):
        status = run(s3, spark, "--images", f"s3://{bucket}/", "--model", model, "--captions", tmp_path / "captions")
    assert status in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "captions").exists()


def test_executors_without_keys_stop_the_run(
    s3: Seaweed, spark: SparkSession, photos: dict[str, bytes], model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The driver's are right: the wave in which it is found out is not committed."""
    out = tmp_path / "captions"
    (tmp_path / "list.csv").write_text("image_id,uri\na,s3://photos/night/a.png\n")
    with configured(s3):
        spark.sparkContext.environment.update(s3.environment("reader-key", "wrong"))
        given = ["--images", str(tmp_path / "list.csv"), "--model", str(model), "--captions", str(out)]
        status = exit_status(lambda: caption_images.main([*given, "--s3-endpoint", s3.endpoint]))
    assert status == 1
    error = capsys.readouterr().err
    assert "SignatureDoesNotMatch" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_server_that_is_away_is_the_runs_problem(s3: Seaweed) -> None:
    with configured(s3), pytest.raises(SystemicError, match="EndpointConnectionError"):
        Download("s3://photos/a.png", Access("http://127.0.0.1:9", patience=1))
    with configured(s3), pytest.raises(ObjectError, match="NoSuchKey"):
        Download("s3://photos/a.png", Access(s3.endpoint))
