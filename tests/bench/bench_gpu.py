"""Images per second of the executor's function on a GPU, and of each of its stages alone.

    .venv/bin/python tests/bench/bench_gpu.py                   # on a GPU: the figures that are asked for
    .venv/bin/python tests/bench/bench_gpu.py --device cpu --images 64 --batch-size 8 --encoder resnet18

Takes Arrow batches of JPEG bytes, 224 x 224, cut from the project's samples, to captions of beam 3, by Show and Tell
and by Show, Attend and Tell, each on a ResNet-50. No Spark, no Java. Weights are random, or, of the encoder, those of
--encoder-weights: they change no figure, since a GPU searches each image to the last word. Prints

    encode      pixels on the device to what the decoder starts from
    search      from there to words
    decode      JPEG bytes to pixels, by --tasks processes with a thread for each core of their share
    end to end  all of it, through jobs.common.executor.caption_batches, by these processes on the one device

and how end to end compares with the slowest stage, and with encoding and search in turn.

    .venv/bin/python tests/bench/bench_gpu.py --agreement 'flickr8k/dev-*.parquet' --images 300

counts instead how many captions of the shipped model in fp16 and in bf16 are those of fp32, on any device, and, on a
GPU, how many of the images that nvJPEG decodes.
"""

import argparse
import glob
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from jobs.common.executor import caption_batches  # noqa: E402
from jobs.common.rows import INPUT  # noqa: E402
from nic_model.captioner import Captioner  # noqa: E402
from nic_model.checkpoint import CaptionModel, save_model  # noqa: E402
from nic_model.config import DecodeConfig, ModelConfig  # noqa: E402
from nic_model.encoder import load_pretrained  # noqa: E402
from nic_model.graphs import RecordedSearch  # noqa: E402
from nic_model.vocabulary import Vocabulary  # noqa: E402

TARGETS = {"show_tell": 8000, "show_attend_tell": 5000}  # images/s on one H200
SHARE = 0.8  # of the slowest stage
WORDS = 10_000
ROWS = 256  # of an Arrow batch, as jobs/common/session.py sets it
DECODING = DecodeConfig(beam_size=3)


