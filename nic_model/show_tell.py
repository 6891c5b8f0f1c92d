"""Show and Tell, the Neural Image Caption generator (Vinyals et al., arXiv 1411.4555)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from nic_model.config import ModelConfig

State = tuple[torch.Tensor, ...]
"""What a decoder carries from word to word: tensors with a row for each hypothesis, so that search can reorder,
repeat and drop rows without knowing what they mean."""

Memory = tuple[torch.Tensor, ...]
"""What a decoder looks up again at each word: tensors with a row for each image, shared by all of its hypotheses."""


@dataclass(frozen=True)
class Captions:
    """R captions of B images, to learn from."""

    tokens: torch.Tensor  # (R, T) int64: each row <sos> ... <eos> and then padding
    lengths: torch.Tensor  # (R,) int64 on the CPU: the tokens of a row with its <sos> and <eos>, at least 2
    images: torch.Tensor  # (R,) int64: which of the images each is of
    inputs: torch.Tensor | None = None  # (R, T) int64: what the decoder reads, where not `tokens` themselves

    def read(self) -> torch.Tensor:
        """The words that the decoder is given, (R, T - 1)."""
        return (self.tokens if self.inputs is None else self.inputs)[:, :-1]

    def targets(self) -> torch.Tensor:
        """The words to predict, (N,), N the sum of lengths - R: in the order of pack_padded_sequence."""
        return self.pack(self.tokens[:, 1:]).data

    def pack(self, rows: torch.Tensor) -> PackedSequence:
        """`rows` (R, T - 1, ...), an entry for each target, packed."""
        return pack_padded_sequence(rows, self.lengths - 1, batch_first=True, enforce_sorted=False)

    def with_inputs(self, said: torch.Tensor, share: float) -> Self:
        """These captions, with a `share` of the words that are read replaced by `said` (N,), words in the place of
        the targets."""
        packed = self.pack(self.tokens[:, 1:])
        guesses, _ = pad_packed_sequence(
            packed._replace(data=said), batch_first=True, total_length=self.tokens.shape[1] - 1
        )
        own = torch.rand(guesses.shape, device=guesses.device) < share
        inputs = self.tokens.clone()
        inputs[:, 1:] = torch.where(own, guesses, self.tokens[:, 1:])
        return replace(self, inputs=inputs)

    def to(self, device: torch.device) -> Self:
        return replace(self, tokens=self.tokens.to(device), images=self.images.to(device))


class ShowTell(nn.Module):
    """An LSTM that is shown the image once, as its first input, and then tells the caption word by word."""

    def __init__(self, config: ModelConfig, feature_size: int, vocabulary_size: int) -> None:
        super().__init__()
        self.image_embedding = nn.Linear(feature_size, config.embed_size)
        self.image_norm = nn.BatchNorm1d(config.embed_size)
        self.word_embedding = nn.Embedding(vocabulary_size, config.embed_size)
        self.lstm = nn.LSTM(config.embed_size, config.hidden_size, batch_first=True)
        self.output = nn.Linear(config.hidden_size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        # Small words vectors keep the first logits near uniform, whatever the embedding's size.
        nn.init.uniform_(self.word_embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: torch.Tensor, captions: Captions) -> torch.Tensor:
        """Logits of each next word with the words before it given (equation 2 of the paper): (N, V), only of real
        words, in the order of `captions.targets()`. `features` (B, D) are of the images.
        """
        image = self._embed_image(features)[captions.images].unsqueeze(1)
        words = self.word_embedding(captions.read())
        inputs = self.dropout(torch.cat([image, words], dim=1))
        # The image comes before the words and <eos> goes in no more, so a row is as long as its tokens.
        packed = pack_padded_sequence(inputs, captions.lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = self.lstm(packed)
        told = hidden.data[int(hidden.batch_sizes[0]) :]  # what follows the image is <sos>: nothing to learn
        logits: torch.Tensor = self.output(self.dropout(told))
        return logits

    def loss(self, features: torch.Tensor, captions: Captions, label_smoothing: float = 0.0) -> torch.Tensor:
        """Mean cross entropy of a word; arguments as of forward."""
        logits = self(features, captions)
        return functional.cross_entropy(logits.float(), captions.targets(), label_smoothing=label_smoothing)

    def start(self, features: torch.Tensor) -> tuple[Memory, State]:
        """What is known after the image, `features` (B, D), has been seen (equation 10 of the paper)."""
        _, (hidden, cell) = self.lstm(self._embed_image(features).unsqueeze(1))
        return (), (hidden[0], cell[0])

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        """Reads one word a hypothesis, `tokens` (R,); returns the logits of the next, (R, V), and the new state."""
        hidden, cell = state
        _, (hidden, cell) = self.lstm(
            self.word_embedding(tokens).unsqueeze(1), (hidden.unsqueeze(0), cell.unsqueeze(0))
        )
        return self.output(hidden[0]), (hidden[0], cell[0])

    def _embed_image(self, features: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.image_norm(self.image_embedding(features))
        return embedded
