"""Attention: where the decoder looks, and what it learns from looking."""

import itertools

import pytest
import torch
from torch.nn import functional

from nic_model import show_attend_tell
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions
from nic_model.vocabulary import EOS, SOS
from tests.decoders import CAPTIONS, CELLS, FEATURE_SIZE, decoder_of, features_for


def attending(kind: str, **settings: float) -> ShowAttendTell:
    decoder = decoder_of(kind, **settings)
    assert isinstance(decoder, ShowAttendTell)
    return decoder


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_attention_sums_to_one_over_the_grid(kind: str, training: bool) -> None:
    decoder = attending(kind).train(training)
    maps = decoder.attention_of(features_for(decoder, 2), CAPTIONS)
    assert [tuple(looked.shape) for looked in maps] == [(n - 1, CELLS) for n in CAPTIONS.lengths.tolist()]
    for looked in maps:
        assert (looked >= 0).all()
        torch.testing.assert_close(looked.sum(1), torch.ones(len(looked)))


def test_gradients_of_repeated_readings_add_up() -> None:
    decoder = attending("soft", dropout=0.0).double()
    features = features_for(decoder, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: decoder(each, CAPTIONS), features)


def test_context_is_of_what_is_looked_at() -> None:
    """What stands in a cell that has no weight changes nothing."""
    decoder = attending("soft")
    with torch.no_grad():
        decoder.initial.weight.zero_()  # else the first state knows all cells
        decoder.energy.weight.fill_(200.0)
        decoder.query.weight.zero_()
        decoder.key.weight.mul_(50)
    features = features_for(decoder, 2)
    looked = decoder.tell(features, CAPTIONS).attention
    features.requires_grad_()
    decoder(features, CAPTIONS).sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().sum(2)
    maps = decoder.attention_of(features, CAPTIONS)
    weights = torch.stack([torch.cat([maps[0], maps[2]]).sum(0), maps[1].sum(0)])
    assert looked.max() > 0.999
    assert ((reached > 1e-4) == (weights > 1e-4)).all()


@torch.no_grad()
def test_folded_words_change_no_step() -> None:
    decoder = attending("soft").eval()
    memory, state = decoder.start(features_for(decoder, 2))
    words = torch.tensor([4, 5])
    logits, (hidden, _) = decoder.step(words, state, memory)
    decoder.fold_words()
    again, (hidden_again, _) = decoder.step(words, state, memory)
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(hidden_again, hidden)
    assert not logits[0].equal(logits[1])


def test_doubly_stochastic_penalty() -> None:
    """Zero for an even look at all cells, and all of (1 - P)^2 / P + (P - 1) / P for a look at one only."""
    decoder = attending("soft", dropout=0.0)
    features = features_for(decoder, 2)
    with torch.no_grad():
        decoder.energy.weight.zero_()
    plain, penalised = (decoder.loss(features, CAPTIONS, attention_penalty=weight) for weight in (0.0, 3.0))
    torch.testing.assert_close(plain, penalised)
    with torch.no_grad():  # keys so far apart that the softmax takes one cell
        decoder.energy.weight.fill_(200.0)
        decoder.query.weight.zero_()
        decoder.key.weight.mul_(50)
    looked = torch.cat(decoder.attention_of(features, CAPTIONS))
    assert looked.max(1).values.min() > 0.999
    plain, penalised = (decoder.loss(features, CAPTIONS, attention_penalty=weight) for weight in (0.0, 3.0))
    one_cell = ((1 - CELLS) ** 2 + (CELLS - 1)) / CELLS
    torch.testing.assert_close(penalised - plain, torch.tensor(3.0 * one_cell), rtol=1e-2, atol=0)


@pytest.mark.parametrize("baseline", [0.0, -7.0])
def test_hard_gradient_is_unbiased(baseline: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted by their probabilities, the estimates of all ways to look at a grid of two cells add up to the gradient
    of the sum over all ways of p(s | a) log p(y | s, a): section 4.1's objective, whatever the baseline."""
    monkeypatch.setattr(show_attend_tell, "ENTROPY_WEIGHT", 0.0)
    decoder = attending("hard", dropout=0.0).double()
    decoder.baseline.fill_(baseline)
    captions = Captions(torch.tensor([[SOS, 5, 6, EOS]]), torch.tensor([4]), torch.tensor([0]))
    features = torch.randn(1, 2, FEATURE_SIZE, dtype=torch.float64)
    parameters = list(decoder.parameters())
    words = captions.targets()
    objective = torch.zeros((), dtype=torch.float64)
    estimates = [torch.zeros_like(parameter) for parameter in parameters]
    for ways in itertools.product(range(2), repeat=3):
        locations = torch.tensor(ways)
        told = decoder.tell(features, captions, locations)
        likelihood = -functional.cross_entropy(told.logits, words, reduction="sum")
        probability = told.attention.gather(1, locations.unsqueeze(1)).prod()
        objective = objective + probability * likelihood
        # The loss is per word and falls where the objective rises.
        loss = -likelihood / 3 + decoder.location_loss(told, words)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for estimate, gradient in zip(estimates, gradients, strict=True):
            if gradient is not None:
                estimate -= 3 * probability.detach() * gradient
    exact = torch.autograd.grad(objective, parameters, allow_unused=True)
    for estimate, gradient in zip(estimates, exact, strict=True):
        torch.testing.assert_close(estimate, torch.zeros_like(estimate) if gradient is None else gradient)


def test_what_learns_from_drawn_captions_is_what_drew_them() -> None:
    """Hard attention draws captions by the expected context: so forward tells them, in training too."""
    decoder = attending("hard", dropout=0.0).train()
    features = features_for(decoder, 2)
    told = [decoder(features, CAPTIONS) for _ in range(8)]
    expected = decoder.eval()(features, CAPTIONS)
    assert all(logits.equal(expected) for logits in told)


def test_hard_attention_samples_by_its_weights() -> None:
    """In training one cell of the grid is taken at each word, as often as its weight says."""
    decoder = attending("hard", dropout=0.0).train()
    features = features_for(decoder, 2)
    captions = Captions(torch.tensor([[SOS, EOS]] * 4000), torch.full((4000,), 2), torch.zeros(4000, dtype=torch.int64))
    sampled = [told for _ in range(8) if (told := decoder.tell(features, captions)).locations is not None]
    assert 0 < len(sampled) < 8  # the expected context in every second batch
    locations = torch.cat([told.locations for told in sampled if told.locations is not None])
    seen = torch.bincount(locations, minlength=CELLS) / len(locations)
    torch.testing.assert_close(seen, sampled[0].attention[0].detach(), atol=0.03, rtol=0)
