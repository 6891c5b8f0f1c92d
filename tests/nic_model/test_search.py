"""Search on small random decoders: what must hold whatever the weights are."""

import pytest
import torch

from nic_model.config import DecodeConfig, ModelConfig
from nic_model.search import Hypothesis, beam_search
from nic_model.show_tell import ShowTell
from nic_model.vocabulary import EOS, PAD, SOS, UNK

SPECIAL = {PAD, SOS, EOS, UNK}


def tiny_decoder(seed: int, end_bias: float = 0.0, size: int = 25) -> ShowTell:
    """Weights large enough for captions to differ; `end_bias` makes <eos> likely or unlikely."""
    torch.manual_seed(seed)
    decoder = ShowTell(ModelConfig(embed_size=12, hidden_size=12), feature_size=6, vocabulary_size=size).eval()
    with torch.no_grad():
        decoder.output.weight.mul_(40)
        decoder.word_embedding.weight.mul_(10)
        decoder.output.bias[EOS] = end_bias
    return decoder


def greedy(decoder: ShowTell, features: torch.Tensor, max_length: int) -> Hypothesis:
    """One image, one word at a time, written without a beam."""
    state, token, tokens, log_prob = decoder.start(features[None]), SOS, [], 0.0
    for length in range(max_length + 1):
        logits, state = decoder.step(torch.tensor([token]), state)
        row = logits[0].log_softmax(-1)
        allowed = [i for i in range(len(row)) if i not in SPECIAL or (i == EOS and length > 0)]
        token = EOS if length == max_length else max(allowed, key=lambda i: row[i].item())
        log_prob += row[token].item()
        if token == EOS:
            break
        tokens.append(token)
    return Hypothesis(tokens, log_prob)


@pytest.mark.parametrize("end_bias", [-20.0, 0.0, 3.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_beam_of_one_is_greedy(seed: int, end_bias: float) -> None:
    decoder, features = tiny_decoder(seed, end_bias), torch.randn(9, 6)
    found = beam_search(decoder, features, DecodeConfig(beam_size=1, max_length=7))
    for row, (hypothesis,) in zip(features, found, strict=True):
        expected = greedy(decoder, row, 7)
        assert hypothesis.tokens == expected.tokens
        assert hypothesis.log_prob == pytest.approx(expected.log_prob, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_batched_is_one_by_one(beam_size: int) -> None:
    decoder, features = tiny_decoder(1), torch.randn(11, 6)
    config = DecodeConfig(beam_size=beam_size, max_length=8, alternatives=beam_size - 1)
    batched = beam_search(decoder, features, config)
    single = [beam_search(decoder, features[i : i + 1], config)[0] for i in range(len(features))]
    assert [[h.tokens for h in image] for image in batched] == [[h.tokens for h in image] for image in single]


@pytest.mark.parametrize("end_bias", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("max_length", [1, 2, 20])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_captions_end_and_are_never_empty(end_bias: float, max_length: int, beam_size: int) -> None:
    config = DecodeConfig(beam_size=beam_size, max_length=max_length)
    for (hypothesis,) in beam_search(tiny_decoder(2, end_bias), torch.randn(6, 6), config):
        assert 1 <= len(hypothesis.tokens) <= max_length
        assert not SPECIAL & set(hypothesis.tokens)
        assert -float("inf") < hypothesis.log_prob <= 0


@torch.inference_mode()
def test_wide_beam_finds_the_most_probable_caption() -> None:
    """With a beam as wide as all captions of two words, search is exhaustive."""
    decoder, features = tiny_decoder(3, size=12), torch.randn(3, 6)
    config = DecodeConfig(beam_size=8 * 8 + 8, max_length=2, length_penalty=0.0)
    for row, (found,) in zip(features, beam_search(decoder, features, config), strict=True):
        words = [i for i in range(12) if i not in SPECIAL]
        everything = [[a] for a in words] + [[a, b] for a in words for b in words]
        tokens = torch.full((len(everything), 4), PAD)
        for at, caption in enumerate(everything):
            tokens[at, : len(caption) + 2] = torch.tensor([SOS, *caption, EOS])
        lengths = torch.tensor([len(caption) + 2 for caption in everything])
        # Row by row, since `forward` packs all rows by time.
        log_probs = [
            decoder(row[None], tokens[at : at + 1, :n], n_tensor[None])
            .log_softmax(-1)
            .gather(1, tokens[at, 1:n, None])
            .sum()
            .item()
            for at, (n, n_tensor) in enumerate(zip(lengths.tolist(), lengths, strict=True))
        ]
        best = max(range(len(everything)), key=lambda i: log_probs[i])
        assert found.tokens == everything[best]
        assert found.log_prob == pytest.approx(log_probs[best], abs=1e-4)


def test_alternatives_are_different_and_sorted() -> None:
    config = DecodeConfig(beam_size=4, alternatives=3, max_length=9, length_penalty=0.7)
    for hypotheses in beam_search(tiny_decoder(4), torch.randn(5, 6), config):
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) == 4
        scores = [h.log_prob / (len(h.tokens) + 1) ** 0.7 for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_length_penalty_favours_longer_captions() -> None:
    decoder, features = tiny_decoder(5, end_bias=2.0), torch.randn(50, 6)

    def mean_length(penalty: float) -> float:
        found = beam_search(decoder, features, DecodeConfig(beam_size=5, length_penalty=penalty))
        return sum(len(best.tokens) for best, *_ in found) / len(found)

    assert mean_length(0.0) < mean_length(1.0) < mean_length(2.0)


def test_no_images_no_captions() -> None:
    assert beam_search(tiny_decoder(0), torch.empty(0, 6), DecodeConfig()) == []
