"""A model small enough for tests: random weights, a handful of words, made in a moment."""

from pathlib import Path

import torch

from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig, ModelConfig
from nic_model.vocabulary import Vocabulary

WORDS = ("a", "dog", "runs", "in", "the", "grass", "man", "'s", "hat", "red", "on", "beach")
CONFIG = ModelConfig(encoder="tinynet_e", image_size=64, embed_size=16, hidden_size=16)


def tiny_model(seed: int = 0) -> CaptionModel:
    """Different images get different captions: batch norm knows the features' mean and spread, weights are large."""
    torch.manual_seed(seed)
    model = CaptionModel(CONFIG, Vocabulary(WORDS)).eval()
    decoder = model.decoder
    with torch.no_grad():
        decoder.output.weight.mul_(60)
        decoder.word_embedding.weight.mul_(20)
        for module in model.encoder.modules():  # timm's own start lets the signal fade to 1e-6
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        colours = torch.randint(0, 256, (64, 3, 2, 2), dtype=torch.uint8)
        features = model.encoder(colours.repeat_interleave(32, 2).repeat_interleave(32, 3))
        decoder.image_embedding.weight.div_(decoder.image_embedding(features).std())
        embedded = decoder.image_embedding(features)
        decoder.image_norm.running_mean.copy_(embedded.mean(0))
        decoder.image_norm.running_var.copy_(embedded.var(0))
    return model


def tiny_model_directory(folder: Path, seed: int = 0) -> Path:
    """A model directory below `folder`."""
    directory = folder / f"tiny-{seed}"
    save_model(directory, tiny_model(seed), DecodeConfig(beam_size=2, max_length=6), {"note": "random weights"})
    return directory
