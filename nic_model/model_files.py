"""A model directory as its files' bytes: config.json, vocabulary.json and model.safetensors. Without torch, so that
what only names, checks and sends models starts fast."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nic_model.config import DecodeConfig, ModelConfig, short_hash
from nic_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from nic_model.checkpoint import CaptionModel

CONFIG, VOCABULARY, WEIGHTS = FILES = ("config.json", "vocabulary.json", "model.safetensors")


class ModelSource(Protocol):
    """What a captioner is made of."""

    @property
    def model_id(self) -> str: ...

    def settings(self) -> tuple[ModelConfig, DecodeConfig]: ...

    def build(self) -> "CaptionModel": ...


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

    def build(self) -> "CaptionModel":
        """The model in float32 on the CPU, ready to caption. Raises ValueError where weights and config disagree."""
        from nic_model.checkpoint import build  # here, for torch takes seconds to import

        return build(self)


def read_settings(config: bytes) -> tuple[ModelConfig, DecodeConfig]:
    """What stands in config.json. Raises ValueError or KeyError where it is malformed."""
    settings = json.loads(config)
    return ModelConfig.from_dict(settings["model"]), DecodeConfig.from_dict(settings["decode"])


def check_members(files: Sequence[ModelFiles]) -> None:
    """Raises ValueError where models of an ensemble differ in their words or in the size of image that they look at."""
    if len(files) > 1:
        words = (Vocabulary.from_json(each.vocabulary.decode()).words for each in files)
        check_alike(list(zip(words, (each.settings()[0].image_size for each in files), strict=True)))


def check_alike(members: Sequence[tuple[list[str], int]]) -> None:
    """Of each member its words and its size of image. Raises ValueError where they differ."""
    first_words, first_size = members[0]
    for words, size in members[1:]:
        if words != first_words:
            raise ValueError("--model: models of an ensemble must have the same vocabulary, in the same order")
        if size != first_size:
            raise ValueError(
                f"--model: models of an ensemble must have the same image size, not {first_size} and {size}"
            )


def joint_id(files: Sequence[ModelSource]) -> str:
    """The model's id, or one of all members', in whatever order."""
    ids = sorted(each.model_id for each in files)
    return ids[0] if len(ids) == 1 else short_hash(*(each.encode() for each in ids))
