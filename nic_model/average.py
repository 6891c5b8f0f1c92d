"""Averages the weights of two trainings that started from the same model (Wortsman et al., arXiv 2203.05482).

    python -m nic_model.average FIRST SECOND --share 0.6 --out DIR

One model comes out, as large and as fast as each of them, and often better than both.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nic_model.checkpoint import CaptionModel, ModelFiles, save_model


def average(first: CaptionModel, second: CaptionModel, share: float) -> CaptionModel:
    """`first`, its weights now (1 - share) times its own plus `share` times those of `second`, 0 to 1.

    Raises ValueError where the two differ in configuration or words.
    """
    alike = {"dropout": 0.0, "annotation_dropout": 0.0}  # these shape no weights
    if first.config.replace(**alike) != second.config.replace(**alike):
        raise ValueError("the two models have different configurations")
    if first.vocabulary.words != second.vocabulary.words:
        raise ValueError("the two models have different vocabularies")
    with torch.no_grad():
        for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, share)
    return first


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nic_model.average", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs=2, type=Path, metavar="MODEL", help="model directories")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1 (default 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    options = parser.parse_args(arguments)
    try:
        if not 0 <= options.share <= 1:
            raise ValueError(f"--share {options.share}: must be from 0 to 1")
        first, second = (ModelFiles.read(directory, "MODEL") for directory in options.models)
        model = average(first.build(), second.build(), options.share)
        notes = {"average": [first.model_id, second.model_id], "share": options.share}
        save_model(options.out, model, first.settings()[1], notes)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
