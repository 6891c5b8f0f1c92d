"""Bytes to pixels: the only place that decodes, resizes, augments and normalises images."""

import functools
import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

# Decoded, a photograph takes 4 bytes a pixel and the conversion to RGB a second copy: 100 megapixels, the largest
# that cameras make, stay below 1 GiB.
MAX_PIXELS = 105_000_000

# An image up to this size is resized by PyTorch, which does what Pillow does, but for the last bit of some values,
# sooner and with two more copies of it.
WHOLE_PIXELS = 4_000_000

# Formats that people caption. Pillow knows some forty more, several of them rarely used code that parses hostile
# bytes, or programs in disguise (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


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
    image, width, height = open_rgb(content, size, max_pixels)
    return Pixels(resize(image, size), width, height)


def open_rgb(content: bytes, size: int, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int, int]:
    """The upright RGB image, with the original's width and height.

    A JPEG much larger than `size` is shrunk while decoding, to no less than 4/3 of that. Of an animation the first
    frame is taken; what is transparent becomes white; 16-bit samples are scaled to 8. Raises ImageError.
    """
    if not content:
        raise ImageError("decode_error", "the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} pixels; at most {max_pixels} are decoded")
            image.draft("RGB", (size * 4 // 3, size * 4 // 3))  # 12 megapixels are then decoded at an eighth
            quarter_turn = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            ImageOps.exif_transpose(image, in_place=True)  # in place: it would copy an upright image too
            rgb = _to_rgb(image)
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
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from None
    return (rgb, height, width) if quarter_turn else (rgb, width, height)


def resize(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> NDArray[np.uint8]:
    """`box` (left, top, right, bottom in pixels; all by default) squeezed to uint8 (3, size, size)."""
    if image.size != (size, size) and box is None and image.width * image.height <= WHOLE_PIXELS:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
        if image.height > image.width:  # PyTorch begins with the width, Pillow 13 with what shrinks more
            pixels = functional.interpolate(pixels, (size, image.width), mode="bicubic", antialias=True)
        squeezed = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]
        return squeezed.contiguous().numpy()
    if image.size != (size, size) or box is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips these to 255 and leaves a white page.
        samples = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
        sixteen_bit = image.mode != "F" and samples.max() <= 65535
        top = 65535.0 if sixteen_bit else max(1.0, float(samples.max()))
        return Image.fromarray((np.clip(samples, 0, top) * (255 / top)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        return page
    return image if image.mode == "RGB" else image.convert("RGB")
