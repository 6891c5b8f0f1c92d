"""The phases of a training, and what is trained in each, how fast."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nic_model.checkpoint import CaptionModel
from nic_model.config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """Epochs of one kind, with the highest learning rates of the decoder and of the encoder, None: it is frozen; and
    the `options` that set these."""

    name: str
    epochs: int
    options: str
    decoder_rate: float
    encoder_rate: float | None = None


def phases(config: TrainConfig) -> list[Phase]:
    c = config
    return [
        Phase("frozen", c.frozen_epochs, "--learning-rate", c.learning_rate),
        Phase(
            "fine-tuning",
            c.fine_tune_epochs,
            "--fine-tune-learning-rate or --encoder-learning-rate",
            c.fine_tune_learning_rate,
            c.encoder_learning_rate,
        ),
        Phase(
            "self-critical",
            c.self_critical_epochs,
            "--self-critical-learning-rate or --self-critical-encoder-learning-rate",
            c.self_critical_learning_rate,
            c.self_critical_encoder_learning_rate or None,
        ),
    ]


def make_optimizer(
    model: CaptionModel, phase: Phase, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over what the phase trains in its `steps`, and that alone then has gradients; the rate rises over a tenth
    of them and falls to 0 by a cosine."""
    model.zero_grad(set_to_none=True)  # or those of the phase before would count in the gradients' norm
    model.encoder.requires_grad_(False)
    groups: list[dict[str, Any]] = [{"params": list(model.decoder.parameters()), "lr": phase.decoder_rate}]
    if phase.encoder_rate is not None:
        trained = [p.requires_grad_(True) for p in model.encoder.convolutions(config.fine_tune_stages)]
        groups.append({"params": trained, "lr": phase.encoder_rate})
    rise = max(1, steps // 10)

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def running_average(decay: float) -> Callable[[Any, Any, torch.Tensor | int], None]:
    """A `multi_avg_fn` for AveragedModel. The first weights, which know nothing, would outlive a short training at
    `decay`: they are forgotten faster, until there have been many steps."""

    def average(averaged: Any, weights: Any, steps: torch.Tensor | int) -> None:
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, weights, n)

    return average
