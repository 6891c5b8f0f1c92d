"""Training on a handful of images: it learns, repeats, and goes on after an interruption as if there had been none."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from nic_model import train, training
from nic_model.batches import ImageViews, Tokens, names_a_side, shuffled
from nic_model.captioner import Caption, Captioner
from nic_model.checkpoint import save_model
from nic_model.config import DecodeConfig
from nic_model.datasets import read_dataset
from nic_model.model_files import FILES
from nic_model.phases import running_average
from nic_model.state import claim
from nic_model.vocabulary import Vocabulary
from tests.tiny import tiny_model, tiny_model_directory

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}


def write_data(path: Path, n: int) -> None:
    """Plain pictures, each captioned with its colour in five ways, and named after the file too."""
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
        rows.append({"image_id": f"{path.stem}-{i}.jpg", "content": buffer.getvalue(), "captions": captions})
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
    states = [torch.load(tmp_path / f"{name}.training" / "state.pt") for name in ("whole", "cut")]
    average, other = (state["average"] for state in states)
    assert all(average[name].equal(other[name]) for name in average)
    # Of the last phase: an encoder that learns no more is that which is kept.
    trained = states[0]["model"]
    same = [trained[name].equal(average[f"module.{name}"]) for name in trained if name.startswith("encoder.")]
    assert all(same) is ("self_critical_encoder_learning_rate" not in settings)


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


def test_features_of_other_settings_are_not_taken(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before its first whole epoch, a training goes on with its own settings alone."""
    small = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0}
    data = arguments(folder, "aborted", **small)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(data)
    monkeypatch.undo()
    assert not (folder / "aborted.training" / "state.pt").exists()
    other = {name: tensor + 1 for name, tensor in load_file(folder / "encoder.safetensors").items()}
    save_file(other, folder / "other.safetensors")
    for change in (
        ["--image-size", "96"],
        ["--seed", "2"],
        ["--encoder-weights", str(folder / "other.safetensors")],
        ["--init", str(tiny_model_directory(folder, seed=1))],
    ):
        assert train.main([*data, *change]) == 2, change
        assert "aborted.training holds a training with other settings" in capsys.readouterr().err
    assert train.main(data) == 0


def test_folders_of_older_versions_are_not_taken(tmp_path: Path) -> None:
    """They do not say what they were made with."""
    (tmp_path / "features-0.pt").touch()
    with pytest.raises(ValueError, match="other settings or data"):
        claim(tmp_path, {"seed": 1})


def test_first_weights_are_soon_forgotten() -> None:
    model = torch.nn.Linear(1, 1)
    average = AveragedModel(model, multi_avg_fn=running_average(0.995))
    weight, kept = model.weight.data, average.module.weight
    for step in range(40):
        weight.fill_(min(step, 1))
        average.update_parameters(model)
    assert kept.item() > 0.99
    average.n_averaged.fill_(10_000)  # from then on as slowly as it is told
    weight.fill_(2)
    before = kept.item()
    average.update_parameters(model)
    assert kept.item() == pytest.approx(before + 0.005 * (2 - before), rel=1e-5)


def test_out_is_never_what_holds_other_things(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "models" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("precious")
    for out, message in ((notes.parent, "holds notes.txt, which is no model's"), (notes, "is a file")):
        assert train.main(arguments(folder, str(out))) == 2
        assert message in capsys.readouterr().err
    for _ in range(2):  # what is put there later
        save_model(notes.parent, tiny_model(), DecodeConfig(), {})
    assert sorted(path.name for path in notes.parent.iterdir()) == sorted([*FILES, "notes.txt"])
    assert notes.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_a_training_began_with_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model_directory(folder, seed=2)
    assert train.main([*arguments(folder, model.name), "--init", str(model)]) == 2
    assert "is --out too" in capsys.readouterr().err


def test_dev_images_are_not_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(folder / "train.parquet"), str(folder / "dev.parquet")]
    assert train.main([*arguments(folder, "overlap"), "--train", *both]) == 2
    assert "4 of the dev images are trained on, such as dev-0.jpg" in capsys.readouterr().err


def test_dev_images_may_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As COCO's have."""
    options, given = [], []
    for part, images in (("train", "--images-dir"), ("dev", "--dev-images-dir")):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.jpg").write_bytes(b"an image")
        (tmp_path / f"{part}.token").write_text(f"{part}.jpg#0\ta dog\n")
        options += [f"--{part}", str(tmp_path / f"{part}.token"), images, str(tmp_path / part)]

    def noted(*data: object) -> None:
        given.extend(data[:2])
        raise ValueError

    monkeypatch.setattr(train, "Training", noted)
    assert train.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert [example.image for (example,) in given] == [tmp_path / "train" / "train.jpg", tmp_path / "dev" / "dev.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet19"}, "--encoder resnet19: allowed are resnet18, resnet34"),
        ({"encoder": "tf_efficientnet_lite"}, "did you mean tf_efficientnet_lite0"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
        ({"device": "tpu"}, "--device tpu: allowed are auto, cpu, cuda"),
        ({"fine_tune_stages": 99}, "--fine-tune-stages 99: tinynet_e has 9; 0 means all"),
        ({"embed_size": 0}, "--embed-size 0: must be at least 1"),
        ({"encoder": "vit_tiny_patch16_224"}, "--image-size 64: vit_tiny_patch16_224 takes another: Input height (64)"),
        ({"average": 1}, "--average 1.0: must be at least 0 and below 1"),
        ({"learning_rate": 1e30, "views": 1}, "at a learning rate of 1e+30: lower --learning-rate"),
    ],
)
def test_bad_settings_are_one_line(
    folder: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(folder, "bad", **changes)) == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(message), error)
    assert error.count("\n") == 1


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
    [
        ("A man turns left .", True),
        ("right-handed pitcher", True),
        ("A bright cleft", False),
        ("two dogs", False),
        ("A dog on the left.", True),
        ("LEFT, then up", True),
        ('a sign "right"', True),
    ],
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