def make_model(options: argparse.Namespace, decoder: str, directory: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(decoder=decoder, encoder=options.encoder)
    model = CaptionModel(config, Vocabulary(f"word{number}" for number in range(WORDS))).eval()
    if options.encoder_weights:
        load_pretrained(model.encoder, options.encoder_weights)
    else:
        settle(model.encoder, config.image_size)
    save_model(directory, model, DECODING, {"note": "for timing"}, dtype=torch.float32)


@torch.no_grad()
def settle(encoder: nn.Module, size: int) -> None:
    """Lets batch norms learn what random convolutions make of noise, or halves would overflow."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    encoder(torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8))
    for norm in norms:
        norm.eval()


def photographs(n: int, size: int = 224) -> list[bytes]:
    """Crops of the samples, at random places."""
    rng = np.random.default_rng(0)
    samples = [Image.open(path).convert("RGB") for path in sorted((ROOT / "samples" / "images").iterdir())]
    contents = []
    for number in range(min(n, 1024)):
        sample = samples[number % len(samples)]
        side = int(rng.uniform(0.5, 1.0) * min(sample.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in sample.size)
        buffer = io.BytesIO()
        sample.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)).save(
            buffer, "JPEG", quality=85
        )
        contents.append(buffer.getvalue())
    return [contents[number % len(contents)] for number in range(n)]


def arrow_batches(contents: list[bytes]) -> Iterator[pa.RecordBatch]:
    for at in range(0, len(contents), ROWS):
        some = contents[at : at + ROWS]
        rows = {"image_id": [f"{at + number:08}.jpg" for number in range(len(some))], "content": some}
        none = pa.nulls(len(some))
        columns = [pa.array(rows[f.name], f.type) if f.name in rows else none.cast(f.type) for f in INPUT]
        yield pa.RecordBatch.from_arrays(columns, schema=INPUT)


def load(options: argparse.Namespace, directory: Path) -> Captioner:
    torch.set_num_threads(max(1, options.threads // options.tasks))
    return Captioner.load(
        directory,
        decode_config=DECODING,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        engine="pytorch",
        record=True,
        decode_on=options.decode_on,
    )


def rate(work: Callable[[], object], images: int, device: torch.device, rounds: int) -> float:
    """Images per second of the best of `rounds`, after one that is not counted."""
    best = float("inf")
    for number in range(rounds + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return images / best


def stages(options: argparse.Namespace, captioner: Captioner) -> dict[str, float]:
    """The two that are the device's, each of them recorded work."""
    with torch.cuda.device(captioner.device) if captioner.device.type == "cuda" else nullcontext():
        recorded = captioner._recording()
    assert isinstance(recorded, RecordedSearch), "the log says why nothing could be recorded"
    batches = max(1, options.images // options.batch_size)

    @torch.inference_mode()
    def replay(work: Callable[[], object]) -> None:
        for _ in range(batches):
            work()

    images = batches * options.batch_size
    return {
        name: rate(lambda work=work: replay(work), images, captioner.device, options.rounds)
        for name, work in (("encode", recorded._encode), ("search", recorded._search))
    }


def task(options: argparse.Namespace, directory: Path, ready: Barrier, done: Barrier) -> None:
    """What one of several tasks on the device does, round after round, all beginning together."""
    try:
        take_part(options, directory, ready, done)
    except BaseException:  # or the others would wait for it
        ready.abort()
        done.abort()
        raise


def take_part(options: argparse.Namespace, directory: Path, ready: Barrier, done: Barrier) -> None:
    contents = photographs(options.images)
    captioner = load(options, directory)

    def decode() -> None:
        for _ in captioner._decoding.ahead(((None, content) for content in contents), options.batch_size):
            pass
        if captioner.device.type == "cuda":
            torch.cuda.synchronize(captioner.device)

    def caption() -> None:
        rows = sum(batch.num_rows for batch in caption_batches(arrow_batches(contents), captioner))
        assert rows == len(contents)

    for work in (decode, caption):
        for _ in range(options.rounds + 1):
            ready.wait()
            work()
            done.wait()


def together(options: argparse.Namespace, directory: Path) -> dict[str, float]:
    """Decoding alone and all of the work, by all tasks at once."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(options.tasks + 1), context.Barrier(options.tasks + 1)
    tasks = [context.Process(target=task, args=(options, directory, ready, done)) for _ in range(options.tasks)]
    for each in tasks:
        each.start()
    found = {}
    for name in ("decode", "end to end"):
        best = float("inf")
        for number in range(options.rounds + 1):
            ready.wait(600)
            started = time.perf_counter()
            done.wait(600)
            if number:
                best = min(best, time.perf_counter() - started)
        found[name] = options.tasks * options.images / best
    for each in tasks:
        each.join()
    return found


def agreement(options: argparse.Namespace) -> None:
    files = sorted(glob.glob(options.agreement))  # noqa: PTH207
    contents = [
        content for file in files for content in pq.read_table(file, columns=["content"])["content"].to_pylist()
    ]
    contents = contents[: options.images]
    print(f"{len(contents)} images, {options.model.name}, {DECODING}, {describe(options)}")
    right: list[str] = []
    ways = [("fp32", "cpu"), ("fp16", "cpu"), ("bf16", "cpu")]
    ways += [("fp32", "gpu")] if torch.device(options.device).type == "cuda" else []
    for precision, decode_on in ways:
        captioner = Captioner.load(options.model, decode_config=DECODING, device=options.device, precision=precision,
                                   batch_size=options.batch_size, engine="pytorch", decode_on=decode_on)  # fmt: skip
        found = [getattr(result, "text", "") for result in captioner.caption(contents)]
        right = right or found
        equal = sum(a == b for a, b in zip(found, right, strict=True)) / len(right)
        print(f"{precision}, JPEGs decoded on the {decode_on}: {equal:.1%} as in fp32", flush=True)


def describe(options: argparse.Namespace) -> str:
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def report(options: argparse.Namespace, decoder: str, found: dict[str, float]) -> None:
    print(f"\n{decoder}, {options.encoder}")
    for name, images in found.items():
        print(f"{name:12}{images:10.0f} images/s")
    done = found.pop("end to end")
    slowest = min(found, key=lambda name: found[name])
    print(f"end to end is {done / found[slowest]:.2f} of the slowest stage, {slowest}; asked for are {SHARE} of it")
    both = 1 / (1 / found["encode"] + 1 / found["search"])
    print(f"encoding and search, in turn as they share the device, allow {both:.0f} images/s: it is {done / both:.2f}")
    if "H200" in describe(options) and options.encoder == "resnet50":
        print(f"and {TARGETS[decoder]} images/s: {'reached' if done >= TARGETS[decoder] else 'missed'}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=16384, help="of each task")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--decode-on", default="cpu", choices=("cpu", "gpu"), help="gpu: nvJPEG")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--encoder-weights", type=Path, help="a state dict: .safetensors or .pth")
    parser.add_argument("--decoders", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that decode, of all tasks together")
    parser.add_argument("--tasks", type=int, default=1, help="that share the device, each a process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--agreement", metavar="PARQUET", help="count equal captions of these images instead")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention", help="for --agreement")
    options = parser.parse_args(arguments)
    if options.agreement:
        agreement(options)
        return
    print(f"{describe(options)}; {options.tasks} tasks of {options.images} images, batches of {options.batch_size}")
    print(f"precision {options.precision}, {DECODING}")
    with tempfile.TemporaryDirectory() as temporary:
        for decoder in options.decoders:
            directory = Path(temporary) / decoder
            make_model(options, decoder, directory)
            captioner = load(options, directory)
            found = stages(options, captioner)
            del captioner  # gives back the memory of the device
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            report(options, decoder, found | together(options, directory))


if __name__ == "__main__":
    main()
