"""The encoder in half precision: nearly all of the work is its, and hardware does it many times faster so."""

import copy
import logging
from functools import partial

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from nic_model.encoder import Encoder

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of what folding may change, as a share of the norm


def halve(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """A copy of `encoder`, in evaluation mode and in float32, whose convolutions and linear layers have weights of
    `dtype`, and batch norms where they can be. To be run under autocast, which leaves in float32 what needs it."""
    halved = fold_batch_norm(encoder)
    fuse_blocks(halved)
    for module in halved.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    return halved


class FusedConvolution(nn.Module):
    """A convolution with the ReLU that follows it, and with what is added before that, in one step of a GPU: each step
    of its own would read and write all that the convolution made."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
        one = self.convolution
        if images.is_cuda and one.weight.dtype != torch.float32:
            images, settings = (
                images.to(one.weight.dtype),
                (one.bias, one.stride, one.padding, one.dilation, one.groups),
            )
            if others is None:
                return torch.cudnn_convolution_relu(images, one.weight, *settings)  # type: ignore[arg-type]
            return torch.cudnn_convolution_add_relu(images, one.weight, others, 1.0, *settings)  # type: ignore[arg-type]
        hidden = one(images)
        return functional.relu(hidden if others is None else hidden + others)


class FusedBlock(nn.Module):
    """A block of a ResNet without batch norms."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convolutions = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.shortcut = nn.Identity() if block.downsample is None else block.downsample[0]
        if block.downsample is not None:  # two biases that are added are one
            convolutions[-1].bias = nn.Parameter(convolutions[-1].bias + self.shortcut.bias, requires_grad=False)
            self.shortcut.bias = None
        *first, last = map(FusedConvolution, convolutions)
        self.first, self.last = nn.Sequential(*first), last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fused: torch.Tensor = self.last(self.first(images), self.shortcut(images))
        return fused


@torch.no_grad()
def fuse_blocks(encoder: Encoder) -> None:
    """Makes the steps of a ResNet without batch norms fewer; another encoder, or one that has them, stays."""
    net = encoder.backbone
    if not isinstance(net, ResNet) or any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return
    net.conv1, net.relu = FusedConvolution(net.conv1), nn.Identity()
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for number, block in enumerate(layer):
            layer[number] = FusedBlock(block)


def halve_pointwise(encoder: Encoder) -> None:
    """Lets 1 x 1 convolutions of `encoder` multiply in bf16, forward and backward, as a CPU that has it does faster;
    the others, whose backward passes are slower in it, and all sums stay in float32."""
    for module in encoder.modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.bias is not None:
            continue
        if module.kernel_size == module.stride == (1, 1) and module.padding in ((0, 0), "valid"):
            module.forward = partial(_pointwise, module)  # type: ignore[method-assign]


def _pointwise(convolution: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    cells, weight = images.permute(0, 2, 3, 1), convolution.weight.flatten(1)
    return functional.linear(cells.bfloat16(), weight.bfloat16()).to(images.dtype).permute(0, 3, 1, 2)


@torch.no_grad()
def fold_batch_norm(encoder: Encoder) -> Encoder:
    """A copy of `encoder` in which convolutions do what batch norms did with their outputs. A normalisation of its own
    reads and writes all that a convolution made, and rounds it once more."""
    folded = copy.deepcopy(encoder)
    size, device = encoder.config.image_size, next(encoder.parameters()).device
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator).to(device)
    for convolution, norm in _followed(folded, pixels):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _replace(folded, norm)
    found, right = folded(pixels), encoder(pixels)
    if not (found - right).norm() <= TOLERANCE * right.norm():
        logger.warning("the batch norms of %s stay: without them it gives something else", encoder.config.encoder)
        return copy.deepcopy(encoder)
    return folded


def _followed(encoder: Encoder, pixels: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions whose output goes into a batch norm, with it, as a run on `pixels` shows them."""
    outputs: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # kept, so that no other tensor gets the same id
    found = []

    def note_output(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = module, output

    def note_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in outputs and type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            found.append((outputs[id(inputs[0])][0], module))

    hooks = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note_input))
    encoder(pixels)
    for hook in hooks:
        hook.remove()
    return found


def _replace(encoder: Encoder, norm: nn.BatchNorm2d) -> None:
    """By what else it does: timm's do dropout and activation as well."""
    rest: nn.Module = nn.Identity()
    if isinstance(norm, BatchNormAct2d):
        rest = nn.Sequential(norm.drop, norm.act)
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if child is norm:
                setattr(parent, name, rest)
