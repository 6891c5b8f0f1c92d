"""Encoded images in, captions out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nic_model import ensemble
from nic_model.checkpoint import ModelFiles
from nic_model.config import DEVICES, PRECISIONS, DecodeConfig
from nic_model.images import MAX_PIXELS, ImageError, Pixels, decode
from nic_model.search import Hypothesis, beam_search
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, SOS, sentence


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
    ) -> None:
        """Without `decode_config`, the first model's defaults. Raises ValueError for settings that cannot be met."""
        if precision not in PRECISIONS:
            raise ValueError(f"--precision {precision}: allowed are {', '.join(PRECISIONS)}")
        members = [files] if isinstance(files, ModelFiles) else files
        self.model_id = ensemble.model_id(members)
        self.decode_config = decode_config or members[0].settings()[1]
        self.batch_size = batch_size
        self.device = pick_device(device)
        # On a CPU bf16 changes a caption in fifty, so it is for who asks; a GPU is slow without it.
        self.bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        self._model = ensemble.build(members).to(self.device)

    @classmethod
    def load(cls, *directories: Path, **options: object) -> "Captioner":
        """From a model directory, or several, with the options of the constructor. Raises ValueError."""
        return cls([ModelFiles.read(Path(directory)) for directory in directories], **options)  # type: ignore[arg-type]

    def caption(self, contents: Sequence[bytes | Failure]) -> list[Caption | Failure]:
        """A caption, or a failure, for each encoded image, in their order. What is a failure already stays one."""
        results: list[Caption | Failure | None] = [None] * len(contents)
        size = self._model.config.image_size
        batch: list[tuple[int, Pixels]] = []
        for index, content in enumerate(contents):
            if isinstance(content, Failure):
                results[index] = content
                continue
            try:
                batch.append((index, decode(content, size, MAX_PIXELS)))
            except ImageError as error:
                results[index] = Failure(error.status, str(error))
            if len(batch) == self.batch_size:
                self._caption_batch(batch, results)
                batch = []
        self._caption_batch(batch, results)
        return [result for result in results if result is not None]

    def _caption_batch(self, batch: list[tuple[int, Pixels]], results: list[Caption | Failure | None]) -> None:
        if not batch:
            return
        found = self.search(torch.from_numpy(np.stack([pixels.rgb for _, pixels in batch])))
        for (index, pixels), hypotheses in zip(batch, found, strict=True):
            (text, log_prob), *others = [(self._text(h), h.log_prob) for h in hypotheses]
            results[index] = Caption(text, log_prob, pixels.width, pixels.height, others)

    @torch.inference_mode()
    def search(self, pixels: torch.Tensor) -> list[list[Hypothesis]]:
        """Best hypotheses of each of `pixels`, uint8 (B, 3, S, S)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features = self._model.encoder(pixels.to(self.device))
            return beam_search(self._model.decoder, features, self.decode_config)

    @torch.inference_mode()
    def attention(self, content: bytes) -> list[WordAttention]:
        """The words of an encoded image's caption, with the attention of each over the image squeezed to a square.

        Raises ImageError for an image that cannot be decoded, ValueError for a model that has no attention.
        """
        decoder = self._model.decoder
        if not isinstance(decoder, ShowAttendTell):
            raise ValueError(f"model {self.model_id} has no attention to show: it is no single show_attend_tell model")
        pixels = torch.from_numpy(decode(content, self._model.config.image_size).rgb)[None].to(self.device)
        features: Any = self._model.encoder(pixels)
        [best, *_] = beam_search(decoder, features, self.decode_config)[0]
        tokens = torch.tensor([[SOS, *best.tokens, EOS]], device=self.device)
        length, image = torch.tensor([tokens.shape[1]]), torch.zeros(1, dtype=torch.int64, device=self.device)
        [looked] = decoder.attention_of(features, Captions(tokens, length, image))
        side = math.isqrt(looked.shape[1])
        maps = looked.float().cpu().view(len(looked), side, side).numpy()
        return [WordAttention(*pair) for pair in zip(self._model.vocabulary.decode(best.tokens), maps, strict=False)]

    def _text(self, hypothesis: Hypothesis) -> str:
        return sentence(self._model.vocabulary.decode(hypothesis.tokens))


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
