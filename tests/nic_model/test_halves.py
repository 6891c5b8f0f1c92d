"""The encoder without its batch norms, and in half precision, against itself."""

import pytest
import torch
from torch import nn

from nic_model.config import ModelConfig
from nic_model.encoder import Encoder
from nic_model.execution import PyTorch
from nic_model.halves import FusedBlock, fold_batch_norm, fuse_blocks, halve, halve_pointwise
from tests.nic_model.test_execution import CPU, colours, model_of


def trained(name: str, decoder: str) -> Encoder:
    """Batch norms that do something."""
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(encoder=name, decoder=decoder, image_size=64)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return encoder


def norms(encoder: Encoder) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("resnet18", "show_tell"), ("resnet18", "show_attend_tell"), ("tinynet_e", "show_tell"),
     ("tf_efficientnet_lite0", "show_attend_tell")],
)  # fmt: skip
@torch.inference_mode()
def test_batch_norms_are_folded(name: str, decoder: str) -> None:
    encoder, pixels = trained(name, decoder), colours(3)
    right, before = encoder(pixels), norms(encoder)
    folded = fold_batch_norm(encoder)
    assert norms(folded) == 0 < before == norms(encoder)
    torch.testing.assert_close(folded(pixels), right, rtol=1e-3, atol=1e-3 * right.abs().max().item())
    assert encoder(pixels).equal(right)


@pytest.mark.parametrize("device", [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.inference_mode()
def test_fused_blocks_give_the_same(name: str, device: torch.device) -> None:
    encoder, pixels = trained(name, "show_attend_tell").to(device), colours(3).to(device)
    fused = fold_batch_norm(encoder)
    fuse_blocks(fused)
    assert sum(isinstance(module, FusedBlock) for module in fused.modules()) == {"resnet18": 8, "resnet50": 16}[name]
    right = encoder(pixels)
    torch.testing.assert_close(fused(pixels), right, rtol=1e-3, atol=1e-3 * right.abs().max().item())
    if device.type == "cuda":
        halved = halve(encoder, torch.float16)
        found = halved(pixels).float()
        assert (found - right).norm() < 0.05 * right.norm()


def test_batch_norms_that_stay_are_not_fused() -> None:
    encoder = trained("resnet18", "show_tell")
    fuse_blocks(encoder)
    assert not any(isinstance(module, FusedBlock) for module in encoder.modules())


def test_only_pointwise_convolutions_are_halved_in_training() -> None:
    plain, halved = trained("tinynet_e", "show_tell"), trained("tinynet_e", "show_tell")
    halve_pointwise(halved)
    changed = {module for module in halved.modules() if "forward" in vars(module)}
    assert {module.kernel_size for module in changed} == {(1, 1)}
    outputs, gradients = [], []
    for encoder in (plain, halved):
        features = encoder(colours(3))
        features.square().mean().backward()
        outputs.append(features.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.convolutions(2)]))
    for found, right in (outputs[::-1], gradients[::-1]):
        assert 0 < (found - right).norm() < 0.1 * right.norm()


class Twice(nn.Module):
    """What the convolution gives is used beside the batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.convolution(images)
        return (self.norm(hidden) + hidden).mean(dim=(2, 3))


def test_where_folding_would_be_wrong_they_stay(caplog: pytest.LogCaptureFixture) -> None:
    encoder = trained("resnet18", "show_tell")
    encoder.backbone = Twice().eval()
    encoder.backbone.norm.running_var.fill_(0.5)
    assert norms(fold_batch_norm(encoder)) == 1
    assert "the batch norms of resnet18 stay" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_is_the_encoders_alone(dtype: torch.dtype) -> None:
    model, pixels = model_of("soft"), colours(3)
    kinds = {module.weight.dtype for module in halve(model.encoder, dtype).modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    found, right = (PyTorch(model, CPU, precision).start(pixels) for precision in (dtype, torch.float32))
    for half, full in zip((*found[0], *found[1]), (*right[0], *right[1]), strict=True):
        assert half.dtype == torch.float32
        assert 0 < (half - full).norm() < 0.1 * full.norm()


def test_arithmetic_of_the_gpu_is_put_back() -> None:
    def flags() -> list[object]:
        cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
        return [cublas.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.benchmark]  # type: ignore[attr-defined]

    before = flags()
    for precision, expected in ((torch.float32, ["ieee"] * 3 + [False]), (torch.float16, ["tf32"] * 3 + [True])):
        execution = PyTorch(model_of("show_tell"), CPU, precision)
        execution._device = torch.device("cuda")  # of which nothing is asked here
        with execution._arithmetic():
            assert flags() == expected
        assert flags() == before
