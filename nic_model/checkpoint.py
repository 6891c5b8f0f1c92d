"""The model directory as a model, and back. Nothing in it is ever unpickled."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from nic_model.config import DecodeConfig, ModelConfig
from nic_model.encoder import Encoder
from nic_model.model_files import FILES, WEIGHTS, ModelFiles, read_settings
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import ShowTell
from nic_model.vocabulary import Vocabulary


class CaptionModel(nn.Module):
    """An encoder, a decoder, and the words they write."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.encoder = Encoder(config)
        kind: type[ShowTell | ShowAttendTell] = ShowAttendTell if self.encoder.grid else ShowTell
        self.decoder = kind(config, self.encoder.output_size, len(vocabulary))


def build(files: ModelFiles) -> CaptionModel:
    """The model in float32 on the CPU, ready to caption. Raises ValueError where weights and config disagree."""
    model = build_model(files.config, files.vocabulary, read_tensors(files.weights))
    model.encoder.to(memory_format=torch.channels_last)
    return model


def read_tensors(weights: bytes) -> dict[str, torch.Tensor]:
    """The weights in float32, by name. Raises ValueError where they are no such file."""
    try:
        return {name: tensor.float() for name, tensor in load(weights).items()}
    except SafetensorError as error:
        raise ValueError(f"the model's files do not fit together: {error}") from None


def build_model(config: bytes, vocabulary: bytes, weights: Mapping[str, torch.Tensor]) -> CaptionModel:
    """The model whose parameters and buffers are the tensors `weights` themselves, in evaluation mode. Raises
    ValueError where they and config disagree."""
    try:
        model = CaptionModel(read_settings(config)[0], Vocabulary.from_json(vocabulary.decode()))
        # Batch norm counts its batches, which nothing reads.
        absent = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n\t")[:2][-1]  # torch lists all misfits, a line each, below a heading
        raise ValueError(f"the model's files do not fit together: {reason}") from None
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    if absent:
        raise ValueError(f"{WEIGHTS} lacks {len(absent)} tensors, the first is {absent[0]}")
    return model.eval()


def check_out(directory: Path) -> None:
    """Raises ValueError where something other than a model is there, or a model cannot be written."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--out {directory}: is a file; a model is a directory")
    others = sorted({path.name for path in directory.glob("[!.]*")} - set(FILES))
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(f"--out {directory}: holds {some}, which is no model's; choose another --out")
    target = directory.resolve()  # of a link
    if target.is_mount():
        raise ValueError(f"--out {directory}: is a mount point, which cannot be replaced; choose a folder in it")
    there = [path for path in (target, *target.parents) if path.exists()]
    for place in there[: 1 + target.exists()]:  # a model is written beside an old one, which is then removed
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise ValueError(f"--out {directory}: {place} cannot be written: {error.strerror}") from None


def save_model(
    directory: Path,
    model: CaptionModel,
    decode: DecodeConfig,
    training: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a model directory, or where a link points, whole or not at all; what else is in it stays. `training` is
    kept in config.json for people to read. Raises OSError.

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
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        staged.chmod(0o755)  # mkdtemp's is for one user, a model is for all
        for name, content in zip(FILES, contents, strict=True):
            (staged / name).write_bytes(content)
    except BaseException:  # a full disk, Ctrl-C
        shutil.rmtree(staged)
        raise
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        directory.replace(old)
        staged.replace(directory)
        for other in old.iterdir():
            if other.name not in FILES:  # somebody's note, put there meanwhile
                other.replace(directory / other.name)
        shutil.rmtree(old)
    else:
        staged.replace(directory)
