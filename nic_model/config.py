"""Settings as frozen dataclasses: checked when made, JSON both ways, and the source of command-line options."""

import argparse
import dataclasses
import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")  # of captioning
DECODE_ON = ("cpu", "gpu")

KINDS = {int: "a whole number", float: "a number", str: "text"}
BOUNDS = {"least": ("at least", operator.ge), "most": ("at most", operator.le), "below": ("below", operator.lt)}


def check_device(name: str) -> None:
    """Raises ValueError where `name` is no device, whether or not this machine has it."""
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise ValueError(f"--device {name}: allowed are {', '.join(DEVICES)}, or cuda:N")


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is a command-line option too: `help`, and the values that are allowed."""
    allowed = {"choices": choices, "least": least, "most": most, "below": below}
    return field(default=default, metadata={"help": help, **allowed})


def option_name(setting: str) -> str:
    """How the command line writes it."""
    return f"--{setting.replace('_', '-')}"


@dataclass(frozen=True)
class Config:
    """Base of all settings. Raises ValueError, naming the value and what is allowed, for a bad one."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, name, choices = getattr(self, f.name), option_name(f.name), f.metadata.get("choices")
            if f.type is float and type(value) is int:  # JSON's 1 is 1.0, also in what is hashed
                value = float(value)
                object.__setattr__(self, f.name, value)
            if f.type in KINDS and (not isinstance(value, f.type) or isinstance(value, bool)):  # True is an int
                raise ValueError(f"{name} {json.dumps(value, default=str)}: must be {KINDS[f.type]}")
            if choices is not None and value not in choices:
                raise ValueError(f"{name} {value}: allowed are {', '.join(choices)}")
            bounds = [(*bound, f.metadata[key]) for key, bound in BOUNDS.items() if f.metadata.get(key) is not None]
            if not all(holds(value, bound) for _, holds, bound in bounds):  # NaN fails too
                allowed = " and ".join(f"{words} {bound}" for words, _, bound in bounds)
                raise ValueError(f"{name} {value}: must be {allowed}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError for a key that is not a setting, so that a typing error never passes silently."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class ModelConfig(Config):
    """What fixes the shape and meaning of the weights."""

    decoder: str = option("show_tell", "captioning model", choices=("show_tell", "show_attend_tell"))
    attention: str = option(
        "soft", "of show_attend_tell: the mean of all cells, or one cell, sampled in training", choices=("soft", "hard")
    )
    encoder: str = option("tf_efficientnet_lite2", "resnet18 to resnet152 (torchvision) or the name of a timm model")
    image_size: int = option(224, "height and width, in pixels, that images are resized to", least=32)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]; follows the encoder's weights
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    embed_size: int = option(512, "size of word and image embeddings", least=1)
    hidden_size: int = option(512, "size of the LSTM's state", least=1)
    attention_size: int = option(256, "of show_attend_tell: size of the space that query and grid meet in", least=1)
    dropout: float = option(0.5, "dropout on the LSTM's inputs and outputs", least=0, below=1)
    annotation_dropout: float = option(0.0, "of show_attend_tell: dropout on the grid", least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or [type(v) in (int, float) for v in value] != [True] * 3:
                raise ValueError(f"{name} {value}: must be three numbers, of red, green and blue")
            object.__setattr__(self, name, tuple(value))  # JSON gives lists


@dataclass(frozen=True)
class TrainConfig(Config):
    """How the weights are found."""

    seed: int = option(1, "one seed fixes initial weights, order, augmentation and dropout", least=0)
    min_count: int = option(4, "words seen less often in the training captions become <unk>", least=1)
    frozen_epochs: int = option(12, "epochs with the encoder frozen (its features are computed once)", least=0)
    fine_tune_epochs: int = option(0, "epochs, after those, that train the encoder too", least=0)
    fine_tune_stages: int = option(
        0,
        "how many of the encoder's last stages fine-tuning trains, on the earlier ones' output, computed once, which"
        " a CPU needs; 0: all, from freshly augmented pixels",
        least=0,
    )
    self_critical_epochs: int = option(0, "epochs, after those, of self-critical training", least=0)
    batch_size: int = option(32, "images a step, each with all of its captions", least=2)
    learning_rate: float = option(1e-3, "Adam's highest learning rate while the encoder is frozen", least=0)
    fine_tune_learning_rate: float = option(2e-4, "highest learning rate of the decoder in fine-tuning", least=0)
    encoder_learning_rate: float = option(1e-4, "highest learning rate of the encoder in fine-tuning", least=0)
    self_critical_learning_rate: float = option(1e-4, "highest learning rate of self-critical training", least=0)
    self_critical_encoder_learning_rate: float = option(
        0.0, "highest learning rate of the encoder in self-critical training; 0: it is frozen", least=0
    )
    samples: int = option(5, "captions drawn of an image in a step of self-critical training", least=2)
    baseline: str = option(
        "samples",
        "what self-critical training compares a sample with: the mean of the image's other samples, or, as the paper"
        " does, the greedy caption",
        choices=("samples", "greedy"),
    )
    bleu_weight: float = option(1.0, "the reward is CIDEr-D + this * the mean of BLEU-1 to 4, all of 0 to 1", least=0)
    fluency_weight: float = option(
        0.0,
        "what a caption loses of its reward were all runs of three words in it such as the captions of fewer than two"
        " training images have: it keeps captions from breaking off",
        least=0,
    )
    likelihood_weight: float = option(
        0.0, "weight of the captions' likelihood beside the reward in self-critical training", least=0
    )
    weight_decay: float = option(1e-2, "AdamW's decoupled weight decay", least=0)
    label_smoothing: float = option(0.1, "probability mass spread over all words", least=0, below=1)
    attention_penalty: float = option(
        0.02, "weight of soft attention's doubly stochastic penalty (section 4.2.1 of Show, Attend and Tell)", least=0
    )
    scheduled_sampling: float = option(
        0.0, "share of the words that the decoder reads in training which are its own guesses", least=0
    )
    gradient_norm: float = option(5.0, "gradients are scaled down to this norm", least=0)
    average: float = option(
        0.995, "decay of the running average of the weights, which is the model kept; less at first", least=0, below=1
    )
    select_by: str = option("cider", "dev score that the epoch to keep is chosen by", choices=("cider", "bleu_4"))
    patience: int = option(0, "a phase ends early after so many epochs without a better model; 0: never", least=0)
    views: int = option(
        3,
        "views of each training image, all but one augmented, that frozen stages are computed for once; 0: a new view"
        " in each epoch",
        least=0,
    )
    least_area: float = option(
        0.7, "least share of a training image's area that an augmented view shows", least=0.01, most=1
    )
    max_tokens: int = option(24, "words of a training caption beyond this many are cut", least=1)
    workers: int = option(0, "processes that decode images while fine-tuning", least=0)
    device: str = option("auto", "where to train", choices=DEVICES)
    precision: str = option("auto", "auto: bf16 on a GPU, fp32 on a CPU", choices=("auto", "fp32", "bf16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frozen_epochs + self.fine_tune_epochs + self.self_critical_epochs:
            raise ValueError(
                "--frozen-epochs, --fine-tune-epochs and --self-critical-epochs are all 0: nothing to train"
            )


@dataclass(frozen=True)
class DecodeConfig(Config):
    """How words are chosen. Its `decode_id` keys the captions table."""

    beam_size: int = option(3, "hypotheses kept at each word; 1 is greedy", least=1)
    length_penalty: float = option(
        0.7, "hypotheses compare by log p / (number of tokens ** this); 0 favours short captions", least=0
    )
    max_length: int = option(20, "most words of a caption", least=1)
    min_length: int = option(1, "fewest words of a caption", least=1)
    block_ngrams: int = option(0, "a caption never has the same n-gram of this many words twice; 0: it may", least=0)
    alternatives: int = option(0, "further captions an image, best first; at most the beam size less 1", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.max_length:
            raise ValueError(f"--min-length {self.min_length}: must be at most --max-length, {self.max_length}")
        if self.alternatives >= self.beam_size:
            raise ValueError(
                f"--alternatives {self.alternatives}: must be below the beam size, {self.beam_size}"
                f" (a beam of {self.beam_size} ends in {self.beam_size} captions, the best of which is the caption)"
            )

    @property
    def decode_id(self) -> str:
        """16 hexadecimal digits, the same for the same settings.

        A setting that came later is left out where it changes nothing, so that captions from before keep their id.
        """
        later = {"min_length": 1, "block_ngrams": 0}
        settings = {name: value for name, value in self.to_dict().items() if later.get(name) != value}
        return short_hash(json.dumps(settings, sort_keys=True).encode())


def short_hash(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `parts`, their lengths told apart."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def add_options(parser: argparse.ArgumentParser, *configs: type[Config], default: str = "") -> None:
    """Adds an option for every documented field. Absent ones parse as None: see `given_options`. `default` says what
    then counts, where that is not the field's own."""
    for config in configs:
        group = parser.add_argument_group(config.__name__.removesuffix("Config").lower())
        for f in dataclasses.fields(config):
            if "help" in f.metadata:
                counts = default or str(f.default)
                text = f"{f.metadata['help']} (default {counts})" if counts else f.metadata["help"]
                values = "|".join(f.metadata["choices"] or ()) or {int: "N", float: "X"}.get(type(f.default), "TEXT")
                # Choices are checked by the config itself, so that a file and an option get one message.
                group.add_argument(option_name(f.name), type=type(f.default), default=None, metavar=values, help=text)


def given_options(options: argparse.Namespace, config: type[Config]) -> dict[str, Any]:
    """Those of the options of `config` that the user gave."""
    names = [f.name for f in dataclasses.fields(config) if "help" in f.metadata]
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}


def read_json(path: Path) -> Any:
    """Raises ValueError, naming the file, where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
