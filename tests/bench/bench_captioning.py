"""Images per second of the job, beside what this machine allows and beside the usual recipes.

    .venv/bin/python tests/bench/bench_captioning.py --images 'flickr8k/train-*.parquet'

Captions the same images, made by repetition where there are too few, in one process and in local Spark on all cores,
part after part, round after round, and prints the best round of each:

    search      already decoded pixels to captions, one process, a captioner for each core
    decode      encoded images to pixels, one process, a thread a core
    job         jobs/caption_images.py from a Parquet file to a committed table, start-up told apart
    pandas_udf  an iterator pandas UDF: Pillow, then the same model in eager PyTorch and a plain beam search
    predict     predict_batch_udf likewise
    *_search    the same two with this project's search
    *_bf16      with this, and bf16, which changes captions, where the processor has it

The recipes compute what the job computes, on the first --recipe-rows of the images, and time their start-up apart too.

    .venv/bin/python tests/bench/bench_captioning.py --images 'flickr8k/dev-*.parquet' --rows 1000 --agreement

counts instead how many captions are those of eager fp32 PyTorch on plainly decoded images, and scores both.
"""

import argparse
import glob
import logging
import os
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.sql import Column, SparkSession

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# Python workers find the code, and Spark the settings that spark-submit.sh gives it.
os.environ |= {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "SPARK_CONF_DIR": str(ROOT / "infra")}

from jobs import caption_images  # noqa: E402
from jobs.common.logs import Logging  # noqa: E402
from jobs.common.outcome import Outcome  # noqa: E402
from jobs.common.session import build_session  # noqa: E402
from jobs.common.sources import IMAGES_PER_TASK  # noqa: E402
from nic_model.captioner import Captioner  # noqa: E402
from nic_model.images import decode  # noqa: E402
from nic_model.metrics.bleu import corpus_bleu  # noqa: E402
from nic_model.metrics.tokenizer import tokenize  # noqa: E402
from nic_model.model_files import ModelFiles  # noqa: E402
from tests.bench.recipes import (  # noqa: E402
    DECODING,
    How,
    captions_of,
    eager,
    with_pandas_udf,
    with_predict_batch_udf,
)

CORES = os.cpu_count() or 1
FEW = IMAGES_PER_TASK * CORES  # images that start Python workers and load models


