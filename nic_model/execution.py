"""How a model is run for search: a decoder whose features are pixels, by PyTorch or, on a CPU, compiled by OpenVINO;
and how training runs what it does not train."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nic_model.checkpoint import CaptionModel
from nic_model.halves import halve
from nic_model.search import Decoder
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Memory, State

logger = logging.getLogger(__name__)

ENGINES = ("auto", "pytorch", "openvino")

# How far OpenVINO's results may be from PyTorch's in fp32, as a share of their norm, and its names of precisions.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 0.2}
HINTS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

# Images that a CPU encodes at once: what the layers of more hand on to each other does not stay in its cache.
ENCODED = 2


def make_execution(
    model: CaptionModel, device: torch.device, precision: torch.dtype = torch.float32, engine: str = "auto"
) -> Decoder:
    """Runs `model`, in evaluation mode, for `beam_search(execution, pixels, ...)`, pixels uint8 (B, 3, S, S), in
    `precision`: float32, float16 or bfloat16.

    `auto` is OpenVINO on a CPU where it is installed and gives what PyTorch gives, else PyTorch, on a CPU in fp32.
    Raises ValueError for an unknown engine, or for `openvino` where it cannot be used.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine}: allowed are {', '.join(ENGINES)}")
    if engine == "pytorch" or (engine == "auto" and device.type != "cpu"):
        return PyTorch(model, device, precision)
    try:
        if device.type != "cpu":
            raise ValueError(f"it is for CPUs, not for {device}")
        return OpenVino(model, precision)
    except Exception as error:  # absent, or an encoder that it cannot convert: each raises its own kinds
        if engine == "openvino":
            raise ValueError(f"engine openvino: {error}") from None
        level = logging.INFO if isinstance(error, ImportError) else logging.WARNING
        logger.log(level, "running on plain PyTorch, in fp32, without OpenVINO: %s", error)
        return PyTorch(model, device, torch.float32)


class PyTorch:
    """The model as it is; or its encoder in half precision, which is nearly all of the work, and its decoder in fp32,
    which keeps the order of words that are nearly as likely.

    What overflows in float16 comes out as NaN, so that its image alone gets no hypothesis.
    """

    def __init__(self, model: CaptionModel, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self._device, self._precision, self._half = device, precision, precision != torch.float32
        # Halved where fp32 is exact, which on a GPU it is not by default.
        halved = halve(model.encoder, precision).to(device) if self._half else None
        self._model = model.to(device)
        self._encoder = self._model.encoder if halved is None else halved

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        with self._arithmetic():
            with torch.autocast(self._device.type, dtype=self._precision, enabled=self._half):
                features = self._encoder(pixels.to(self._device)).float()
            if self._precision == torch.float16:
                features = features.masked_fill(~features.isfinite(), torch.nan)
            return self._model.decoder.start(features)

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        with self._arithmetic():
            return self._model.decoder.step(tokens, state, memory)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """On a GPU, fp32 is fp32; but beside a half-precision encoder its products are of 11 bits as those are, and
        convolutions are done by the algorithm that is fastest here."""
        if self._device.type != "cuda":
            yield
            return
        cudnn: Any = torch.backends.cudnn
        places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        before, benchmark = [place.fp32_precision for place in places], cudnn.benchmark
        try:
            for place in places:
                place.fp32_precision = "tf32" if self._half else "ieee"
            cudnn.benchmark = self._half
            yield
        finally:
            cudnn.benchmark = benchmark
            for place, value in zip(places, before, strict=True):
                place.fp32_precision = value


class OpenVino:
    """The model compiled for this CPU, on as many threads as torch has when it is made.

    bf16 is for the steps of the decoder: an encoder would lose too much. What its first blocks round, weights as much
    as pixels, all others carry on, and several captions in a hundred change for each stage.
    """

    def __init__(self, model: CaptionModel, precision: torch.dtype = torch.float32) -> None:
        """Raises ImportError where OpenVINO is absent, RuntimeError where it cannot run the model."""
        size = model.config.image_size
        pixels = torch.randint(
            0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            memory, state = model.decoder.start(model.encoder(pixels[:2]))
        self._n_memory = len(memory)
        # Converted for two images of two hypotheses each, tried on others.
        two = (torch.arange(4), *(part.repeat_interleave(2, dim=0) for part in state), *memory)
        one = (torch.arange(3), *(part[:1].expand(3, -1) for part in state), *(part[:1] for part in memory))
        self._start = _compile(_Start(model), (pixels[:2],), (pixels,), torch.float32)
        self._step = _compile(_Step(model), two, one, precision)

    def start(self, pixels: torch.Tensor) -> tuple[Memory, State]:
        some = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])  # it keeps to old sizes at 0 rows
        pieces = [_infer(self._start, (piece,)) for piece in some.split(ENCODED)]
        parts = tuple(torch.cat(part)[: len(pixels)] for part in zip(*pieces, strict=True))
        return parts[: self._n_memory], parts[self._n_memory :]

    def step(self, tokens: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State]:
        logits, *parts = _infer(self._step, (tokens, *state, *memory))
        return logits, tuple(parts)


def hasten(module: nn.Module, pixels: torch.Tensor, precision: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """`module`, an encoder or the first part of one, in evaluation mode, computing in `precision` on this CPU, where
    OpenVINO is installed and gives what PyTorch gives; else as it is. `pixels`, some images of its size, are to try
    it."""
    try:
        request = _compile(module, (pixels[:2],), (pixels[:3],), precision)
    except Exception as error:  # as in make_execution
        logger.info("encoding by plain PyTorch, without OpenVINO: %s", error)
        return module
    return lambda images: torch.cat([_infer(request, (piece,))[0] for piece in images.split(ENCODED)])


class _Start(nn.Module):
    """Pixels to the parts of memory and state."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        memory, state = self.model.decoder.start(self.model.encoder(pixels))
        return (*memory, *state)


class _Step(nn.Module):
    """Tokens, state and memory to logits and state; the state of both decoders is (hidden, cell)."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.decoder = model.decoder
        if isinstance(self.decoder, ShowAttendTell):
            self.decoder.fold_words()

    def forward(self, tokens: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, state = self.decoder.step(tokens, parts[:2], parts[2:])
        return (logits, *state)


def _compile(
    module: nn.Module, example: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...], precision: torch.dtype
) -> Any:
    """`module` as an OpenVINO request, for any number of rows. Raises RuntimeError where it gives for `other`, of
    other sizes than `example`, not what `module` gives: a size of the example may have become a constant."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    module.eval()
    with torch.no_grad(), _constant(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, that constants stay constant
        # As a function: of a module, tracing would first make a script of each module in it.
        traced = torch.jit.trace(lambda *inputs: module(*inputs), example, check_trace=False)
        # Not openvino.convert_model, which first reports home and waits for the answer.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)
        loaded = frontend.load(decoder)  # refers to `decoder` without holding it
        converted = frontend.convert(loaded)
        expected = module(*other)
        expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    if len(example) == 1:
        converted.reshape([-1, *example[0].shape[1:]])
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # Pinned, all workers of a machine would sit on its first cores.
        "ENABLE_CPU_PINNING": False,
    }
    with _signal_stack():
        request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    for found, right in zip(_infer(request, other), expected, strict=True):
        if found.shape != right.shape or not (found - right).norm() <= TOLERANCE[precision] * right.norm():
            raise RuntimeError("its results are not PyTorch's")
    return request


@contextmanager
def _signal_stack() -> Iterator[None]:
    """Leaves this thread the stack that its signals are handled on. OpenVINO's CPU plugin sets one of its own and, of
    two plugins that end in the order in which they began, puts a freed one back: the next signal, such as the end of a
    DataLoader's worker, would end the process."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), ctypes.create_string_buffer(24)  # a stack_t
    libc.sigaltstack(None, before)
    try:
        yield
    finally:
        libc.sigaltstack(before, None)


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Lets the weights of `module` be constants of what is traced, which those that learn cannot be."""
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def _infer(request: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    from openvino import Tensor

    # What infer() does with its arguments takes a fiftieth of the time of captioning.
    given = [Tensor(part.contiguous().numpy(), shared_memory=True) for part in inputs]
    for number, part in enumerate(given):
        request.set_input_tensor(number, part)
    return tuple(torch.from_numpy(part) for part in request.infer().to_tuple())
