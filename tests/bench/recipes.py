"""How images are usually captioned on Spark: the model in eager PyTorch behind a pandas UDF, Pillow before it.

A module, so that Python workers import it and what it keeps stays from task to task.
"""

import io
from collections.abc import Callable, Iterable, Iterator
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
from nic_model.search import beam_search
from nic_model.show_tell import Memory, State
from nic_model.vocabulary import sentence

DECODING = DecodeConfig(beam_size=3)


class Eager:
    """The model as PyTorch runs it."""

    def __init__(self, directory: Path) -> None:
        self.model = ModelFiles.read(directory).build()

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        return self.model.decoder.start(self.model.encoder(pixels))

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        return self.model.decoder.step(tokens, state, memory)


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


def captions_of(plain: Eager, contents: Iterable[bytes], bf16: bool = False) -> list[str]:
    size, vocabulary = plain.model.config.image_size, plain.model.vocabulary
    pixels = torch.from_numpy(np.stack([plainly_decoded(content, size) for content in contents]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return [sentence(vocabulary.decode(best.tokens)) for best, *_ in beam_search(plain, pixels, DECODING)]


def with_pandas_udf(model: Path, batch: int, bf16: bool) -> Column:
    def caption(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        plain = eager(model, TaskContext.get().cpus())
        for contents in batches:
            pieces = [contents[at : at + batch] for at in range(0, len(contents), batch)]
            yield pd.Series([text for piece in pieces for text in captions_of(plain, piece, bf16)])

    # Told by name: pandas_udf would read the hints, which are those of this module.
    caption.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    return F.pandas_udf(caption, T.StringType())(F.col("content"))


def with_predict_batch_udf(model: Path, batch: int, bf16: bool) -> Column:
    def make() -> Callable[[np.ndarray], np.ndarray]:
        plain = eager(model, TaskContext.get().cpus())
        return lambda contents: np.array(captions_of(plain, contents, bf16))

    return predict_batch_udf(make, return_type=T.StringType(), batch_size=batch)(F.col("content"))
