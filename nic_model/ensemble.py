"""Several models that write one caption together (section 4.3.2 of Show and Tell, arXiv 1411.4555)."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from nic_model.checkpoint import CaptionModel
from nic_model.model_files import ModelSource, check_alike
from nic_model.search import Decoder
from nic_model.show_tell import Memory, State


class Ensemble:
    """At each word the mean of the members' distributions. To search it is one decoder."""

    def __init__(self, members: Sequence[Decoder]) -> None:
        self.members = members
        self._sizes: list[tuple[int, int]] = []  # how many tensors of memory and of state each member has

    def start(self, features: Any) -> tuple[Memory, State]:
        """Every member is given the same `features`."""
        started = [member.start(features) for member in self.members]
        self._sizes = [(len(memory), len(state)) for memory, state in started]
        return sum((memory for memory, _ in started), ()), sum((state for _, state in started), ())

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        """Logits, (R, V), whose softmax is the mean of the members' probabilities; and the new state."""
        log_probs: list[torch.Tensor] = []
        states: State = ()
        for member, (n_memory, n_state) in zip(self.members, self._sizes, strict=True):
            own_memory, memory = memory[:n_memory], memory[n_memory:]
            own_state, state = state[:n_state], state[n_state:]
            logits, after = member.step(tokens, own_state, own_memory)
            log_probs.append(logits.float().log_softmax(1))
            states += after
        return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs)), states


def build_members(files: Sequence[ModelSource]) -> list[CaptionModel]:
    """The models. Raises ValueError as `check_members` does."""
    members = [each.build() for each in files]
    check_alike([(member.vocabulary.words, member.config.image_size) for member in members])
    return members
