"""Greedy and beam search, and sampling, over a decoder's start() and step(), batched over images on its device."""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from nic_model.config import DecodeConfig
from nic_model.show_tell import Memory, State
from nic_model.vocabulary import EOS, PAD, SOS, UNK


class Decoder(Protocol):
    def start(self, features: Any) -> tuple[Memory, State]: ...

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]: ...


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption: its words, without <sos> and <eos>, and log p of them and of the <eos>."""

    tokens: list[int]
    log_prob: float


DECODE_GREEDY = DecodeConfig(beam_size=1)


@torch.inference_mode()
def beam_search(decoder: Decoder, features: Any, config: DecodeConfig) -> list[list[Hypothesis]]:
    """For each of `features` (B, ...) its best captions, best first: 1 + `config.alternatives` of them.

    Every caption has `config.min_length` to `config.max_length` words and an end; <pad>, <sos> and <unk> are never
    written, nor, with `config.block_ngrams` n, an n-gram that the caption has already. An image is done once
    `beam_size` hypotheses have ended among the best; they compare by log p / length ** penalty, <eos> counted. With
    a beam of 1 this is greedy search. No row depends on the others of its batch.
    """
    memory, state = decoder.start(features)
    beam, n_images = config.beam_size, len(state[0])
    found: list[list[Hypothesis]] = [[] for _ in range(n_images)]
    beams = _Beams.at_start(n_images, config, state[0].device)
    for length in range(config.max_length + 1):
        if len(beams.images) == 0:
            break
        source, state = _advance(decoder, beams, state, memory, length, config)
        # Every image ends at the last word.
        going_on = (beams.n_ended < beam).nonzero().squeeze(1) if length < config.max_length else beams.images[:0]
        # Leaving costs a copy of the memory, so they leave several at a time.
        if len(going_on) <= LEAVE * len(beams.images):
            beams.ended().report(found, beams.images, 1 + config.alternatives)
            beams, source = beams.take(going_on), source[going_on]
            memory = tuple(part[going_on] for part in memory)
        state = tuple(part[source.flatten()] for part in state)
    return found


@torch.inference_mode()
def search_to_the_end(decoder: Decoder, memory: Memory, state: State, config: DecodeConfig) -> "Ended":
    """As beam_search does, from what `decoder.start` gave, but with all images to the last word: what is done, and on
    which sizes, does not depend on what is found, so that nothing waits for a GPU, and a CUDA graph can record it."""
    beams = _Beams.at_start(len(state[0]), config, state[0].device)
    for length in range(config.max_length + 1):
        source, state = _advance(decoder, beams, state, memory, length, config)
        state = tuple(part[source.flatten()] for part in state)
    return beams.ended()


def _advance(
    decoder: Decoder, beams: "_Beams", state: State, memory: Memory, length: int, config: DecodeConfig
) -> tuple[torch.Tensor, State]:
    """Takes `beams` a word further than `length`. Returns which rows (B, K) of the state, also returned, are theirs."""
    before = beams.scores.shape[1]
    logits, state = decoder.step(beams.last.flatten(), state, memory)
    best, parents, tokens = _candidates(logits, beams, length, config)
    candidates = beams.words[beams.rows, parents]
    candidates[:, :, length] = tokens
    beams.end(best, tokens, candidates, length + 1, config.length_penalty)
    going_on = best.masked_fill(tokens == EOS, -torch.inf)
    best, chosen = going_on.topk(min(config.beam_size, going_on.shape[1]), dim=1)
    parents = parents.gather(1, chosen)
    beams.scores, beams.last, beams.words = best, tokens.gather(1, chosen), candidates[beams.rows, chosen]
    return beams.rows * before + parents, state


LEAVE = 7 / 8  # finished images leave the batch once no more than this share of it goes on


@dataclass(frozen=True)
class Ended:
    """The hypotheses of B images that have ended, best first."""

    words: torch.Tensor  # (B, K, T) int64
    log_probs: torch.Tensor  # (B, K)
    scores: torch.Tensor  # (B, K): normalised; -inf where there are not as many

    def report(self, found: list[list[Hypothesis]], images: torch.Tensor, wanted: int) -> None:
        """Puts the best into `found`, at the places `images` (B,)."""
        ended = (part.tolist() for part in (self.words[:, :wanted], self.log_probs, self.scores))
        for image, *hypotheses in zip(images.tolist(), *ended, strict=True):
            found[image] = [
                Hypothesis(tokens[: tokens.index(EOS)], log_prob)
                for tokens, log_prob, score in zip(*hypotheses, strict=False)
                if score > -torch.inf
            ]


@dataclass
class _Beams:
    """The hypotheses of the images still searched: tensors with a row for each image, best hypotheses first. K is 1
    before the first word, all being equal then."""

    images: torch.Tensor  # (B,) int64: which of the images
    rows: torch.Tensor  # (B, 1) int64: 0, 1, ..., to index with
    scores: torch.Tensor  # (B, K): log p
    last: torch.Tensor  # (B, K) int64: their last words
    words: torch.Tensor  # (B, K, T) int64
    ended_scores: torch.Tensor  # (B, beam size): normalised, of the best that have ended
    ended_log_probs: torch.Tensor  # (B, beam size)
    ended_words: torch.Tensor  # (B, beam size, T) int64
    n_ended: torch.Tensor  # (B,) int64: how many have ended, which may be more than the beam size

    @classmethod
    def at_start(cls, n_images: int, config: DecodeConfig, device: torch.device) -> Self:
        images = torch.arange(n_images, device=device)
        rows = images.unsqueeze(1)
        words = torch.full((n_images, config.beam_size, config.max_length + 1), PAD, device=device)
        scores, last = torch.zeros(rows.shape, device=device), torch.full_like(rows, SOS)
        nothing = torch.full(words.shape[:2], -torch.inf, device=device)
        return cls(images, rows, scores, last, words[:, :1], nothing, nothing, words, torch.zeros_like(images))

    def end(
        self, best: torch.Tensor, tokens: torch.Tensor, candidates: torch.Tensor, n_tokens: int, penalty: float
    ) -> None:
        """Takes note of those of `candidates` (B, N, T), with log p `best` (B, N), whose last of `tokens` is an end.
        An end counts where it is among the best of a beam, for an image that is not done."""
        beam = self.ended_scores.shape[1]
        rank = torch.arange(best.shape[1], device=best.device)
        ends = (tokens == EOS) & best.isfinite() & (rank < beam) & (self.n_ended < beam).unsqueeze(1)
        normalised = (best / n_tokens**penalty).masked_fill(~ends, -torch.inf)
        self.ended_scores, kept = torch.cat([self.ended_scores, normalised], dim=1).topk(beam, dim=1)
        self.ended_log_probs = torch.cat([self.ended_log_probs, best], dim=1)[self.rows, kept]
        self.ended_words = torch.cat([self.ended_words, candidates], dim=1)[self.rows, kept]
        self.n_ended = self.n_ended + ends.sum(dim=1)

    def take(self, rows: torch.Tensor) -> "_Beams":
        """Those of the images in `rows`."""
        parts = {name: part[rows] for name, part in vars(self).items()}
        return _Beams(**parts | {"rows": self.rows[: len(rows)]})

    def ended(self) -> "Ended":
        return Ended(self.ended_words, self.ended_log_probs, self.ended_scores)


def _candidates(
    logits: torch.Tensor, beams: _Beams, length: int, config: DecodeConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the hypotheses of `length` words, whose next have `logits` (B * K, V), the best continuations: log p
    (B, N), the hypothesis 0..K - 1 that they go on from, and the word. N is twice the beam size: at most K of them end
    (one for each hypothesis), so enough are left to go on."""
    wanted = 2 * config.beam_size
    # Words that are never written count in the softmax's denominator.
    log_probs = logits.float().view(*beams.scores.shape, -1).log_softmax(dim=2)
    if length == config.max_length:
        best, parents = (beams.scores + log_probs[:, :, EOS]).topk(beams.scores.shape[1], dim=1)
        return best, parents, torch.full_like(parents, EOS)
    for never in (PAD, SOS, UNK):  # one by one: a list would be sent to the device, which is waited for
        log_probs[:, :, never] = -torch.inf
    if length < config.min_length:
        log_probs[:, :, EOS] = -torch.inf
    if config.block_ngrams:
        repeating = _repeating(beams.words[:, :, :length], config.block_ngrams, log_probs.shape[2])
        log_probs.masked_fill_(repeating, -torch.inf)
    # The best of all are among as many best of each.
    top, tokens = log_probs.topk(min(wanted, log_probs.shape[2]), dim=2)
    totals = (beams.scores.unsqueeze(2) + top).flatten(1)
    best, flat = totals.topk(min(wanted, totals.shape[1]), dim=1)
    return best, flat // top.shape[2], tokens.flatten(1).gather(1, flat)


