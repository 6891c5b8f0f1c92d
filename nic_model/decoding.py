"""Encoded images to batches of pixels, ahead of what captions them: by threads, or by the GPU."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from nic_model.images import MAX_PIXELS, ImageError, Pixels, decode
from nic_model.nvjpeg import decode_plain

Key = TypeVar("Key")

AHEAD_BYTES = 64 * 1024 * 1024  # of encoded images taken while others are captioned

# What a thread decodes at a time: to hand images over one by one takes as long as to decode them.
SLICE_IMAGES, SLICE_BYTES = 16, 1024 * 1024


@dataclass(frozen=True)
class Failure:
    """An image that could not be captioned: `status` as in the captions table, and why."""

    status: str
    message: str


@dataclass(frozen=True)
class Decoded(Generic[Key]):
    """Some images, in their order."""

    keys: list[Key]
    sizes: list[tuple[int, int] | Failure]  # width and height of the upright original
    rgb: torch.Tensor  # uint8 (N, 3, S, S) of the N that are no failures; for a GPU in pinned memory, or on it


@dataclass(frozen=True)
class Decoding:
    """To `image_size` x `image_size`, for `device`; on a CPU by `threads`, and with `on_gpu` plain JPEGs by the GPU."""

    image_size: int
    device: torch.device
    threads: int
    on_gpu: bool = False

    def ahead(self, images: Iterable[tuple[Key, bytes | Failure]], batch_size: int) -> Iterator[Decoded[Key]]:
        """All `images`, in their order, some at a time, taken up to two batches before they are asked for."""
        some = (batch_size, AHEAD_BYTES) if self.on_gpu else (min(SLICE_IMAGES, -(-batch_size // 4)), SLICE_BYTES)
        waiting: deque[tuple[int, int, Future[Decoded[Key]]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        gpu = ThreadPoolExecutor(1, thread_name_prefix="decode")
        try:
            for keys, contents, n_bytes in _slices(images, *some):
                while waiting and (
                    sum(n for n, _, _ in waiting) + len(keys) > 2 * batch_size
                    or sum(held for _, held, _ in waiting) + n_bytes > AHEAD_BYTES
                ):
                    yield waiting.popleft()[2].result()
                if self.on_gpu:
                    future = gpu.submit(self._by_gpu, keys, contents, pool)
                else:
                    future = pool.submit(self._by_cpu, keys, contents)
                waiting.append((len(keys), n_bytes, future))
                del contents  # the bytes live no longer than their turn
            while waiting:
                yield waiting.popleft()[2].result()
        finally:
            gpu.shutdown(cancel_futures=True)
            pool.shutdown(cancel_futures=True)

    def _by_cpu(self, keys: list[Key], contents: list[bytes | Failure]) -> Decoded[Key]:
        return self._together(keys, [self._decode(content) for content in contents])

    def _by_gpu(self, keys: list[Key], contents: list[bytes | Failure], pool: Executor) -> Decoded[Key]:
        plain = decode_plain(
            [content if isinstance(content, bytes) else b"" for content in contents], self.image_size, self.device
        )
        others = pool.map(
            self._decode, (content for content, pixels in zip(contents, plain, strict=True) if not pixels)
        )
        return self._together(keys, [pixels or next(others) for pixels in plain])

    def _decode(self, content: bytes | Failure) -> Pixels | Failure:
        if isinstance(content, Failure):
            return content
        try:
            return decode(content, self.image_size, MAX_PIXELS)
        except ImageError as error:
            return Failure(error.status, str(error))

    def _together(self, keys: list[Key], images: list[Pixels | Failure]) -> Decoded[Key]:
        sizes = [image if isinstance(image, Failure) else (image.width, image.height) for image in images]
        good = [image.rgb for image in images if isinstance(image, Pixels)]
        if any(isinstance(rgb, torch.Tensor) for rgb in good):
            return Decoded(keys, sizes, torch.stack([torch.as_tensor(rgb, device=self.device) for rgb in good]))
        # Channels last where all are, as they come out of a decoder: to change the order takes as long as decoding.
        planar = any(np.asarray(rgb).flags.c_contiguous for rgb in good)
        pixels = torch.empty(
            (len(good), 3, self.image_size, self.image_size),
            dtype=torch.uint8,
            memory_format=torch.contiguous_format if planar else torch.channels_last,
            pin_memory=self.device.type == "cuda",
        )
        for place, rgb in zip(pixels.numpy(), good, strict=True):  # by NumPy, which starts no threads of its own
            place[:] = rgb
        return Decoded(keys, sizes, pixels)


def _slices(
    images: Iterable[tuple[Key, bytes | Failure]], n: int, n_bytes: int
) -> Iterator[tuple[list[Key], list[bytes | Failure], int]]:
    """Keys and contents of up to `n` images, and the bytes of these, which are more than `n_bytes` only of one."""
    keys: list[Key] = []
    contents: list[bytes | Failure] = []
    held = 0
    for key, content in images:
        size = 0 if isinstance(content, Failure) else len(content)
        if keys and (len(keys) == n or held + size > n_bytes):
            yield keys, contents, held
            keys, contents, held = [], [], 0
        keys.append(key)
        contents.append(content)
        held += size
        del content
        if len(keys) == n:
            yield keys, contents, held
            keys, contents, held = [], [], 0
    if keys:
        yield keys, contents, held
