"""Several models that write one caption together (section 4.3.2 of Show and Tell, arXiv 1411.4555)."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from nic_model.checkpoint import CaptionModel, ModelFiles
from nic_model.config import short_hash
from nic_model.show_tell import Memory, State


class Ensemble(nn.Module):
    """At each word the mean of the members' distributions. To search it is one model: `encoder`, `start`, `step`."""

    def __init__(self, members: Sequence[CaptionModel]) -> None:
        """Raises ValueError where the members differ in their words, or in the size of image that they look at."""
        super().__init__()
        first = members[0]
        for member in members[1:]:
            if member.vocabulary.words != first.vocabulary.words:
                raise ValueError("--model: models of an ensemble must have the same vocabulary, in the same order")
            if member.config.image_size != first.config.image_size:
                sizes = f"{first.config.image_size} and {member.config.image_size}"
                raise ValueError(f"--model: models of an ensemble must have the same image size, not {sizes}")
        self.members = list(members)
        self._registered = nn.ModuleList(members)  # what `to` and `eval` reach
        self.config, self.vocabulary = first.config, first.vocabulary
        self._sizes: list[tuple[int, int]] = []  # how many tensors of memory and of state each member has

    def encoder(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Each member's features of uint8 pixels (B, 3, H, W)."""
        return [member.encoder(pixels) for member in self.members]

    @property
    def decoder(self) -> "Ensemble":
        return self

    def start(self, features: Sequence[torch.Tensor]) -> tuple[Memory, State]:
        started = [member.decoder.start(of) for member, of in zip(self.members, features, strict=True)]
        self._sizes = [(len(memory), len(state)) for memory, state in started]
        return sum((memory for memory, _ in started), ()), sum((state for _, state in started), ())

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        """Logits, (R, V), whose softmax is the mean of the members' probabilities; and the new state."""
        log_probs, states = [], []
        for member, (n_memory, n_state) in zip(self.members, self._sizes, strict=True):
            own_memory, memory = memory[:n_memory], memory[n_memory:]
            own_state, state = state[:n_state], state[n_state:]
            logits, after = member.decoder.step(tokens, own_state, own_memory)
            log_probs.append(logits.float().log_softmax(1))
            states.append(after)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))
        return mean, sum(states, ())


def build(files: Sequence[ModelFiles]) -> CaptionModel | Ensemble:
    """The model, or the ensemble of several. Raises ValueError as ModelFiles.build and Ensemble do."""
    members = [each.build() for each in files]
    return members[0] if len(members) == 1 else Ensemble(members)


def model_id(files: Sequence[ModelFiles]) -> str:
    """The model's id, or one of all members', in whatever order."""
    ids = sorted(each.model_id for each in files)
    return ids[0] if len(ids) == 1 else short_hash(*(each.encode() for each in ids))
