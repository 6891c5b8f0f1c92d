"""Several models as one: the mean of their distributions."""

from pathlib import Path

import pytest
import torch

from nic_model.captioner import Captioner
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.ensemble import Ensemble, build_members
from nic_model.execution import PyTorch
from nic_model.model_files import ModelFiles, joint_id
from nic_model.search import beam_search
from nic_model.vocabulary import SOS, Vocabulary
from tests.tiny import CONFIG, WORDS, tiny_model, tiny_model_directory


def attending_model(seed: int) -> CaptionModel:
    torch.manual_seed(seed)
    return CaptionModel(CONFIG.replace(decoder="show_attend_tell"), Vocabulary(WORDS)).eval()


@torch.inference_mode()
def test_words_have_the_mean_probability() -> None:
    """Of members of two kinds, with a beam, after the first word too."""
    members = [tiny_model(0), attending_model(1), tiny_model(2)]
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    ensemble = Ensemble([PyTorch(member, torch.device("cpu")) for member in members])
    memory, state = ensemble.start(pixels)
    alone = [member.decoder.start(member.encoder(pixels)) for member in members]
    for words in ([SOS] * 3, [4, 5, 6]):
        logits, state = ensemble.step(torch.tensor(words), state, memory)
        mean = torch.zeros(3, len(WORDS) + 4)
        for at, (member, (own, own_state)) in enumerate(zip(members, alone, strict=True)):
            own_logits, after = member.decoder.step(torch.tensor(words), own_state, own)
            mean += own_logits.softmax(1) / 3
            alone[at] = own, after
        torch.testing.assert_close(logits.softmax(1), mean)


@torch.inference_mode()
def test_a_model_with_itself_is_itself() -> None:
    model, config = tiny_model(3), DecodeConfig(beam_size=3, max_length=6)
    pixels = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    twice = beam_search(Ensemble([model.decoder, model.decoder]), model.encoder(pixels), config)
    once = beam_search(model.decoder, model.encoder(pixels), config)
    assert [image[0].tokens for image in twice] == [image[0].tokens for image in once]


def test_captioner_takes_several_directories(tmp_path: Path) -> None:
    """Their order changes neither the captions nor the id."""
    a, b = (tiny_model_directory(tmp_path, seed) for seed in (0, 1))
    content = (Path(__file__).parents[2] / "samples/images/dog.jpg").read_bytes()
    forwards, backwards = Captioner.load(a, b), Captioner.load(b, a)
    assert forwards.model_id == backwards.model_id
    assert forwards.model_id not in (Captioner.load(a).model_id, Captioner.load(b).model_id)
    assert forwards.caption([content])[0].text == backwards.caption([content])[0].text  # type: ignore[union-attr]
    assert joint_id([ModelFiles.read(a)]) == Captioner.load(a).model_id == ModelFiles.read(a).model_id


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [(CONFIG, WORDS[::-1], "the same vocabulary"), (CONFIG.replace(image_size=96), WORDS, "not 64 and 96")],
)
def test_members_must_fit_together(config: object, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_model(other, CaptionModel(config, Vocabulary(words)), DecodeConfig(), {})  # type: ignore[arg-type]
    files = [ModelFiles.read(tiny_model_directory(tmp_path)), ModelFiles.read(other)]
    with pytest.raises(ValueError, match=message):
        build_members(files)
