"""How images are usually captioned on Spark: the model in eager PyTorch behind a pandas UDF, Pillow before it, and a
beam search as libraries have it, batched.

A module, so that Python workers import it and what it keeps stays from task to task.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pyspark import TaskContext
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from nic_model.config import DecodeConfig
from nic_model.model_files import ModelFiles
from nic_model.search import Decoder, Hypothesis, beam_search
from nic_model.show_tell import Memory, State
from nic_model.vocabulary import EOS, PAD, SOS, UNK, sentence

DECODING = DecodeConfig(beam_size=3)


class Eager:
    """The model as PyTorch runs it."""

    def __init__(self, directory: Path) -> None:
        self.model = ModelFiles.read(directory).build()

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        return self.model.decoder.start(self.model.encoder(pixels))

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        return self.model.decoder.step(tokens, state, memory)


@torch.inference_mode()
def plain_beam_search(decoder: Decoder, pixels: torch.Tensor, config: DecodeConfig) -> list[list[Hypothesis]]:
    """What nic_model.search.beam_search finds without `alternatives` and `block_ngrams`, in the usual way: each
    hypothesis has a copy of its image's memory, the whole vocabulary is ranked by log-softmax, hypotheses that end are
    sorted out in Python, and all images are searched until the last of the batch is done."""
    beam, n_images = config.beam_size, len(pixels)
    memory, state = (tuple(p.repeat_interleave(beam, dim=0) for p in parts) for parts in decoder.start(pixels))
    ended: list[list[tuple[float, Hypothesis]]] = [[] for _ in range(n_images)]
    words = torch.full((n_images * beam, 1), SOS)
    scores = torch.full((n_images, beam), -torch.inf)
    scores[:, 0] = 0
    for length in range(config.max_length + 1):
        logits, state = decoder.step(words[:, -1], state, memory)
        log_probs = logits.float().log_softmax(dim=1)
        log_probs[:, [PAD, SOS, UNK]] = -torch.inf
        if length < config.min_length:
            log_probs[:, EOS] = -torch.inf
        if length == config.max_length:
            log_probs[:, torch.arange(log_probs.shape[1]) != EOS] = -torch.inf
        totals = (scores.view(-1, 1) + log_probs).view(n_images, -1)
        best, flat = totals.topk(2 * beam, dim=1)
        rows, last = [], []
        for image, (totals_of, places) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
            going_on: list[tuple[float, int, int]] = []
            for rank, (total, place) in enumerate(zip(totals_of, places, strict=True)):
                row, token = image * beam + place // log_probs.shape[1], place % log_probs.shape[1]
                if token != EOS:
                    going_on.append((total, row, token))
                elif rank < beam and len(ended[image]) < beam and total > -torch.inf:
                    found = Hypothesis(words[row, 1:].tolist(), total)
                    ended[image].append((total / (length + 1) ** config.length_penalty, found))
            going_on += [(-torch.inf, image * beam, PAD)] * beam
            scores[image] = torch.tensor([total for total, _, _ in going_on[:beam]])
            rows += [row for _, row, _ in going_on[:beam]]
            last += [token for _, _, token in going_on[:beam]]
        if all(len(hypotheses) >= beam for hypotheses in ended):
            break
        words = torch.cat([words[rows], torch.tensor(last).unsqueeze(1)], dim=1)
        state = tuple(part[rows] for part in state)
    return [[max(hypotheses, key=lambda h: h[0])[1]] for hypotheses in ended]


_kept: list[Eager] = []


def eager(model: Path, threads: int) -> Eager:
    """The model, loaded once in a Python worker, as careful users do."""
    torch.set_num_threads(threads)
    if not _kept:
        _kept.append(Eager(model))
    return _kept[0]


def plainly_decoded(content: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


@dataclass(frozen=True)
class How:
    """Variants of a recipe: bf16 in place of fp32, and this project's search in place of the plain one."""

    bf16: bool = False
    our_search: bool = False


def captions_of(plain: Eager, contents: Iterable[bytes], how: How = How()) -> list[str]:
    size, vocabulary = plain.model.config.image_size, plain.model.vocabulary
    pixels = torch.from_numpy(np.stack([plainly_decoded(content, size) for content in contents]))
    search = beam_search if how.our_search else plain_beam_search
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how.bf16):
        return [sentence(vocabulary.decode(best.tokens)) for best, *_ in search(plain, pixels, DECODING)]


def with_pandas_udf(model: Path, batch: int, how: How) -> Column:
    def caption(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        plain = eager(model, TaskContext.get().cpus())
        for contents in batches:
            pieces = [contents[at : at + batch] for at in range(0, len(contents), batch)]
            yield pd.Series([text for piece in pieces for text in captions_of(plain, piece, how)])

    # Told by name: pandas_udf would read the hints, which are those of this module.
    caption.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    return F.pandas_udf(caption, T.StringType())(F.col("content"))


def with_predict_batch_udf(model: Path, batch: int, how: How) -> Column:
    def make() -> Callable[[np.ndarray], np.ndarray]:
        plain = eager(model, TaskContext.get().cpus())
        return lambda contents: np.array(captions_of(plain, contents, how))

    return predict_batch_udf(make, return_type=T.StringType(), batch_size=batch)(F.col("content"))
