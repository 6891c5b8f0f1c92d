"""The picture of where the model looked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nic_model import show_attention
from nic_model.captioner import Captioner, WordAttention
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.show_attention import LINE, TILE
from nic_model.vocabulary import Vocabulary
from tests.tiny import CONFIG, WORDS, tiny_model_directory

PHOTOGRAPH = Path(__file__).parents[2] / "samples/images/dog.jpg"


@pytest.fixture
def attending(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = CaptionModel(CONFIG.replace(decoder="show_attend_tell"), Vocabulary(WORDS))
    save_model(tmp_path / "model", model, DecodeConfig(beam_size=2, max_length=6), {})
    return tmp_path / "model"


def test_each_word_is_lit_where_it_looked() -> None:
    """The looked-at cell keeps its light, the others a quarter of it; pictures stand in reading order."""
    weights = np.zeros((2, 2), np.float32)
    weights[0, 1] = 1.0
    page = np.asarray(show_attention.draw(Image.new("RGB", (90, 60), (200, 200, 200)), [WordAttention("dog", weights)]))
    assert page.shape == (TILE + LINE, 2 * TILE, 3)
    photograph, lit = page[LINE:, :TILE], page[LINE:, TILE:]
    assert (photograph == 200).all()
    assert lit[5, -5, 0] == 200
    assert max(lit[5, 5, 0], lit[-5, 5, 0], lit[-5, -5, 0]) <= 55


def test_command_writes_a_picture_with_a_tile_a_word(
    attending: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "attention.png"
    assert (
        show_attention.main([str(PHOTOGRAPH), "--model", str(attending), "--out", str(out), "--min-length", "5"]) == 0
    )
    words = capsys.readouterr().out.split()
    tiles = len(words) + 1
    with Image.open(out) as page:
        assert page.size == (min(tiles, 5) * TILE, -(-tiles // 5) * (TILE + LINE))


def test_words_and_weights_are_of_the_caption(attending: Path) -> None:
    captioner, content = Captioner.load(attending), PHOTOGRAPH.read_bytes()
    words = captioner.attention(content)
    [caption] = captioner.caption([content])
    assert " ".join(word.word for word in words).replace(" 's", "'s") == caption.text  # type: ignore[union-attr]
    for word in words:
        assert word.weights.shape == (2, 2)  # a 64-pixel image has as many cells
        assert word.weights.sum() == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_drawn_is_one_line(attending: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    nic = tiny_model_directory(tmp_path)
    for image, model, message in (
        (text, attending, "not an image"),
        (tmp_path / "none.jpg", attending, "No such file"),
        (PHOTOGRAPH, nic, "has no attention to show"),
        (PHOTOGRAPH, tmp_path / "nothing", "no such directory"),
    ):
        assert show_attention.main([str(image), "--model", str(model), "--out", str(tmp_path / "o.png")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
