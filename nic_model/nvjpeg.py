"""JPEGs decoded and resized on a GPU, by nvJPEG through torchvision; on a CPU torchvision does the same by libjpeg."""

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from nic_model.images import Pixels, plain_size

AT_ONCE = 64_000_000  # pixels decoded together: 13 bytes each, as bytes, as floats and in between

warnings.filterwarnings("ignore", message=".*image decoding and encoding capabilities of TorchVision are")


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