@torch.no_grad()
def sample(decoder: Decoder, features: Any, n: int, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` captions of each of `features` (B, ...), drawn by the probabilities that `log_probs_of` gives.

    Returns tokens (B * n, T) int64, an image's next to each other, each row <sos> ... <eos> and then padding, and
    lengths (B * n,) int64 on the CPU, <sos> and <eos> counted. A caption that reaches `max_length` words is ended.
    """
    memory, state = decoder.start(features)
    state = tuple(part.repeat_interleave(n, dim=0) for part in state)
    last = torch.full((len(state[0]),), SOS, device=state[0].device)
    told, ended = [last], torch.zeros_like(last, dtype=torch.bool)
    for _ in range(max_length):
        logits, state = decoder.step(last, state, memory)
        last = torch.multinomial(log_probs_of(logits).exp(), 1).squeeze(1).masked_fill(ended, PAD)
        told.append(last)
        ended |= last == EOS
        if bool(ended.all()):
            break
    told.append(torch.full_like(last, EOS).masked_fill(ended, PAD))
    tokens = torch.stack(told, dim=1)
    return tokens, (tokens != PAD).sum(dim=1).cpu()


def log_probs_of(logits: torch.Tensor) -> torch.Tensor:
    """ln p of each word, (..., V), where only words that may be written have a probability."""
    never = torch.tensor([PAD, SOS, UNK], device=logits.device)
    return logits.float().index_fill(-1, never, -torch.inf).log_softmax(-1)


def _repeating(words: torch.Tensor, n: int, vocabulary_size: int) -> torch.Tensor:
    """Which next words would make an n-gram that is in `words` (B, K, T) already: bool (B, K, V)."""
    repeating = torch.zeros(*words.shape[:2], vocabulary_size, dtype=torch.bool, device=words.device)
    if words.shape[2] < n:
        return repeating
    ngrams = words.unfold(2, n, 1)  # (B, K, T - n + 1, n)
    last = words[:, :, words.shape[2] - n + 1 :].unsqueeze(2)
    same = (ngrams[..., :-1] == last).all(dim=3)
    # PAD stands for the n-grams that begin otherwise: it is never written anyway.
    return repeating.scatter_(2, torch.where(same, ngrams[..., -1], PAD), True)
