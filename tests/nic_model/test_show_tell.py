"""What all decoders have in common, and what only NIC's has."""

from dataclasses import replace

import pytest
import torch

from nic_model.show_tell import ShowTell
from tests.decoders import CAPTIONS, KINDS, Decoder, decoder_of, features_for


@pytest.fixture(params=KINDS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(request.param)


def test_teacher_forcing_is_start_and_step(decoder: Decoder) -> None:
    """The word-by-word pass, each row for itself, gives the logits of the packed one."""
    features = features_for(decoder, 2)
    packed, targets = decoder(features, CAPTIONS), CAPTIONS.targets()
    stepped = {}
    for row, image in enumerate(CAPTIONS.images.tolist()):
        memory, state = decoder.start(features[image : image + 1])
        for at in range(CAPTIONS.lengths[row] - 1):
            logits, state = decoder.step(CAPTIONS.tokens[row, at : at + 1], state, memory)
            stepped[row, at] = logits[0]
    # The packed order is by time, the rows of each time by falling length.
    order = [(row, at) for at in range(5) for row in (2, 0, 1) if at < CAPTIONS.lengths[row] - 1]
    assert targets.tolist() == [CAPTIONS.tokens[row, at + 1].item() for row, at in order]
    torch.testing.assert_close(packed, torch.stack([stepped[key] for key in order]))


def test_padding_changes_nothing(decoder: Decoder) -> None:
    features = features_for(decoder, 2)
    wider = replace(CAPTIONS, tokens=torch.cat([CAPTIONS.tokens, torch.full((3, 4), 13)], dim=1))
    torch.testing.assert_close(decoder(features, wider), decoder(features, CAPTIONS))
    assert wider.targets().equal(CAPTIONS.targets())


def test_gradients_reach_every_parameter(decoder: Decoder) -> None:
    decoder.train()
    for _ in range(8):  # hard attention samples in every second batch
        decoder.loss(features_for(decoder, 2), CAPTIONS, label_smoothing=0.1).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters() if p.dim() > 1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_misheard_words(share: float) -> None:
    """Scheduled sampling replaces a share of the words that are read, never <sos>, and changes no target."""
    torch.manual_seed(0)
    said = torch.full_like(CAPTIONS.targets(), 19)
    misheard = CAPTIONS.with_inputs(said, share)
    assert misheard.targets().equal(CAPTIONS.targets())
    assert misheard.read()[:, 0].equal(CAPTIONS.read()[:, 0])
    real = CAPTIONS.pack(misheard.read()).data[3:]  # <sos> of the three rows come first
    changed = (real == 19).float().mean().item()
    assert changed == share if share in (0, 1) else 0 < changed < 1


def test_image_is_seen_once_and_first() -> None:
    """The first hidden state of NIC is that of an LSTM fed the image alone, from zeros."""
    decoder = decoder_of("show_tell")
    assert isinstance(decoder, ShowTell)
    features = features_for(decoder, 2)
    memory, (hidden, cell) = decoder.start(features)
    image = decoder.image_norm(decoder.image_embedding(features))
    _, (expected_hidden, expected_cell) = decoder.lstm(image.unsqueeze(1))
    assert memory == ()
    assert hidden.equal(expected_hidden[0])
    assert cell.equal(expected_cell[0])
