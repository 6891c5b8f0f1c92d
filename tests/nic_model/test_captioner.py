import io
import json
import threading
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nic_model.captioner import Caption, Captioner, Failure, pick_device
from nic_model.checkpoint import save_model
from nic_model.config import DecodeConfig
from nic_model.model_files import FILES, ModelFiles
from nic_model.search import Decoder
from nic_model.show_tell import Memory, State
from tests.tiny import tiny_model, tiny_model_directory


def photographs(n: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(n):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (2, 3, 3), np.uint8)).resize((90, 60), Image.Resampling.NEAREST).save(
            buffer, "PNG"
        )
        contents.append(buffer.getvalue())
    return contents


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("n", [0, 1, 8, 9])
def test_one_result_for_each_image_in_order(directory: Path, n: int) -> None:
    """Batches of 0, 1, exactly full, and with a remainder of 1: all as one by one."""
    contents = photographs(n)
    results = Captioner.load(directory, batch_size=4).caption(contents)
    single = Captioner.load(directory, batch_size=1, engine="pytorch")
    assert len(results) == n
    for content, result in zip(contents, results, strict=True):
        (alone,) = single.caption([content])
        assert isinstance(result, Caption)
        assert isinstance(alone, Caption)
        assert (result.text, result.width, result.height) == (alone.text, 90, 60)
        assert result.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
    assert n < 5 or len({result.text for result in results if isinstance(result, Caption)}) > 1


def test_bad_images_do_not_move_their_neighbours(directory: Path) -> None:
    captioner = Captioner.load(directory, batch_size=2)
    good = photographs(3)
    gone = Failure("fetch_error", "gone")
    results = captioner.caption([b"", good[0], gone, good[1], b"text", good[2]])
    assert [getattr(r, "status", "ok") for r in results] == [
        "decode_error", "ok", "fetch_error", "ok", "decode_error", "ok",
    ]  # fmt: skip
    assert [r for r in results if isinstance(r, Caption)] == captioner.caption(good)
    assert results[2] is gone


def test_alternatives_follow_the_caption(directory: Path) -> None:
    settings = DecodeConfig(beam_size=3, alternatives=2)
    for result in Captioner.load(directory, decode_config=settings).caption(photographs(2)):
        assert isinstance(result, Caption)
        assert len({result.text, *(text for text, _ in result.alternatives)}) == 3


def test_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = tiny_model().half().float()  # what half precision keeps
    save_model(tmp_path / "model", model, DecodeConfig(), {})
    again = ModelFiles.read(tmp_path / "model").build()
    pixels = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert model.encoder(pixels).equal(again.encoder(pixels))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_saving_again_replaces_whole_directory(tmp_path: Path) -> None:
    first = tiny_model_directory(tmp_path)
    before = ModelFiles.read(first).model_id
    save_model(first, tiny_model(1), DecodeConfig(), {})
    assert ModelFiles.read(first).model_id != before
    assert sorted(path.name for path in first.iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_model_id_is_of_weights_not_of_notes(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(tmp_path / "a", model, DecodeConfig(), {"note": 1})
    save_model(tmp_path / "b", model, DecodeConfig(beam_size=7), {"note": 2})
    save_model(tmp_path / "c", tiny_model(1), DecodeConfig(), {"note": 1})
    a, b, c = (ModelFiles.read(tmp_path / name).model_id for name in "abc")
    assert a == b != c
    assert len(a) == 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("remove", "no such directory"),
        ("remove weights", r"has no model\.safetensors; a model directory has config\.json, vocabulary\.json"),
        ("garble config", r"config\.json is not a model's"),
        ("unknown key", "ModelConfig has no colour"),
    ],
)
def test_bad_model_directories_are_named(tmp_path: Path, damage: str, message: str) -> None:
    directory = tiny_model_directory(tmp_path)
    config = directory / "config.json"
    if damage == "remove":
        directory = tmp_path / "nothing"
    elif damage == "remove weights":
        (directory / "model.safetensors").unlink()
    elif damage == "garble config":
        config.write_text("{")
    else:
        settings = json.loads(config.read_text())
        settings["model"]["colour"] = "red"
        config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message) as error:
        ModelFiles.read(directory)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["weights", "vocabulary"])
