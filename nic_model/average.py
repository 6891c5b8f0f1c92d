"""Averages the weights of trainings that started from the same model (Wortsman et al., arXiv 2203.05482).

    python -m nic_model.average FIRST SECOND ... --shares 0.4 0.6 ... --out DIR

One model comes out, as large and as fast as each of them, and often better than all. It decodes as the first does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nic_model.checkpoint import CaptionModel, check_out, save_model
from nic_model.model_files import ModelFiles


def average(models: Sequence[CaptionModel], shares: Sequence[float]) -> CaptionModel:
    """The first model, its weights now the sum of `shares` (which sum to 1) times those of each.

    Raises ValueError where models differ in configuration or words.
    """
    first, *others = models
    alike = {"dropout": 0.0, "annotation_dropout": 0.0}  # these shape no weights
    for other in others:
        if first.config.replace(**alike) != other.config.replace(**alike):
            raise ValueError("the models have different configurations")
        if first.vocabulary.words != other.vocabulary.words:
            raise ValueError("the models have different vocabularies")
    with torch.no_grad():
        for ours, *theirs in zip(*(model.state_dict().values() for model in models), strict=True):
            if ours.is_floating_point():
                ours.mul_(shares[0])
                for share, weights in zip(shares[1:], theirs, strict=True):
                    ours.add_(weights, alpha=share)
    return first


def read_shares(given: Sequence[float] | None, n: int) -> list[float]:
    """The share of each of `n` models, which sum to 1; equal ones where none are `given`. Raises ValueError."""
    shares = [1.0] * n if given is None else list(given)
    if len(shares) != n:
        raise ValueError(f"--shares: {len(shares)} of them for {n} models; give one for each")
    if not all(share >= 0 for share in shares) or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"--shares {' '.join(map(str, shares))}: must be at least 0, and not all 0")
    return [share / sum(shares) for share in shares]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nic_model.average", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model directories")
    parser.add_argument("--shares", nargs="+", type=float, help="how much of each, relative to the others (default 1)")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    options = parser.parse_args(arguments)
    try:
        check_out(options.out)
        shares = read_shares(options.shares, len(options.models))
        files = [ModelFiles.read(directory, "MODEL") for directory in options.models]
        model = average([each.build() for each in files], shares)
        notes = {"average": [each.model_id for each in files], "shares": shares}
        save_model(options.out, model, files[0].settings()[1], notes)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
