"""Bytes to pixels: the only place that decodes, resizes, augments and normalises images."""

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass

import numpy as np
import pi_heif
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError
from torch.nn import functional

# So many are the largest that cameras make. Beside its bytes such an image takes, as measured: a JPEG up to 310 MiB, a
# PNG or TIFF 110 to 430, twice that where EXIF turns it, HEIC 710, AVIF 900; and WebP 1,610, since Pillow decodes it as
# an animation, whose last frame is kept too.
MAX_PIXELS = 105_000_000

# An image up to this size is resized by PyTorch, which does what Pillow does, but for the last bit of some values,
# sooner and with two more copies of it.
WHOLE_PIXELS = 4_000_000

STRIP_PIXELS = 1_000_000  # of a larger one whose colours are worked on at a time

# Markers of a JPEG (table B.1 of ITU T.81); frames are baseline, extended or progressive.
SOF0, SOF1, SOF2, RST0, EOI, APP1, APP14, COM = 0xC0, 0xC1, 0xC2, 0xD0, 0xD9, 0xE1, 0xEE, 0xFE
EXIF = b"Exif\0\0"

# What turns an image upright, by the orientation that its EXIF notes.
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}  # these exchange width and height

# Formats that people caption. Pillow knows some forty more, several of them rarely used code that parses hostile
# bytes, or programs in disguise (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF", "BMP", "TIFF")

# One thread for an image: several are decoded at a time.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False)


# Pillow warns of what we check ourselves (size) or can live with (odd EXIF). Once and for all, since what Python has
# for a while, catch_warnings, is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """An image that cannot be captioned: `status` is `decode_error` or `too_large`, the text says why."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Pixels:
    """An image made ready: `rgb` uint8 (3, S, S), and the upright original's width and height in pixels."""

    rgb: NDArray[np.uint8] | torch.Tensor
    width: int
    height: int