def test_files_that_do_not_fit_together_are_refused(directory: Path, part: str) -> None:
    files = ModelFiles.read(directory)
    broken = {"weights": files.weights[:1000], "vocabulary": b'["a", "dog"]'}
    with pytest.raises(ValueError, match=r"do not fit together: .*\Z"):
        ModelFiles(files.config, broken.get("vocabulary", b"") if part == "vocabulary" else files.vocabulary,
                   broken["weights"] if part == "weights" else files.weights).build()  # fmt: skip


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0:1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name}: allowed are auto, cpu, cuda"):
        pick_device(name)


def test_a_stream_is_taken_no_further_than_two_batches_ahead(directory: Path) -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for content in cycle(photographs(3)):
            taken += 1
            yield taken, content

    captioner = Captioner.load(directory, batch_size=4)
    stream = captioner.caption_stream(endless())
    found = list(islice(stream, 10))
    stream.close()
    assert [key for key, _ in found] == list(range(1, 11))
    assert all(isinstance(result, Caption) for _, result in found)
    assert 12 <= taken <= 12 + 2 * 4 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_encoded_images_ahead_are_bounded_in_bytes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = photographs(12)
    monkeypatch.setattr("nic_model.decoding.AHEAD_BYTES", len(contents[0]) * 3 // 2)
    taken: list[int] = []
    images = ((taken.append(number), content) for number, content in enumerate(contents))
    stream = Captioner.load(directory, batch_size=2).caption_stream(images)
    next(stream)
    assert len(taken) <= 4
    assert len(list(stream)) == 11


def test_failures_do_not_wait_for_a_full_batch(directory: Path) -> None:
    gone = Failure("fetch_error", "gone")
    stream = Captioner.load(directory, batch_size=2).caption_stream((n, gone) for n in count())
    assert list(islice(stream, 20)) == [(n, gone) for n in range(20)]


def test_an_error_of_the_source_is_raised(directory: Path) -> None:
    def broken() -> Iterator[tuple[None, bytes]]:
        yield None, photographs(1)[0]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        list(Captioner.load(directory).caption_stream(broken()))


class SmallGpu:
    """An execution with room for so many images at once, and no more."""

    def __init__(self, execution: Decoder, room: int) -> None:
        self._execution, self._room = execution, room
        self.tried: list[int] = []

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        self.tried.append(len(pixels))
        if len(pixels) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB")
        return self._execution.start(pixels)

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        return self._execution.step(tokens, state, memory)


def test_a_batch_that_does_not_fit_is_halved(directory: Path) -> None:
    contents, captioner = photographs(19), Captioner.load(directory, batch_size=8, engine="pytorch")
    expected = captioner.caption(contents)
    small = SmallGpu(captioner._execution, room=3)
    captioner._execution = small
    found = captioner.caption(contents)
    assert small.tried == [8, 4, *[2] * 9, 1]  # 8 + 8 + 3 images, then two at a time for good
    assert captioner.batch_size == 2
    assert [getattr(a, "text", None) for a in found] == [getattr(b, "text", None) for b in expected]


def test_what_is_recorded_is_halved_however_few_the_images_are(directory: Path) -> None:
    captioner = Captioner.load(directory, batch_size=8, engine="pytorch", record=True)
    captioner._execution = SmallGpu(captioner._execution, room=5)
    [found] = captioner.caption(photographs(1))
    assert isinstance(found, Caption)
    assert captioner.batch_size == 4


def test_no_room_for_one_image_is_raised(directory: Path) -> None:
    captioner = Captioner.load(directory, batch_size=4, engine="pytorch")
    captioner._execution = SmallGpu(captioner._execution, room=0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        captioner.caption(photographs(5))
