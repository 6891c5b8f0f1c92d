"""The phases of a training, and what is trained in each, how fast."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from nic_model.checkpoint import CaptionModel
from nic_model.config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """Epochs of one kind, with the highest learning rates of the decoder and of the encoder; None: it is frozen."""

    name: str
    epochs: int
    decoder_rate: float
    encoder_rate: float | None = None


def phases(config: TrainConfig) -> list[Phase]:
    c = config
    return [
        Phase("frozen", c.frozen_epochs, c.learning_rate),
        Phase("fine-tuning", c.fine_tune_epochs, c.fine_tune_learning_rate, c.encoder_learning_rate),
        Phase(
            "self-critical",
            c.self_critical_epochs,
            c.self_critical_learning_rate,
            c.self_critical_encoder_learning_rate or None,
        ),
    ]


def make_optimizer(
    model: CaptionModel, phase: Phase, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over what the phase trains in its `steps`, and that alone then has gradients; the rate rises over a tenth
    of them and falls to 0 by a cosine."""
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
