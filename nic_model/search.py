"""Greedy and beam search, and sampling, over a decoder's start() and step(), batched over images on its device."""

from dataclasses import dataclass
from typing import Any, Protocol

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
    batch, beam, device = len(state[0]), config.beam_size, state[0].device
    if batch == 0:
        return []
    rows = torch.arange(batch, device=device).unsqueeze(1)  # (B, 1), to index with
    state = tuple(part.repeat_interleave(beam, dim=0) for part in state)
    last = torch.full((batch, beam), SOS, device=device)
    words = torch.full((batch, beam, config.max_length + 1), PAD, device=device)
    # Only the first of the K equal beams counts at the start, or all would stay equal.
    scores = torch.full((batch, beam), -torch.inf, device=device)
    scores[:, 0] = 0.0
    # The K best ended hypotheses of each image: normalised score, log p, words.
    ended_scores = torch.full((batch, beam), -torch.inf, device=device)
    ended_log_probs = torch.full((batch, beam), -torch.inf, device=device)
    ended_words = words.clone()
    n_ended = torch.zeros(batch, dtype=torch.int64, device=device)

    for length in range(config.max_length + 1):
        logits, state = decoder.step(last.flatten(), state, memory)
        log_probs = logits.float().log_softmax(dim=-1).view(batch, beam, -1)
        log_probs[:, :, [PAD, SOS, UNK]] = -torch.inf
        if length < config.min_length:
            log_probs[:, :, EOS] = -torch.inf
        if config.block_ngrams:
            log_probs.masked_fill_(
                _repeating(words[:, :, :length], config.block_ngrams, log_probs.shape[2]), -torch.inf
            )
        if length == config.max_length:
            only_end = torch.full_like(log_probs, -torch.inf)
            only_end[:, :, EOS] = log_probs[:, :, EOS]
            log_probs = only_end
        vocabulary_size = log_probs.shape[-1]
        totals = (scores.unsqueeze(2) + log_probs).view(batch, -1)
        # Of 2K candidates at most K end (one for each beam), so at least K are left to go on.
        best, flat = totals.topk(min(2 * beam, totals.shape[1]), dim=1)
        parents, tokens = flat // vocabulary_size, flat % vocabulary_size
        candidates = words[rows, parents]
        candidates[:, :, length] = tokens

        # An end counts where it is among the K best, for an image that is not done.
        rank = torch.arange(best.shape[1], device=device)
        ends = (tokens == EOS) & best.isfinite() & (rank < beam) & (n_ended < beam).unsqueeze(1)
        normalised = (best / (length + 1) ** config.length_penalty).masked_fill(~ends, -torch.inf)
        ended_scores, kept = torch.cat([ended_scores, normalised], dim=1).topk(beam, dim=1)
        ended_log_probs = torch.cat([ended_log_probs, best], dim=1)[rows, kept]
        ended_words = torch.cat([ended_words, candidates], dim=1)[rows, kept]
        n_ended += ends.sum(dim=1)
        if length == config.max_length or bool((n_ended >= beam).all()):
            break

        scores, going_on = best.masked_fill(tokens == EOS, -torch.inf).topk(beam, dim=1)
        parents, last, words = parents[rows, going_on], tokens[rows, going_on], candidates[rows, going_on]
        source = (rows * beam + parents).flatten()
        state = tuple(part[source] for part in state)

    wanted = 1 + config.alternatives
    found = zip(
        ended_words[:, :wanted].tolist(), ended_log_probs[:, :wanted].tolist(), ended_scores.tolist(), strict=True
    )
    return [
        [
            Hypothesis(tokens[: tokens.index(EOS)], log_prob)
            for tokens, log_prob, score in zip(*image, strict=False)
            if score > -torch.inf
        ]
        for image in found
    ]


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
