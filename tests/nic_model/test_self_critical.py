"""Self-critical training: what a caption is worth, against what, and where its gradient points."""

import pytest
import torch
from pycocoevalcap.cider.cider import Cider

from nic_model.config import DecodeConfig
from nic_model.metrics.bleu import corpus_bleu
from nic_model.metrics.tokenizer import tokenize
from nic_model.search import beam_search
from nic_model.self_critical import END, Reward, advantages, draw, self_critical_loss
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, PAD, SOS, Vocabulary
from tests.decoders import decoder_of, features_for
from tests.tiny import WORDS

REFERENCES = [
    ["A dog runs in the grass .", "a red dog runs", "the dog on the grass"],
    ["A man 's hat", "the man in the red hat on the beach", "a man on the beach ."],
]
VOCABULARY = Vocabulary(WORDS)


def test_reward_is_cider_with_the_end_and_bleu() -> None:
    caption = "a dog runs on the beach"
    tokens = VOCABULARY.encode(caption)
    everything = {i: [f"{' '.join(tokenize(r))} {END}" for r in rs] for i, rs in enumerate(REFERENCES)}
    _, theirs = Cider().compute_score(everything, {0: [f"{caption} {END}"], 1: [f"{caption} {END}"]})
    bleus = [corpus_bleu([tokenize(caption)], [[tokenize(r) for r in rs]]) for rs in REFERENCES]
    for weight in (0.0, 2.0):
        reward = Reward(REFERENCES, VOCABULARY, weight)
        for image, bleu in enumerate(bleus):
            assert reward(image, tokens) == pytest.approx(theirs[image] + weight * sum(bleu) / 400)


def test_a_caption_that_breaks_off_is_worth_less() -> None:
    reward = Reward(REFERENCES, VOCABULARY, bleu_weight=0.0)
    whole, broken = (reward(0, VOCABULARY.encode(text)) for text in ("a red dog runs", "a red dog runs in"))
    assert whole > broken > 0


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a man on the beach", 0 / 4),  # its end is a word too
        ("a man on the", 1 / 3),
        ("a red dog runs", 3 / 3),  # of one image's captions, though of three of them
        ("a man", 1 / 1),
        ("dog", 1),
    ],
)
def test_odd_trigrams_cost(caption: str, share: float) -> None:
    references = [["a man on the beach", "a red dog runs", "a red dog runs"], ["a man on the beach", "A red hat ."]]
    plain, fluent = (Reward(references, VOCABULARY, fluency_weight=weight) for weight in (0.0, 2.0))
    tokens = VOCABULARY.encode(caption)
    assert plain(0, tokens) - fluent(0, tokens) == pytest.approx(2.0 * share)


@pytest.mark.parametrize("kind", ["show_tell", "soft", "hard"])
def test_the_greedy_caption_has_no_advantage(kind: str) -> None:
    """Where the model draws what it would say anyway, it learns nothing."""
    decoder = decoder_of(kind, vocabulary_size=len(VOCABULARY))
    features = features_for(decoder, 2)
    found = [best.tokens for (best,) in beam_search(decoder, features, DecodeConfig(beam_size=1, max_length=6))]
    reward = Reward(REFERENCES, VOCABULARY, bleu_weight=1.0)
    greedy = torch.tensor([reward(image, tokens) for image, tokens in enumerate(found)])
    rows = [[SOS, *tokens, EOS] for tokens in found]
    again = torch.tensor([[reward(image, row)] for image, row in enumerate(rows)])
    advantage = advantages(again, greedy)
    assert advantage.tolist() == [[0.0], [0.0]]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor([row + [PAD] * (int(lengths.max()) - len(row)) for row in rows])
    loss = self_critical_loss(decoder, features, Captions(tokens, lengths, torch.arange(2)), advantage.flatten())
    assert loss.item() == 0


def test_advantages_over_the_other_samples() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert advantages(rewards).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("kind", ["show_tell", "soft"])
def test_steps_raise_the_reward(kind: str) -> None:
    decoder = decoder_of(kind, vocabulary_size=len(VOCABULARY))
    features, reward = features_for(decoder, 2), Reward(REFERENCES, VOCABULARY, bleu_weight=1.0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    torch.manual_seed(0)
    means = []
    for _ in range(60):
        captions, rewards = draw(decoder, features, 8, 6, reward, [0, 1])
        assert captions.images.tolist() == [0] * 8 + [1] * 8
        optimizer.zero_grad()
        self_critical_loss(decoder, features, captions, advantages(rewards).flatten()).backward()
        optimizer.step()
        means.append(rewards.mean().item())
    assert sum(means[-10:]) > 1.5 * sum(means[:10])
