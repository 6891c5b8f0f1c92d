"""Show, Attend and Tell (Xu et al., arXiv 1502.03044): at each word the decoder looks at the image again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from nic_model.config import ModelConfig
from nic_model.show_tell import Captions, Memory, State

# Section 4.1's weights of the location term (lambda_r) and of the entropy (lambda_e), and the decay of the baseline.
LOCATION_WEIGHT, ENTROPY_WEIGHT, BASELINE_DECAY = 1.0, 0.01, 0.9


@dataclass(frozen=True)
class Told:
    """What comes of R captions told with their words given; N words, in the order of `Captions.targets`."""

    logits: torch.Tensor  # (N, V)
    attention: torch.Tensor  # (N, P), sums to 1 over the cells
    locations: torch.Tensor | None  # (N,) int64: the cell sampled at each word of hard attention
    batch_sizes: torch.Tensor  # of the packing
    order: torch.Tensor  # of the packing: sorted_indices


class ShowAttendTell(nn.Module):
    """An LSTM whose inputs are the last word and a context: cells of the encoder's grid, weighted anew each time.

    The grid is first brought to the embedding's size and normalised, which makes each word's work independent of
    the encoder's width. Keys of the attention depend on the image alone and are computed once for it.
    """

    baseline: torch.Tensor  # of hard attention: a running mean of a caption's log p

    def __init__(self, config: ModelConfig, feature_size: int, vocabulary_size: int) -> None:
        super().__init__()
        embed, hidden = config.embed_size, config.hidden_size
        self.hard = config.attention == "hard"
        self.annotation = nn.Linear(feature_size, embed)
        self.annotation_norm = nn.LayerNorm(embed)
        self.initial = nn.Linear(embed, 2 * hidden)
        self.key = nn.Linear(embed, config.attention_size)
        self.query = nn.Linear(hidden, config.attention_size, bias=False)
        self.energy = nn.Linear(config.attention_size, 1, bias=False)
        self.gate = nn.Linear(hidden, 1)
        self.word_embedding = nn.Embedding(vocabulary_size, embed)
        self.word_input = nn.Linear(embed, 4 * hidden)
        self.recurrent = nn.Linear(embed + hidden, 4 * hidden, bias=False)
        self.hidden_output = nn.Linear(hidden, embed)
        self.context_output = nn.Linear(embed, embed, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(config.dropout)
        self.annotation_dropout = nn.Dropout(config.annotation_dropout)
        self.register_buffer("baseline", torch.zeros(()))
        self.word_gates: torch.Tensor | None = None  # of fold_words
        nn.init.uniform_(self.word_embedding.weight, -0.1, 0.1)

    def forward(self, features: torch.Tensor, captions: Captions) -> torch.Tensor:
        """Logits of each next word with the words before it given: (N, V), only of real words, in the order of
        `captions.targets()`. `features` (B, P, D) are of the images. Hard attention takes the expected context, as
        step does: what drew a caption in self-critical training is what learns from it.
        """
        return self.tell(features, captions, sample=False).logits

    def tell(
        self, features: torch.Tensor, captions: Captions, locations: torch.Tensor | None = None, sample: bool = True
    ) -> Told:
        """As forward, with the attention at each word.

        Hard attention in training samples a cell for each word, unless `sample` is False. `locations` (N,) int64 says
        which to take instead.
        """
        words = captions.pack(captions.read())
        assert words.sorted_indices is not None
        order = words.sorted_indices
        (annotations, keys), state = self.start(features)
        # Rows by falling length: those that have ended are the last ones, and are left out step by step.
        rows = captions.images[order]
        annotations, keys, hidden, cell = (part.index_select(0, rows) for part in (annotations, keys, *state))
        of_annotations, of_keys = _Reads(annotations), _Reads(keys)
        embedded = self.dropout(self.word_embedding(words.data))
        gates = self.word_input(embedded)  # of all words at once: the LSTM's only input that is known beforehand
        hiddens, contexts, attentions, sampled = [], [], [], []
        # For half of the batches the expected context, which makes the estimate less noisy (end of section 4.1).
        one_cell = locations is not None or (self.hard and self.training and sample and bool(torch.rand(()) < 0.5))
        at = 0
        for size in words.batch_sizes.tolist():
            hidden, cell = hidden[:size], cell[:size]
            attention = self._attend(of_keys.first(size), hidden.unsqueeze(1)).squeeze(1)
            weights = attention
            if one_cell:
                if locations is None:
                    location = torch.multinomial(attention.detach(), 1).squeeze(1)
                else:
                    location = locations[at : at + size]
                sampled.append(location)
                weights = functional.one_hot(location, attention.shape[1]).to(attention.dtype)
            context = torch.bmm(weights.unsqueeze(1), of_annotations.first(size)).squeeze(1)
            context = context * self.gate(hidden).sigmoid()
            hidden, cell = self._lstm(gates[at : at + size], context, hidden, cell)
            hiddens.append(hidden)
            contexts.append(context)
            attentions.append(attention)
            at += size
        logits = self._output(embedded, torch.cat(hiddens), torch.cat(contexts))
        return Told(logits, torch.cat(attentions), torch.cat(sampled) if sampled else None, words.batch_sizes, order)

    def loss(
        self, features: torch.Tensor, captions: Captions, label_smoothing: float = 0.0, attention_penalty: float = 0.0
    ) -> torch.Tensor:
        """Mean cross entropy of a word, with what each kind of attention adds; arguments as of forward.

        Soft: the doubly stochastic penalty (section 4.2.1), `attention_penalty` times the mean over captions and
        cells of (1 - the sum of the cell's attention over the words * P / T)^2, so that in a caption each cell is
        looked at about as much as another. Hard: the gradient of section 4.1.
        """
        told, words = self.tell(features, captions), captions.targets()
        loss = functional.cross_entropy(told.logits.float(), words, label_smoothing=label_smoothing)
        if told.locations is not None:
            return loss + self.location_loss(told, words)
        if attention_penalty:
            looked, steps = self._padded(told, told.attention)  # (R, T, P)
            share = looked.sum(1) * (looked.shape[2] / steps.to(looked.device).unsqueeze(1))
            loss = loss + attention_penalty * ((1 - share) ** 2).mean()
        return loss

    def location_loss(self, told: Told, words: torch.Tensor) -> torch.Tensor:
        """What the choice of locations adds to the loss: its gradient is that of the two last terms of section 4.1,
        per word. (log p(y | s, a) - b) grad log p(s | a) is unbiased whatever the baseline b."""
        assert told.locations is not None
        log_prob = -functional.cross_entropy(told.logits.detach().float(), words, reduction="none")
        chosen = told.attention.gather(1, told.locations.unsqueeze(1)).squeeze(1).clamp_min(1e-12).log()
        caption_log_prob, location_log_prob = (self._padded(told, of)[0].sum(1) for of in (log_prob, chosen))  # (R,)
        reward = caption_log_prob - self.baseline
        entropy = -(told.attention * told.attention.clamp_min(1e-12).log()).sum(1)
        if self.training:
            self.baseline.lerp_(caption_log_prob.mean().to(self.baseline), 1 - BASELINE_DECAY)
        return -(LOCATION_WEIGHT * (reward * location_log_prob).sum() + ENTROPY_WEIGHT * entropy.sum()) / len(words)

    def attention_of(self, features: torch.Tensor, captions: Captions) -> list[torch.Tensor]:
        """Of each caption the attention at each word, its end included: (words + 1, P). Arguments as of forward."""
        told = self.tell(features, captions)
        looked, steps = self._padded(told, told.attention)
        return [rows[:n] for rows, n in zip(looked, steps.tolist(), strict=True)]

    def start(self, features: torch.Tensor) -> tuple[Memory, State]:
        """Annotations and keys of the grid, `features` (B, P, D), and the LSTM's state made from their mean
        (section 3.1.2)."""
        annotations = self.annotation_dropout(self.annotation_norm(self.annotation(features)))
        hidden, cell = self.initial(annotations.mean(1)).tanh().chunk(2, dim=1)
        return (annotations, self.key(annotations)), (hidden, cell)

    @torch.no_grad()
    def fold_words(self) -> None:
        """Computes each word's part of the LSTM's gates once and for all, (V, 4H), for search with weights that stay
        as they are: a fifth of a step's work."""
        self.word_gates = self.word_input(self.word_embedding.weight)

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        """Reads one word a hypothesis, `tokens` (R,); returns the logits of the next, (R, V), and the new state.

        `memory` is of B images; R is a multiple of B and an image's hypotheses stand together. Hard attention takes
        the expected context here, which its sampled ones stand for (section 4.2).
        """
        (annotations, keys), (hidden, cell) = memory, state
        attention = self._attend(keys, hidden.view(keys.shape[0], -1, hidden.shape[1]))  # (B, K, P)
        context = torch.bmm(attention, annotations).flatten(0, 1) * self.gate(hidden).sigmoid()
        embedded = self.word_embedding(tokens)
        gates = self.word_input(embedded) if self.word_gates is None else self.word_gates[tokens]
        hidden, cell = self._lstm(gates, context, hidden, cell)
        return self._output(embedded, hidden, context), (hidden, cell)

    def _attend(self, keys: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Attention (B, K, P) of `hidden` (B, K, H) over the cells with `keys` (B, P, A): equations 4 to 6."""
        met = (keys.unsqueeze(1) + self.query(hidden).unsqueeze(2)).tanh()
        energies: torch.Tensor = self.energy(met).squeeze(3)
        return energies.softmax(dim=2)

    def _lstm(
        self, gates: torch.Tensor, context: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Equations 1 to 3; `gates` (R, 4H) is the word's part."""
        total = gates + self.recurrent(torch.cat([context, hidden], dim=1))
        into, forget, out, new = total.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell

    def _output(self, embedded: torch.Tensor, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The deep output layer, equation 7, whose L_o is the word embedding itself: fewer weights to learn from few
        captions (Press and Wolf, arXiv 1608.05859)."""
        deep = embedded + self.hidden_output(self.dropout(hidden)) + self.context_output(context)
        return functional.linear(self.dropout(deep), self.word_embedding.weight, self.output_bias)

    @staticmethod
    def _padded(told: Told, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`packed` (N, ...) as (R, T, ...), zeros after the end, with each caption's number of words (R,)."""
        unsorted = torch.argsort(told.order)
        return pad_packed_sequence(PackedSequence(packed, told.batch_sizes, told.order, unsorted), batch_first=True)


class _Reads:
    """The first rows of a large tensor, read again and again. The gradients of all readings are added up in one place,
    where autograd would make each as large as the whole tensor first."""

    def __init__(self, whole: torch.Tensor) -> None:
        self._sum: list[torch.Tensor] = []
        self._whole = _Sum.apply(whole, self._sum)

    def first(self, size: int) -> torch.Tensor:
        rows: torch.Tensor = _First.apply(self._whole, size, self._sum)
        return rows


class _Sum(torch.autograd.Function):
    """Passes on, once all readings have been gone back through, what they added up."""

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, total: list[torch.Tensor]) -> torch.Tensor:
        ctx.total = total
        ctx.set_materialize_grads(False)
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return ctx.total.pop(), None


class _First(torch.autograd.Function):
    """Adds its gradient to `total` in place of passing it on."""

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, size: int, total: list[torch.Tensor]) -> torch.Tensor:
        ctx.size, ctx.shape, ctx.total = size, whole.shape, total
        return whole[:size]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if not ctx.total:
            ctx.total.append(gradient.new_zeros(ctx.shape))
        ctx.total[0][: ctx.size] += gradient
        return None, None, None
