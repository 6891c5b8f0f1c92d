"""Weights that processes share: the same model, from one file that none of them copies."""

import re
from pathlib import Path

import pytest
import torch

from nic_model import mapping
from nic_model.captioner import Caption, Captioner
from nic_model.mapping import MappedModel
from nic_model.model_files import FILES, ModelFiles
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles.read(tiny_model_directory(tmp_path_factory.mktemp("model")))


def never() -> ModelFiles:
    raise AssertionError("the file is there: nothing else is to be read")


def mapped_at(directory: Path) -> list[range]:
    """The addresses at which this process has mapped the weights below `directory`."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]
    return [range(*(int(end, 16) for end in fields[0].split("-"))) for fields in lines]


def anonymous_kib(directory: Path) -> int:
    """How much of what is mapped there has become this process's own, by being written to."""
    entries = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(
        int(re.search(r"^Anonymous: +(\d+) kB", entry, re.MULTILINE)[1])  # type: ignore[index]
        for entry in entries
        if str(directory) in entry
    )


@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_weights_stay_in_the_file(files: ModelFiles, engine: str, tmp_path: Path) -> None:
    MappedModel(tmp_path, files.model_id, lambda: files)
    mapped = MappedModel(tmp_path, files.model_id, never)
    captioner = Captioner(mapped, device="cpu", engine=engine)
    found = captioner.caption(photographs(5))
    expected = Captioner(files, device="cpu", engine=engine).caption(photographs(5))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Caption)
        assert isinstance(other, Caption)
        assert one.text == other.text
        # Sums are made in an order that depends on where in memory the weights are.
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-5)

    places = mapped_at(tmp_path)
    weights = [*captioner._model.parameters(), *captioner._model.buffers()]
    kept = [tensor for tensor in weights if tensor.is_floating_point()]
    assert len(kept) > 100
    assert all(any(tensor.data_ptr() in place for place in places) for tensor in kept)
    assert anonymous_kib(tmp_path) == 0


def test_convolutions_are_laid_out_as_they_are_used(files: ModelFiles, tmp_path: Path) -> None:
    mapped, plain = MappedModel(tmp_path, files.model_id, lambda: files).build(), files.build()
    assert mapped.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        other = mapped.state_dict()[name]
        assert other.equal(tensor), name
        if tensor.dim() == 4:
            assert other.is_contiguous(memory_format=torch.channels_last), name


def test_only_whole_models_are_kept(files: ModelFiles, tmp_path: Path) -> None:
    broken = ModelFiles(files.config, files.vocabulary, files.weights[:1000])
    with pytest.raises(ValueError, match="do not fit together"):
        MappedModel(tmp_path, files.model_id, lambda: broken)
    MappedModel(tmp_path, files.model_id, lambda: files)
    (kept,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert sorted(path.name for path in kept.iterdir()) == sorted(FILES)


def test_a_full_disk_leaves_nothing_behind(files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapping, "save_file", no_room)
    with pytest.raises(OSError, match="No space left"):
        MappedModel(tmp_path, files.model_id, lambda: files)
    assert [path.name for path in tmp_path.iterdir()] == [f".model-{files.model_id}.lock"]
