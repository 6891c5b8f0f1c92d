"""Trains a captioning model and writes its model directory.

    python -m nic_model.train --train 'flickr8k/train-*.parquet' --dev 'flickr8k/dev-*.parquet' --out DIR

First the decoder learns on features of the frozen encoder, which are computed once; then both learn together. After
each epoch the dev images are captioned and the model is kept if its BLEU-4 is the best so far. DIR.training holds
what an interrupted training needs: the same command goes on from the last whole epoch and ends in the same model.
"""

import argparse
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nic_model.batches import ImageViews, Tokens, load_views, shuffled
from nic_model.captioner import pick_device
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import (
    Config,
    DecodeConfig,
    ModelConfig,
    TrainConfig,
    add_options,
    given_options,
    read_json,
)
from nic_model.datasets import Example, read_dataset
from nic_model.encoder import load_pretrained
from nic_model.metrics.bleu import corpus_bleu
from nic_model.metrics.tokenizer import tokenize
from nic_model.search import beam_search
from nic_model.vocabulary import Vocabulary, sentence

logger = logging.getLogger("nic_model.train")

Encode = Callable[[torch.Tensor], torch.Tensor]


class Training:
    """One training run: its data, its model, and where it stands."""

    def __init__(
        self,
        train: Sequence[Example],
        dev: Sequence[Example],
        out: Path,
        configs: tuple[ModelConfig, TrainConfig, DecodeConfig],
        encoder_weights: Path | None = None,
    ) -> None:
        """Raises ValueError where data, settings or pretrained weights will not do."""
        if len(train) < 2 or not dev:
            raise ValueError(f"training needs at least 2 images and 1 for dev; there are {len(train)} and {len(dev)}")
        model_config, self.config, self.decode = configs
        self.train, self.dev, self.out = train, dev, out
        self.state_dir = out.parent / f"{out.name}.training"
        self.device = pick_device(self.config.device)
        self.bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and self.device.type == "cuda")
        torch.manual_seed(self.config.seed)
        vocabulary = Vocabulary.build((c for e in train for c in e.captions), self.config.min_count)
        self.tokens = Tokens(train, vocabulary, self.config.max_tokens)
        self.model = CaptionModel(model_config, vocabulary)
        load_pretrained(self.model.encoder, encoder_weights)
        self.model.config = self.model.encoder.config
        self.model.to(self.device)
        ema = get_ema_multi_avg_fn(self.config.average)
        self.average = AveragedModel(self.model, multi_avg_fn=ema, use_buffers=True)
        assert isinstance(self.average.module, CaptionModel)
        self.averaged = self.average.module
        self.history: list[dict[str, float]] = []
        self._cache: dict[str, torch.Tensor] = {}

    def run(self) -> None:
        """Trains from where the last interruption left it to the end."""
        self._resume()
        config = self.config
        for epoch in range(len(self.history), config.frozen_epochs + config.fine_tune_epochs):
            if epoch in (0, config.frozen_epochs):  # a phase starts
                self.optimizer, self.schedule = self._optimizer(fine_tune=epoch >= config.frozen_epochs)
            started = time.monotonic()
            loss = self._epoch(epoch)
            scores = self._score()
            self.history.append({"epoch": epoch + 1, "loss": loss, **scores})
            best = max(self.history, key=lambda row: row["bleu_4"])
            figures = "/".join(f"{scores[f'bleu_{n}']:.1f}" for n in (1, 2, 3, 4))
            kept = best is self.history[-1]
            logger.info(
                "epoch %d  loss %.3f  dev BLEU-1..4 %s  %.0f s%s",
                epoch + 1, loss, figures, time.monotonic() - started, "  best so far, kept" if kept else "",
            )  # fmt: skip
            if kept:
                notes = {"train": config.to_dict(), "images": len(self.train), "dev": best, "history": self.history}
                save_model(self.out, self.averaged, self.decode, notes)
            self._save_state()

    def _epoch(self, epoch: int) -> float:
        """One pass over the training images, all captions of each. Returns the mean loss of a word."""
        config, fine_tune = self.config, epoch >= self.config.frozen_epochs
        batches = shuffled(len(self.train), config.batch_size, config.seed, epoch)
        encoder = self.model.encoder
        encode: Encode | None = None
        if not fine_tune:
            inputs = self._cached(self._pooled(), epoch, batches)
        elif config.fine_tune_stages:
            inputs = self._cached(self._hidden(), epoch, batches)
            encode = partial(encoder.upper, upper_stages=config.fine_tune_stages)
        else:
            views = ImageViews(self.train, self.model.config.image_size, config.seed, view=epoch + 1)
            inputs, encode = load_views(views, batches, config.workers), encoder
        self.model.train()
        # Only now, for what is computed once drew numbers too. It makes dropout repeat after a resume.
        torch.manual_seed(hash((config.seed, epoch)) % 2**63)
        total, count = 0.0, 0
        name = f"epoch {epoch + 1} {'fine-tuning' if fine_tune else 'frozen encoder'}"
        with tqdm(total=len(self.train), desc=name, unit="image", leave=False, mininterval=1) as progress:
            for indices, batch in zip(batches, inputs, strict=True):
                loss, n_words = self._step(indices, batch.to(self.device, non_blocking=True), encode)
                total, count = total + loss * n_words, count + n_words
                progress.set_postfix(loss=f"{total / count:.3f}", refresh=False)
                progress.update(len(indices))
        return total / count

    def _step(self, indices: list[int], inputs: torch.Tensor, encode: Encode | None) -> tuple[float, int]:
        """One update from `inputs`: features (B, D), or what `encode` makes them of. Returns loss and words."""
        tokens, lengths, captions_of = self.tokens.batch(indices)
        decoder = self.model.decoder
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features = encode(inputs) if encode else inputs
            # The five captions of an image share one encoding.
            features = features.repeat_interleave(captions_of.to(self.device), dim=0)
            logits = decoder(features, tokens.to(self.device), lengths)
            targets = decoder.targets(tokens, lengths).to(self.device)
            loss = functional.cross_entropy(logits.float(), targets, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        return loss.item(), len(targets)

    def _cached(self, views: torch.Tensor, epoch: int, batches: list[list[int]]) -> Iterator[torch.Tensor]:
        """Of `views` (N, V, ...) a random one of each image."""
        pick = torch.Generator().manual_seed(hash((self.config.seed, epoch)) % 2**63)
        for indices in batches:
            view = torch.randint(views.shape[1], (len(indices),), generator=pick)
            batch = views[torch.tensor(indices), view].float()
            yield batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch

    def _hidden(self) -> torch.Tensor:
        """What goes into the stages that fine-tuning trains, float16 (N, views, C, h, w)."""
        stages = self.config.fine_tune_stages
        lower = partial(self.averaged.encoder.lower, upper_stages=stages)
        return self._computed_once(f"stages_{stages}", lambda view: self._encode(self._views(view), lower))

    def _pooled(self) -> torch.Tensor:
        """What comes out of the frozen encoder, float16 (N, views, D)."""
        stages = self.config.fine_tune_stages
        if not stages:
            return self._computed_once("features", lambda view: self._encode(self._views(view), self.averaged.encoder))
        hidden, encoder = self._hidden(), self.averaged.encoder
        return self._computed_once(
            "features", lambda view: self._encode(hidden[:, view], lambda batch: encoder.upper(batch.float(), stages))
        )

    def _views(self, view: int) -> ImageViews:
        return ImageViews(self.train, self.model.config.image_size, self.config.seed, view)

    def _computed_once(self, name: str, compute: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """`compute` of each view, in memory and, for a resumed training, on disk."""
        if name not in self._cache:
            file = self.state_dir / f"{name}.pt"
            if not file.exists():
                _save_atomically(torch.stack([compute(view) for view in range(self.config.views)], dim=1), file)
            self._cache[name] = torch.load(file, weights_only=True, mmap=True)
        return self._cache[name]

    def _encode(self, inputs: Dataset[torch.Tensor] | torch.Tensor, encode: Encode) -> torch.Tensor:
        """`encode` of all `inputs` in order, float16 on the CPU."""
        n = len(inputs)  # type: ignore[arg-type]
        batches, parts = [list(range(at, min(at + 64, n))) for at in range(0, n, 64)], []
        self.averaged.eval()
        with (
            torch.inference_mode(),
            tqdm(total=n, desc="encoding", unit="image", leave=False, mininterval=1) as progress,
        ):
            for batch in load_views(inputs, batches, self.config.workers):
                with torch.autocast(self.device.type, dtype=torch.bfloat16):  # as exact as what is kept, and faster
                    parts.append(encode(batch.to(self.device)).half().cpu())
                progress.update(len(batch))
        return torch.cat(parts).clone()

    def _score(self) -> dict[str, float]:
        """BLEU-1 to 4 (0 to 100) of the averaged model on the dev images."""
        fine_tuning = len(self.history) >= self.config.frozen_epochs
        if fine_tuning or "dev" not in self._cache:
            views = ImageViews(self.dev, self.model.config.image_size)
            self._cache["dev"] = self._encode(views, self.averaged.encoder)
        decoder = self.averaged.decoder.eval()
        captions = []
        for features in self._cache["dev"].float().split(250):
            found = beam_search(decoder, features.to(self.device), self.decode)
            captions += [sentence(self.model.vocabulary.decode(best.tokens)) for best, *_ in found]
        references = [[tokenize(c) for c in example.captions] for example in self.dev]
        for example, caption in zip(self.dev[:3], captions, strict=False):
            logger.info("  %s: %s", example.image_id, caption)
        scores = corpus_bleu([tokenize(c) for c in captions], references)
        return {f"bleu_{n}": score for n, score in enumerate(scores, start=1)}

    def _optimizer(self, fine_tune: bool) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW over what the phase trains; the rate rises over a tenth of the phase and falls to 0 by a cosine."""
        config, model = self.config, self.model
        model.encoder.requires_grad_(False)
        rate = config.fine_tune_learning_rate if fine_tune else config.learning_rate
        groups: list[dict[str, Any]] = [{"params": list(model.decoder.parameters()), "lr": rate}]
        epochs = config.frozen_epochs
        if fine_tune:
            epochs = config.fine_tune_epochs
            trained = [p.requires_grad_(True) for p in model.encoder.convolutions(config.fine_tune_stages)]
            groups.append({"params": trained, "lr": config.encoder_learning_rate})
        steps = epochs * len(shuffled(len(self.train), config.batch_size, config.seed, 0))
        rise = max(1, steps // 10)

        def share(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a training to be resumed."""
        data = hashlib.sha256()
        for example in (*self.train, *self.dev):
            data.update(repr((example.image_id, example.captions)).encode())
        where = {"device", "precision", "workers"}  # may change between two sittings
        train = {key: value for key, value in self.config.to_dict().items() if key not in where}
        return {"model": self.model.config.to_dict(), "train": train, "data": data.hexdigest()}

    def _save_state(self) -> None:
        state = {
            "settings": json.dumps(self._settings(), sort_keys=True),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }
        _save_atomically(state, self.state_dir / "state.pt")

    def _resume(self) -> None:
        """Raises ValueError where the interrupted training had other settings or data."""
        file = self.state_dir / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["settings"] != json.dumps(self._settings(), sort_keys=True):
            raise ValueError(
                f"{self.state_dir} holds a training with other settings or data: remove it, or choose another --out"
            )
        self.history = state["history"]
        self.optimizer, self.schedule = self._optimizer(len(self.history) > self.config.frozen_epochs)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        logger.info("resuming after epoch %d", len(self.history))


def _save_atomically(value: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(value, part)
    part.replace(file)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nic_model.train", description=(__doc__ or "").split("\n")[0])
    kinds = "Parquet (image_id, content, captions), a Karpathy or COCO JSON, or a Flickr token file"
    parser.add_argument("--train", nargs="+", required=True, metavar="DATA", help=kinds)
    parser.add_argument("--dev", nargs="+", required=True, metavar="DATA", help="likewise, to choose the best epoch by")
    parser.add_argument("--images-dir", type=Path, help="folder of the image files that JSON and token files name")
    parser.add_argument("--train-split", help="list of image names, or the split's name in a Karpathy JSON")
    parser.add_argument("--dev-split", help="likewise for --dev")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--config", type=Path, help="JSON with settings under model, train and decode; options win")
    parser.add_argument("--encoder-weights", type=Path, help="pretrained weights of the encoder, .safetensors or .pth")
    add_options(parser, ModelConfig, TrainConfig, DecodeConfig)
    return parser.parse_args(arguments)


def read_configs(options: argparse.Namespace) -> tuple[ModelConfig, TrainConfig, DecodeConfig]:
    """Defaults, overridden by --config, overridden by options. Raises ValueError."""
    file = read_json(options.config) if options.config else {}
    unknown = sorted(set(file) - {"model", "train", "decode"})
    if unknown:
        raise ValueError(f"{options.config}: {', '.join(unknown)}: allowed are model, train and decode")

    def read(section: str, config: type[Config]) -> Any:
        return config.from_dict({**file.get(section, {}), **given_options(options, config)})

    return read("model", ModelConfig), read("train", TrainConfig), read("decode", DecodeConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        configs = read_configs(options)
        train = read_dataset(options.train, split=options.train_split, images=options.images_dir)
        dev = read_dataset(options.dev, split=options.dev_split, images=options.images_dir)
        training = Training(train, dev, options.out, configs, options.encoder_weights)
        logger.info(
            "%d training and %d dev images, %d words, %.1f million parameters, on %s",
            len(train), len(dev), len(training.model.vocabulary),
            sum(p.numel() for p in training.model.parameters()) / 1e6, training.device,
        )  # fmt: skip
        with logging_redirect_tqdm():
            training.run()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    best = max(training.history, key=lambda row: row["bleu_4"])
    logger.info("the model of epoch %d is in %s", best["epoch"], options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
