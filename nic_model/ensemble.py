"""Several models that write one caption together (section 4.3.2 of Show and Tell, arXiv 1411.4555)."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from nic_model.checkpoint import CaptionModel, ModelFiles, ModelSource
from nic_model.config import short_hash
from nic_model.search import Decoder
from nic_model.show_tell import Memory, State
from nic_model.vocabulary import Vocabulary


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


def check_members(files: Sequence[ModelFiles]) -> None:
    """Raises ValueError where models differ in their words or in the size of image that they look at."""
    if len(files) > 1:
        words = (Vocabulary.from_json(each.vocabulary.decode()).words for each in files)
        _check(list(zip(words, (each.settings()[0].image_size for each in files), strict=True)))


def build_members(files: Sequence[ModelSource]) -> list[CaptionModel]:
    """The models. Raises ValueError as `check_members` does."""
    members = [each.build() for each in files]
    _check([(member.vocabulary.words, member.config.image_size) for member in members])
    return members


def _check(members: Sequence[tuple[list[str], int]]) -> None:
    first_words, first_size = members[0]
    for words, size in members[1:]:
        if words != first_words:
            raise ValueError("--model: models of an ensemble must have the same vocabulary, in the same order")
        if size != first_size:
            raise ValueError(
                f"--model: models of an ensemble must have the same image size, not {first_size} and {size}"
            )


def model_id(files: Sequence[ModelSource]) -> str:
    """The model's id, or one of all members', in whatever order."""
    ids = sorted(each.model_id for each in files)
    return ids[0] if len(ids) == 1 else short_hash(*(each.encode() for each in ids))
