"""JPEGs decoded and resized on a GPU, by nvJPEG through torchvision; on a CPU torchvision does the same by libjpeg."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import ExifTags, Image
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from nic_model.images import MAX_PIXELS, Pixels

Key = TypeVar("Key")
Failed = TypeVar("Failed")  # why there is no image

AT_ONCE = 64_000_000  # pixels decoded together: 13 bytes each, as bytes, as floats and in between

BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # markers of the frame header
APP1, APP14 = 0xE1, 0xEE
EXIF = b"Exif\0\0"

warnings.filterwarnings("ignore", message=".*image decoding and encoding capabilities of TorchVision are")


@dataclass(frozen=True)
class Limits:
    """What is decoded together, and the threads that decode what the device does not."""

    images: int
    n_bytes: int  # encoded; one image may have more
    threads: int


def decode_batches(
    images: Iterable[tuple[Key, bytes | Failed]],
    size: int,
    device: torch.device,
    limits: Limits,
    decode: Callable[[bytes | Failed], Pixels | Failed],
) -> Iterator[tuple[Key, Pixels | Failed]]:
    """Each key of `images`, in their order, with its image of `size` x `size`, decoded by `device` a batch ahead of
    where it is taken, or with what `decode` gives for what is no plain JPEG."""
    waiting: deque[tuple[list[Key], Future[list[Pixels | Failed]]]] = deque()
    with (
        ThreadPoolExecutor(limits.threads, thread_name_prefix="decode") as others,
        ThreadPoolExecutor(1, thread_name_prefix="decode") as batches,
    ):

        def decode_all(contents: list[bytes | Failed]) -> list[Pixels | Failed]:
            plain = decode_plain([each if isinstance(each, bytes) else b"" for each in contents], size, device)
            rest = [number for number, pixels in enumerate(plain) if pixels is None]
            decoded: dict[int, Pixels | Failed] = {n: pixels for n, pixels in enumerate(plain) if pixels is not None}
            decoded |= zip(rest, others.map(decode, [contents[number] for number in rest]), strict=True)
            return [decoded[number] for number in range(len(contents))]

        for keys, contents in _batches(images, limits):
            waiting.append((keys, batches.submit(decode_all, contents)))
            if len(waiting) > 1:
                first, found = waiting.popleft()
                yield from zip(first, found.result(), strict=True)
        for keys, found in waiting:
            yield from zip(keys, found.result(), strict=True)


def _batches(
    images: Iterable[tuple[Key, bytes | Failed]], limits: Limits
) -> Iterator[tuple[list[Key], list[bytes | Failed]]]:
    keys: list[Key] = []
    contents: list[bytes | Failed] = []
    held = 0
    for key, content in images:
        n_bytes = len(content) if isinstance(content, bytes) else 0
        if len(keys) == limits.images or (keys and held + n_bytes > limits.n_bytes):
            yield keys, contents
            keys, contents, held = [], [], 0
        keys.append(key)
        contents.append(content)
        held += n_bytes
    if keys:
        yield keys, contents


def decode_plain(contents: Sequence[bytes], size: int, device: torch.device) -> list[Pixels | None]:
    """Each image that is a plain JPEG as pixels (on `device`) of `size` x `size`; None for all others, and for those
    that were decoded together with one that cannot be."""
    found: list[Pixels | None] = [None] * len(contents)
    sizes = {number: plain for number, content in enumerate(contents) if (plain := plain_size(content))}
    for group in _at_once(sizes):
        encoded = [torch.frombuffer(bytearray(contents[number]), dtype=torch.uint8) for number in group]
        try:
            images = decode_jpeg(encoded, ImageReadMode.RGB, device)
            for number, rgb in zip(group, _resize_all(images, size), strict=True):
                found[number] = Pixels(rgb, *sizes[number])
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()  # they are used by others
        except RuntimeError:  # whatever is wrong with any of them, or with the memory that they need
            found = [None if number in group else pixels for number, pixels in enumerate(found)]
    return found


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that stands upright, has three components of 8 bits, YCbCr, and an end; of another
    file None: Pillow knows what to do with it, or what to say of it."""
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return None
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker == APP14 or (marker == APP1 and _turned(segment)):
            return None
        if marker in (BASELINE, EXTENDED, PROGRESSIVE):
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


def _at_once(sizes: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
    group: list[int] = []
    pixels = 0
    for number, (width, height) in sizes.items():
        if group and pixels + width * height > AT_ONCE:
            yield group
            group, pixels = [], 0
        group.append(number)
        pixels += width * height
    if group:
        yield group


def _resize_all(images: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    """Each of `images`, uint8 (3, H, W), squeezed to (3, size, size) as Pillow does it, those of a size together."""
    found = list(images)
    shapes: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(number)
    for shape, numbers in shapes.items():
        if shape[1:] == (size, size):
            continue
        together = torch.stack([images[number] for number in numbers]).float()
        squeezed = functional.interpolate(together, (size, size), mode="bicubic", antialias=True)
        for number, image in zip(numbers, squeezed.round_().clamp_(0, 255).byte(), strict=True):
            found[number] = image
    return found
