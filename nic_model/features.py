"""Views of the training images, and what the frozen stages of an encoder make of them, computed once and kept."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nic_model.batches import ImageViews, load_views
from nic_model.config import TrainConfig
from nic_model.datasets import Example
from nic_model.encoder import Encoder, Lower
from nic_model.execution import hasten
from nic_model.state import written_whole

Inputs = ImageViews | torch.Tensor
Encode = Callable[[torch.Tensor], torch.Tensor]


class FeatureCache:
    """Views of all training images by name, float16 (N, ...) each, on disk and mapped into memory: a training that
    was interrupted finds them again, and they need not fit into memory."""

    def __init__(self, folder: Path, device: torch.device, workers: int, bf16: bool) -> None:
        self.folder, self.device, self.workers, self.bf16 = folder, device, workers, bf16
        self._open: dict[str, torch.Tensor] = {}

    def views(self, name: str, n: int, source: Callable[[int], tuple[Inputs, Encode]]) -> list[torch.Tensor]:
        """The `n` views of `name`; `source` says what one is made of, and how."""
        views = []
        for view in range(n):
            key = f"{name}-{view}"
            if key not in self._open:
                file = self.folder / f"{key}.npy"
                if not file.exists():
                    inputs, encode = source(view)
                    save_parts(self._parts(inputs, encode), len(inputs), file)
                self._open[key] = torch.from_numpy(np.load(file, mmap_mode="r+"))  # of "r", torch would warn
            views.append(self._open[key])
        return views

    def encode(self, inputs: Inputs, encode: Encode) -> torch.Tensor:
        """`encode` of all `inputs` in order, float16 on the CPU. A module is one from pixels, in evaluation mode."""
        whole, at = torch.empty(0), 0
        for part in self._parts(inputs, encode):
            if not at:
                whole = torch.empty(len(inputs), *part.shape[1:], dtype=part.dtype)
            whole[at : at + len(part)] = part
            at += len(part)
        return whole

    @torch.inference_mode()
    def _parts(self, inputs: Inputs, encode: Encode) -> Iterator[torch.Tensor]:
        """What `encode` returns, batch by batch."""
        n = len(inputs)
        batches = [list(range(at, min(at + 64, n))) for at in range(0, n, 64)]
        with tqdm(total=n, desc="encoding", unit="image", leave=False, mininterval=1) as progress:
            for number, batch in enumerate(load_views(inputs, batches, self.workers)):
                if not number and isinstance(encode, nn.Module) and self.device.type == "cpu":
                    encode = hasten(encode, batch, torch.bfloat16 if self.bf16 else torch.float32)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    part = encode(batch.to(self.device)).half().cpu()
                yield part
                progress.update(len(part))


class Views:
    """Views of the training images, for an epoch to draw from: as they are, out of the stages that stay frozen, or out
    of the whole encoder. With `config.views` these are computed once; without, each epoch has one of its own."""

    def __init__(self, cache: FeatureCache, train: Sequence[Example], encoder: Encoder, config: TrainConfig) -> None:
        """`encoder` is in evaluation mode."""
        self._cache, self._train, self._encoder, self._config = cache, train, encoder, config

    def images(self, view: int) -> ImageViews:
        """0 is the images as they are."""
        config = self._config
        return ImageViews(self._train, self._encoder.config.image_size, config.seed, view, config.least_area)

    def hidden(self, epoch: int) -> list[torch.Tensor]:
        """What goes into the stages that fine-tuning trains: views (N, C, h, w)."""
        stages = self._config.fine_tune_stages
        lower = Lower(self._encoder, stages)
        return self._kept(f"stages_{stages}", epoch, lambda view: (self.images(view), lower))

    def features(self, name: str, epoch: int) -> list[torch.Tensor]:
        """What comes out of the encoder as it is now: views (N, D) or (N, P, D)."""
        stages, encoder = self._config.fine_tune_stages, self._encoder

        def source(view: int) -> tuple[Inputs, Encode]:
            if not stages or not self._config.views:
                return self.images(view), encoder
            return self.hidden(epoch)[view], lambda batch: encoder.upper(batch.float(), stages)

        return self._kept(name, epoch, source)

    def _kept(self, name: str, epoch: int, source: Callable[[int], tuple[Inputs, Encode]]) -> list[torch.Tensor]:
        if self._config.views:
            return self._cache.views(name, self._config.views, source)
        return [self._cache.encode(*source(epoch + 1))]


def random_views(views: Sequence[torch.Tensor], seed: int, batches: list[list[int]]) -> Iterator[torch.Tensor]:
    """Float32 batches, of each image a random one of its `views`, the same for the same `seed`."""
    pick = torch.Generator().manual_seed(seed)
    for indices in batches:
        chosen = torch.randint(len(views), (len(indices),), generator=pick).tolist()
        batch = torch.stack([views[view][index] for index, view in zip(indices, chosen, strict=True)]).float()
        yield batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


def save_parts(parts: Iterator[torch.Tensor], n: int, file: Path) -> None:
    """Float16 `parts`, `n` rows in all, as one array of NumPy's format, whole or not at all. None of it stays in
    memory, and a full disk is an OSError, which it would not be in a file that is mapped."""
    with written_whole(file) as out:
        for number, part in enumerate(parts):
            if not number:
                header = {"descr": "<f2", "fortran_order": False, "shape": (n, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(part.contiguous().numpy().data)
