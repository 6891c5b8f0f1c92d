import pytest
import torch

from nic_model.config import ModelConfig
from nic_model.show_tell import ShowTell
from nic_model.vocabulary import EOS, PAD, SOS


@pytest.fixture
def decoder() -> ShowTell:
    torch.manual_seed(0)
    return ShowTell(ModelConfig(embed_size=8, hidden_size=10, dropout=0.5), feature_size=6, vocabulary_size=20).eval()


TOKENS = torch.tensor([[SOS, 5, 6, 7, EOS, PAD], [SOS, 8, EOS, PAD, PAD, PAD], [SOS, 9, 10, 11, 12, EOS]])
LENGTHS = torch.tensor([5, 3, 6])


def test_teacher_forcing_is_start_and_step(decoder: ShowTell) -> None:
    """The cached, word-by-word pass gives the logits of the packed one."""
    features = torch.randn(3, 6)
    packed = decoder(features, TOKENS, LENGTHS)
    targets = decoder.targets(TOKENS, LENGTHS)
    stepped = {}
    for row in range(3):
        state = decoder.start(features[row : row + 1])
        for at in range(LENGTHS[row] - 1):
            logits, state = decoder.step(TOKENS[row, at : at + 1], state)
            stepped[row, at] = logits[0]
    # The packed order is by time, the rows of each time by falling length.
    order = [(row, at) for at in range(5) for row in (2, 0, 1) if at < LENGTHS[row] - 1]
    assert targets.tolist() == [TOKENS[row, at + 1].item() for row, at in order]
    torch.testing.assert_close(packed, torch.stack([stepped[key] for key in order]))


def test_padding_changes_nothing(decoder: ShowTell) -> None:
    features = torch.randn(3, 6)
    wider = torch.cat([TOKENS, torch.full((3, 4), 13)], dim=1)
    torch.testing.assert_close(decoder(features, wider, LENGTHS), decoder(features, TOKENS, LENGTHS))
    assert decoder.targets(wider, LENGTHS).equal(decoder.targets(TOKENS, LENGTHS))


def test_image_is_seen_once_and_first(decoder: ShowTell) -> None:
    """The first hidden state is that of an LSTM fed the image alone, from zeros."""
    features = torch.randn(2, 6)
    hidden, cell = decoder.start(features)
    image = decoder.image_norm(decoder.image_embedding(features))
    _, (expected_hidden, expected_cell) = decoder.lstm(image.unsqueeze(1))
    assert hidden.equal(expected_hidden[0])
    assert cell.equal(expected_cell[0])


@pytest.mark.parametrize("batch", [2, 5])
def test_gradients_reach_every_parameter(decoder: ShowTell, batch: int) -> None:
    decoder.train()
    tokens, lengths = TOKENS[[0, 1] * 3][:batch], LENGTHS[[0, 1] * 3][:batch]
    loss = torch.nn.functional.cross_entropy(
        decoder(torch.randn(batch, 6), tokens, lengths), decoder.targets(tokens, lengths)
    )
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters() if p.dim() > 1)
