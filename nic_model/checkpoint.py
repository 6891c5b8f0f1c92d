"""The model directory: config.json, vocabulary.json and model.safetensors. Nothing in it is ever unpickled."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from nic_model.config import DecodeConfig, ModelConfig, short_hash
from nic_model.encoder import Encoder
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import ShowTell
from nic_model.vocabulary import Vocabulary

CONFIG, VOCABULARY, WEIGHTS = FILES = ("config.json", "vocabulary.json", "model.safetensors")


class CaptionModel(nn.Module):
    """An encoder, a decoder, and the words they write."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.encoder = Encoder(config)
        kind: type[ShowTell | ShowAttendTell] = ShowAttendTell if self.encoder.grid else ShowTell
        self.decoder = kind(config, self.encoder.output_size, len(vocabulary))


class ModelSource(Protocol):
    """What a captioner is made of."""

    @property
    def model_id(self) -> str: ...

    def settings(self) -> tuple[ModelConfig, DecodeConfig]: ...

    def build(self) -> CaptionModel: ...


@dataclass(frozen=True)
class ModelFiles:
    """A model directory as bytes: what is hashed, broadcast and built from."""

    config: bytes
    vocabulary: bytes
    weights: bytes

    @classmethod
    def read(cls, directory: Path, role: str = "--model") -> "ModelFiles":
        """Raises ValueError where the directory or one of its files is missing, or it is not a model. `role` is the
        option that named it."""
        if not directory.is_dir():
            raise ValueError(f"{role} {directory}: no such directory")
        missing = [name for name in FILES if not (directory / name).is_file()]
        if missing:
            raise ValueError(
                f"{role} {directory}: has no {', '.join(missing)}; a model directory has {', '.join(FILES)}"
            )
        files = cls(*((directory / name).read_bytes() for name in FILES))
        try:
            files.settings()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{role} {directory}: {CONFIG} is not a model's: {error}") from None
        return files

    @cached_property
    def model_id(self) -> str:
        """16 hexadecimal digits: a hash of weights, vocabulary and what gives them meaning, not of notes on training
        or decoding defaults, which change no caption by themselves."""
        model = json.dumps(json.loads(self.config)["model"], sort_keys=True)
        return short_hash(model.encode(), self.vocabulary, self.weights)

    def settings(self) -> tuple[ModelConfig, DecodeConfig]:
        """The model's configuration and its default decoding. Raises ValueError or KeyError where it is malformed."""
        return read_settings(self.config)

    def build(self) -> CaptionModel:
        """The model in float32 on the CPU, ready to caption. Raises ValueError where weights and config disagree."""
        model = build_model(self.config, self.vocabulary, self.tensors())
        model.encoder.to(memory_format=torch.channels_last)
        return model

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights in float32, by name. Raises ValueError where they are no such file."""
        try:
            return {name: tensor.float() for name, tensor in load(self.weights).items()}
        except SafetensorError as error:
            raise ValueError(f"the model's files do not fit together: {error}") from None


def read_settings(config: bytes) -> tuple[ModelConfig, DecodeConfig]:
    """What stands in config.json. Raises ValueError or KeyError where it is malformed."""
    settings = json.loads(config)
    return ModelConfig.from_dict(settings["model"]), DecodeConfig.from_dict(settings["decode"])


def build_model(config: bytes, vocabulary: bytes, weights: Mapping[str, torch.Tensor]) -> CaptionModel:
    """The model whose parameters and buffers are the tensors `weights` themselves, in evaluation mode. Raises
    ValueError where they and config disagree."""
    try:
        model = CaptionModel(read_settings(config)[0], Vocabulary.from_json(vocabulary.decode()))
        # Batch norm counts its batches, which nothing reads.
        absent = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the model's files do not fit together: {error}") from None
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    if absent:
        raise ValueError(f"{WEIGHTS} lacks {len(absent)} tensors, the first is {absent[0]}")
    return model.eval()


def save_model(
    directory: Path,
    model: CaptionModel,
    decode: DecodeConfig,
    training: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a model directory, whole or not at all. `training` is kept in config.json for people to read.

    Half precision halves what travels to executors; the captions are those of the rounded weights everywhere.
    """
    settings = {"model": model.config.to_dict(), "decode": decode.to_dict(), "training": dict(training)}
    weights = {
        name: tensor.detach().cpu().to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    contents = (
        json.dumps(settings, indent=2).encode() + b"\n",
        model.vocabulary.to_json().encode() + b"\n",
        save(weights),
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    staged.chmod(0o755)  # mkdtemp's is for one user, a model is for all
    for name, content in zip(FILES, contents, strict=True):
        (staged / name).write_bytes(content)
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        directory.replace(old)
        staged.replace(directory)
        shutil.rmtree(old)
    else:
        staged.replace(directory)
