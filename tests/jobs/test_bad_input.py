"""Bad input, kind by kind, with the status and message that its row must have; and random input, which must end in a
row too. `FUZZ_CASES=1000000 pytest tests/jobs/test_bad_input.py -k fuzz` runs more of it."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.common import executor, storage
from jobs.common.executor import caption_batches, fetch
from jobs.common.rows import INPUT
from jobs.common.storage import Access
from nic_model.captioner import Captioner, Failure
from nic_model.images import ImageError, decode
from tests.hostile_images import bomb_png, encode, lying_jpeg, opened, photographs, png
from tests.tiny import tiny_model_directory

FUZZ_CASES = int(os.environ.get("FUZZ_CASES", "300"))
(PHOTO,) = photographs(1)
PNG = encode(opened(PHOTO).resize((40, 30)), "PNG")
GIF = encode(opened(PHOTO).resize((40, 30)), "GIF")
BMP = encode(opened(PHOTO).resize((40, 30)), "BMP")
TIFF = encode(opened(PHOTO).resize((40, 30)), "TIFF")
WEBP = encode(opened(PHOTO).resize((40, 30)), "WEBP")
AVIF = encode(opened(PHOTO).resize((40, 30)), "AVIF")
HEIC = encode(opened(PHOTO).resize((40, 30)), "HEIF")


UNKNOWN = "not an image in a known format (JPEG, PNG, GIF, WEBP, AVIF, HEIF, BMP, TIFF)"


def huge_gif() -> bytes:
    return b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + GIF[10:]


def gif_beyond_its_screen() -> bytes:
    """A screen of 40 x 30, and on it a frame of 65,535 x 65,535."""
    frame = GIF.index(b",\0\0\0\0")
    return GIF[: frame + 5] + struct.pack("<HH", 65_535, 65_535) + GIF[frame + 9 :]


def endless_gif(frames: int = 20_000) -> bytes:
    """A good first frame, then the same again and again, and no end."""
    frame = GIF.index(b",\0\0\0\0")
    return GIF[:-1] + GIF[frame:-1] * frames


def animated(form: str) -> bytes:
    frames = [opened(PHOTO).resize((40, 30)).rotate(angle) for angle in range(0, 90, 10)]
    return encode(frames[0], form, save_all=True, append_images=frames[1:])


def png_with(kind: bytes, body: bytes) -> bytes:
    """A good PNG with one more chunk before its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return PNG[:33] + chunk + PNG[33:]


def png_with_a_wrong_checksum() -> bytes:
    return PNG[:29] + bytes(4) + PNG[33:]


