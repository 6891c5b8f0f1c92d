"""Training on a handful of images: it learns, repeats, and goes on after an interruption as if there had been none."""

import csv
import errno
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

from nic_model import average, train, training
from nic_model.batches import ImageViews, Tokens, decodable, load_views, names_a_side, shuffled
from nic_model.captioner import Caption, Captioner
from nic_model.checkpoint import check_out, save_model
from nic_model.config import DecodeConfig, TrainConfig
from nic_model.datasets import Example, read_dataset
from nic_model.model_files import FILES
from nic_model.phases import make_optimizer, phases, running_average
from nic_model.state import claim
from nic_model.vocabulary import Vocabulary
from tests.hostile_images import encode
from tests.tiny import CONFIG, tiny_model, tiny_model_directory

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
    if values["encoder"] == "tinynet_e" and "init" not in values:
        data += ["--encoder-weights", str(folder / "encoder.safetensors")]
    return [*data, "--out", str(folder / out), *options]  # of an option given twice the last counts


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
        assert run("cut") == 130
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


def test_it_starts_from_another_model(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder of another kind starts afresh on the model's encoder, and it is said; one of the same kind goes on."""
    caplog.set_level("INFO")
    nothing = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0, "learning_rate": 0.0}
    assert train.main(arguments(folder, "first", **nothing)) == 0
    for kind, same in (("show_tell", True), ("show_attend_tell", False)):
        changes = {"decoder": kind, "init": folder / "first", "seed": 2, "average": 0.0}
        assert train.main(arguments(folder, f"second-{kind}", **changes, **nothing)) == 0
        first, second = weights(folder / "first"), weights(folder / f"second-{kind}")
        assert all(first[name].equal(second[name]) for name in first if name.startswith("encoder."))
        name = "decoder.word_embedding.weight"
        assert first[name].equal(second[name]) is same
        assert ("has a decoder show_tell: a new show_attend_tell is trained" in caplog.text) is not same
    capsys.readouterr()
    for init, changes, message in (
        ("none", {}, "--init .*none: no such directory"),
        ("first", {"hidden_size": 8}, "--init .*first: its decoder does not fit; it has --hidden-size 16"),
        ("first", {"encoder": "resnet18"}, "--init .*first: its encoder does not fit; it has --encoder tinynet_e"),
        ("first", {"encoder_weights": folder / "encoder.safetensors"}, "--encoder-weights .* has an encoder already"),
    ):
        assert train.main(arguments(folder, "third", init=folder / init, **changes, **nothing)) == 2
        error = capsys.readouterr().err
        assert re.search(f"error: {message}", error)
        assert error.count("\n") == 1


def test_settings_are_those_of_the_model_begun_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But for what the configuration or an option says."""
    data, file = ["--train", "a", "--dev", "b", "--out", "c"], tmp_path / "config.json"
    file.write_text(json.dumps({"model": {"decoder": "show_attend_tell", "dropout": 0.1}}))
    init = ["--init", str(tiny_model_directory(tmp_path))]
    for options, changes in (
        ([], {}),
        (["--config", str(file), "--dropout", "0.2"], {"decoder": "show_attend_tell", "dropout": 0.2}),
    ):
        model, _, decode = train.read_configs(train.parse_args([*data, *init, *options]))
        assert (model, decode) == (CONFIG.replace(**changes), DecodeConfig())
    assert not caplog.records
    train.read_configs(train.parse_args([*data, *init, "--min-count", "2"]))
    assert "--min-count 2: is not used; the words are those of --init" in caplog.text


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


def test_a_model_that_is_gone_is_missed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The training that wrote it has ended, and would write none."""
    command = arguments(folder, "gone", frozen_epochs=1, fine_tune_epochs=0, self_critical_epochs=0)
    assert train.main(command) == 0
    (folder / "gone").rename(folder / "elsewhere")
    assert train.main(command) == 2
    assert "gone: is gone, but" in capsys.readouterr().err
    (folder / "elsewhere").rename(folder / "gone")
    assert train.main(command) == 0


