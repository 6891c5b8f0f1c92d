"""The encoder in half precision: nearly all of the work is its, and hardware does it many times faster so."""

import copy
import logging
from functools import partial

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nic_model.encoder import Encoder

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of what folding may change, as a share of the norm


def halve(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """A copy of `encoder`, in evaluation mode and in float32, whose convolutions and linear layers have weights of
    `dtype`, and batch norms where they can be. To be run under autocast, which leaves in float32 what needs it."""
    halved = fold_batch_norm(encoder)
    for module in halved.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    return halved


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
