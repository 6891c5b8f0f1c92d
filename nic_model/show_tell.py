"""Show and Tell, the Neural Image Caption generator (Vinyals et al., arXiv 1411.4555)."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from nic_model.config import ModelConfig

State = tuple[torch.Tensor, ...]
"""What a decoder carries from word to word: tensors whose first dimension is the batch, so that search can
reorder, repeat and drop rows without knowing what they mean."""


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

    def forward(self, features: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits of each next word with the true words given (equation 2 of the paper).

        `features` (B, D); `tokens` (B, T) int64, each row <sos> ... <eos> and then padding; `lengths` (B,) int64 on
        the CPU, the tokens of each row with its <sos> and <eos>, at least 2. Returns (sum of lengths - B, V): only
        the real words, in the order of `targets`.
        """
        image = self._embed_image(features).unsqueeze(1)
        words = self.word_embedding(tokens[:, :-1])
        inputs = self.dropout(torch.cat([image, words], dim=1))
        # The image comes before the words and <eos> goes in no more, so a row is as long as its tokens.
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = self.lstm(packed)
        told = hidden.data[int(hidden.batch_sizes[0]) :]  # what follows the image is <sos>: nothing to learn
        logits: torch.Tensor = self.output(self.dropout(told))
        return logits

    @staticmethod
    def targets(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The words that `forward` predicts, in its order: (sum of lengths - B,)."""
        return pack_padded_sequence(tokens[:, 1:], lengths - 1, batch_first=True, enforce_sorted=False).data

    def start(self, features: torch.Tensor) -> State:
        """The state after the image, `features` (B, D), has been seen (equation 10 of the paper)."""
        _, (hidden, cell) = self.lstm(self._embed_image(features).unsqueeze(1))
        return hidden[0], cell[0]

    def step(self, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Reads one word a row, `tokens` (B,); returns the logits of the next, (B, V), and the new state."""
        hidden, cell = state
        _, (hidden, cell) = self.lstm(
            self.word_embedding(tokens).unsqueeze(1), (hidden.unsqueeze(0), cell.unsqueeze(0))
        )
        return self.output(hidden[0]), (hidden[0], cell[0])

    def _embed_image(self, features: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.image_norm(self.image_embedding(features))
        return embedded