def decode(content: bytes, size: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes, turns upright, and squeezes to `size` x `size`. Raises ImageError, and nothing else, for a bad image."""
    # What cameras and phones write, in half of Pillow's time and without holding up other threads.
    plain = plain_size(content)
    if plain and plain[0] * plain[1] <= min(max_pixels, WHOLE_PIXELS) and min(plain) < 2 * _drafted(size):
        with contextlib.suppress(Exception):  # Pillow says what is wrong with it, or that nothing is
            return Pixels(_squeeze(simplejpeg.decode_jpeg(content, "RGB").transpose(2, 0, 1), size), *plain)
    image, width, height = open_rgb(content, size, max_pixels)
    return Pixels(resize(image, size), width, height)


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that stands upright, has three components of 8 bits, YCbCr, and an end; of another
    file None: Pillow knows what to do with it, or what to say of it."""
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return None
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if length < 2 or not SOF0 <= marker <= COM or marker in range(RST0, EOI + 1):  # no segment
            return None
        if marker == APP14 or (marker == APP1 and _turned(segment)):
            return None
        if marker in (SOF0, SOF1, SOF2):
            height, width = (int.from_bytes(segment[place : place + 2], "big") for place in (1, 3))
            plain = segment[:1] == b"\x08" and segment[5:6] == b"\x03" and segment[6::3] == b"\x01\x02\x03"
            return (width, height) if plain and 0 < width * height <= MAX_PIXELS else None
        at += 2 + length
    return None


def _turned(segment: bytes) -> bool:
    """Whether what a camera (Exif) or a program (XMP) notes may say that the image lies on its side."""
    if not segment.startswith(EXIF):
        return b"Orientation" in segment
    try:
        exif = Image.Exif()
        exif.load(segment)
        return exif.get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # hostile bytes: each kind of damage raises its own
        return True


def open_rgb(content: bytes, size: int, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int, int]:
    """The upright RGB image, with the original's width and height.

    What is much larger than `size` may come shrunk, to no less than 4/3 of that: JPEGs, and what needs work on its
    colours. Of an animation the first frame is taken; what is transparent becomes white; 16-bit samples are scaled to
    8. Raises ImageError.
    """
    if not content:
        raise ImageError("decode_error", "the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too_large", f"{width} x {height} pixels; at most {max_pixels} are decoded")
        image.draft("RGB", (_drafted(size), _drafted(size)))
        image.load()  # which turns a TIFF, whose size has been that of the upright image already
        turn = _turn(image)
        if turn is not None:
            image = image.transpose(turn)
            if turn in QUARTER_TURNS:
                width, height = height, width
        return _small_rgb(image, _drafted(size)), width, height
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("decode_error", f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError("too_large", f"far too many pixels; at most {max_pixels} are decoded") from None
    except MemoryError:
        raise ImageError("too_large", "not enough memory to decode it") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ZeroDivisionError and more on
        # hostile bytes: all of them mean that this image cannot be decoded.
        raise ImageError("decode_error", f"{type(error).__name__}: {error}".rstrip()) from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image stand upright: nothing where it does, or where its EXIF is damaged."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # hostile bytes: each kind of damage raises its own
        return None


def resize(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> NDArray[np.uint8]:
    """`box` (left, top, right, bottom in pixels; all by default) squeezed to uint8 (3, size, size)."""
    if image.size != (size, size) and box is None and image.width * image.height <= WHOLE_PIXELS:
        return _squeeze(np.array(image).transpose(2, 0, 1), size)
    if image.size != (size, size) or box is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _squeeze(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 (3, H, W) to (3, size, size)."""
    height, width = rgb.shape[1:]
    if (height, width) == (size, size):
        return rgb
    pixels = torch.from_numpy(rgb).unsqueeze(0)
    if height > width:  # PyTorch begins with the width, Pillow 13 with what shrinks more
        pixels = functional.interpolate(pixels, (size, width), mode="bicubic", antialias=True)
    return functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0].numpy()


def _drafted(size: int) -> int:
    """The least side to which a JPEG is shrunk while it is decoded: 12 megapixels are then decoded at an eighth."""
    return size * 4 // 3


def augment(
    image: Image.Image, size: int, rng: np.random.Generator, flip: bool, least_area: float
) -> NDArray[np.uint8]:
    """A random view, mild enough for the captions to stay true: uint8 (3, size, size).

    It keeps `least_area` (0 to 1) to all of the area at nearly the same aspect, changes brightness and contrast by up
    to 20%, and mirrors every second view where `flip` allows it.
    """
    area, aspect = rng.uniform(least_area, 1.0), np.exp(rng.uniform(-0.15, 0.15))
    width = image.width * min(1.0, np.sqrt(area * aspect))
    height = image.height * min(1.0, np.sqrt(area / aspect))
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    view = resize(image, size, (left, top, left + width, top + height))
    if flip and rng.random() < 0.5:
        view = view[:, :, ::-1]
    brightness, contrast = rng.uniform(0.8, 1.2, 2)
    # One table look-up for both, since a pixel has but 256 values.
    levels = (np.arange(256) - 128) * contrast + 128 * brightness
    return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8)[view])


def normalise(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (B, 3, H, W) in 0..255 to float32 of zero mean and unit variance, channels last as CNNs like it."""
    scale, shift = _scale_and_shift(mean, std, pixels.device)
    return (pixels / scale - shift).contiguous(memory_format=torch.channels_last)


@functools.cache  # for good: what a CUDA graph reads must stay where it is
@torch.inference_mode(False)  # what is kept may serve training too
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sent to a GPU once, since sending is waited for."""
    deviation = torch.tensor(std, device=device).view(1, 3, 1, 1)
    return 255 * deviation, torch.tensor(mean, device=device).view(1, 3, 1, 1) / deviation


def _small_rgb(image: Image.Image, least: int) -> Image.Image:
    """In RGB. Work on colours takes several copies: a large image has it done strip by strip, and each strip shrunk at
    once, by a whole number that leaves the sides no less than `least`."""
    width, height = image.size
    if (image.mode == "RGB" and not image.has_transparency_data) or width * height <= WHOLE_PIXELS:
        return _to_rgb(image)
    factor = max(1, min(width, height) // least)
    rows = factor * -(-STRIP_PIXELS // (factor * width))
    strips = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    white = None
    if _deep(image):
        white = _white(image, max(float(_samples(image.crop(strip)).max()) for strip in strips))
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for strip in strips:
        small.paste(_to_rgb(image.crop(strip), white).reduce(factor), (0, strip[1] // factor))
    return small


def _deep(image: Image.Image) -> bool:
    """Whether it is grey, of more than 8 bits a sample."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _samples(image: Image.Image) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)


def _white(image: Image.Image, greatest: float) -> float:
    """The sample that is white, `greatest` being the greatest there is."""
    return 65535.0 if image.mode != "F" and greatest <= 65535 else max(1.0, greatest)


def _to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """`white` is that of `_white`, of a larger image that this is a part of."""
    if _deep(image):
        # Pillow's own conversion clips these to 255 and leaves a white page.
        samples = _samples(image)
        white = white or _white(image, float(samples.max()))
        return Image.fromarray((np.clip(samples, 0, white) * (255 / white)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        return page
    return image if image.mode == "RGB" else image.convert("RGB")
