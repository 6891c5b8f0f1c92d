"""The training loop: phases of epochs, each scored on the dev images; the best model is kept, and an interrupted
training goes on from its last whole epoch."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from nic_model.batches import ImageViews, Tokens, load_views, shuffled
from nic_model.captioner import pick_device
from nic_model.checkpoint import CaptionModel, check_out, save_model
from nic_model.config import DecodeConfig, ModelConfig, TrainConfig, option_name, short_hash
from nic_model.datasets import Example
from nic_model.encoder import load_pretrained
from nic_model.features import Encode, FeatureCache, Views, random_views
from nic_model.halves import halve_pointwise
from nic_model.model_files import ModelFiles
from nic_model.phases import Phase, make_optimizer, phases, running_average
from nic_model.scores import References, score
from nic_model.search import DECODE_GREEDY, beam_search
from nic_model.self_critical import Reward, advantages, draw, self_critical_loss
from nic_model.show_tell import Captions
from nic_model.state import claim, save_atomically, write_curves
from nic_model.vocabulary import SPECIAL, Vocabulary, sentence

logger = logging.getLogger("nic_model.train")

# What the shapes of a part's weights depend on.
SHAPING = {"encoder": ("encoder", "image_size"), "decoder": ("embed_size", "hidden_size", "attention_size")}


class Training:
    """One training run: its data, its model, and where it stands."""

    def __init__(
        self,
        train: Sequence[Example],
        dev: Sequence[Example],
        out: Path,
        configs: tuple[ModelConfig, TrainConfig, DecodeConfig],
        encoder_weights: Path | None = None,
        init: Path | None = None,
    ) -> None:
        """`init` is a model directory to start from: its vocabulary, its encoder and, where it is of the same kind,
        its decoder. Raises ValueError where data, settings or pretrained weights will not do, or where `out` holds
        what is no model, or cannot be written."""
        check_out(out)
        if init is not None and init.resolve() == out.resolve():
            raise ValueError(f"--init {init}: is --out too, so that what the training began with would be lost")
        if init is not None and encoder_weights is not None:
            raise ValueError(f"--encoder-weights {encoder_weights}: --init {init} has an encoder already; give one")
        model_config, self.config, self.decode = configs
        check_data(train, dev, self.config.select_by)
        self.train, self.dev, self.out = train, dev, out
        self.state_dir = out.parent / f"{out.name}.training"
        self.device = pick_device(self.config.device)
        self.bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and self.device.type == "cuda")
        torch.manual_seed(self.config.seed)
        self.origin: str | None = None  # a hash of the weights begun with, where they are of a file of the user's
        self.model = self._model(model_config, encoder_weights, init).to(self.device)
        self.tokens = Tokens(train, self.model.vocabulary, self.config.max_tokens)
        average = running_average(self.config.average)
        self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        assert isinstance(self.average.module, CaptionModel)
        self.averaged = self.average.module.eval()
        if self.bf16 and self.device.type == "cpu":
            halve_pointwise(self.model.encoder)
        self.model.encoder.convolutions(self.config.fine_tune_stages)  # raises now what else hours of epochs precede
        self.phases = phases(self.config)
        self.cache = FeatureCache(self.state_dir, self.device, self.config.workers, self.bf16)
        self.views = Views(self.cache, train, self.averaged.encoder, self.config)
        self.history: list[dict[str, Any]] = []
        self._dev_features: torch.Tensor | None = None

    def run(self) -> None:
        """Trains from where the last interruption left it to the end."""
        self._resume()
        for phase in self.phases:
            while (done := len(self._rows_of(phase))) < phase.epochs and not self._stale(phase):
                if not done:
                    self._start(phase)
                self._epoch(phase)

    def best(self) -> dict[str, Any]:
        """The history's row of the epoch whose model is kept: the first of the best."""
        return max(self.history, key=self._rank)

    def _rank(self, row: dict[str, Any]) -> tuple[float, ...]:
        """What epochs compare by: the score that was chosen; the other one where that is the same, such as 0."""
        return row[self.config.select_by], row["bleu_4"], row["cider"]

    def _rows_of(self, phase: Phase) -> list[dict[str, Any]]:
        return [row for row in self.history if row["phase"] == phase.name]

    def _stale(self, phase: Phase) -> bool:
        """Whether the phase has gone on for `patience` epochs without a better model than before."""
        scores = [self._rank(row) for row in self._rows_of(phase)]
        patience = self.config.patience
        return bool(patience) and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def _start(self, phase: Phase) -> None:
        if phase.encoder_rate is None:
            # Else the average, which is scored and kept, would go on towards it while the decoder learns on features
            # of what the average was.
            self.model.encoder.load_state_dict(self.averaged.encoder.state_dict())
        steps = phase.epochs * len(shuffled(len(self.train), self.config.batch_size, self.config.seed, 0))
        self.optimizer, self.schedule = make_optimizer(self.model, phase, self.config, steps)
        self._dev_features = None

    def _epoch(self, phase: Phase) -> None:
        """One pass over the training images, scored and saved."""
        epoch, started = len(self.history), time.monotonic()
        loss = self._pass(phase, epoch)
        seconds = time.monotonic() - started
        scores, captions = self._score(phase)
        row = {"epoch": epoch + 1, "phase": phase.name, "loss": loss, **scores, "seconds": round(seconds, 1)}
        self.history.append(row)
        kept = self.best() is row
        logger.info(
            "epoch %d %s  %s %.3f  dev BLEU-1..4 %s  CIDEr %.1f  %.0f s, %.0f images/s%s",
            epoch + 1, phase.name, "reward" if phase.name == "self-critical" else "loss", loss,
            "/".join(f"{scores[f'bleu_{n}']:.1f}" for n in (1, 2, 3, 4)), scores["cider"], seconds,
            len(self.train) / seconds, "  best so far, kept" if kept else "",
        )  # fmt: skip
        for example, caption in zip(self.dev[:3], captions, strict=False):
            logger.info("  %s: %s", example.image_id, caption)
        notes = {"train": self.config.to_dict(), "images": len(self.train), "dev": row, "history": self.history}
        for directory in (self.state_dir / "last", *([self.out] if kept else [])):
            save_model(directory, self.averaged, self.decode, notes)
        self._save_state()
        write_curves(self.state_dir, self.history, zip((e.image_id for e in self.dev), captions, strict=True))

    def _pass(self, phase: Phase, epoch: int) -> float:
        """One pass over the training images. Returns the mean loss of a word, or the mean reward of a sample."""
        config = self.config
        batches = shuffled(len(self.train), config.batch_size, config.seed, epoch)
        inputs, encode = self._inputs(phase, epoch, batches)
        self_critical = phase.name == "self-critical"
        # Self-critical training, too, has the dropout that the configuration says: with none what draws the captions is
        # what learns from them, as the paper has it; with some it learns the training images less by heart.
        self.model.train()
        # Only now, for what is computed once drew numbers too. It makes dropout repeat after a resume.
        torch.manual_seed(hash((config.seed, epoch)) % 2**63)
        total, count = 0.0, 0
        name = f"epoch {epoch + 1} {phase.name}"
        with tqdm(total=len(self.train), desc=name, unit="image", leave=False, mininterval=1) as progress:
            for indices, batch in zip(batches, inputs, strict=True):
                batch = batch.to(self.device, non_blocking=True)
                # On a CPU the backward pass of a depthwise convolution is faster in fp32: see halve_pointwise.
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16 and batch.is_cuda):
                    features = encode(batch) if encode else batch
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    step = self._reward_step if self_critical else self._likelihood_step
                    loss, value, weight = step(indices, features)
                self._update(loss, phase)
                total, count = total + value * weight, count + weight
                progress.set_postfix({"reward" if self_critical else "loss": f"{total / count:.3f}"}, refresh=False)
                progress.update(len(indices))
        return total / count

    def _inputs(
        self, phase: Phase, epoch: int, batches: list[list[int]]
    ) -> tuple[Iterator[torch.Tensor], Encode | None]:
        """What goes into the network for each of `batches`, and what makes features of it."""
        config, encoder, seed = self.config, self.model.encoder, hash((self.config.seed, epoch)) % 2**63
        if phase.encoder_rate is None:
            tuned = bool(self._rows_of(self.phases[1]))  # by then frozen stages hold other weights
            return random_views(self.views.features("tuned" if tuned else "features", epoch), seed, batches), None
        if config.fine_tune_stages:
            upper = partial(encoder.upper, upper_stages=config.fine_tune_stages)
            return random_views(self.views.hidden(epoch), seed, batches), upper
        return load_views(self.views.images(epoch + 1), batches, config.workers), encoder

    def _likelihood_step(self, indices: list[int], features: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        """Loss of the images' captions; its value, and of how many words it is the mean."""
        config, captions = self.config, self.tokens.batch(indices).to(self.device)
        if config.scheduled_sampling:
            captions = self._misheard(features, captions)
        penalty = {"attention_penalty": config.attention_penalty} if self.model.encoder.grid else {}
        loss = self.model.decoder.loss(features, captions, label_smoothing=config.label_smoothing, **penalty)
        return loss, loss.item(), int(captions.lengths.sum()) - len(captions.lengths)

    def _reward_step(self, indices: list[int], features: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        """Self-critical loss of captions drawn for the images; their mean reward, and their number."""
        config, decoder = self.config, self.model.decoder
        captions, rewards = draw(decoder, features, config.samples, config.max_tokens, self._reward, indices)
        greedy = None
        if config.baseline == "greedy":
            decoder.eval()  # the caption that it would give, and batch norm learns nothing from it
            found = beam_search(decoder, features, DECODE_GREEDY.replace(max_length=config.max_tokens))
            decoder.train()
            greedy = torch.tensor([self._reward(i, best.tokens) for i, (best,) in zip(indices, found, strict=True)])
        loss = self_critical_loss(decoder, features, captions, advantages(rewards, greedy).flatten())
        if config.likelihood_weight:
            loss = loss + config.likelihood_weight * self._likelihood_step(indices, features)[0]
        return loss, rewards.mean().item(), rewards.numel()

    @cached_property
    def _reward(self) -> Reward:
        config, captions = self.config, [example.captions for example in self.train]
        return Reward(captions, self.model.vocabulary, config.bleu_weight, config.fluency_weight)

    def _misheard(self, features: torch.Tensor, captions: Captions) -> Captions:
        """Scheduled sampling in two passes (Mihaylova and Martins, arXiv 1906.07651): some of the words that the
        decoder reads become what it would have said there itself."""
        with torch.no_grad():
            said = torch.multinomial(self.model.decoder(features, captions).float().softmax(1), 1).squeeze(1)
        return captions.with_inputs(said, self.config.scheduled_sampling)

    def _update(self, loss: torch.Tensor, phase: Phase) -> None:
        """Raises ValueError where the loss or its gradients are no longer finite."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_norm)
        if not (loss + norm).isfinite():
            at = f"(loss {loss.item():.3g}) at a learning rate of {phase.decoder_rate}"
            raise ValueError(f"{phase.name} training diverges {at}: lower {phase.options}")
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)

    def _score(self, phase: Phase) -> tuple[dict[str, float], list[str]]:
        """The averaged model's scores (0 to 100) on the dev images, and its captions of them."""
        if self._dev_features is None or phase.encoder_rate is not None:
            views = ImageViews(self.dev, self.model.config.image_size)
            self._dev_features = self.cache.encode(views, self.averaged.encoder)
        captions = []
        for features in self._dev_features.split(100):
            found = beam_search(self.averaged.decoder, features.float().to(self.device), self.decode)
            captions += [sentence(self.model.vocabulary.decode(best.tokens)) for best, *_ in found]
        return score(captions, self._dev_references), captions

    @cached_property
    def _dev_references(self) -> References:
        return References([example.captions for example in self.dev])

    def _model(self, config: ModelConfig, encoder_weights: Path | None, init: Path | None) -> CaptionModel:
        if init is None:
            captions = (caption for example in self.train for caption in example.captions)
            vocabulary = Vocabulary.build(captions, self.config.min_count)
            if len(vocabulary) == len(SPECIAL):
                raise ValueError(
                    f"--min-count {self.config.min_count}: no word of the training captions is seen so often; lower it"
                )
            model = CaptionModel(config, vocabulary)
            load_pretrained(model.encoder, encoder_weights)
            model.config = model.encoder.config
            self.origin = short_hash(encoder_weights.read_bytes()) if encoder_weights else None
            return model
        files = ModelFiles.read(init, "--init")
        self.origin, source = files.model_id, files.build()
        model = CaptionModel(config.replace(mean=source.config.mean, std=source.config.std), source.vocabulary)
        same = config.decoder == source.config.decoder
        if not same:
            logger.info("--init %s has a decoder %s: a new %s is trained", init, source.config.decoder, config.decoder)
        for part in ("encoder", "decoder") if same else ("encoder",):
            try:
                getattr(model, part).load_state_dict(getattr(source, part).state_dict())
            except RuntimeError:  # whose text names every tensor
                ours, theirs = config.to_dict(), source.config.to_dict()
                other = [f"{option_name(name)} {theirs[name]}" for name in SHAPING[part] if theirs[name] != ours[name]]
                raise ValueError(f"--init {init}: its {part} does not fit; it has {', '.join(other)}") from None
        return model

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a training to be resumed."""
        data = hashlib.sha256()
        for example in (*self.train, *self.dev):
            data.update(repr((example.image_id, example.captions)).encode())
        where = {"device", "precision", "workers"}  # may change between two sittings
        train = {key: value for key, value in self.config.to_dict().items() if key not in where}
        model = self.model.config.to_dict()
        return {"model": model, "train": train, "data": data.hexdigest(), "origin": self.origin}

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }
        save_atomically(state, self.state_dir / "state.pt")

    def _resume(self) -> None:
        """Raises ValueError where the interrupted training had other settings or data, or its model is gone."""
        claim(self.state_dir, self._settings())
        file = self.state_dir / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.history = state["history"]
        if not self.out.exists():
            raise ValueError(
                f"--out {self.out}: is gone, but {self.state_dir} has a training that wrote it: put it back, or remove"
                f" {self.state_dir} to train anew"
            )
        (phase,) = (phase for phase in self.phases if phase.name == self.history[-1]["phase"])
        self._start(phase)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        logger.info("resuming after epoch %d", len(self.history))


def check_data(train: Sequence[Example], dev: Sequence[Example], select_by: str) -> None:
    """Raises ValueError where there are too few images, or dev images are trained on."""
    if len(train) < 2 or not dev:
        raise ValueError(f"training needs at least 2 images and 1 for dev; there are {len(train)} and {len(dev)}")
    if select_by == "cider" and len(dev) < 2:  # words that all images' references have weigh nothing
        raise ValueError("--select-by cider: is 0 whatever the captions of 1 dev image; needs 2, or --select-by bleu_4")
    trained = {example.image_id: example.image for example in train}
    shared = [example.image_id for example in dev if trained.get(example.image_id) == example.image]
    if shared:
        raise ValueError(
            f"{len(shared)} of the dev images are trained on, such as {shared[0]}: their scores would say nothing;"
            " choose others, as by --train-split and --dev-split"
        )