def write_images(files: list[str], rows: int, path: Path) -> None:
    """A Parquet file of `rows` images, in groups small enough for Spark to share them out."""
    contents = [
        content for file in files for content in pq.read_table(file, columns=["content"])["content"].to_pylist()
    ]
    schema = pa.schema([("image_id", pa.string()), ("content", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, 250):
            numbers = range(first, min(first + 250, rows))
            group = [[f"{n:07}.jpg" for n in numbers], [contents[n % len(contents)] for n in numbers]]
            writer.write_table(pa.table(group, schema=schema))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def run_job(spark: SparkSession, options: argparse.Namespace, images: Path, folder: Path) -> None:
    """What jobs/caption_images.py does once Spark has started, from listing to the commit of a table in `folder`."""
    captions = folder / f"captions-{uuid.uuid4().hex}"
    arguments = ["--images", str(images), "--captions", str(captions), "--device", "cpu"]
    arguments += ["--model", str(options.model), "--precision", options.precision]
    for name, value in DECODING.to_dict().items():  # not what the model says, or it would search otherwise than recipes
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    if options.batch_size:
        arguments += ["--batch-size", str(options.batch_size)]
    job = caption_images.check(caption_images.parse_args(arguments))
    outcome = Outcome()
    caption_images.run(spark, job, Logging(level=logging.WARNING), outcome)
    assert set(outcome.counts) == {"ok"}, outcome.counts


def parts(options: argparse.Namespace, spark: SparkSession, folder: Path) -> dict[str, Callable[[str], object]]:
    """What to time, each to be called with the name of a Parquet file."""
    model = ModelFiles.read(options.model)
    size = model.settings()[0].image_size
    torch.set_num_threads(1)
    given = {"batch_size": options.batch_size} if options.batch_size else {}
    captioners = [Captioner(model, DECODING, "cpu", options.precision, **given) for _ in range(CORES)]

    def decoded(name: str) -> Iterator[torch.Tensor]:
        contents = pq.read_table(folder / name, columns=["content"])["content"].to_pylist()
        step = CORES * captioners[0].batch_size

        def pixels_of(content: bytes) -> torch.Tensor:
            return torch.as_tensor(decode(content, size).rgb)

        with ThreadPoolExecutor(CORES) as pool:
            for at in range(0, len(contents), step):
                yield torch.stack(list(pool.map(pixels_of, contents[at : at + step])))

    def search_all(name: str) -> None:
        idle = SimpleQueue[Captioner]()
        for captioner in captioners:
            idle.put(captioner)

        def search(batch: torch.Tensor) -> None:
            captioner = idle.get()
            captioner.search(batch)
            idle.put(captioner)

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(search, pixels[name].split(captioners[0].batch_size)))

    pixels = {name: torch.cat(list(decoded(name))) for name in ("few.parquet", "all.parquet")}

    def recipe(make: Callable[..., Column], how: How) -> Callable[[str], object]:
        caption = make(options.model, options.recipe_batch_size, how).alias("caption")

        def run(name: str) -> None:
            rows = spark.read.parquet(str(folder / name.replace("all", "some"))).repartition(4 * CORES)
            rows.select("image_id", caption).write.parquet(str(folder / "recipe"), mode="overwrite")

        return run

    return {
        "search": search_all,
        "decode": lambda name: deque(decoded(name), maxlen=0),
        "job": lambda name: run_job(spark, options, folder / name, folder),
        "pandas_udf": recipe(with_pandas_udf, How()),
        "predict": recipe(with_predict_batch_udf, How()),
        "pandas_udf_search": recipe(with_pandas_udf, How(our_search=True)),
        "predict_search": recipe(with_predict_batch_udf, How(our_search=True)),
        "pandas_udf_bf16": recipe(with_pandas_udf, How(bf16=True, our_search=True)),
        "predict_bf16": recipe(with_predict_batch_udf, How(bf16=True, our_search=True)),
    }


def agreement(options: argparse.Namespace, files: list[str]) -> None:
    """Prints, for each execution, the share of captions equal to the recipe's, and BLEU-4 of both."""
    rows = [row for file in files for row in pq.read_table(file, columns=["content", "captions"]).to_pylist()]
    rows = rows[: options.rows]
    tokenised = [[tokenize(text) for text in row["captions"]] for row in rows]

    def bleu_4(texts: list[str]) -> float:
        return corpus_bleu([tokenize(text) for text in texts], tokenised)[3]

    contents = [row["content"] for row in rows]
    plain = eager(options.model, CORES)
    pieces = [contents[at : at + 32] for at in range(0, len(contents), 32)]
    right = [text for piece in pieces for text in captions_of(plain, piece)]
    print(f"{len(rows)} images, {options.model.name}, {DECODING}\neager fp32, Pillow: BLEU-4 {bleu_4(right):.2f}")

    def compare(name: str, precision: str, batch_size: int, order: int = 1) -> None:
        captioner = Captioner.load(
            options.model, decode_config=DECODING, device="cpu", precision=precision, batch_size=batch_size
        )
        found = [getattr(result, "text", "") for result in captioner.caption(contents[::order])][::order]
        equal = sum(a == b for a, b in zip(found, right, strict=True)) / len(rows)
        print(f"{name}: {equal:.1%} of the captions equal, BLEU-4 {bleu_4(found):.2f}", flush=True)

    compare("fp32", "fp32", 32)
    compare("fp32, one image at a time", "fp32", 1)
    compare("fp32, 7 images at a time, from the last to the first", "fp32", 7, -1)
    compare("bf16", "bf16", 32)


def start_spark() -> SparkSession:
    settings = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    builder = SparkSession.builder.master(f"local[{CORES}]").config(map=settings)
    builder.config("spark.driver.memory", "2g").getOrCreate()
    return build_session("bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", nargs="+", required=True, help="Parquet files with `content`; globs")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--recipe-rows", type=int, default=0, help="of the recipes (default: all)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=0, help="of the job (default: its own)")
    parser.add_argument("--recipe-batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--only", nargs="*", help="parts to run (default: all that suit the processor)")
    options = parser.parse_args()
    files = sorted(file for pattern in options.images for file in glob.glob(pattern))  # noqa: PTH207
    options.model = options.model.resolve()
    if options.agreement:
        agreement(options, files)
        return
    options.recipe_rows = min(options.recipe_rows or options.rows, options.rows)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, rows in (("all", options.rows), ("some", options.recipe_rows), ("few", FEW)):
            write_images(files, rows, folder / f"{name}.parquet")
        spark = start_spark()
        every = parts(options, spark, folder)
        has_bf16 = "bf16" in Path("/proc/cpuinfo").read_text()  # without, those recipes take half an hour
        only = options.only or [name for name in every if has_bf16 or not name.endswith("_bf16")]
        every = {name: work for name, work in every.items() if name in only}
        starts, best = {}, dict.fromkeys(every, float("inf"))
        for _ in range(options.rounds):
            for name, work in every.items():
                # Before each: Spark ends Python workers that have had nothing to do for a minute.
                started = seconds_of(lambda work=work: work("few.parquet"))
                starts.setdefault(name, started)
                seconds = seconds_of(lambda work=work: work("all.parquet"))
                print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
                best[name] = min(best[name], seconds)
        spark.stop()
    report(options, starts, best)


def machine() -> str:
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    return f"{CORES} cores, {processor.split(':')[-1].strip()}; load {os.getloadavg()[0]:.1f}"


def report(options: argparse.Namespace, starts: dict[str, float], best: dict[str, float]) -> None:
    recipes = [name for name in best if name.startswith(("pandas_udf", "predict"))]
    rates = {name: (options.recipe_rows if name in recipes else options.rows) / best[name] for name in best}
    print(machine())
    print(f"{options.rows} images ({options.recipe_rows} of the recipes), {options.model.name},", end=" ")
    print(f"precision {options.precision}, {DECODING}")
    print(f"{'':16}{'images/s':>10}{'start-up s':>12}")
    for name, rate in rates.items():
        print(f"{name:16}{rate:10.1f}{starts[name]:12.1f}")
    if {"search", "decode", "job"} <= best.keys():
        allowed = 1 / (1 / rates["search"] + 1 / rates["decode"])
        print(f"search and decode in turn allow {allowed:.1f}; job / allowed {rates['job'] / allowed:.2f}")
    for ends, what in (("", ""), ("_search", " with this project's search"), ("_bf16", " with this and bf16")):
        of = [name for name in (f"pandas_udf{ends}", f"predict{ends}") if name in best]
        if of and "job" in best:
            better = max(of, key=lambda name: rates[name])
            print(f"job / better recipe{what}, {better}: {rates['job'] / rates[better]:.2f}")


if __name__ == "__main__":
    main()
