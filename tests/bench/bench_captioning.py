"""Images per second of the job, beside what this machine allows and beside the usual recipes.

    .venv/bin/python tests/bench/bench_captioning.py --images '../shared/flickr8k/train-*.parquet'

Captions the same images, made by repetition where there are too few, in one process and in local Spark on all cores,
part after part, round after round, and prints the best round of each:

    search      already decoded pixels to captions, one process, all cores
    decode      encoded images to pixels, one process, a thread a core
    job         what jobs/caption_images.py does with a Parquet file, start-up told apart, without writing
    pandas_udf  an iterator pandas UDF: Pillow, then the same model and search in eager PyTorch
    predict     predict_batch_udf likewise

The last two compute what the job computes, and time their start-up apart likewise.

    .venv/bin/python tests/bench/bench_captioning.py --images '../shared/flickr8k/dev-*.parquet' --rows 1000 --agreement

counts instead how many captions are those of eager fp32 PyTorch on plainly decoded images, and scores both.
"""

import argparse
import glob
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pyspark import TaskContext
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}  # of the Python workers

from jobs.caption_images import caption_dataframe  # noqa: E402
from jobs.common.session import build_session  # noqa: E402
from jobs.common.sources import spread  # noqa: E402
from nic_model.captioner import Captioner  # noqa: E402
from nic_model.checkpoint import ModelFiles  # noqa: E402
from nic_model.config import DecodeConfig  # noqa: E402
from nic_model.images import decode  # noqa: E402
from nic_model.metrics.bleu import corpus_bleu  # noqa: E402
from nic_model.metrics.tokenizer import tokenize  # noqa: E402

DECODING = DecodeConfig(beam_size=3)
_captioners: dict[str, Captioner] = {}  # of a Python worker, as careful users keep them


def eager(model: Path, threads: int) -> Captioner:
    torch.set_num_threads(threads)
    if not _captioners:
        _captioners["eager"] = Captioner.load(model, decode_config=DECODING, device="cpu", engine="pytorch")
    return _captioners["eager"]


