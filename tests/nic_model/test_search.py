"""Search on small random decoders: what must hold whatever the weights are."""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from nic_model.config import DecodeConfig
from nic_model.search import Hypothesis, beam_search, log_probs_of, sample, search_to_the_end
from nic_model.show_tell import Captions, ShowTell
from nic_model.vocabulary import EOS, PAD, SOS, UNK
from tests.bench.recipes import plain_beam_search
from tests.decoders import Decoder, decoder_of, features_for

SPECIAL = {PAD, SOS, EOS, UNK}


KINDS = ("show_tell", "soft")


def tiny_decoder(kind: str, seed: int, end_bias: float = 0.0, size: int = 25) -> Decoder:
    """Weights large enough for captions to differ; `end_bias` makes <eos> likely or unlikely."""
    decoder = decoder_of(kind, seed, vocabulary_size=size)
    with torch.no_grad():
        if isinstance(decoder, ShowTell):
            decoder.output.weight.mul_(40)
            decoder.word_embedding.weight.mul_(10)
            decoder.output.bias[EOS] = end_bias
        else:
            decoder.word_embedding.weight.mul_(30)
            decoder.hidden_output.weight.mul_(4)
            decoder.context_output.weight.mul_(4)
            decoder.output_bias[EOS] = end_bias
    return decoder


