"""Every form of data set becomes the same two tables; what cannot be read is said, and never lost."""

import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from jobs import prepare_dataset
from jobs.common.session import exit_status
from jobs.prepare_dataset import IMAGES, main, read_images
from nic_model.datasets import read_parquet

DEV = Path(__file__).parents[3] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"

CAPTIONS = {"a.jpg": ["A dog .", "Two\tdogs"], "b c#1%.jpg": ["Un café"], "s/d.jpg": ["A cow"]}
TOKENS = "".join(f"{name}#{i}\t{said}\r\n" for name in CAPTIONS for i, said in enumerate(CAPTIONS[name]))
KARPATHY = {
    "images": [
        {"filename": name, "split": "train", "sentences": [{"raw": said} for said in CAPTIONS[name]]}
        for name in CAPTIONS
    ]
}
COCO = {
    "images": [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)],
    "annotations": [{"image_id": i, "caption": said} for i, name in enumerate(CAPTIONS) for said in CAPTIONS[name]],
}


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "JPEG")
    return buffer.getvalue()


CONTENTS = dict(zip(CAPTIONS, (jpeg("red"), jpeg("green"), jpeg("blue")), strict=True))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "s").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


def table(path: Path) -> list[dict]:
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: row["image_id"])


def parquet(path: Path, rows: list[dict]) -> Path:
    schema = pa.schema([("image_id", pa.string()), ("content", pa.binary()), ("captions", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


FORMS = {
    "Flickr8k.token.txt": TOKENS,
    "dataset_flickr8k.json": json.dumps(KARPATHY),
    "captions_val.json": json.dumps(COCO),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_becomes_the_same_tables(
    spark: SparkSession, tmp_path: Path, images: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / name).write_bytes(FORMS[name].encode())
    out = tmp_path / "out"
    assert main(["--input", str(tmp_path / name), "--images", str(images), "--out", str(out)]) == 0
    assert table(out / "images") == [
        {"image_id": n, "content": CONTENTS[n], "uri": (images / n).as_uri()} for n in CAPTIONS
    ]
    assert table(out / "references") == [{"image_id": n, "captions": CAPTIONS[n]} for n in CAPTIONS]
    assert spark.read.parquet(f"{out}/images").schema == IMAGES
    assert capsys.readouterr().out == f"3 images in {out}/images, references of 3 in {out}/references\n"


@pytest.mark.parametrize(("name", "split"), [("Flickr8k.token.txt", "only.txt"), ("dataset_flickr8k.json", "restval")])
def test_a_split_is_taken_alone(
    spark: SparkSession, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("only.txt").write_text("a.jpg\n")
    Path(name).write_text(FORMS[name].replace("train", "restval", 1))
    # The inputs are relative to where the job is started; Spark takes --out relative to where the JVM was.
    out = tmp_path / "out"
    assert main(["--input", name, "--images", images.name, "--split", split, "--out", str(out)]) == 0
    assert [row["image_id"] for row in table(out / "images")] == ["a.jpg"]
    assert [row["image_id"] for row in table(out / "references")] == ["a.jpg"]


def test_unreadable_files_are_named_and_keep_their_references(
    spark: SparkSession,
    tmp_path: Path,
    images: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    (images / "empty.jpg").write_bytes(b"")
    tokens = tmp_path / "t.token"
    tokens.write_text(f"{TOKENS}empty.jpg#0\tE\ngone.jpg#0\tG\nlate.jpg#0\tL\n")
    (images / "late.jpg").write_bytes(b"x")
    listed = prepare_dataset.check(
        prepare_dataset.parse_args(["--input", str(tokens), "--images", str(images), "--out", "out"])
    )
    (images / "late.jpg").unlink()  # between the listing and the reading
    out = tmp_path / "out"
    prepare_dataset.write(prepare_dataset.read_examples(spark, listed, []), str(out))
    assert [row["image_id"] for row in table(out / "images")] == list(CAPTIONS)
    assert [row["image_id"] for row in table(out / "references")] == [
        "a.jpg", "b c#1%.jpg", "empty.jpg", "late.jpg", "s/d.jpg",
    ]  # fmt: skip
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("left out 1 of 6 without image: gone.jpg" in message for message in messages)
    assert any(
        "2 of 5 images cannot be read, and have references only: empty.jpg: the file has 0 bytes: read are "
        "1 to 268435456; late.jpg: [Errno 2] No such file" in message
        for message in messages
    )
    assert "3 images in" in capsys.readouterr().out


def test_parquet_is_split_into_the_tables(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"image_id": "a", "content": b"x", "captions": [" A dog . \n", "", None, "Two\n dogs"]},
        {"image_id": "b", "content": None, "captions": ["B"]},
        {"image_id": "c", "content": b"", "captions": ["C"]},
        {"image_id": "d", "content": b"x", "captions": [" "]},
        {"image_id": "e", "content": b"x", "captions": None},
    ]
    files = [parquet(tmp_path / "1.parquet", rows[:2]), parquet(tmp_path / "2.parquet", rows[2:])]
    out = tmp_path / "out"
    for _ in range(2):  # a second run replaces the tables of the first
        assert main(["--input", *map(str, files), "--out", str(out)]) == 0
        assert table(out / "images") == [{"image_id": "a", "content": b"x", "uri": None}]
        assert table(out / "references") == [
            {"image_id": "a", "captions": ["A dog .", "Two\n dogs"]},
            {"image_id": "b", "captions": ["B"]},
            {"image_id": "c", "captions": ["C"]},
        ]
    assert "2 of 3 images cannot be read, and have references only: b: content is null or empty; c:" in caplog.text
    assert "left out 2 of 5 images, which have no caption" in caplog.text


def test_the_real_dev_set(spark: SparkSession, tmp_path: Path) -> None:
    assert main(["--input", str(DEV.with_name("dev-*.parquet")), "--out", str(tmp_path)]) == 0
    expected = sorted(read_parquet([str(DEV)]), key=lambda example: example.image_id)
    assert [(row["image_id"], row["content"]) for row in table(tmp_path / "images")] == [
        (example.image_id, example.read()) for example in expected
    ]
    assert [(row["image_id"], row["captions"]) for row in table(tmp_path / "references")] == [
        (example.image_id, list(example.captions)) for example in expected
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input t.token", "t.token: names image files, so the folder of the images must be given"),
        ("--input t.token --images no", "no: no such folder"),
        ("--input no.token --images photographs", "no.token: cannot be read"),
        ("--input bad.txt --images photographs", "bad.txt: line 1 is 'no token file': expected"),
        ("--input t.token p.parquet --images photographs", "either tables or files that name"),
        ("--input p.parquet --images photographs", "--split and --images go with an input that names"),
        ("--input p.parquet --out .", "images: holds photograph.jpg, which is of no table"),
        ("--input out2/images --out out2", "out2/images is there, and is read; name another place"),
        ("--input out2/ref*/ --out out2", "ref* is there, and is read; name another place"),
        ("--input no.parquet", "no.parquet: no such file or folder"),
        ("--input uncaptioned.parquet", "captions must be array<string>, is missing"),
        ("--input p.parquet p.parquet", "image_id a stands in 2 rows: it must be unique"),
        ("--input nameless.parquet", "image_id None stands in 1 rows: it must be unique"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    spark: SparkSession, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture, arguments: str, message: str
) -> None:
    (tmp_path / "t.token").write_text(TOKENS)
    (tmp_path / "bad.txt").write_text("no token file\n")
    photograph = tmp_path / "images" / "photograph.jpg"
    photograph.parent.mkdir()
    photograph.touch()
    parquet(tmp_path / "p.parquet", [{"image_id": "a", "content": b"x", "captions": ["A"]}])
    for name in ("images", "references"):
        (tmp_path / "out2" / name).mkdir(parents=True)
    parquet(tmp_path / "nameless.parquet", [{"image_id": None, "content": b"x", "captions": ["A"]}])
    pq.write_table(pa.table({"image_id": ["a"], "content": [b"x"]}), tmp_path / "uncaptioned.parquet")
    arguments += "" if "--out" in arguments else " --out out"
    words = [word if word.startswith("--") else str(tmp_path / word) for word in arguments.split()]
    assert exit_status(lambda: main(words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert photograph.exists()


def batch_of(files: list[Path]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"image_id": f.name, "uri": f.as_uri()} for f in files])


def test_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_dataset, "BATCH_BYTES", 100)
    files = [tmp_path / f"{number:02}.jpg" for number in range(25)]
    for file in files:
        file.write_bytes(b"x" * 30)
    found = list(read_images(iter([batch_of(files[:10]), batch_of([]), batch_of(files[10:])])))
    assert [batch.num_rows for batch in found] == [4] * 6 + [1]
    assert [name.as_py() for batch in found for name in batch["image_id"]] == [file.name for file in files]


@pytest.mark.parametrize("batches", [[], [batch_of([])]])
def test_no_images_are_no_rows(batches: list[pa.RecordBatch]) -> None:
    assert [batch.num_rows for batch in read_images(iter(batches))] in ([], [0])
