"""Training data as tensors: views of images, and their captions as padded tokens."""

import logging
import re
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nic_model import images
from nic_model.datasets import Example
from nic_model.show_tell import Captions
from nic_model.vocabulary import PAD, Vocabulary

logger = logging.getLogger(__name__)

# A mirrored photograph makes a caption with one of these false.
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class ImageViews(Dataset[torch.Tensor]):
    """uint8 pixels (3, S, S) of each example: as they are where `view` is 0, else augmented by `seed` and `view`, with
    at least `least_area` of the photograph in view.

    A view depends on nothing but (seed, view, index): the number of workers and interruptions change nothing.
    Raises ValueError, naming the example, for an image that cannot be read or decoded.
    """

    def __init__(
        self, examples: Sequence[Example], size: int, seed: int = 0, view: int = 0, least_area: float = 0.7
    ) -> None:
        self.examples, self.size, self.seed, self.view, self.least_area = examples, size, seed, view, least_area

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> torch.Tensor:
        example = self.examples[index]
        try:
            image, _, _ = images.open_rgb(example.read(), self.size)
        except (OSError, images.ImageError) as error:
            raise ValueError(f"training image {example.image_id}: {error}") from None
        if self.view == 0:
            return torch.from_numpy(images.resize(image, self.size))
        rng = np.random.default_rng((self.seed, self.view, index))
        flip = not names_a_side(example.captions)
        return torch.from_numpy(images.augment(image, self.size, rng, flip, self.least_area))


def decodable(source: str, examples: Sequence[Example], size: int) -> list[Example]:
    """Those of `examples` whose images can be decoded to `size`, and a warning that counts the others of `source`: in
    the middle of a training one of them would end it."""

    def fault(example: Example) -> str | None:
        try:
            images.open_rgb(example.read(), size)
        except (OSError, images.ImageError) as error:
            return str(error)
        return None

    with ThreadPool(torch.get_num_threads()) as pool:
        checks = pool.imap(fault, examples, chunksize=16)
        progress = tqdm(checks, "checking images", len(examples), leave=False, unit="image", mininterval=1)
        faults = list(progress)
    bad = [f"{e.image_id} ({why})" for e, why in zip(examples, faults, strict=True) if why is not None]
    if bad:
        first = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        logger.warning("%s: left out %d of %d that cannot be decoded: %s", source, len(bad), len(examples), first)
    return [example for example, why in zip(examples, faults, strict=True) if why is None]


def names_a_side(captions: Sequence[str]) -> bool:
    """Whether a caption says left or right."""
    return any(SIDES.search(caption) for caption in captions)


class Tokens:
    """The captions of all examples, encoded once."""

    def __init__(self, examples: Sequence[Example], vocabulary: Vocabulary, max_tokens: int) -> None:
        self._rows = [[vocabulary.encode(c, max_tokens) for c in example.captions] for example in examples]

    def batch(self, indices: Sequence[int]) -> Captions:
        """All captions of the examples `indices`, an example's next to each other."""
        rows = [row for index in indices for row in self._rows[index]]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), int(lengths.max())), PAD)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.tensor(row)
        counts = torch.tensor([len(self._rows[index]) for index in indices])
        return Captions(tokens, lengths, torch.arange(len(indices)).repeat_interleave(counts))


def shuffled(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All of range(n) in batches, in an order fixed by `seed` and `epoch`. A last batch of one joins the one before:
    batch norm learns nothing from one image."""
    order = np.random.default_rng((seed, epoch)).permutation(n).tolist()
    batches = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        (last,) = batches.pop()
        batches[-1].append(last)
    return batches


def load_views(
    views: Dataset[torch.Tensor] | torch.Tensor, batches: list[list[int]], workers: int
) -> Iterator[torch.Tensor]:
    """The items of each of `batches`, stacked; made ahead by `workers` processes, or here where that is 0."""
    pin = torch.cuda.is_available()
    try:
        yield from DataLoader(views, batch_sampler=batches, num_workers=workers, pin_memory=pin)  # type: ignore[arg-type]
    except ValueError as error:  # of a worker with its whole traceback
        raise ValueError(str(error).rstrip().rpartition("\n")[2].removeprefix("ValueError: ")) from None
