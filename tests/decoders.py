"""Small random decoders of each kind, and features for them."""

import torch

from nic_model.config import ModelConfig
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions, ShowTell
from nic_model.vocabulary import EOS, PAD, SOS

KINDS = ("show_tell", "soft", "hard")
FEATURE_SIZE, CELLS = 6, 5

Decoder = ShowTell | ShowAttendTell


def decoder_of(kind: str, seed: int = 0, vocabulary_size: int = 20, **settings: float) -> Decoder:
    """In evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig(embed_size=8, hidden_size=10, attention_size=7).replace(**settings)
    if kind == "show_tell":
        return ShowTell(config, FEATURE_SIZE, vocabulary_size).eval()
    config = config.replace(decoder="show_attend_tell", attention=kind)
    return ShowAttendTell(config, FEATURE_SIZE, vocabulary_size).eval()


def features_for(decoder: Decoder, n: int) -> torch.Tensor:
    """Random features of `n` images."""
    cells = () if isinstance(decoder, ShowTell) else (CELLS,)
    return torch.randn(n, *cells, FEATURE_SIZE)


# Captions of two images: of the first the first and the third, of the second the other.
CAPTIONS = Captions(
    tokens=torch.tensor([[SOS, 5, 6, 7, EOS, PAD], [SOS, 8, EOS, PAD, PAD, PAD], [SOS, 9, 10, 11, 12, EOS]]),
    lengths=torch.tensor([5, 3, 6]),
    images=torch.tensor([0, 1, 0]),
)
