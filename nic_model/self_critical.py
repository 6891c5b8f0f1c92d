"""Self-critical sequence training (Rennie et al., arXiv 1612.00563): captions that the model draws are made more
likely the more they score above a baseline, CIDEr-D and BLEU being the score."""

from collections.abc import Sequence

import numpy as np
import torch

from nic_model.metrics.bleu import bleu, segment_counts
from nic_model.metrics.cider import cider, document_frequencies, reference_vectors
from nic_model.metrics.tokenizer import tokenize
from nic_model.search import log_probs_of, sample
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, SPECIAL, Vocabulary

END = SPECIAL[EOS]


class Reward:
    """What a caption of a training image is worth: CIDEr-D + `bleu_weight` * the mean of BLEU-1 to 4, each 0 to 1
    (CIDEr-D may reach 10), - `fluency_weight` * the share of its trigrams that are odd: of fewer than two images.

    The end counts as a word of CIDEr-D and of trigrams, or captions that break off after `in a` would be worth the
    most.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        vocabulary: Vocabulary,
        bleu_weight: float = 0.0,
        fluency_weight: float = 0.0,
    ) -> None:
        self.vocabulary, self.bleu_weight, self.fluency_weight = vocabulary, bleu_weight, fluency_weight
        self._references = [[tokenize(caption) for caption in captions] for captions in references]
        ended = [[[*tokens, END] for tokens in captions] for captions in self._references]
        self._frequencies = document_frequencies(ended)
        self._vectors = [reference_vectors(captions, self._frequencies) for captions in ended]

    def __call__(self, image: int, tokens: Sequence[int]) -> float:
        """Of `tokens` <sos> ... <eos>, as a caption of the training image number `image`."""
        words = self.vocabulary.decode(tokens)
        worth = cider([*words, END], self._vectors[image], self._frequencies) / 100
        if self.bleu_weight:
            worth += self.bleu_weight * float(np.mean(bleu(segment_counts(words, self._references[image])))) / 100
        if self.fluency_weight:
            worth -= self.fluency_weight * self._oddity([*words, END])
        return worth

    def _oddity(self, words: Sequence[str]) -> float:
        """The share of trigrams that are odd, 0 to 1; without any, 1."""
        trigrams = [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]
        odd = sum(self._frequencies.counts.get(trigram, 0) < 2 for trigram in trigrams)
        return odd / len(trigrams) if trigrams else 1.0


def advantages(rewards: torch.Tensor, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """How much better than the baseline each of `rewards` (B, n) is.

    The baseline is the reward (B,) of the `greedy` caption, as in the paper, or without it the mean reward of the
    image's other samples (Luo, arXiv 2003.09971), which needs no greedy search and is less noisy.
    """
    if greedy is not None:
        return rewards - greedy.unsqueeze(1)
    n = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (n / (n - 1))


def draw(
    decoder: torch.nn.Module, features: torch.Tensor, n: int, max_length: int, reward: Reward, images: Sequence[int]
) -> tuple[Captions, torch.Tensor]:
    """`n` captions drawn for each of `features` (B, ...), and their rewards (B, n); `images` are their numbers."""
    tokens, lengths = sample(decoder, features, n, max_length)  # type: ignore[arg-type]
    of = torch.arange(len(images)).repeat_interleave(n)
    rewards = [reward(images[at], row) for at, row in zip(of.tolist(), tokens.tolist(), strict=True)]
    captions = Captions(tokens[:, : int(lengths.max())], lengths, of.to(tokens.device))
    return captions, torch.tensor(rewards).view(len(images), n)


def self_critical_loss(
    decoder: torch.nn.Module, features: torch.Tensor, captions: Captions, advantage: torch.Tensor
) -> torch.Tensor:
    """Its gradient is minus that of the expected reward (equation 7 of the paper), per word; `advantage` (R,)."""
    log_probs = log_probs_of(decoder(features, captions)).gather(1, captions.targets().unsqueeze(1)).squeeze(1)
    of = captions.pack(advantage.unsqueeze(1).expand(-1, captions.tokens.shape[1] - 1)).data
    # A sample cut at the greatest length has an <eos> that was not drawn; it is rare, and may be learnt from.
    return -(of.to(log_probs) * log_probs).mean()
