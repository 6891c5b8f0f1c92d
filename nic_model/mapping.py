"""A model's weights once for all processes of a machine: one file, mapped into the memory of each."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nic_model.checkpoint import CaptionModel, build_model, read_tensors
from nic_model.config import DecodeConfig, ModelConfig
from nic_model.model_files import CONFIG, VOCABULARY, WEIGHTS, ModelFiles, read_settings


class MappedModel:
    """As ModelFiles: what a captioner is made of, built of weights that lie in `folder` as the model computes with
    them. They are read-only to the system and private to nobody, however many processes build the model."""

    def __init__(self, folder: Path, model_id: str, read: Callable[[], ModelFiles]) -> None:
        """`read`, of the model `model_id`, is called by the first process alone; nobody else may write to `folder`."""
        self.model_id = model_id
        self._directory = folder / f"model-{model_id}"
        with (folder / f".{self._directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._directory.exists():
                _write(read(), self._directory)

    def settings(self) -> tuple[ModelConfig, DecodeConfig]:
        return read_settings((self._directory / CONFIG).read_bytes())

    def build(self) -> CaptionModel:
        """The model in float32 on the CPU. Its weights must not be written to: they would become this process's."""
        with safe_open(self._directory / WEIGHTS, framework="pt") as file:
            weights = {name: _as_used(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        return build_model(
            (self._directory / CONFIG).read_bytes(), (self._directory / VOCABULARY).read_bytes(), weights
        )


def _write(files: ModelFiles, directory: Path) -> None:
    weights = {name: _as_kept(tensor) for name, tensor in read_tensors(files.weights).items()}
    staged = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (staged / CONFIG).write_bytes(files.config)
        (staged / VOCABULARY).write_bytes(files.vocabulary)
        save_file(weights, staged / WEIGHTS)
        staged.replace(directory)
    except BaseException:  # as of a full disk, which what was written would keep full
        shutil.rmtree(staged)
        raise


def _as_kept(tensor: torch.Tensor) -> torch.Tensor:
    """Convolutions channels last, which a file of plain tensors knows nothing of."""
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()


def _as_used(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor
