"""Search on a GPU without waiting for it: a batch is two launches of recorded work, one that encodes and one that
searches, and while one batch is searched the next is encoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from nic_model.config import DecodeConfig
from nic_model.search import Decoder, Ended, Hypothesis, search_to_the_end

Work = TypeVar("Work")

WARM_UP = 3  # runs in which libraries choose their algorithms and allocate what they keep

# How far encoded images and found captions may be from those of the same work unrecorded: a share of the norm, and of
# the captions. Recording changes no number, but algorithms are chosen by timing them, and halves are rounded.
TOLERANCE, EQUAL = 0.02, 0.9


class RecordedSearch:
    """`beam_search` for batches of up to `batch_size` images, recorded as CUDA graphs.

    Sizes are fixed: a smaller batch costs as much as a full one, and every image is searched to the last word. On a
    CPU, which has neither graphs nor streams, the same is done step by step.
    """

    @torch.inference_mode()
    def __init__(
        self, execution: Decoder, config: DecodeConfig, batch_size: int, image_size: int, device: torch.device
    ) -> None:
        """On the current GPU, which must be `device`. Raises torch.OutOfMemoryError where a batch does not fit,
        RuntimeError where it cannot be recorded."""
        self._config, self._device = config, device
        self._backend = torch.get_device_module(device)
        self._encoding, self._searching = self._backend.Stream(), self._backend.Stream()
        self._taken = self._backend.Event()  # the search has its own copy of what was encoded
        size = (batch_size, 3, image_size, image_size)
        noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self._pixels = noise.to(device, memory_format=torch.channels_last)
        self._encode, (memory, state) = self._record(lambda: execution.start(self._pixels), self._encoding)
        self._encoded = (*memory, *state)
        self._encode()
        # Encoding the next batch must not change what this one is searched with.
        self._given = given = tuple(part.clone() for part in self._encoded)
        n = len(memory)
        self._search, self._ended = self._record(
            lambda: search_to_the_end(execution, given[:n], given[n:], config), self._searching
        )
        self._check(execution)

    @torch.inference_mode()
    def submit(self, pixels: Sequence[torch.Tensor]) -> "Pending":
        """Begins with `pixels`, each uint8 (B, 3, S, S), together at most the batch size, in pinned memory or on the
        GPU."""
        n = 0
        if any(some.is_cuda for some in pixels):
            self._encoding.wait_stream(torch.cuda.current_stream(self._device))
        with self._backend.stream(self._encoding):
            self._encoding.wait_event(self._taken)
            for some in pixels:
                self._pixels[n : n + len(some)].copy_(some, non_blocking=True)
                n += len(some)
                if some.is_cuda:
                    some.record_stream(self._encoding)
            self._encode()
            encoded = self._event(self._encoding)
        with self._backend.stream(self._searching):
            self._searching.wait_event(encoded)
            for mine, theirs in zip(self._given, self._encoded, strict=True):
                mine.copy_(theirs)
            self._taken = self._event(self._searching)
            self._search()
            ended = Ended(*(self._to_host(part[:n]) for part in vars(self._ended).values()))
            return Pending(ended, 1 + self._config.alternatives, self._event(self._searching))

    def _record(self, work: Callable[[], Work], stream: Any) -> tuple[Callable[[], object], Work]:
        """`work` recorded, to be called, and what it returns, which calling changes."""
        if self._device.type == "cpu":
            result = work()
            return lambda: _copy_into(result, work()), result
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
        graph = torch.cuda.CUDAGraph()
        # Threads that decode, or another captioner's, may go on using the GPU.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    def _check(self, execution: Decoder) -> None:
        """Raises RuntimeError where the recorded work does not give what the work itself does."""
        self.submit([self._pixels.clone()]).wait()
        memory, state = execution.start(self._pixels)
        for found, right in zip(self._encoded, (*memory, *state), strict=True):
            if not (found - right).norm() <= TOLERANCE * right.norm():
                raise RuntimeError("what was recorded does not encode as the model does")
        n = len(memory)
        ended = search_to_the_end(execution, self._given[:n], self._given[n:], self._config)
        if (ended.words[:, 0] == self._ended.words[:, 0]).all(dim=1).float().mean() < EQUAL:
            raise RuntimeError("what was recorded does not search as the model does")

    def _event(self, stream: Any) -> Any:
        event = self._backend.Event()
        event.record(stream)
        return event

    def _to_host(self, part: torch.Tensor) -> torch.Tensor:
        pinned = torch.empty(part.shape, dtype=part.dtype, pin_memory=self._device.type == "cuda")
        return pinned.copy_(part, non_blocking=True)


@dataclass(frozen=True)
class Pending:
    """A batch on its way."""

    ended: Ended  # in host memory, once `done`
    wanted: int
    done: Any

    def wait(self) -> list[list[Hypothesis]]:
        """As beam_search; of an image whose numbers were not finite, nothing."""
        self.done.synchronize()
        found: list[list[Hypothesis]] = [[] for _ in range(len(self.ended.scores))]
        self.ended.report(found, torch.arange(len(found)), self.wanted)
        return found


def _copy_into(kept: Any, new: Any) -> None:
    if isinstance(kept, torch.Tensor):
        kept.copy_(new)
        return
    for mine, theirs in zip(*((part if isinstance(part, tuple) else vars(part).values()) for part in (kept, new)),
                            strict=True):  # fmt: skip
        _copy_into(mine, theirs)