def tiff_with(tag: int, value: int) -> bytes:
    """A TIFF whose entry `tag` says `value`."""
    (directory,) = struct.unpack_from("<I", TIFF, 4)
    (entries,) = struct.unpack_from("<H", TIFF, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", TIFF, at)[0] == tag:
            return TIFF[: at + 2] + struct.pack("<HII", 4, 1, value) + TIFF[at + 12 :]
    raise ValueError(f"no tag {tag}")


def jpeg_with_exif(exif: bytes) -> bytes:
    body = b"Exif\0\0" + exif
    return PHOTO[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + PHOTO[2:]


def huge_bmp() -> bytes:
    return BMP[:18] + struct.pack("<ii", 100_000, 100_000) + BMP[26:]


# Orientation 99, big-endian: one entry of kind SHORT, and no further directory.
EXIF_99 = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0" + bytes(4)

# name: image_id, words of the message; all of them invalid_id
IDS = {
    "null": (None, "image_id is null"),
    "empty": ("", "image_id is empty"),
    "blank": ("  \u00a0", "image_id is empty"),
    "nul": ("a\0b", "control characters"),
    "bell": ("a\ab", "control characters"),
    "newline": ("a\nb", "control characters"),
    "carriage return": ("a\rb", "control characters"),
    "tab": ("a\tb", "control characters"),
    "escape": ("\x1b[31mred", "control characters"),
    "delete": ("a\x7fb", "control characters"),
    "C1 control": ("a\x85b", "control characters"),
    "line separator": ("a\u2028b", "control characters"),
    "paragraph separator": ("a\u2029b", "control characters"),
    "too long": ("x" * 2049, "image_id has 2049 characters; at most 2048 are allowed"),
}

# name: uri, words of the message; all of them fetch_error
URIS = {
    "null": (None, "content and uri are null"),
    "empty": ("", "uri refused: a local path is not read; allowed is s3://bucket/key"),
    "blank": (" ", "uri refused: a local path"),
    "path": ("/etc/passwd", "uri refused: a local path"),
    "relative path": ("photos/a.jpg", "uri refused: a local path"),
    "path that climbs": ("../../etc/passwd", "uri refused: a local path"),
    "file": ("file:///etc/passwd", "uri refused: file:// is not read"),
    "file in capitals": ("FILE:///etc/passwd", "uri refused: FILE:// is not read"),
    "file, one slash": ("file:/etc/passwd", "uri refused: file: is not read"),
    "http": ("http://169.254.169.254/latest/meta-data", "uri refused: http:// is not read"),
    "https": ("https://host/a.jpg", "uri refused: https:// is not read"),
    "ftp": ("ftp://host/a.jpg", "uri refused: ftp:// is not read"),
    "gopher": ("gopher://host/1", "uri refused: gopher:// is not read"),
    "hdfs": ("hdfs://name/a.jpg", "uri refused: hdfs:// is not read"),
    "data": ("data:image/png;base64,AAAA", "uri refused: data: is not read"),
    "javascript": ("javascript:alert(1)", "uri refused: javascript: is not read"),
    "windows path": ("C:\\photos\\a.jpg", "uri refused: C: is not read"),
    "windows share": ("\\\\host\\share\\a.jpg", "uri refused: a local path"),
    "no bucket": ("s3:///a.jpg", "uri refused: not s3://bucket/key"),
    "no key": ("s3://bucket", "uri refused: not s3://bucket/key"),
    "no key, slash": ("s3://bucket/", "uri refused: not s3://bucket/key"),
    "nothing": ("s3://", "uri refused: not s3://bucket/key"),
    "one slash": ("s3:/bucket/a.jpg", "uri refused: s3: is not read"),
    "climbs": ("s3://bucket/a/../../b.jpg", "uri refused: it has a . or .. in its path"),
    "climbs at once": ("s3://bucket/../b.jpg", "uri refused: it has a . or .. in its path"),
    "climbs at the end": ("s3://bucket/a/..", "uri refused: it has a . or .. in its path"),
    "dot": ("s3://bucket/./a.jpg", "uri refused: it has a . or .. in its path"),
    "newline": ("s3://bucket/a\nHost: evil", "uri refused: it has control characters"),
    "nul": ("s3://bucket/a\0.jpg", "uri refused: it has control characters"),
    "key too long": ("s3://bucket/" + "ü" * 513, "uri refused: the key is longer than 1024 bytes"),
    "bucket with a host": ("s3://user:password@host/a.jpg", "is no bucket's name"),
    "bucket with a space": ("s3://my bucket/a.jpg", "is no bucket's name"),
    "bucket beyond ASCII": ("s3://bücket/a.jpg", "is no bucket's name"),
    "bucket with a query": ("s3://bucket?x=/a.jpg", "is no bucket's name"),
    "bucket that climbs": ("s3://../bucket/a.jpg", "is no bucket's name"),
    "bucket with two dots": ("s3://a..b/a.jpg", "is no bucket's name"),
    "bucket too short": ("s3://ab/a.jpg", "is no bucket's name"),
    "scheme that writes to a terminal": ("\x1b[31mred://a", "uri refused: \\x1b[31mred:// is not read"),
}

# name: content, status, words of the message. Some are good behind a hostile look.
CONTENTS = {
    "empty": (b"", "decode_error", "the file is empty"),
    "one byte": (b"\xff", "decode_error", UNKNOWN),
    "zeros": (bytes(1000), "decode_error", UNKNOWN),
    "text": (b"This is not a photograph.\n", "decode_error", UNKNOWN),
    "HTML": (b"<!DOCTYPE html><title>404</title>", "decode_error", UNKNOWN),
    "XML of S3": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "decode_error", UNKNOWN),
    "SVG": (b'<svg viewBox="0 0 9 9"><circle r="9"/></svg>', "decode_error", UNKNOWN),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "decode_error", UNKNOWN),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "decode_error", UNKNOWN),
    "zip": (b"PK\x03\x04" + bytes(100), "decode_error", UNKNOWN),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "decode_error", UNKNOWN),
    "ELF": (b"\x7fELF" + bytes(100), "decode_error", UNKNOWN),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "decode_error", UNKNOWN),
    "MP4": (b"\0\0\0\x18ftypmp42" + bytes(100), "decode_error", UNKNOWN),
    "head of a HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "decode_error", UNKNOWN),
    "head of an AVIF": (b"\0\0\0\x18ftypavif" + bytes(100), "decode_error", UNKNOWN),
    "ICO": (b"\0\0\1\0\1\0\x10\x10" + bytes(100), "decode_error", UNKNOWN),
    "PSD": (b"8BPS\0\1" + bytes(100), "decode_error", UNKNOWN),
    "PPM": (b"P6 1 1 255 \xff\0\0", "decode_error", UNKNOWN),
    "half a JPEG": (PHOTO[: len(PHOTO) // 2], "decode_error", "image file is truncated"),
    "head of a JPEG": (PHOTO[:2], "decode_error", UNKNOWN),
    "lying JPEG": (lying_jpeg(PHOTO), "too_large", "far too many pixels; at most 105000000 are decoded"),
    "bomb": (bomb_png(), "too_large", "far too many pixels"),
    "half a PNG": (PNG[: len(PNG) // 2], "decode_error", "image file is truncated"),
    "head of a PNG": (PNG[:8], "decode_error", UNKNOWN),
    "PNG without pixels": (png(40, 30, 8, 2, b""), "decode_error", "image file is truncated"),
    "PNG of no size": (png(0, 0, 8, 2, zlib.compress(b"")), "decode_error", UNKNOWN),
    "PNG of an unknown colour": (png(4, 4, 8, 5, zlib.compress(bytes(100))), "decode_error", UNKNOWN),
    "PNG with too few pixels": (
        png(400, 300, 8, 2, zlib.compress(bytes(100))),
        "decode_error",
        "image file is truncated",
    ),
    "PNG that is no zlib": (png(4, 4, 8, 2, b"not zlib"), "decode_error", "broken data stream"),
    "half a GIF": (GIF[: len(GIF) // 2], "decode_error", "image file is truncated"),
    "huge GIF": (huge_gif(), "too_large", "far too many pixels"),
    "half a BMP": (BMP[: len(BMP) // 2], "decode_error", "image file is truncated"),
    "huge BMP": (huge_bmp(), "too_large", "far too many pixels"),
    "half a TIFF": (TIFF[: len(TIFF) // 2], "decode_error", "image file is truncated"),
    "half a WebP": (WEBP[: len(WEBP) // 2], "decode_error", "could not create decoder object"),
    "head of a WebP": (WEBP[:12], "decode_error", UNKNOWN),
    "AVIF without its end": (AVIF[:-20], "decode_error", "Failed to decode frame"),
    "HEIC without its end": (HEIC[:-20], "decode_error", "Unexpected end of file"),
    "108 megapixels": (png(12_000, 9_000, 8, 2, zlib.compress(b"")), "too_large", "12000 x 9000 pixels; at most"),
    "one pixel high": (png(2**31 - 1, 1, 8, 2, zlib.compress(b"")), "too_large", "far too many pixels"),
    "GIF beyond its screen": (gif_beyond_its_screen(), "too_large", "far too many pixels"),
    "TIFF of a huge width": (tiff_with(256, 2**31 - 1), "too_large", "far too many pixels"),
    "TIFF that points beyond its end": (tiff_with(273, 2**31 - 1), "decode_error", "image file is truncated"),
    "TIFF of an unknown compression": (tiff_with(259, 60_000), "decode_error", UNKNOWN),
    "PNG with a wrong checksum": (png_with_a_wrong_checksum(), "decode_error", UNKNOWN),
    "bomb of text": (png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20), 9)), "decode_error", "too large"),
    "endless GIF": (endless_gif(), "ok", ""),
    "animated PNG": (animated("PNG"), "ok", ""),
    "animated WebP": (animated("WEBP"), "ok", ""),
    "animated AVIF": (animated("AVIF"), "ok", ""),
    "TIFF of what are no numbers": (encode(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"), "ok", ""),
    "TIFF of many pages": (animated("TIFF"), "ok", ""),
    "bomb of a profile": (png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(80 << 20), 9)), "decode_error", "too large"),
    "profile that is none": (png_with(b"iCCP", b"a\0\0" + zlib.compress(b"none")), "ok", ""),
    "EXIF that is none": (jpeg_with_exif(b"II*\0" + b"\xff" * 40), "ok", ""),
    "EXIF of an unknown orientation": (jpeg_with_exif(EXIF_99), "ok", ""),
    "bytes after the end": (PHOTO + b"PK\x03\x04" + bytes(1000), "ok", ""),
}


@pytest.mark.parametrize("name", IDS)
def test_bad_ids(name: str) -> None:
    image_id, message = IDS[name]
    assert fetch(image_id, PNG, None, Access())[0] == fetch(image_id, None, "s3://bucket/key", Access())[0]
    _assert_failure(fetch(image_id, PNG, None, Access())[0], "invalid_id", message)


@pytest.mark.parametrize("name", URIS)
def test_bad_uris(name: str) -> None:
    uri, message = URIS[name]
    _assert_failure(fetch("a", None, uri, Access())[0], "fetch_error", message)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner.load(tiny_model_directory(tmp_path_factory.mktemp("model")), batch_size=8)


def test_bad_contents(captioner: Captioner) -> None:
    """Between good ones, which they leave alone."""
    cases = [case for bad in CONTENTS.values() for case in (bad, (PNG, "ok", ""))]
    rows = [{"image_id": str(n), "content": content, "attempts": 1} for n, (content, _, _) in enumerate(cases)]
    batch = pa.RecordBatch.from_pylist(rows, schema=INPUT)
    found = [row for out in caption_batches([batch], captioner) for row in out.to_pylist()]
    assert [row["image_id"] for row in found] == [row["image_id"] for row in rows]
    names = [name for bad in CONTENTS for name in (bad, "good")]
    assert [(name, row["status"]) for name, row in zip(names, found, strict=True)] == [
        (name, status) for name, (_, status, _) in zip(names, cases, strict=True)
    ]
    for row, (_, status, message) in zip(found, cases, strict=True):
        assert (row["error_message"] is None) == (status == "ok")
        assert message in (row["error_message"] or "")


def test_there_are_sixty_kinds() -> None:
    assert len(IDS) + len(URIS) + len(CONTENTS) >= 60


def test_local_files_are_for_who_allows_them(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    allowed = Access(local=True)
    for uri in (str(tmp_path / "a b.png"), (tmp_path / "a b.png").as_uri()):
        assert fetch("a", None, uri, allowed)[0] == PNG
        assert isinstance(fetch("a", None, uri, Access())[0], Failure)
    _assert_failure(fetch("a", None, "file:///a%00b", allowed)[0], "fetch_error", "ValueError")
    _assert_failure(fetch("a", None, "file://[2026]/a.png", allowed)[0], "fetch_error", "ValueError")
    os.mkfifo(tmp_path / "pipe.png")  # opened as files are, it would wait for a writer
    for strange in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        _assert_failure(fetch("a", None, strange.as_uri(), allowed)[0], "fetch_error", "not a regular file")
    _assert_failure(fetch("a", None, "relative.png", allowed)[0], "fetch_error", "uri refused: a local path")


def _assert_failure(found: object, status: str, message: str) -> None:
    assert isinstance(found, Failure)
    assert found.status == status
    assert message in found.message


fuzz = settings(max_examples=FUZZ_CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
SEEDS = [PNG, GIF, BMP, TIFF, WEBP, AVIF, HEIC, encode(opened(PHOTO).resize((40, 30)), "JPEG")]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image with some bytes changed, cut off, doubled or put in between."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        what = draw(st.binary(min_size=0, max_size=8))
        end = min(len(content), at + draw(st.sampled_from([0, len(what), 1, 64, 1 << 20])))
        content[at:end] = what
    return bytes(content)


@fuzz
@given(st.one_of(damaged(), st.binary(max_size=200)))
def test_fuzz_images(content: bytes) -> None:
    """An image, or an ImageError; nothing else."""
    try:
        shape = decode(content, 32).rgb.shape
    except ImageError as error:
        shape = (3, 32, 32) if error.status in ("decode_error", "too_large") else ()
    assert shape == (3, 32, 32)


@settings(fuzz, max_examples=max(1, FUZZ_CASES // 20))
@given(st.lists(st.tuples(st.text(max_size=8), st.one_of(damaged(), st.sampled_from(SEEDS))), max_size=20))
def test_fuzz_rows(captioner: Captioner, images: list[tuple[str, bytes]]) -> None:
    """A row for each, in order, and what is said of it agrees with itself."""
    given_rows = [{"image_id": image_id, "content": content, "attempts": 1} for image_id, content in images]
    batch = pa.RecordBatch.from_pylist(given_rows, schema=INPUT)
    found = [row for out in caption_batches([batch], captioner) for row in out.to_pylist()]
    assert [row["image_id"] for row in found] == [image_id for image_id, _ in images]
    for row, (image_id, content) in zip(found, images, strict=True):
        good = row["status"] == "ok"
        assert good or row["status"] in ("invalid_id", "decode_error", "too_large")
        assert (row["status"] == "invalid_id") == (executor.check_id(image_id) is not None)
        assert good == (row["caption"] is not None) == (row["error_message"] is None)
        assert good or content not in SEEDS or row["status"] == "invalid_id"


TEXT = st.one_of(st.none(), st.text(max_size=40), st.sampled_from(["s3://", "s3://b/", "file:///", "../", "s3a://b"]))


@fuzz
@given(st.lists(st.tuples(TEXT, TEXT, st.one_of(st.none(), st.binary(max_size=20))), max_size=6))
def test_fuzz_manifests(rows: list[tuple[str | None, str | None, bytes | None]]) -> None:
    """Content or a failure for each row, in order; what could be fetched names a bucket and a key."""
    given_rows = []
    for image_id, uri, content in rows:
        try:
            storage.split_uri(uri or "")
        except storage.ObjectError:
            given_rows.append({"image_id": image_id, "uri": uri, "content": content})
        else:
            given_rows.append({"image_id": image_id, "uri": None, "content": content})  # no server is asked here
    found = list(executor.fetch_ahead([dict(row) for row in given_rows], Access()))
    assert [row["image_id"] for row, _ in found] == [row["image_id"] for row in given_rows]
    for (_, result), row in zip(found, given_rows, strict=True):
        assert isinstance(result, Failure) or result == row["content"]