def greedy(decoder: Decoder, features: torch.Tensor, max_length: int) -> Hypothesis:
    """One image, one word at a time, written without a beam."""
    (memory, state), token, tokens, log_prob = decoder.start(features[None]), SOS, [], 0.0
    for length in range(max_length + 1):
        logits, state = decoder.step(torch.tensor([token]), state, memory)
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
@pytest.mark.parametrize("kind", KINDS)
def test_beam_of_one_is_greedy(kind: str, seed: int, end_bias: float) -> None:
    decoder = tiny_decoder(kind, seed, end_bias)
    features = features_for(decoder, 9)
    found = beam_search(decoder, features, DecodeConfig(beam_size=1, max_length=7))
    for row, (hypothesis,) in zip(features, found, strict=True):
        expected = greedy(decoder, row, 7)
        assert hypothesis.tokens == expected.tokens
        assert hypothesis.log_prob == pytest.approx(expected.log_prob, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_is_one_by_one(kind: str, beam_size: int) -> None:
    decoder = tiny_decoder(kind, 1)
    features = features_for(decoder, 11)
    config = DecodeConfig(beam_size=beam_size, max_length=8, alternatives=beam_size - 1)
    batched = beam_search(decoder, features, config)
    single = [beam_search(decoder, features[i : i + 1], config)[0] for i in range(len(features))]
    assert [[h.tokens for h in image] for image in batched] == [[h.tokens for h in image] for image in single]


@pytest.mark.parametrize("end_bias", [-20.0, 0.0, 3.0])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_beam_search_finds_the_same(kind: str, beam_size: int, end_bias: float) -> None:
    decoder = tiny_decoder(kind, 4, end_bias)
    features = features_for(decoder, 11)
    config = DecodeConfig(beam_size=beam_size, max_length=8)
    plain = [best for best, *_ in plain_beam_search(decoder, features, config)]
    ours = [best for best, *_ in beam_search(decoder, features, config)]
    assert [h.tokens for h in ours] == [h.tokens for h in plain]
    assert [h.log_prob for h in ours] == pytest.approx([h.log_prob for h in plain], abs=1e-4)


@pytest.mark.parametrize("end_bias", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("max_length", [1, 2, 20])
@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_end_and_are_never_empty(kind: str, end_bias: float, max_length: int, beam_size: int) -> None:
    config, decoder = DecodeConfig(beam_size=beam_size, max_length=max_length), tiny_decoder(kind, 2, end_bias)
    for (hypothesis,) in beam_search(decoder, features_for(decoder, 6), config):
        assert 1 <= len(hypothesis.tokens) <= max_length
        assert not SPECIAL & set(hypothesis.tokens)
        assert -float("inf") < hypothesis.log_prob <= 0


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_wide_beam_finds_the_most_probable_caption(kind: str) -> None:
    """With a beam as wide as all captions of two words, search is exhaustive."""
    decoder = tiny_decoder(kind, 3, size=12)
    features = features_for(decoder, 3)
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
            decoder(row[None], Captions(tokens[at : at + 1, :n], n_tensor[None], torch.tensor([0])))
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
    config, decoder = DecodeConfig(beam_size=4, alternatives=3, max_length=9), tiny_decoder("show_tell", 4)
    for hypotheses in beam_search(decoder, features_for(decoder, 5), config):
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) == 4
        scores = [h.log_prob / (len(h.tokens) + 1) ** 0.7 for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_length_penalty_favours_longer_captions() -> None:
    decoder = tiny_decoder("show_tell", 5, end_bias=2.0)
    features = features_for(decoder, 50)

    def mean_length(penalty: float) -> float:
        found = beam_search(decoder, features, DecodeConfig(beam_size=5, length_penalty=penalty))
        return sum(len(best.tokens) for best, *_ in found) / len(found)

    assert mean_length(0.0) < mean_length(1.0) < mean_length(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_no_captions(kind: str) -> None:
    decoder = tiny_decoder(kind, 0)
    assert beam_search(decoder, features_for(decoder, 0), DecodeConfig()) == []


@pytest.mark.parametrize("end_bias", [-50.0, 0.0, 3.0])
@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_to_the_end_gives_the_same(kind: str, beam_size: int, end_bias: float) -> None:
    decoder, n = tiny_decoder(kind, 3, end_bias), 17
    config = DecodeConfig(beam_size=beam_size, alternatives=beam_size - 1, max_length=9, min_length=2, block_ngrams=2)
    features = features_for(decoder, n)
    found: list[list[Hypothesis]] = [[] for _ in range(n)]
    ended = search_to_the_end(decoder, *decoder.start(features), config)
    ended.report(found, torch.arange(n), beam_size)
    for image, right in zip(found, beam_search(decoder, features, config), strict=True):
        assert [h.tokens for h in image] == [h.tokens for h in right]
        assert [h.log_prob for h in image] == pytest.approx([h.log_prob for h in right], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_to_the_end_never_looks_at_what_is_found(kind: str) -> None:
    """With tensors that have a shape and no values, what reads a value fails: the search proper does."""
    config = DecodeConfig(beam_size=3, min_length=2, block_ngrams=2)
    with FakeTensorMode():
        decoder = decoder_of(kind)
        features = features_for(decoder, 4)
        ended = search_to_the_end(decoder, *decoder.start(features), config)
        assert ended.words.shape == (4, 3, config.max_length + 1)
        with pytest.raises(DynamicOutputShapeException):
            beam_search(decoder, features, config)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_numbers_gets_no_caption(kind: str) -> None:
    """Features that are not finite, of a half precision that has too small a range, cost their own image alone."""
    decoder, config = tiny_decoder(kind, 1), DecodeConfig(beam_size=2)
    features = features_for(decoder, 3)
    right = beam_search(decoder, features, config)
    features[1] = torch.nan
    found = beam_search(decoder, features, config)
    assert found[1] == []
    assert [[h.tokens for h in found[at]] for at in (0, 2)] == [[h.tokens for h in right[at]] for at in (0, 2)]


@pytest.mark.parametrize("min_length", [1, 4, 7])
def test_captions_are_as_long_as_asked_for(min_length: int) -> None:
    decoder = tiny_decoder("soft", 6, end_bias=500.0)
    config = DecodeConfig(beam_size=3, min_length=min_length, max_length=7)
    for (hypothesis,) in beam_search(decoder, features_for(decoder, 5), config):
        assert len(hypothesis.tokens) == min_length


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_no_ngram_is_written_twice(n: int, beam_size: int) -> None:
    decoder = tiny_decoder("show_tell", 7, end_bias=-50.0, size=25)
    features = features_for(decoder, 10)

    def repeats(block: int) -> int:
        config = DecodeConfig(beam_size=beam_size, max_length=16, block_ngrams=block)
        found = [best.tokens for best, *_ in beam_search(decoder, features, config)]
        ngrams = [list(zip(*(tokens[at:] for at in range(n)), strict=False)) for tokens in found]
        return sum(len(of) - len(set(of)) for of in ngrams)

    assert repeats(0) > 0
    assert repeats(n) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_drawn_by_their_probability(kind: str) -> None:
    """The share of the samples that begin with a word is the word's probability; all end, none holds what is never
    written."""
    decoder = tiny_decoder(kind, 8)
    features = features_for(decoder, 2)
    torch.manual_seed(0)
    tokens, lengths = sample(decoder, features, 4000, max_length=6)
    assert tokens.shape == (8000, 8)
    assert (tokens[:, 0] == SOS).all()
    assert ((tokens != PAD).sum(1) == lengths).all()
    assert (tokens.gather(1, lengths.unsqueeze(1) - 1) == EOS).all()
    assert not (tokens[:, 1:] == SOS).any()
    assert not (tokens == UNK).any()
    memory, state = decoder.start(features)
    logits, _ = decoder.step(torch.full((2,), SOS), state, memory)
    for image in range(2):
        first = tokens[4000 * image : 4000 * (image + 1), 1]
        seen = torch.bincount(first, minlength=25) / 4000
        torch.testing.assert_close(seen, log_probs_of(logits[image]).exp().detach(), atol=0.03, rtol=0)
