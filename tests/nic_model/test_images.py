"""Decoding: every kind of good image upright and in RGB, every kind of bad one an ImageError."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nic_model import images
from nic_model.images import ImageError, decode, open_rgb, plain_size
from tests.hostile_images import encode, with_round_alpha

SIZE = 64


def picture(width: int = 120, height: int = 80) -> Image.Image:
    """Red above, blue below; the left half darker."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, :, 0] = 240
    rgb[height // 2 :, :, 2] = 240
    rgb[:, : width // 2] //= 2
    return Image.fromarray(rgb)


def corners(content: bytes) -> list[tuple[int, ...]]:
    """Mean colours of the four quarters: top left, top right, bottom left, bottom right."""
    rgb = decode(content, SIZE).rgb
    half = SIZE // 2
    quarters = (rgb[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half))
    return [tuple(int(c) for c in quarter.reshape(3, -1).mean(axis=1)) for quarter in quarters]


EXPECTED = [(120, 0, 0), (240, 0, 0), (0, 0, 120), (0, 0, 240)]


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


# A TIFF's head and one folder: turned by a quarter, with a resolution that is text.
ODD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
TURNED = picture().transpose(Image.Transpose.ROTATE_90)

GOOD = {
    "png": encode(picture()),
    "jpeg": encode(picture(), "JPEG", quality=95),
    "large jpeg": encode(picture(1200, 800), "JPEG", quality=95),
    "webp": encode(picture(), "WEBP", lossless=True),
    "avif": encode(picture(), "AVIF", quality=95),
    "turned avif": encode(TURNED, "AVIF", quality=95, exif=exif(6)),
    "heic": encode(picture(), "HEIF", quality=95),
    "turned heic": encode(TURNED, "HEIF", quality=95, exif=exif(6).tobytes()),
    "bmp": encode(picture(), "BMP"),
    "tiff": encode(picture(), "TIFF"),
    "gif": encode(picture(), "GIF"),
    "animated gif": encode(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (120, 80), "green")]),
    "palette": encode(picture().convert("P", palette=Image.Palette.ADAPTIVE)),
    "cmyk": encode(picture().convert("CMYK"), "JPEG", quality=95),
    "rgba": encode(picture().convert("RGBA")),
    "turned by exif": encode(TURNED, "JPEG", quality=95, exif=exif(6)),
    "turned tiff": encode(TURNED, "TIFF", exif=exif(6)),
    "turned by odd exif": encode(TURNED, "JPEG", quality=95, exif=ODD_EXIF),
    "png of damaged exif": encode(picture(), exif=b"damaged"),
    "webp of damaged exif": encode(picture(), "WEBP", lossless=True, exif=b"damaged"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_images_are_upright_rgb(kind: str) -> None:
    pixels = decode(GOOD[kind], SIZE)
    assert pixels.rgb.shape == (3, SIZE, SIZE)
    assert pixels.rgb.dtype == np.uint8
    expected_size = (1200, 800) if kind == "large jpeg" else (120, 80)
    assert (pixels.width, pixels.height) == expected_size
    for found, expected in zip(corners(GOOD[kind]), EXPECTED, strict=True):
        assert found == pytest.approx(expected, abs=12)


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "F", "1"])
def test_grey_images_keep_their_greys(mode: str) -> None:
    ramp = np.linspace(0, 1, 80)[:, None] * np.ones(120)
    arrays = {
        "L": (ramp * 255).astype(np.uint8),
        "I;16": (ramp * 65535).astype(np.uint16),
        "I": (ramp * 65535).astype(np.int32),
        "F": ramp.astype(np.float32),
        "1": ramp > 0.5,
    }
    rgb = decode(encode(Image.fromarray(arrays[mode]), "TIFF"), SIZE).rgb
    assert rgb[:, 0].mean() < 10
    assert rgb[:, -1].mean() > 245
    assert rgb[0].tolist() == rgb[1].tolist() == rgb[2].tolist()


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "P", "LA", "RGBA", "CMYK"])
def test_large_images_are_worked_on_strip_by_strip(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several copies of them would not fit; they look as they would."""
    grey = np.asarray(picture().convert("L"))
    image = {
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 1000),
        "F": Image.fromarray(grey.astype(np.float32) / 7),
    }.get(mode) or with_round_alpha(encode(picture())).convert(mode)
    content = encode(image, "PNG" if mode == "P" else "TIFF")
    whole = decode(content, 16)
    sizes, to_rgb = [], images._to_rgb

    def noted(strip: Image.Image, *others: float) -> Image.Image:
        sizes.append(strip.size)
        return to_rgb(strip, *others)

    monkeypatch.setattr(images, "_to_rgb", noted)
    monkeypatch.setattr(images, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(images, "STRIP_PIXELS", 500)
    large = decode(content, 16)
    assert sizes == [(120, 6)] * 13 + [(120, 2)]  # thirds of the sides are at least 4/3 of 16
    assert (large.width, large.height) == (120, 80)
    assert np.abs(large.rgb.astype(int) - whole.rgb).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    assert decode(encode(clear.convert(mode)), SIZE).rgb.min() == 255


@pytest.mark.parametrize("size", [(SIZE, SIZE), (120, 80), (80, 120), (149, 300)])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}], ids=str
)
def test_plain_jpegs_are_what_pillow_makes_of_them(size: tuple[int, int], options: dict[str, Any]) -> None:
    content = encode(picture(*size), "JPEG", **options)
    assert plain_size(content) == size
    image, width, height = open_rgb(content, SIZE)
    found = decode(content, SIZE)
    assert (found.width, found.height) == (width, height) == size
    assert np.array_equal(found.rgb, images.resize(image, SIZE))


def test_a_plain_head_does_not_hide_a_bomb() -> None:
    """What fills up before a marker is not the head of a segment, though it can be read as one."""
    frame = b"\x00\x11\x08\xff\x00\xff\x00\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    plain = encode(picture(), "JPEG")
    hidden = b"\xff\xd8\xff\xff\xc0" + frame + bytes(0xC000 - len(frame) - 1) + plain[2:]
    assert plain_size(hidden) is None
    with pytest.raises(ImageError):
        decode(hidden, SIZE)


BAD = {
    "empty": (b"", "decode_error", "empty"),
    "text": (b"This is not a photograph.", "decode_error", "not an image in a known format"),
    "truncated jpeg": (GOOD["jpeg"][:600], "decode_error", "OSError"),
    "truncated png": (GOOD["png"][:-30], "decode_error", "OSError"),
    "truncated avif": (GOOD["avif"][:-30], "decode_error", "Truncated data"),
    "truncated heic": (GOOD["heic"][:-30], "decode_error", "Unexpected end of file"),
    "magic number only": (b"\xff\xd8\xff\xe0", "decode_error", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "decode_error", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "decode_error", "not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_say_why(kind: str) -> None:
    content, status, message = BAD[kind]
    with pytest.raises(ImageError, match=message) as error:
        decode(content, SIZE)
    assert error.value.status == status


def test_size_is_checked_before_decoding() -> None:
    with pytest.raises(ImageError, match="120 x 80 pixels; at most 9599") as error:
        decode(GOOD["png"], SIZE, max_pixels=120 * 80 - 1)
    assert error.value.status == "too_large"
    assert decode(GOOD["png"], SIZE, max_pixels=120 * 80).width == 120


@pytest.mark.parametrize("kind", ["jpeg", "avif", "heic"])
@pytest.mark.parametrize("start", range(0, 400, 7))
def test_garbled_bytes_are_an_image_or_an_error(start: int, kind: str) -> None:
    content = bytearray(GOOD[kind])
    content[start : start + 5] = bytes((start * k) % 256 for k in range(3, 8))
    try:
        assert decode(bytes(content), SIZE).rgb.shape == (3, SIZE, SIZE)
    except ImageError as error:
        status = error.status
    else:
        status = "ok"
    assert status in ("ok", "decode_error", "too_large")


def test_views_repeat_and_differ() -> None:
    image = picture()
    views = [images.augment(image, SIZE, np.random.default_rng(seed), flip=True, least_area=0.7) for seed in (1, 1, 2)]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


@pytest.mark.parametrize("least_area", [0.3, 1.0])
def test_views_show_at_least_so_much(least_area: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    resize = images.resize

    def noted(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
        left, top, right, bottom = box
        assert 0 <= left <= right <= image.width
        assert 0 <= top <= bottom <= image.height
        shown.append((right - left) * (bottom - top) / (image.width * image.height))
        return resize(image, size, box)

    monkeypatch.setattr(images, "resize", noted)
    for seed in range(40):
        images.augment(picture(), SIZE, np.random.default_rng(seed), True, least_area)
    # A crop wider or higher than the photograph is cut, by what the aspect may change: a factor of exp(0.15 / 2).
    assert least_area * 0.92 < min(shown) < least_area + 0.1
    assert max(shown) > 0.9


def test_views_without_flip_keep_left_and_right() -> None:
    for seed in range(20):
        view = images.augment(picture(), SIZE, np.random.default_rng(seed), False, 0.7).astype(int)
        assert view[:, :, : SIZE // 4].sum() < view[:, :, -SIZE // 4 :].sum()


def test_normalise_gives_zero_mean_and_unit_variance() -> None:
    pixels = torch.tensor([[0, 255], [51, 204]], dtype=torch.uint8).view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    out = images.normalise(pixels, mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0))
    expected = torch.tensor([0.0, 1.0, 0.2, 0.8]).view(2, 2)
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.4, 0.2), (0.0, 1.0)]):
        torch.testing.assert_close(out[1, channel], (expected - mean) / std)


@pytest.mark.parametrize("size", [(224, 224), (500, 333), (333, 500), (41, 900), (90, 60), (1, 7)])
def test_pytorch_resizes_as_pillow_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    squeezed = images.resize(image, SIZE)
    # Which side comes first tells, and is not the same in all versions of Pillow.
    first = (image.width, SIZE) if image.height > image.width else (SIZE, image.height)
    for step in (first, (SIZE, SIZE)):
        image = image.resize(step, Image.Resampling.BICUBIC)
    difference = np.abs(squeezed.astype(int) - np.asarray(image).transpose(2, 0, 1).astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.05
