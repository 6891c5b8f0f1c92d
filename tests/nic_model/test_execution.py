"""The compiled model against the model itself."""

import ctypes
import gc
import logging
import sys

import pytest
import torch

from nic_model.checkpoint import CaptionModel
from nic_model.config import DecodeConfig
from nic_model.encoder import Lower
from nic_model.execution import OpenVino, PyTorch, hasten, make_execution
from nic_model.search import beam_search
from nic_model.vocabulary import Vocabulary
from tests.tiny import CONFIG, WORDS, tiny_model

CPU = torch.device("cpu")
KINDS = ("show_tell", "soft", "resnet18")


def model_of(kind: str) -> CaptionModel:
    """Images of different colours get different captions."""
    if kind == "show_tell":
        return tiny_model()
    torch.manual_seed(0)
    config = CONFIG.replace(decoder="show_attend_tell", encoder="resnet18" if kind == "resnet18" else CONFIG.encoder)
    model = CaptionModel(config, Vocabulary(WORDS)).eval()
    with torch.no_grad():
        model.decoder.word_embedding.weight.mul_(4)
        for part in (model.decoder.initial, model.decoder.hidden_output, model.decoder.context_output):
            part.weight.mul_(20)
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    return model


def colours(n: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8).repeat_interleave(32, 2).repeat_interleave(32, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_gives_the_captions_of_pytorch(kind: str) -> None:
    model, config = model_of(kind), DecodeConfig(beam_size=3, max_length=8)
    compiled, plain = (make_execution(model, CPU, engine=engine) for engine in ("openvino", "pytorch"))
    assert isinstance(compiled, OpenVino)
    captions = set()
    for n in (1, 7, 2, 0):
        found, right = (beam_search(execution, colours(n), config) for execution in (compiled, plain))
        assert [[h.tokens for h in image] for image in found] == [[h.tokens for h in image] for image in right]
        for (a,), (b,) in zip(found, right, strict=True):
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-3)
            captions.add(tuple(a.tokens))
    assert len(captions) > 1


@torch.inference_mode()
def test_half_precision_is_near() -> None:
    model, pixels = model_of("soft"), colours(5)
    (annotations, _), (hidden, _) = OpenVino(model, torch.bfloat16).start(pixels)
    (right_annotations, _), (right_hidden, _) = model.decoder.start(model.encoder(pixels))
    torch.testing.assert_close(annotations, right_annotations, atol=0.3, rtol=0.1)
    torch.testing.assert_close(hidden, right_hidden, atol=0.1, rtol=0.1)


@torch.inference_mode()
def test_an_encoder_alone_is_hastened() -> None:
    lower, pixels = Lower(model_of("resnet18").encoder, 2), colours(9)
    first, *others = lower.parameters()
    first.requires_grad_(False)
    fast = hasten(lower, pixels[:4], torch.bfloat16)
    assert fast is not lower
    assert not first.requires_grad
    assert all(weight.requires_grad for weight in others)  # what learns goes on learning
    for n in (9, 1):
        found, right = fast(pixels[:n]), lower(pixels[:n])
        assert found.shape == right.shape
        assert 0 < (found - right).norm() < 0.02 * right.norm()


def test_without_openvino_an_encoder_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    encoder = tiny_model().encoder
    assert hasten(encoder, colours(3), torch.float32) is encoder


class OnlyPairs(torch.nn.Module):
    """An encoder that, traced with two images, is one for two images for ever."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.encoder(pixels)
        return features * torch.arange(1, 1 + len(features)).view(-1, 1)


def test_what_was_compiled_wrong_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    model.encoder = OnlyPairs(model.encoder)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_execution(model, CPU), PyTorch)
    assert "without OpenVINO" in caplog.text
    with pytest.raises(ValueError, match="engine openvino: "):
        make_execution(model, CPU, engine="openvino")


def test_without_openvino_there_is_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert isinstance(make_execution(tiny_model(), CPU), PyTorch)
    with pytest.raises(ValueError, match="engine openvino: "):
        make_execution(tiny_model(), CPU, engine="openvino")


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="engine steam: allowed are auto, pytorch, openvino"):
        make_execution(tiny_model(), CPU, engine="steam")


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets a stack for signals on Linux alone")
def test_signals_are_handled_where_they_were() -> None:
    """Whichever of two engines ends first: a stack that is freed would end the process at the next signal."""

    def stack() -> bytes:
        now = ctypes.create_string_buffer(24)
        ctypes.CDLL(None).sigaltstack(None, now)
        return now.raw

    before, engines = stack(), [OpenVino(tiny_model()) for _ in range(2)]
    assert stack() == before
    while engines:
        engines.pop(0)
        gc.collect()
        assert stack() == before
