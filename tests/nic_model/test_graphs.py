"""Recorded search, on a CPU: the same buffers and the same order of work as on a GPU, without its graphs; and on a GPU
where there is one."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from nic_model.captioner import Caption, Captioner
from nic_model.config import DecodeConfig
from nic_model.execution import PyTorch
from nic_model.graphs import RecordedSearch
from nic_model.search import Hypothesis, beam_search
from nic_model.show_tell import Memory, State
from tests.nic_model.test_captioner import SmallGpu, photographs
from tests.nic_model.test_execution import CPU, colours, model_of
from tests.tiny import tiny_model_directory

CONFIG = DecodeConfig(beam_size=3, max_length=8, alternatives=1)


def words(found: list[list[Hypothesis]]) -> list[list[list[int]]]:
    return [[hypothesis.tokens for hypothesis in image] for image in found]


@pytest.mark.parametrize("device", [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("kind", ["show_tell", "soft"])
def test_recorded_search_is_beam_search(kind: str, device: torch.device) -> None:
    execution = PyTorch(model_of(kind), device)
    recorded = RecordedSearch(execution, CONFIG, batch_size=8, image_size=64, device=device)
    batches = colours(21).split([8, 1, 7, 5])
    pending = [recorded.submit(batch.split(3)) for batch in batches]  # none is waited for before the next is submitted
    found = [words(batch.wait()) for batch in pending]
    assert found == [words(beam_search(execution, batch, CONFIG)) for batch in batches]
    assert all(len(image) == 2 for batch in found for image in batch)
    assert len({tuple(best) for batch in found for best, _ in batch}) > 1


class Changing(PyTorch):
    """Gives another answer each time."""

    calls = 0

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        self.calls += 1
        memory, state = super().start(pixels)
        return memory, tuple(part + self.calls for part in state)


def test_what_was_recorded_wrong_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not encode as the model does"):
        RecordedSearch(Changing(model_of("soft"), CPU), CONFIG, batch_size=2, image_size=64, device=CPU)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("models"))


def test_a_captioner_records(directory: Path) -> None:
    contents = [*photographs(5), b"no image", *photographs(4)]
    expected = Captioner.load(directory, batch_size=4, engine="pytorch").caption(contents)
    captioner = Captioner.load(directory, batch_size=4, engine="pytorch", record=True)
    found = captioner.caption(contents)
    assert captioner._recorded is not None
    assert [getattr(a, "text", a) for a in found] == [getattr(b, "text", b) for b in expected]


def test_what_cannot_be_recorded_runs_as_it_is(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    captioner = Captioner.load(directory, batch_size=4, engine="pytorch", record=True)
    expected = captioner.caption(photographs(5))
    captioner._recorded, captioner._execution = None, Changing(captioner._model, CPU)
    found = captioner.caption(photographs(5))
    assert "running without CUDA graphs: what was recorded does not encode" in caplog.text
    assert len(found) == len(expected)


def test_recording_that_does_not_fit_is_halved(directory: Path) -> None:
    captioner = Captioner.load(directory, batch_size=8, engine="pytorch", record=True)
    expected = captioner.caption(photographs(9))
    small = SmallGpu(captioner._execution, room=3)
    captioner._recorded, captioner._execution = None, small
    found = captioner.caption(photographs(9))
    assert captioner.batch_size == 2
    assert small.tried[:2] == [8, 4]
    assert [getattr(a, "text", None) for a in found] == [getattr(b, "text", None) for b in expected]


class Overflowing(nn.Module):
    """An encoder whose range is too small for bright images."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        bright = pixels.float().mean(dim=(1, 2, 3)) > 128
        features: torch.Tensor = self.encoder(pixels)
        return features.half() * torch.where(bright, 1e6, 1.0).half().unsqueeze(1)


@pytest.mark.parametrize("record", [False, True])
def test_images_that_overflow_are_captioned_in_fp32(
    directory: Path, record: bool, caplog: pytest.LogCaptureFixture
) -> None:
    contents = photographs(8)
    plain = Captioner.load(directory, batch_size=4, engine="pytorch").caption(contents)
    captioner = Captioner.load(directory, batch_size=4, engine="pytorch", precision="fp16", record=record)
    assert isinstance(captioner._execution, PyTorch)
    captioner._execution._encoder = Overflowing(captioner._execution._encoder)
    with caplog.at_level(logging.WARNING):
        found = captioner.caption(contents)
    assert "overflow in fp16: captioned in fp32" in caplog.text
    for half, full in zip(found, plain, strict=True):
        assert isinstance(half, Caption)
        assert isinstance(full, Caption)
        assert half.text == full.text
        assert half.log_prob == pytest.approx(full.log_prob, abs=0.05)
