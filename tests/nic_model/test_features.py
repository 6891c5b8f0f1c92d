"""Features of frozen stages, computed once: as they come, whole or not at all."""

from pathlib import Path

import pytest
import torch

from nic_model.features import FeatureCache, Inputs

IMAGES = torch.arange(130).float().view(130, 1)  # two whole batches and a last one of two
WIDTH = 10_000


def widened(batch: torch.Tensor) -> torch.Tensor:
    """A number each, as features that fill the buffer of a file."""
    return batch.repeat(1, WIDTH)


def test_features_are_kept_and_found_again(tmp_path: Path) -> None:
    made: list[int] = []

    def source(view: int) -> tuple[Inputs, object]:
        made.append(view)
        return IMAGES + view, widened

    for _ in range(2):
        cache = FeatureCache(tmp_path / "state", torch.device("cpu"), workers=0, bf16=False)
        views = cache.views("features", 2, source)  # type: ignore[arg-type]
        for view, features in enumerate(views):
            assert (features.dtype, features.shape) == (torch.float16, (130, WIDTH))
            assert features.equal(cache.encode(IMAGES + view, widened))
            assert not features.is_inference()
    assert made == [0, 1]


def test_features_are_written_as_they_come(tmp_path: Path) -> None:
    sizes = []

    def noted(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(sum(file.stat().st_size for file in tmp_path.glob("*")))
        return widened(batch)

    FeatureCache(tmp_path, torch.device("cpu"), workers=0, bf16=False).views("features", 1, lambda _: (IMAGES, noted))
    batch = 64 * WIDTH * 2
    assert [size // batch for size in sizes] == [0, 1, 2]


def test_interrupted_features_are_computed_again(tmp_path: Path) -> None:
    def interrupted(batch: torch.Tensor) -> torch.Tensor:
        if batch[0]:
            raise KeyboardInterrupt
        return widened(batch)

    cache = FeatureCache(tmp_path, torch.device("cpu"), workers=0, bf16=False)
    with pytest.raises(KeyboardInterrupt):
        cache.views("features", 1, lambda _: (IMAGES, interrupted))
    (features,) = cache.views("features", 1, lambda _: (IMAGES, widened))
    assert features.equal(widened(IMAGES).half())
