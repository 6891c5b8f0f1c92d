from pathlib import Path

import pytest
from safetensors.torch import load_file

from nic_model import average
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.vocabulary import Vocabulary
from tests.tiny import CONFIG, WORDS, tiny_model_directory


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_are_the_weighted_mean(tmp_path: Path, share: float) -> None:
    first, second = (tiny_model_directory(tmp_path, seed) for seed in (0, 1))
    out = tmp_path / "out"
    assert average.main([str(first), str(second), "--share", str(share), "--out", str(out)]) == 0
    ours, theirs, both = (load_file(folder / "model.safetensors") for folder in (first, second, out))
    for name, weights in both.items():
        mean = ((1 - share) * ours[name].double() + share * theirs[name].double()).half()
        assert (weights - mean).abs().max() <= 1e-3 * max(1, mean.abs().max())
        assert share not in (0, 1) or weights.equal((ours, theirs)[int(share)][name])


def test_models_must_be_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = tiny_model_directory(tmp_path), tmp_path / "other"
    for config, words, message in (
        (CONFIG.replace(hidden_size=8), WORDS, "different configurations"),
        (CONFIG, WORDS[:-1], "different vocabularies"),
    ):
        save_model(other, CaptionModel(config, Vocabulary(words)), DecodeConfig(), {})
        assert average.main([str(first), str(other), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert average.main([str(first), str(first), "--share", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--share 2.0: must be from 0 to 1" in capsys.readouterr().err
