"""Trains a captioning model and writes its model directory.

    python -m nic_model.train --train 'flickr8k/train-*.parquet' --dev 'flickr8k/dev-*.parquet' --out DIR

First the decoder learns on features of the frozen encoder, which are computed once; then both learn together; then,
where the recipe says so, the decoder learns from the scores of its own captions. After each epoch the dev images are
captioned and the model is kept if it is the best so far. DIR.training holds what an interrupted training needs (the
same command goes on from the last whole epoch and ends in the same model), history.csv, a row an epoch, and `last`, the
model of the last epoch, which may be averaged with others (`nic_model.average`).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from nic_model.batches import decodable
from nic_model.config import Config, DecodeConfig, ModelConfig, TrainConfig, add_options, given_options, read_json
from nic_model.datasets import read_dataset
from nic_model.model_files import ModelFiles
from nic_model.scores import METRICS
from nic_model.training import Training

logger = logging.getLogger("nic_model.train")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nic_model.train", description=(__doc__ or "").split("\n")[0])
    kinds = "Parquet (image_id, content, captions), a Karpathy or COCO JSON, or a Flickr token file"
    parser.add_argument("--train", nargs="+", required=True, metavar="DATA", help=kinds)
    parser.add_argument("--dev", nargs="+", required=True, metavar="DATA", help="likewise, to choose the best epoch by")
    parser.add_argument("--images-dir", type=Path, help="folder of the image files that JSON and token files name")
    parser.add_argument("--dev-images-dir", type=Path, help="likewise for --dev (default: --images-dir)")
    parser.add_argument("--train-split", help="list of image names, or the split's name in a Karpathy JSON")
    parser.add_argument("--dev-split", help="likewise for --dev")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--config", type=Path, help="JSON with settings under model, train and decode, as in"
                        " nic_model/recipes; options win")  # fmt: skip
    parser.add_argument("--init", type=Path, help="start from this model directory: its words, its settings under"
                        " model, its encoder and, where it is of the same kind, its decoder")  # fmt: skip
    parser.add_argument("--encoder-weights", type=Path, help="pretrained weights of the encoder, .safetensors or .pth")
    add_options(parser, ModelConfig, TrainConfig, DecodeConfig)
    return parser.parse_args(arguments)


def read_configs(options: argparse.Namespace) -> tuple[ModelConfig, TrainConfig, DecodeConfig]:
    """Defaults, or of the model those of --init, overridden by --config, overridden by options. Raises ValueError."""
    file = read_json(options.config) if options.config else {}
    if not isinstance(file, dict):
        raise ValueError(
            f"{options.config}: must be an object with model, train and decode, not a {type(file).__name__}"
        )
    unknown = sorted(set(file) - {"model", "train", "decode"})
    if unknown:
        raise ValueError(f"{options.config}: {', '.join(unknown)}: allowed are model, train and decode")

    def read(section: str, config: type[Config], begun: dict[str, Any]) -> Any:
        settings = file.get(section, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{options.config}: {section} must be an object, not a {type(settings).__name__}")
        return config.from_dict({**begun, **settings, **given_options(options, config)})

    begun = ModelFiles.read(options.init, "--init").settings()[0].to_dict() if options.init else {}
    if options.init and options.min_count is not None:
        logger.warning("--min-count %d: is not used; the words are those of --init", options.min_count)
    return read("model", ModelConfig, begun), read("train", TrainConfig, {}), read("decode", DecodeConfig, {})


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        configs = read_configs(options)
        train = read_dataset(options.train, split=options.train_split, images=options.images_dir)
        dev = read_dataset(options.dev, split=options.dev_split, images=options.dev_images_dir or options.images_dir)
        size = configs[0].image_size
        train, dev = decodable(" ".join(options.train), train, size), decodable(" ".join(options.dev), dev, size)
        training = Training(train, dev, options.out, configs, options.encoder_weights, options.init)
        logger.info(
            "%d training and %d dev images, %d words, %.1f million parameters, on %s",
            len(train), len(dev), len(training.model.vocabulary),
            sum(p.numel() for p in training.model.parameters()) / 1e6, training.device,
        )  # fmt: skip
        with logging_redirect_tqdm():
            training.run()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on\n")
        return 130
    show(training)
    return 0


def show(training: Training) -> None:
    """A table of the epochs, the one whose model is kept marked."""
    best = training.best()
    logger.info("%5s %-13s %7s %s", "epoch", "phase", "loss", " ".join(f"{metric:>7}" for metric in METRICS))
    for row in training.history:
        scores = " ".join(f"{row[metric]:7.1f}" for metric in METRICS)
        mark = "  kept" if row is best else ""
        logger.info("%5d %-13s %7.3f %s%s", row["epoch"], row["phase"], row["loss"], scores, mark)
    logger.info("the model of epoch %d is in %s", best["epoch"], training.out)


if __name__ == "__main__":
    sys.exit(main())