def test_features_of_other_settings_are_not_taken(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before its first whole epoch, a training goes on with its own settings alone."""
    small = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0}
    data = arguments(folder, "aborted", **small)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_update", interrupted)
    assert train.main(data) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on\n")
    monkeypatch.undo()
    assert not (folder / "aborted.training" / "state.pt").exists()
    other = {name: tensor + 1 for name, tensor in load_file(folder / "encoder.safetensors").items()}
    save_file(other, folder / "other.safetensors")
    for change in (
        {"image_size": 96},
        {"seed": 2},
        {"encoder_weights": folder / "other.safetensors"},
        {"init": tiny_model_directory(folder, seed=1)},
    ):
        assert train.main(arguments(folder, "aborted", **small, **change)) == 2, change
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


def test_a_link_to_a_model_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for _ in range(2):
        check_out(tmp_path / "link")
        save_model(tmp_path / "link", tiny_model(), DecodeConfig(), {})
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(FILES)


def test_where_no_model_can_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be written: Not a directory"):
        check_out(tmp_path / "file" / "models" / "mine")
    check_out(tmp_path / "models" / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "mount")
    with pytest.raises(ValueError, match="is a mount point, which cannot be replaced"):
        check_out(tmp_path / "mount")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model_directory(folder, seed=4)
    out, write = tmp_path / "full", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    small = {"frozen_epochs": 1, "fine_tune_epochs": 0, "self_critical_epochs": 0}
    assert train.main(arguments(folder, str(out), **small)) == 2
    assert capsys.readouterr().err.endswith("error: [Errno 28] No space left on device\n")
    assert average.main([str(model), "--out", str(out)]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["full.training"]
    assert not list((tmp_path / "full.training").glob(".*"))


def test_what_a_training_began_with_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model_directory(folder, seed=2)
    assert train.main(arguments(folder, model.name, init=model)) == 2
    assert "is --out too" in capsys.readouterr().err


def test_dev_images_are_not_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(folder / "train.parquet"), str(folder / "dev.parquet")]
    assert train.main([*arguments(folder, "overlap"), "--train", *both]) == 2
    assert "4 of the dev images are trained on, such as dev-0.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(("select_by", "n"), [("cider", 2), ("bleu_4", 1)])
def test_so_many_dev_images_are_needed(select_by: str, n: int) -> None:
    """CIDEr weighs words by how few of the images have them."""
    examples = [Example(str(number), b"", ("a dog",)) for number in range(6)]
    training.check_data(examples[n:], examples[:n], select_by)
    with pytest.raises(
        ValueError, match=f"--select-by cider.* of 1 dev image|1 for dev; there are {7 - n} and {n - 1}"
    ):
        training.check_data(examples[n - 1 :], examples[: n - 1], select_by)


@pytest.mark.parametrize(("select_by", "best"), [("cider", 2), ("bleu_4", 1)])
def test_equal_scores_are_told_apart_by_another(select_by: str, best: int) -> None:
    run = object.__new__(training.Training)
    run.config = TrainConfig(select_by=select_by)
    run.history = [{"bleu_4": b, "cider": c} for b, c in ((0.0, 3.0), (2.0, 1.0), (1.0, 3.0), (1.0, 3.0))]
    assert run.best() is run.history[best]


def test_images_that_cannot_be_decoded_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [Example(f"good-{number}", encode(Image.new("RGB", (9, 9))), ("a dog",)) for number in range(20)]
    bad = [Example("text", b"text", ("a dog",)), Example("gone", tmp_path / "gone.jpg", ("a dog",))]
    assert decodable("photos", [*good[:3], *bad, *good[3:]], 64) == good
    assert not caplog.records[1:]
    start = "photos: left out 2 of 22 that cannot be decoded: text (not an image in a known format"
    assert caplog.text.count(start) == caplog.text.count("gone ([Errno 2] No such file") == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("image", [b"text", Path("/nowhere/gone.jpg")])
def test_an_image_that_goes_bad_is_named_in_one_line(workers: int, image: bytes | Path) -> None:
    views = ImageViews([Example("it", image, ("a dog",))], 64)
    with pytest.raises(ValueError, match=r"^training image it: .*\Z"):
        list(load_views(views, [[0]], workers))


def test_a_frozen_encoder_keeps_no_gradients() -> None:
    """They would count when those of the decoder are scaled down, but not after an interruption."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    config = TrainConfig()
    make_optimizer(model, phases(config)[0], config, 10)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_baseline_is_what_the_model_would_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout; and looking for it teaches batch norm nothing."""
    search, modes = training.beam_search, []

    def noted(decoder: torch.nn.Module, *others: object) -> object:
        modes.append(decoder.training)
        return search(decoder, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "beam_search", noted)
    assert train.main(arguments(folder, "greedy", frozen_epochs=0, fine_tune_epochs=0, baseline="greedy")) == 0
    assert modes == [False] * 5  # four batches, and the dev images


def test_dev_images_may_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As COCO's have."""
    options, given = [], []
    for part, images in (("train", "--images-dir"), ("dev", "--dev-images-dir")):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.jpg").write_bytes(encode(Image.new("RGB", (9, 9))))
        (tmp_path / part / "damaged.jpg").write_bytes(b"damaged")
        (tmp_path / f"{part}.token").write_text(f"{part}.jpg#0\ta dog\ndamaged.jpg#0\ta cat\n")
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
        ({"fine_tune_stages": 99, "views": 0}, "--fine-tune-stages 99: tinynet_e has 9; 0 means all"),
        ({"embed_size": 0}, "--embed-size 0: must be at least 1"),
        ({"encoder": "vit_tiny_patch16_224"}, "--image-size 64: vit_tiny_patch16_224 takes another: Input height (64)"),
        ({"average": 1}, "--average 1.0: must be at least 0 and below 1"),
        ({"min_count": 999}, "--min-count 999: no word of the training captions is seen so often; lower it"),
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
    assert not (folder / "bad").exists()


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
