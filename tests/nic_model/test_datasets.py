"""Every form of data set gives the same examples; every unusable file gives one clear line."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nic_model.datasets import (
    Example,
    read_coco,
    read_dataset,
    read_flickr,
    read_karpathy,
    read_parquet,
)

DEV = Path(__file__).parents[3] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"

# The same four images in every form below; d.jpg has no file.
DOG, CAT, COW = ("A dog .", "Dogs, two\u2028of them"), ("Un café à côté",), ("A cow",)


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "val").mkdir(parents=True)
    for name, colour in (("a.jpg", "red"), ("b.jpg", "green"), ("c.jpg", "blue"), ("val/v.jpg", "white")):
        (folder / name).write_bytes(jpeg(colour))
    return folder


def write(path: Path, content: bytes | str | dict) -> Path:
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


TOKENS = (
    "a.jpg#0\tA dog .\nb.jpg#0\tUn café à côté\na.jpg#1\tDogs, two\u2028of them \nc.jpg#0\tA cow\n"
    "a.jpg#2\t  \nd.jpg#0\tNobody has seen it\n"
)
CSV = (
    'image,caption\na.jpg,A dog .\nb.jpg,Un café à côté\na.jpg,"Dogs, two\u2028of them"\nc.jpg,A cow\n'
    'a.jpg,""\nd.jpg,Nobody has seen it\n'
)
KARPATHY = {
    "dataset": "flickr8k",
    "images": [
        {
            "filename": "a.jpg",
            "split": "train",
            "sentences": [{"raw": DOG[0]}, {"raw": DOG[1]}, {"raw": " "}],
        },
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": CAT[0], "tokens": ["un"]}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": COW[0]}]},
        {"filename": "d.jpg", "split": "test", "sentences": [{"raw": "Nobody has seen it"}]},
    ],
}
COCO = {
    "info": {},
    "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in ((7, "a"), (2, "b"), (9, "c"), (1, "d"))],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A cow\n"},
        {"id": 2, "image_id": 7, "caption": "A dog ."},
        {"id": 3, "image_id": 7, "caption": DOG[1]},
        {"id": 4, "image_id": 2, "caption": CAT[0]},
        {"id": 5, "image_id": 7, "caption": ""},
        {"id": 6, "image_id": 1, "caption": "Nobody has seen it"},
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Flickr8k.token.txt", TOKENS),
        ("results_20130124.token", TOKENS),
        ("crlf.txt", TOKENS.replace("\n", "\r\n")),
        ("blank_lines.txt", "\n \n" + TOKENS.replace("\n", "\n\n\t\n")),
        ("no_last_newline.txt", TOKENS.rstrip("\n")),
        ("byte_order_mark.txt", "\ufeff" + TOKENS),
        ("captions.txt", CSV),
        ("captions.csv", CSV.replace("\n", "\r\n")),
        (
            "blank_lines.csv",
            "\ufeffImage,Caption\n\n" + CSV.removeprefix("image,caption").replace("\n", "\n\n"),
        ),
        ("unquoted_comma.csv", CSV.replace('"Dogs, two\u2028of them"', "Dogs, two\u2028of them")),
        ("dataset_flickr8k.json", KARPATHY),
        ("captions_val2014.json", COCO),
    ],
)
def test_each_form_gives_the_same_examples(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture, name: str, content: str | dict
) -> None:
    path = write(tmp_path / name, content)
    examples = read_dataset([str(path)], images=images)
    assert examples == [
        Example("a.jpg", images / "a.jpg", DOG),
        Example("b.jpg", images / "b.jpg", CAT),
        Example("c.jpg", images / "c.jpg", COW),
    ]
    assert examples[0].read() == jpeg("red")
    assert [record.getMessage() for record in caplog.records] == [f"{path}: left out 1 of 4 without image: d.jpg"]


def test_parquet_gives_ids_as_they_stand_and_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [("a", jpeg("red"), ["A dog . ", "", None]), ("b", b"?", ["B"])])
    examples = read_parquet([str(path)])
    assert examples == [Example("a", jpeg("red"), ("A dog .",)), Example("b", b"?", ("B",))]
    assert examples[0].read() == jpeg("red")


def parquet(path: Path, rows: list[tuple], schema: pa.Schema | None = None) -> Path:
    schema = schema or pa.schema(
        [("image_id", pa.string()), ("content", pa.binary()), ("captions", pa.list_(pa.string()))]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(zip(schema.names, r, strict=True)) for r in rows], schema), path)
    return path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["p2.parquet", "p1.parquet"], ["2", "1"]),
        (["p*.parquet"], ["1", "2"]),
        (["p[2-3].parquet", "t*"], ["2", "3", "4"]),
        (["table"], ["3", "4"]),
        (["tab?e"], ["3", "4"]),
        (["ta*/day=*/*.parquet"], ["3"]),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_parquet_paths_folders_and_globs_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str], expected: list[str], absolute: bool
) -> None:
    names = ("p1", "p2", "table/day=1/part-0", "table/part-0", "table/_temporary/part-0", "table/.part-1")
    for name, image_id in zip(names, "123456", strict=True):
        parquet(tmp_path / f"{name}.parquet", [(image_id, b"x", ["c"])])
    monkeypatch.chdir(tmp_path)
    specs = [f"{tmp_path}/{pattern}" if absolute else pattern for pattern in patterns]
    assert [example.image_id for example in read_parquet(specs)] == expected
    assert read_dataset(specs) == read_parquet(specs)


def test_other_string_and_binary_types_are_read(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("captions", pa.large_list(pa.large_string())),
            ("image_id", pa.large_string()),
            ("more", pa.int8()),
            ("content", pa.large_binary()),
        ]
    )
    path = parquet(tmp_path / "x.parquet", [(["C"], "a", 1, b"x")], schema)
    assert read_parquet([str(path)]) == [Example("a", b"x", ("C",))]


def test_specs_of_several_forms_are_read_one_after_the_other(tmp_path: Path, images: Path) -> None:
    specs = [write(tmp_path / "c.json", COCO), parquet(tmp_path / "p.parquet", [("p", b"x", ["P"])])]
    found = read_dataset([str(spec) for spec in specs], images=images)
    assert [example.image_id for example in found] == ["a.jpg", "b.jpg", "c.jpg", "p"]


def test_rows_without_image_or_caption_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [(f"n{i}", None, ["C"]) for i in range(7)] + [
        ("e", b"", ["C"]),
        ("l", b"x", None),
        ("m", b"x", [" "]),
    ]
    path = parquet(tmp_path / "x.parquet", [*bad, ("a", b"x", ["C"])])
    assert [example.image_id for example in read_parquet([str(path)])] == ["a"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"{path}: left out 8 of 11 without image: n0, n1, n2, n3, n4, ..."),
        (logging.WARNING, f"{path}: left out 2 of 11 without caption: l, m"),
    ]


@pytest.mark.parametrize("split", ["b.jpg\r\n\r\na.jpg\r\n", "a\nb\nnot_there\n"])
def test_flickr_split_lists_images_with_or_without_extension(
    tmp_path: Path, images: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = write(tmp_path / "Flickr8k.token.txt", TOKENS)
    listed = write(tmp_path / "Flickr_8k.trainImages.txt", split)
    found = read_flickr(tokens, images, listed)
    assert [example.image_id for example in found] == ["a.jpg", "b.jpg"]
    assert read_dataset([str(tokens)], str(listed), images) == found
    assert not caplog.records


def test_the_stray_name_of_flickr8k_is_left_out(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    stray = "2258277193_586949ec62.jpg.1"
    tokens = write(tmp_path / "Flickr8k.token.txt", TOKENS + "".join(f"{stray}#{i}\tC\n" for i in range(5)))
    assert len(read_flickr(tokens, images)) == 3
    assert f"2 of 5 without image: d.jpg, {stray}" in caplog.text


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, ["a.jpg", "b.jpg", "c.jpg"]),
        ("train", ["a.jpg", "b.jpg"]),
        ("restval", ["b.jpg"]),
        ("test", ["c.jpg"]),
    ],
)
def test_karpathy_splits(tmp_path: Path, images: Path, split: str | None, expected: list[str]) -> None:
    path = write(tmp_path / "dataset.json", KARPATHY)
    found = read_karpathy(path, images, split)
    assert [example.image_id for example in found] == expected
    assert read_dataset([str(path)], split, images) == found


def test_an_image_in_a_subfolder_is_named_by_its_path_below_the_folder(tmp_path: Path, images: Path) -> None:
    entry = {"filepath": "val", "filename": "v.jpg", "split": "val", "sentences": [{"raw": "V"}]}
    expected = [Example("val/v.jpg", images / "val" / "v.jpg", ("V",))]
    assert read_karpathy(write(tmp_path / "k.json", {"images": [entry]}), images) == expected
    coco = {
        "images": [{"id": 1, "file_name": "val/v.jpg"}],
        "annotations": [{"image_id": 1, "caption": "V"}],
    }
    assert read_coco(write(tmp_path / "c.json", coco), images) == expected


KARPATHY_ENTRY = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A"}]}
COCO_IMAGE = {"id": 1, "file_name": "a.jpg"}


def without(entry: dict, key: str) -> dict:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("name", "content", "split", "message"),
    [
        (
            "t.txt",
            "a.jpg#0\tA\nb.jpg B",
            None,
            "t.txt: line 2 is 'b.jpg B': expected NAME#NUMBER<TAB>CAPTION",
        ),
        ("t.txt", "a.jpg#x\tA", None, "t.txt: line 1 is"),
        ("t.txt", b"a.jpg#0\tA\na.jpg#1\tcaf\xe9\n", None, "t.txt: line 2 is not UTF-8 (byte 0xe9)"),
        ("t.txt", "", None, "t.txt: no image with a caption (0 of 0 without image, 0 without caption)"),
        ("t.txt", "z.jpg#0\tZ", None, "t.txt: no image with a caption (1 of 1 without image, 0"),
        ("t.txt", "a.jpg#0\tA", "list.txt", "list.txt: lists no image of"),
        ("t.txt", "a.jpg#0\tA", "train", "train: no such file; the split of"),
        ("t.csv", "image,caption\na.jpg,A\n\na.jpg\n", None, "t.csv: line 4: expected IMAGE,CAPTION"),
        ("t.csv", "image,caption\n,A", None, "t.csv: line 2: expected IMAGE,CAPTION"),
        ("t.csv", 'image,caption\na.jpg,"A" b\n', None, "t.csv: line 2: not CSV: "),
        ("t.csv", "image_name|comment\na.jpg|A\n", None, "t.csv: line 1 is 'image_name|comment': expected"),
        ("k.json", '{"images": [\n}', None, "k.json: line 2: not JSON"),
        ("k.json", b'{"images": [\n\xff', None, "k.json: line 2 is not UTF-8 (byte 0xff)"),
        (
            "k.json",
            "[]",
            None,
            "k.json: is neither Karpathy's JSON (images) nor COCO's (images, annotations)",
        ),
        ("k.json", {"images": []}, None, "k.json: no image with a caption"),
        ("k.json", {"images": 5}, None, "k.json: the file must have 'images' of type list"),
        ("k.json", {"images": ["a"]}, None, "k.json: images[0] must have 'split' of type str"),
        *(
            (
                "k.json",
                {"images": [without(KARPATHY_ENTRY, key)]},
                None,
                f"images[0] must have {key!r} of type",
            )
            for key in KARPATHY_ENTRY
        ),
        ("k.json", {"images": [{**KARPATHY_ENTRY, "filepath": 1}]}, None, "images[0] must have 'filepath'"),
        (
            "k.json",
            {"images": [{**KARPATHY_ENTRY, "sentences": [{}]}]},
            None,
            "images[0].sentences must have",
        ),
        ("k.json", KARPATHY, "dev", "k.json: has no split 'dev'; its splits are train, restval, test"),
        ("c.json", COCO, "train", "c.json: COCO has one file per split, so 'train' cannot be chosen"),
        *(
            (
                "c.json",
                {"images": [without(COCO_IMAGE, key)], "annotations": []},
                None,
                f"images[0] must have {key!r} of type",
            )
            for key in COCO_IMAGE
        ),
        (
            "c.json",
            {"images": [COCO_IMAGE], "annotations": [{}]},
            None,
            "annotations[0] must have 'image_id'",
        ),
        (
            "c.json",
            {"images": [COCO_IMAGE], "annotations": [{"image_id": 3, "caption": "C"}]},
            None,
            "c.json: annotations[0] is about image 3, which images[] does not list",
        ),
        ("p.parquet", b"not parquet", None, "p.parquet: cannot be read as Parquet: "),
        ("p.parquet", b"", "train", "p.parquet: Parquet has no splits, so 'train' cannot be chosen"),
    ],
)
def test_a_file_of_another_form_is_one_clear_line(
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes | str | dict,
    split: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "list.txt", "q.jpg\n")
    path = write(tmp_path / name, content)
    refuses(lambda: read_dataset([str(path)], split, images), message)


def refuses(read: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["t.txt", "k.json", "p.parquet", "p*.parquet", "folder"])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, images: Path, name: str) -> None:
    refuses(lambda: read_dataset([str(tmp_path / name)], images=images), str(tmp_path / name))


@pytest.mark.parametrize(("name", "content"), [("t.txt", TOKENS), ("k.json", KARPATHY), ("c.json", COCO)])
def test_the_image_folder_must_be_given_and_exist(tmp_path: Path, name: str, content: str | dict) -> None:
    path = write(tmp_path / name, content)
    refuses(lambda: read_dataset([str(path)]), "the folder of the images must be given")
    refuses(lambda: read_dataset([str(path)], images=tmp_path / "no"), "no: no such folder; the image files")


FULL = [("image_id", pa.string()), ("content", pa.binary()), ("captions", pa.list_(pa.string()))]


@pytest.mark.parametrize(
    ("schema", "row", "message"),
    [
        (FULL[:1], ("a",), "lacks column content, captions; it has image_id"),
        ([("image_id", pa.int64()), *FULL[1:]], (1, b"x", ["C"]), "image_id is int64, but must be string"),
        (
            [FULL[0], ("content", pa.string()), FULL[2]],
            ("a", "x", ["C"]),
            "column content is string, but must be binary",
        ),
        (
            [*FULL[:2], ("captions", pa.string())],
            ("a", b"x", "C"),
            "column captions is string, but must be list of string",
        ),
        (FULL, (None, b"x", ["C"]), "image_id is null in a row"),
    ],
)
def test_parquet_of_another_schema_is_one_clear_line(tmp_path: Path, schema: list, row: tuple, message: str) -> None:
    path = parquet(tmp_path / "x.parquet", [row], pa.schema(schema))
    refuses(lambda: read_parquet([str(path)]), f"{path}: ")
    refuses(lambda: read_parquet([str(path)]), message)


def test_a_truncated_parquet_file_is_one_clear_line(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [("a", bytes(range(256)) * 50, ["C"])])
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes(200) + whole[220:])
    refuses(lambda: read_parquet([str(path)]), "x.parquet: cannot be read as Parquet: ")


def test_the_real_dev_set() -> None:
    examples = read_parquet([str(DEV.with_name("dev-*.parquet"))])
    assert len(examples) == len({example.image_id for example in examples}) == 1000
    assert all(len(example.captions) == 5 for example in examples)
    with Image.open(io.BytesIO(examples[-1].read())) as image:
        assert (image.format, image.size) == ("JPEG", (224, 224))
