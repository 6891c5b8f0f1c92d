"""Encoded images in, captions out."""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nic_model import ensemble
from nic_model.checkpoint import ModelFiles
from nic_model.config import DEVICES, PRECISIONS, DecodeConfig
from nic_model.execution import make_execution
from nic_model.images import MAX_PIXELS, ImageError, Pixels, decode
from nic_model.search import Hypothesis, beam_search
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, SOS, sentence

Key = TypeVar("Key")

AHEAD_BYTES = 64 * 1024 * 1024  # encoded images waiting to be decoded, or decoded, while others are captioned


@dataclass(frozen=True)
class Caption:
    """A captioned image: its size in pixels, upright; `log_prob` is ln p(caption | image), its end included."""

    text: str
    log_prob: float
    width: int
    height: int
    alternatives: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """An image that could not be captioned: `status` as in the captions table, and why."""

    status: str
    message: str


@dataclass(frozen=True)
class WordAttention:
    """A word of a caption, and where the model looked when it chose it: float32 (rows, columns) that sum to 1."""

    word: str
    weights: NDArray[np.float32]


class Captioner:
    """A model, or an ensemble of several, on a device, with decoding settings."""

    def __init__(
        self,
        files: ModelFiles | Sequence[ModelFiles],
        decode_config: DecodeConfig | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        engine: str = "auto",
    ) -> None:
        """Without `decode_config`, the first model's defaults; `engine` as of `make_execution`. As many threads decode
        and compute as torch has now. Raises ValueError for settings that cannot be met."""
        if precision not in PRECISIONS:
            raise ValueError(f"--precision {precision}: allowed are {', '.join(PRECISIONS)}")
        members = [files] if isinstance(files, ModelFiles) else files
        self.model_id = ensemble.model_id(members)
        self.decode_config = decode_config or members[0].settings()[1]
        self.batch_size = batch_size
        self.device = pick_device(device)
        # On a CPU bf16 changes a caption in seven, so it is for who asks; a GPU is slow without it.
        self.bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        models = ensemble.build_members(members)
        executions = [make_execution(model, self.device, self.bf16, engine) for model in models]
        self._execution = executions[0] if len(models) == 1 else ensemble.Ensemble(executions)
        self._model, self._single = models[0], len(models) == 1
        self._threads = torch.get_num_threads()

    @classmethod
    def load(cls, *directories: Path, **options: object) -> "Captioner":
        """From a model directory, or several, with the options of the constructor. Raises ValueError."""
        return cls([ModelFiles.read(Path(directory)) for directory in directories], **options)  # type: ignore[arg-type]

    def caption(self, contents: Sequence[bytes | Failure]) -> list[Caption | Failure]:
        """A caption, or a failure, for each encoded image, in their order. What is a failure already stays one."""
        return [result for _, result in self.caption_stream((None, content) for content in contents)]

    def caption_stream(self, images: Iterable[tuple[Key, bytes | Failure]]) -> Generator[tuple[Key, Caption | Failure]]:
        """Each key of `images`, in their order, with the caption or the failure of its image.

        Images are taken ahead and decoded, in threads, while those before them are captioned; what waits is bounded
        in number and in bytes.
        """
        batch: list[tuple[Key, Pixels | Failure]] = []
        good = 0
        for key, pixels in self._decode_ahead(images):
            batch.append((key, pixels))
            good += isinstance(pixels, Pixels)
            if good == self.batch_size or len(batch) == 4 * self.batch_size:
                yield from self._caption_batch(batch)
                batch, good = [], 0
        yield from self._caption_batch(batch)

    def _decode_ahead(self, images: Iterable[tuple[Key, bytes | Failure]]) -> Iterator[tuple[Key, Pixels | Failure]]:
        size = self._model.config.image_size
        waiting: deque[tuple[Key, int, Future[Pixels | Failure]]] = deque()
        held = 0
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            for key, content in images:
                n_bytes = 0 if isinstance(content, Failure) else len(content)
                while waiting and (len(waiting) >= 2 * self.batch_size or held + n_bytes > AHEAD_BYTES):
                    first, n_first, pixels = waiting.popleft()
                    held -= n_first
                    yield first, pixels.result()
                waiting.append((key, n_bytes, pool.submit(_decode, content, size)))
                held += n_bytes
                del content  # the bytes live no longer than their turn
            while waiting:
                first, _, pixels = waiting.popleft()
                yield first, pixels.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _caption_batch(self, batch: Sequence[tuple[Key, Pixels | Failure]]) -> Iterator[tuple[Key, Caption | Failure]]:
        good = [pixels.rgb for _, pixels in batch if isinstance(pixels, Pixels)]
        found = iter(self._search_halving(good))
        for key, pixels in batch:
            if isinstance(pixels, Failure):
                yield key, pixels
                continue
            (text, log_prob), *others = [(self._text(h), h.log_prob) for h in next(found)]
            yield key, Caption(text, log_prob, pixels.width, pixels.height, others)

    def _search_halving(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Hypothesis]]:
        """Search; a batch that does not fit the GPU's memory is halved, for good."""
        found: list[list[Hypothesis]] = []
        while len(found) < len(images):
            some = images[len(found) : len(found) + self.batch_size]
            try:
                found += self.search(torch.from_numpy(np.stack(some)))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                torch.cuda.empty_cache()
                self.batch_size = max(1, min(self.batch_size, len(some)) // 2)
        return found

    @torch.inference_mode()
    def search(self, pixels: torch.Tensor) -> list[list[Hypothesis]]:
        """Best hypotheses of each of `pixels`, uint8 (B, 3, S, S)."""
        return beam_search(self._execution, pixels, self.decode_config)

    @torch.inference_mode()
    def attention(self, content: bytes) -> list[WordAttention]:
        """The words of an encoded image's caption, with the attention of each over the image squeezed to a square.

        Raises ImageError for an image that cannot be decoded, ValueError for a model that has no attention.
        """
        decoder = self._model.decoder
        if not (self._single and isinstance(decoder, ShowAttendTell)):
            raise ValueError(f"model {self.model_id} has no attention to show: it is no single show_attend_tell model")
        pixels = torch.from_numpy(decode(content, self._model.config.image_size).rgb)[None].to(self.device)
        features = self._model.encoder(pixels)
        [best, *_] = beam_search(decoder, features, self.decode_config)[0]
        tokens = torch.tensor([[SOS, *best.tokens, EOS]], device=self.device)
        length, image = torch.tensor([tokens.shape[1]]), torch.zeros(1, dtype=torch.int64, device=self.device)
        [looked] = decoder.attention_of(features, Captions(tokens, length, image))
        side = math.isqrt(looked.shape[1])
        maps = looked.float().cpu().view(len(looked), side, side).numpy()
        return [WordAttention(*pair) for pair in zip(self._model.vocabulary.decode(best.tokens), maps, strict=False)]

    def _text(self, hypothesis: Hypothesis) -> str:
        return sentence(self._model.vocabulary.decode(hypothesis.tokens))


def _decode(content: bytes | Failure, size: int) -> Pixels | Failure:
    if isinstance(content, Failure):
        return content
    try:
        return decode(content, size, MAX_PIXELS)
    except ImageError as error:
        return Failure(error.status, str(error))


def check_device(name: str) -> None:
    """Raises ValueError where `name` is no device, whether or not this machine has it."""
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise ValueError(f"--device {name}: allowed are {', '.join(DEVICES)}, or cuda:N")


def pick_device(name: str) -> torch.device:
    """The device of `--device`: auto is the GPU where there is one. Raises ValueError where a GPU is asked for and
    there is none."""
    check_device(name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch {torch.__version__} finds no CUDA GPU here; use --device cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
