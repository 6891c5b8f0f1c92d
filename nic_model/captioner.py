"""Encoded images in, captions out."""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nic_model import ensemble
from nic_model.config import DECODE_ON, PRECISIONS, DecodeConfig, check_device
from nic_model.decoding import Decoded, Decoding, Failure
from nic_model.execution import make_execution
from nic_model.graphs import RecordedSearch
from nic_model.images import decode
from nic_model.model_files import ModelFiles, ModelSource, joint_id
from nic_model.search import Decoder, Hypothesis, beam_search
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, SOS, sentence

Key = TypeVar("Key")
Search = Callable[[], list[list[Hypothesis]]]  # one that has begun: to be called once, for what it finds

logger = logging.getLogger(__name__)

AGAIN = 8  # images searched at once in fp32, which takes more of a GPU's memory


@dataclass(frozen=True)
class Caption:
    """A captioned image: its size in pixels, upright; `log_prob` is ln p(caption | image), its end included."""

    text: str
    log_prob: float
    width: int
    height: int
    alternatives: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class WordAttention:
    """A word of a caption, and where the model looked when it chose it: float32 (rows, columns) that sum to 1."""

    word: str
    weights: NDArray[np.float32]


class Captioner:
    """A model, or an ensemble of several, on a device, with decoding settings."""

    def __init__(
        self,
        files: ModelSource | Sequence[ModelSource],
        decode_config: DecodeConfig | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 0,
        engine: str = "auto",
        record: bool | None = None,
        decode_on: str = "cpu",
    ) -> None:
        """Without `decode_config`, the first model's defaults; `batch_size` 0 is 256 on a GPU and 64 on a CPU;
        `engine` as of `make_execution`; `record`: as of `RecordedSearch`, by default on a GPU; `decode_on` gpu: JPEGs
        are decoded by the device. As many threads decode and compute as torch has now. Raises ValueError for settings
        that cannot be met."""
        if decode_on not in DECODE_ON:
            raise ValueError(f"--decode-on {decode_on}: allowed are {', '.join(DECODE_ON)}")
        members = files if isinstance(files, Sequence) else [files]
        self.model_id = joint_id(members)
        self.decode_config = decode_config or members[0].settings()[1]
        self.device = pick_device(device)
        self.batch_size = batch_size or (256 if self.device.type == "cuda" else 64)
        self.precision = pick_precision(precision, self.device)
        self._models = ensemble.build_members(members)
        self._model, self._single = self._models[0], len(self._models) == 1
        self._engine = engine
        self._execution = self._make_execution(self.precision)
        self._record = self.device.type == "cuda" if record is None else record
        self._recorded: RecordedSearch | None = None
        size = members[0].settings()[0].image_size
        self._decoding = Decoding(size, self.device, torch.get_num_threads(), on_gpu=decode_on == "gpu")

    @classmethod
    def load(cls, *directories: Path, **options: object) -> "Captioner":
        """From a model directory, or several, with the options of the constructor. Raises ValueError."""
        return cls([ModelFiles.read(Path(directory)) for directory in directories], **options)  # type: ignore[arg-type]

    def _make_execution(self, precision: torch.dtype) -> Decoder:
        executions = [make_execution(model, self.device, precision, self._engine) for model in self._models]
        return executions[0] if self._single else ensemble.Ensemble(executions)

    def caption(self, contents: Sequence[bytes | Failure]) -> list[Caption | Failure]:
        """A caption, or a failure, for each encoded image, in their order. What is a failure already stays one."""
        return [result for _, result in self.caption_stream((None, content) for content in contents)]

    def caption_stream(self, images: Iterable[tuple[Key, bytes | Failure]]) -> Generator[tuple[Key, Caption | Failure]]:
        """Each key of `images`, in their order, with the caption or the failure of its image.

        Images are taken ahead and decoded, in threads, while those before them are captioned; what waits is bounded
        in number and in bytes. Raises torch.OutOfMemoryError where a GPU has no room for one image alone.
        """
        batch: list[Decoded[Key]] = []
        good = rows = 0
        begun: deque[tuple[list[Decoded[Key]], Search]] = deque()
        for some in self._decoding.ahead(images, self.batch_size):
            if good + len(some.rgb) > self.batch_size or rows + len(some.keys) > 4 * self.batch_size:
                begun.append((batch, self._begin(batch)))
                batch, good, rows = [], 0, 0
                # A GPU goes on with the next batch while the results of this one are read.
                if len(begun) > self._record:
                    yield from self._finish(*begun.popleft())
            batch.append(some)
            good += len(some.rgb)
            rows += len(some.keys)
        begun.append((batch, self._begin(batch)))
        while begun:
            yield from self._finish(*begun.popleft())

    def _begin(self, batch: Sequence[Decoded[Key]]) -> Search:
        """Search for the good ones of a batch; one that does not fit the GPU's memory is halved, for good."""
        waiting = [some.rgb for some in batch if len(some.rgb)]
        begun: list[Search] = []
        while waiting:
            some, rest = _first(waiting, self.batch_size)
            n = sum(map(len, some))
            try:
                begun.append(self._submit(some))
                waiting = rest
                continue
            except torch.OutOfMemoryError:
                if self._record and self._recorded is None:
                    n = self.batch_size  # which recording takes room for, however few these are
                if n == 1:
                    raise
            # Not among what handles the error, which keeps alive all that the search had made.
            self._recorded = None
            torch.cuda.empty_cache()
            self.batch_size = n // 2
            logger.warning("out of memory on %s: captioning %d images at once", self.device, self.batch_size)
        return lambda: [hypotheses for wait in begun for hypotheses in wait()]

    def _finish(self, batch: Sequence[Decoded[Key]], search: Search) -> Iterator[tuple[Key, Caption | Failure]]:
        found = iter(search())
        for some in batch:
            for key, size in zip(some.keys, some.sizes, strict=True):
                if isinstance(size, Failure):
                    yield key, size
                    continue
                (text, log_prob), *others = [(self._text(h), h.log_prob) for h in next(found)]
                yield key, Caption(text, log_prob, *size, others)

    def search(self, pixels: torch.Tensor) -> list[list[Hypothesis]]:
        """Best hypotheses of each of `pixels`, uint8 (B, 3, S, S), B at most the batch size."""
        return self._submit([pixels])()

    @torch.inference_mode()
    def _submit(self, pixels: Sequence[torch.Tensor]) -> Search:
        wait: Search
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if recorded := self._recording():
                wait = recorded.submit(pixels).wait
            else:
                found = beam_search(self._execution, torch.cat(list(pixels)), self.decode_config)
                wait = lambda: found  # noqa: E731
        return wait if self.precision != torch.float16 else lambda: self._search_again(pixels, wait())

    def _recording(self) -> RecordedSearch | None:
        if self._record and self._recorded is None:
            try:
                size = self._model.config.image_size
                self._recorded = RecordedSearch(self._execution, self.decode_config, self.batch_size, size, self.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._record = False
                logger.warning("running without CUDA graphs: %s", error)
        return self._recorded

    def _search_again(self, pixels: Sequence[torch.Tensor], found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """In fp32, for images in which float16 has overflowed."""
        again = [number for number, hypotheses in enumerate(found) if not hypotheses]
        if again:
            logger.warning("%d images overflow in fp16: captioned in fp32", len(again))
            exact, whole = self._make_execution(torch.float32), torch.cat(list(pixels))
            for at in range(0, len(again), AGAIN):
                some = again[at : at + AGAIN]
                for number, hypotheses in zip(some, beam_search(exact, whole[some], self.decode_config), strict=True):
                    found[number] = hypotheses
        return found

    @torch.inference_mode()
    def attention(self, content: bytes) -> list[WordAttention]:
        """The words of an encoded image's caption, with the attention of each over the image squeezed to a square.

        Raises ImageError for an image that cannot be decoded, ValueError for a model that has no attention.
        """
        decoder = self._model.decoder
        if not (self._single and isinstance(decoder, ShowAttendTell)):
            raise ValueError(f"model {self.model_id} has no attention to show: it is no single show_attend_tell model")
        pixels = torch.as_tensor(decode(content, self._model.config.image_size).rgb)[None].to(self.device)
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


def _first(pieces: Sequence[torch.Tensor], n: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The first `n` rows of `pieces`, and the others."""
    taken, rest = [], list(pieces)
    while rest and n:
        piece = rest.pop(0)
        if len(piece) > n:
            rest.insert(0, piece[n:])
        taken.append(piece[:n])
        n -= len(taken[-1])
    return taken, rest


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision of `--precision`: auto is fp16 on a GPU, which is slow without, and fp32 on a CPU. Raises
    ValueError for an unknown one."""
    if name not in PRECISIONS:
        raise ValueError(f"--precision {name}: allowed are {', '.join(PRECISIONS)}")
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def pick_device(name: str) -> torch.device:
    """The device of `--device`: auto is the GPU where there is one. Raises ValueError where a GPU is asked for that is
    not there."""
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch {torch.__version__} finds no CUDA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here, from cuda:0 on")
    return device
