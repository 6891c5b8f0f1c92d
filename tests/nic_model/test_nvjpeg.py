"""JPEGs decoded in batches, on a CPU by the same calls: which ones, and that the rest goes the other way."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nic_model.captioner import Captioner, Failure
from nic_model.images import decode, plain_size
from nic_model.nvjpeg import decode_plain
from tests.nic_model.test_captioner import photographs
from tests.nic_model.test_execution import CPU
from tests.tiny import tiny_model_directory

pytestmark = pytest.mark.filterwarnings("ignore:.*encoding capabilities of TorchVision:DeprecationWarning")

SAMPLES = sorted(Path(__file__).parents[2].joinpath("samples", "images").iterdir())


def jpeg(mode: str = "RGB", size: tuple[int, int] = (90, 60), **options: object) -> bytes:
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 255, (4, 6, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("content", "plain"),
    [
        (jpeg(), True),
        (jpeg(progressive=True), True),
        (jpeg(subsampling=0), True),
        (jpeg(exif=turned(1)), True),
        (jpeg(exif=turned(6)), False),
        (jpeg(xmp=XMP), False),
        (jpeg("L"), False),
        (jpeg("CMYK"), False),
        (jpeg()[:-20], False),
        (jpeg()[:100], False),
        (b"\xff\xd8\xff\xd9", False),
        (b"", False),
        (photographs(1)[0], False),
    ],
    ids=["plain", "progressive", "4:4:4", "upright", "turned", "turned by XMP", "grey", "CMYK", "cut", "cut early",
         "no image", "empty", "PNG"],
)  # fmt: skip
def test_what_a_plain_jpeg_is(content: bytes, plain: bool) -> None:
    assert plain_size(content) == ((90, 60) if plain else None)


def test_pixels_are_nearly_pillows() -> None:
    contents = [path.read_bytes() for path in SAMPLES]
    found = decode_plain(contents, 224, CPU)
    assert sum(pixels is not None for pixels in found) >= 10
    for content, pixels in zip(contents, found, strict=True):
        if pixels is not None:
            right = decode(content, 224)
            assert (pixels.width, pixels.height) == (right.width, right.height)
            difference = torch.as_tensor(pixels.rgb).int() - torch.as_tensor(right.rgb).int()
            assert difference.abs().float().mean() < 0.5


def test_one_broken_file_leaves_its_batch_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head and its end are in order, and what is between them is not."""
    broken = bytearray(jpeg())
    start = broken.index(b"\xff\xda") + 14
    del broken[start:-2]
    broken[start - 12] = 9  # components of the scan
    assert plain_size(bytes(broken)) == (90, 60)
    assert decode_plain([jpeg(), bytes(broken), jpeg()], 64, CPU) == [None] * 3
    monkeypatch.setattr("nic_model.nvjpeg.AT_ONCE", 1)  # alone, the others are decoded
    found = decode_plain([jpeg(), bytes(broken), jpeg()], 64, CPU)
    assert [pixels is None for pixels in found] == [False, True, False]


def test_a_captioner_gives_the_same_rows(tmp_path: Path) -> None:
    contents: list[bytes | Failure] = [
        jpeg(), photographs(1)[0], b"", Failure("fetch_error", "gone"), jpeg(exif=turned(6)), jpeg()[:-20],
        jpeg("CMYK"), jpeg(size=(64, 64)),
    ]  # fmt: skip
    directory = tiny_model_directory(tmp_path)
    expected = Captioner.load(directory, batch_size=3, engine="pytorch").caption(contents)
    found = Captioner.load(directory, batch_size=3, decode_on="gpu", engine="pytorch").caption(contents)
    assert [getattr(a, "status", "ok") for a in found] == [getattr(b, "status", "ok") for b in expected]
    sizes = [[(r.width, r.height) for r in results if not isinstance(r, Failure)] for results in (found, expected)]
    assert sizes[0] == sizes[1]
    assert found[-1] == expected[-1]  # nothing to resize, the same decoder
    with pytest.raises(ValueError, match="--decode-on moon: allowed are cpu, gpu"):
        Captioner.load(directory, decode_on="moon")