def plainly_decoded(content: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def captions_of(captioner: Captioner, contents: Iterable[bytes], size: int) -> list[str]:
    pixels = np.stack([plainly_decoded(content, size) for content in contents])
    return [captioner._text(best) for best, *_ in captioner.search(torch.from_numpy(pixels))]


def with_pandas_udf(model: Path, size: int, batch: int) -> Column:
    def caption(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        captioner = eager(model, TaskContext.get().cpus())
        for contents in batches:
            pieces = [contents[at : at + batch] for at in range(0, len(contents), batch)]
            yield pd.Series([text for piece in pieces for text in captions_of(captioner, piece, size)])

    # Told by name: pandas_udf would read the hints, which are those of this module.
    caption.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    return F.pandas_udf(caption, T.StringType())(F.col("content"))


def with_predict_batch_udf(model: Path, size: int, batch: int) -> Column:
    def make() -> Callable[[np.ndarray], np.ndarray]:
        captioner = eager(model, TaskContext.get().cpus())
        return lambda contents: np.array(captions_of(captioner, contents, size))

    return predict_batch_udf(make, return_type=T.StringType(), batch_size=batch)(F.col("content"))


def write_images(files: list[str], rows: int, path: Path) -> list[bytes]:
    """A Parquet file of `rows` images, in groups small enough for Spark to share them out."""
    contents = [
        content for file in files for content in pq.read_table(file, columns=["content"])["content"].to_pylist()
    ]
    contents = [contents[number % len(contents)] for number in range(rows)]
    ids = [f"{number:07}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"image_id": ids, "content": contents}), path, row_group_size=250)
    return contents


def seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def execute(frame: DataFrame) -> None:
    frame.write.format("noop").mode("overwrite").save()


def parts(options: argparse.Namespace, spark: SparkSession, folder: Path) -> dict[str, Callable[[str], object]]:
    """What to time, each to be called with the name of a Parquet file."""
    model = ModelFiles.read(options.model)
    size, cores = model.settings()[0].image_size, os.cpu_count() or 1
    torch.set_num_threads(cores)
    captioner = Captioner(model, DECODING, "cpu", options.precision, options.batch_size)

    def decode_all(name: str) -> np.ndarray:
        contents = pq.read_table(folder / name, columns=["content"])["content"].to_pylist()
        with ThreadPoolExecutor(cores) as pool:
            return np.stack(list(pool.map(lambda content: decode(content, size).rgb, contents)))

    pixels = {name: torch.from_numpy(decode_all(name)) for name in ("few", "all")}

    def job(name: str) -> None:
        images = spread(spark.read.parquet(str(folder / name)))
        means = {"device": "cpu", "precision": options.precision, "batch_size": options.batch_size}
        execute(caption_dataframe(images, str(options.model), **means, **DECODING.to_dict()))

    def recipe(make: Callable[[Path, int, int], Column]) -> Callable[[str], object]:
        caption = make(options.model, size, options.batch_size).alias("caption")
        return lambda name: execute(spark.read.parquet(str(folder / name)).select("image_id", caption))

    return {
        "search": lambda name: [captioner.search(batch) for batch in pixels[name].split(options.batch_size)],
        "decode": decode_all,
        "job": job,
        "pandas_udf": recipe(with_pandas_udf),
        "predict": recipe(with_predict_batch_udf),
    }


def agreement(options: argparse.Namespace, files: list[str]) -> None:
    """Prints, for each precision, the share of captions equal to the recipe's, and BLEU-4 of both."""
    rows = [row for file in files for row in pq.read_table(file, columns=["content", "captions"]).to_pylist()]
    rows = rows[: options.rows]
    tokenised = [[tokenize(text) for text in row["captions"]] for row in rows]

    def bleu_4(texts: list[str]) -> float:
        return corpus_bleu([tokenize(text) for text in texts], tokenised)[3]

    torch.set_num_threads(os.cpu_count() or 1)
    contents = [row["content"] for row in rows]
    plain = eager(options.model, torch.get_num_threads())
    size, step = ModelFiles.read(options.model).settings()[0].image_size, options.batch_size
    pieces = [contents[at : at + step] for at in range(0, len(contents), step)]
    right = [text for piece in pieces for text in captions_of(plain, piece, size)]
    print(f"{len(rows)} images, {options.model.name}, {DECODING}\neager fp32, Pillow: BLEU-4 {bleu_4(right):.2f}")
    for precision in ("fp32", "bf16"):
        captioner = Captioner.load(options.model, decode_config=DECODING, device="cpu", precision=precision)
        found = [getattr(result, "text", "") for result in captioner.caption(contents)]
        equal = sum(a == b for a, b in zip(found, right, strict=True)) / len(rows)
        print(f"{precision}: {equal:.1%} of the captions equal, BLEU-4 {bleu_4(found):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", nargs="+", required=True, help="Parquet files with `content`; globs")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--only", nargs="*", help="parts to run (default: all)")
    options = parser.parse_args()
    files = sorted(file for pattern in options.images for file in glob.glob(pattern))  # noqa: PTH207
    options.model = options.model.resolve()
    if options.agreement:
        agreement(options, files)
        return
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(files, options.rows, folder / "all")
        write_images(files, 4 * cores, folder / "few")
        settings = {"spark.ui.enabled": "false", "spark.sql.files.maxPartitionBytes": str(2 * 1024 * 1024)}
        builder = SparkSession.builder.master(f"local[{cores}]").config(map=settings)
        builder.config("spark.driver.memory", "2g").getOrCreate()
        spark = build_session("bench")
        every = parts(options, spark, folder)
        every = {name: work for name, work in every.items() if not options.only or name in options.only}
        starts = {name: seconds_of(lambda work=work: work("few")) for name, work in every.items()}
        best = dict.fromkeys(every, float("inf"))
        for _ in range(options.rounds):
            for name, work in every.items():
                best[name] = min(best[name], seconds_of(lambda work=work: work("all")))
        spark.stop()
    report(options, starts, best)


def report(options: argparse.Namespace, starts: dict[str, float], best: dict[str, float]) -> None:
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    print(f"{os.cpu_count()} cores, {processor.split(':')[-1].strip()}; load {os.getloadavg()[0]:.1f}")
    print(f"{options.rows} images, {options.model.name}, precision {options.precision}, {DECODING}")
    print(f"{'':12}{'images/s':>10}{'start-up s':>12}")
    for name, seconds in best.items():
        print(f"{name:12}{options.rows / seconds:10.1f}{starts[name]:12.1f}")
    if {"search", "decode", "job"} <= best.keys():
        print(f"job / (search and decode in turn) {(best['search'] + best['decode']) / best['job']:.2f}")
    recipes = [best[name] for name in ("pandas_udf", "predict") if name in best]
    if recipes and "job" in best:
        print(f"job / better recipe {min(recipes) / best['job']:.2f}")


if __name__ == "__main__":
    main()
