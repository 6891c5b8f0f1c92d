"""Views of the training images, and what the frozen stages of an encoder make of them, computed once and kept."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from nic_model.batches import ImageViews, load_views
from nic_model.config import TrainConfig
from nic_model.datasets import Example
from nic_model.encoder import Encoder, Lower
from nic_model.execution import hasten

Encode = Callable[[torch.Tensor], torch.Tensor]


class FeatureCache:
    """Views of all training images by name, float16 (N, ...) each, on disk and mapped into memory: a training that
    was interrupted finds them again, and they need not fit into memory."""

    def __init__(self, folder: Path, device: torch.device, workers: int) -> None:
        self.folder, self.device, self.workers = folder, device, workers
        self._open: dict[str, torch.Tensor] = {}

    def views(self, name: str, n: int, compute: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """The `n` views of `name`; `compute` makes one."""
        views = []
        for view in range(n):
            key = f"{name}-{view}"
            if key not in self._open:
                file = self.folder / f"{key}.pt"
                if not file.exists():
                    save_atomically(compute(view), file)
                self._open[key] = torch.load(file, weights_only=True, mmap=True)
            views.append(self._open[key])
        return views

    def encode(self, inputs: Dataset[torch.Tensor] | torch.Tensor, encode: Encode) -> torch.Tensor:
        """`encode` of all `inputs` in order, float16 on the CPU. A module is one from pixels, in evaluation mode."""
        n = len(inputs)  # type: ignore[arg-type]
        batches = [list(range(at, min(at + 64, n))) for at in range(0, n, 64)]
        whole, at = torch.empty(0), 0
        with (
            torch.inference_mode(),
            tqdm(total=n, desc="encoding", unit="image", leave=False, mininterval=1) as progress,
        ):
            for batch in load_views(inputs, batches, self.workers):
                if not at and isinstance(encode, nn.Module) and self.device.type == "cpu":
                    encode = hasten(encode, batch)
                # bf16 is as exact as what is kept, and faster.
                with torch.autocast(self.device.type, dtype=torch.bfloat16):
                    part = encode(batch.to(self.device)).half().cpu()
                if not at:
                    whole = part.new_empty(n, *part.shape[1:])
                whole[at : at + len(part)] = part
                at += len(part)
                progress.update(len(part))
        return whole.clone()


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
        return self._kept(f"stages_{stages}", epoch, lambda view: self._cache.encode(self.images(view), lower))

    def features(self, name: str, epoch: int) -> list[torch.Tensor]:
        """What comes out of the encoder as it is now: views (N, D) or (N, P, D)."""
        stages, encoder = self._config.fine_tune_stages, self._encoder

        def compute(view: int) -> torch.Tensor:
            if not stages or not self._config.views:
                return self._cache.encode(self.images(view), encoder)
            return self._cache.encode(self.hidden(epoch)[view], lambda batch: encoder.upper(batch.float(), stages))

        return self._kept(name, epoch, compute)

    def _kept(self, name: str, epoch: int, compute: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        if self._config.views:
            return self._cache.views(name, self._config.views, compute)
        return [compute(epoch + 1)]


def random_views(views: Sequence[torch.Tensor], seed: int, batches: list[list[int]]) -> Iterator[torch.Tensor]:
    """Float32 batches, of each image a random one of its `views`, the same for the same `seed`."""
    pick = torch.Generator().manual_seed(seed)
    for indices in batches:
        chosen = torch.randint(len(views), (len(indices),), generator=pick).tolist()
        batch = torch.stack([views[view][index] for index, view in zip(indices, chosen, strict=True)]).float()
        yield batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


def save_atomically(value: Any, file: Path) -> None:
    """torch.save, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(value, part)
    part.replace(file)
