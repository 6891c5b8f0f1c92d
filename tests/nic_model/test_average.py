from pathlib import Path

import pytest
from safetensors.torch import load_file

from nic_model import average
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.vocabulary import Vocabulary
from tests.tiny import CONFIG, WORDS, tiny_model_directory


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 0.0), (0.25, 0.75), (0.0, 3.0), (1.0, 1.0, 2.0), None])
def test_weights_are_the_weighted_mean(tmp_path: Path, shares: tuple[float, ...] | None) -> None:
    models = [tiny_model_directory(tmp_path, seed=seed) for seed in range(len(shares or (1, 1, 1)))]
    out = tmp_path / "out"
    given = ["--shares", *map(str, shares)] if shares else []
    assert average.main([*map(str, models), *given, "--out", str(out)]) == 0
    parts = [load_file(folder / "model.safetensors") for folder in models]
    relative = [share / sum(shares or (1, 1, 1)) for share in shares or (1, 1, 1)]
    for name, weights in load_file(out / "model.safetensors").items():
        mean = sum(share * part[name].double() for share, part in zip(relative, parts, strict=True))
        assert (weights - mean.half()).abs().max() <= 1e-3 * max(1, mean.abs().max())
        for share, part in zip(relative, parts, strict=True):
            assert share != 1 or weights.equal(part[name])


def test_models_must_be_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = tiny_model_directory(tmp_path), tmp_path / "other"
    for config, words, message in (
        (CONFIG.replace(hidden_size=8), WORDS, "different configurations"),
        (CONFIG, WORDS[:-1], "different vocabularies"),
    ):
        save_model(other, CaptionModel(config, Vocabulary(words)), DecodeConfig(), {})
        assert average.main([str(first), str(other), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_out_is_never_a_folder_of_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model_directory(tmp_path / "models")
    assert average.main([str(model), "--out", str(tmp_path / "models")]) == 2
    assert "holds tiny-0, which is no model's; choose another --out" in capsys.readouterr().err
    assert load_file(model / "model.safetensors")
    assert average.main([str(model), "--out", str(model)]) == 0  # in place of a model


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (["2"], "--shares: 1 of them for 2 models; give one for each"),
        (["1", "-1"], "--shares 1.0 -1.0: must be at least 0, and not all 0"),
        (["0", "0"], "--shares 0.0 0.0: must be at least 0, and not all 0"),
        (["1", "nan"], "--shares 1.0 nan: must be at least 0, and not all 0"),
    ],
)
def test_bad_shares_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shares: list[str], message: str
) -> None:
    model = str(tiny_model_directory(tmp_path))
    assert average.main([model, model, "--shares", *shares, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
