import argparse
import json
import re
from pathlib import Path

import pytest

from nic_model import train
from nic_model.config import Config, DecodeConfig, ModelConfig, TrainConfig, add_options, given_options

RECIPES = Path(train.__file__).parent / "recipes"


@pytest.mark.parametrize("config", [ModelConfig(), TrainConfig(), DecodeConfig(beam_size=5, alternatives=2)])
def test_json_both_ways(config: Config) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (DecodeConfig, {"beam_size": 0}, "--beam-size 0: must be at least 1"),
        (DecodeConfig, {"max_length": 0}, "--max-length 0: must be at least 1"),
        (DecodeConfig, {"length_penalty": float("nan")}, "--length-penalty nan: must be at least 0"),
        (DecodeConfig, {"beam_size": 3, "alternatives": 3}, "--alternatives 3: must be below the beam size, 3"),
        (TrainConfig, {"least_area": 1.5}, "--least-area 1.5: must be at least 0.01 and at most 1"),
        (TrainConfig, {"average": 1}, "--average 1.0: must be at least 0 and below 1"),
        (TrainConfig, {"label_smoothing": 1.5}, "--label-smoothing 1.5: must be at least 0 and below 1"),
        (TrainConfig, {"frozen_epochs": 0}, "--self-critical-epochs are all 0: nothing to train"),
        (TrainConfig, {"frozen_epochs": "8"}, '--frozen-epochs "8": must be a whole number'),
        (TrainConfig, {"frozen_epochs": True}, "--frozen-epochs true: must be a whole number"),
        (TrainConfig, {"batch_size": 8.0}, "--batch-size 8.0: must be a whole number"),
        (TrainConfig, {"learning_rate": [1e-3]}, "--learning-rate [0.001]: must be a number"),
        (ModelConfig, {"encoder": None}, "--encoder null: must be text"),
        (ModelConfig, {"mean": 0.5}, "mean 0.5: must be three numbers"),
        (ModelConfig, {"std": [1, 1, "1"]}, "std [1, 1, '1']: must be three numbers"),
        (DecodeConfig, {"min_length": 21}, "--min-length 21: must be at most --max-length, 20"),
        (DecodeConfig, {"beem_size": 3}, "DecodeConfig has no beem_size; it has alternatives, beam_size"),
        (ModelConfig, {"decoder": "transformer"}, "--decoder transformer: allowed are show_tell"),
        (ModelConfig, {"dropout": 1.0}, "--dropout 1.0: must be at least 0 and below 1"),
        (TrainConfig, {"precision": "fp8"}, "--precision fp8: allowed are auto, fp32, bf16"),
    ],
)
def test_bad_values_say_what_is_allowed(config: type[Config], values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config.from_dict(values)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([], "recipe.json: must be an object with model, train and decode, not a list"),
        ({"train": []}, "recipe.json: train must be an object, not a list"),
        ({"trian": {}}, "recipe.json: trian: allowed are model, train and decode"),
        ({"train": {"frozen_epochs": "8"}}, '--frozen-epochs "8": must be a whole number'),
    ],
)
def test_bad_recipes_say_what_is_allowed(recipe: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=re.escape(message)):
        train.read_configs(train.parse_args(["--train", "t", "--dev", "d", "--out", "o", "--config", str(file)]))


def test_options_are_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, ModelConfig, DecodeConfig)
    options = parser.parse_args(["--beam-size", "5", "--dropout", "0.25"])
    assert given_options(options, DecodeConfig) == {"beam_size": 5}
    assert given_options(options, ModelConfig) == {"dropout": 0.25}


def test_decode_id_is_of_every_setting() -> None:
    base = DecodeConfig(beam_size=4)
    others = [
        base.replace(beam_size=5),
        base.replace(length_penalty=0.5),
        base.replace(max_length=9),
        base.replace(alternatives=1),
        base.replace(min_length=2),
        base.replace(block_ngrams=3),
    ]
    assert len({base.decode_id, *(other.decode_id for other in others)}) == 7
    assert base.decode_id == DecodeConfig(beam_size=4).decode_id


def test_whole_numbers_are_numbers() -> None:
    """What a JSON writes as 1 is what an option gives as 1.0."""
    assert DecodeConfig(length_penalty=1).decode_id == DecodeConfig(length_penalty=1.0).decode_id
    assert json.dumps(ModelConfig(dropout=0).to_dict()) == json.dumps(ModelConfig(dropout=0.0).to_dict())


def test_decode_id_of_old_settings_stays() -> None:
    """Tables hold these ids: a setting that is added later must not change them."""
    assert DecodeConfig(beam_size=3, length_penalty=0.7, max_length=20, alternatives=0).decode_id == "113ed671b04f00f0"
    assert DecodeConfig(beam_size=5, length_penalty=0.6, max_length=20, alternatives=0).decode_id == "b1c1e17d144c9e08"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_recipes_are_settings(recipe: Path) -> None:
    options = train.parse_args(["--train", "t", "--dev", "d", "--out", "o", "--config", str(recipe)])
    model, training, _ = train.read_configs(options)
    assert model.decoder == ("show_tell" if recipe.stem.startswith("nic") else "show_attend_tell")
    assert training.frozen_epochs + training.fine_tune_epochs + training.self_critical_epochs > 0
