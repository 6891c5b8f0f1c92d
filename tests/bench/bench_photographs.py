"""Photographs as cameras make them: the job on a folder of files of 12 megapixels, beside plain decoding.

    .venv/bin/python tests/bench/bench_photographs.py --images samples/images/*.jpg --rows 300

Enlarges the images to 4000 x 3000 pixels with a sensor's noise, without which the files would be small, and writes as
many files as --rows by repetition. Prints images per second of the job, from the folder to a committed table and
start-up told apart; of the usual recipe, an iterator pandas UDF that decodes whole images by Pillow and runs the model
in eager PyTorch, likewise from the folder to a table; of decoding alone, a thread a core, as the job does it and by
Pillow; and how many captions are those of the whole images.
"""

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bench_captioning import CORES, ROOT, machine, run_job, seconds_of, start_spark
from PIL import Image

from nic_model.captioner import Captioner
from nic_model.images import decode
from nic_model.model_files import ModelFiles
from tests.bench.recipes import DECODING, How, captions_of, eager, plainly_decoded, with_pandas_udf

WIDTH, HEIGHT = 4000, 3000


def make(images: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH, 3)).astype(np.int16)
    for number, file in enumerate(images):
        large = Image.open(file).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        noisy = np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05}.jpg", quality=90)
    return sorted(folder.iterdir())


def repeat(made: list[Path], rows: int, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(rows):
        os.link(made[number % len(made)], folder / f"{number:05}.jpg")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="files of images")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=0, help="of the job (default: its own)")
    options = parser.parse_args()
    options.model = options.model.resolve()
    size = ModelFiles.read(options.model).settings()[0].image_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = make(options.images, folder / "made")
        few, every = repeat(made, 8 * CORES, folder / "few"), repeat(made, options.rows, folder / "all")
        contents = [file.read_bytes() for file in made]

        def decoding(decode_one: object) -> float:
            some = [contents[number % len(contents)] for number in range(24 * CORES)]
            with ThreadPoolExecutor(CORES) as pool:
                return len(some) / seconds_of(lambda: list(pool.map(decode_one, some)))  # type: ignore[arg-type]

        spark = start_spark()
        caption = with_pandas_udf(options.model, 32, How()).alias("caption")

        def recipe(files: Path) -> None:
            rows = spark.read.format("binaryFile").load(str(files))
            rows.select("path", caption).write.parquet(str(folder / "recipe"), mode="overwrite")

        def job(files: Path) -> None:
            run_job(spark, options, files, folder)

        started = seconds_of(lambda: job(few))
        job_rate = options.rows / seconds_of(lambda: job(every))
        recipe(few)
        recipe_rate = options.rows / seconds_of(lambda: recipe(every))
        spark.stop()
        plain = decoding(lambda content: plainly_decoded(content, size))
        ours = decoding(lambda content: decode(content, size))
    torch.set_num_threads(CORES)
    captioner = Captioner.load(options.model, decode_config=DECODING, device="cpu", precision=options.precision)
    found = [getattr(result, "text", "") for result in captioner.caption(contents)]
    equal = sum(a == b for a, b in zip(found, captions_of(eager(options.model, CORES), contents), strict=True))
    print(machine())
    print(f"{options.rows} files of {WIDTH} x {HEIGHT}, {sum(map(len, contents)) / len(contents) / 1e6:.1f} MB each")
    print(f"job, end to end: {job_rate:.1f} images/s, start-up {started:.1f} s; the recipe: {recipe_rate:.1f} images/s")
    print(f"decoding alone, all cores: {ours:.1f} images/s; Pillow, whole images: {plain:.1f}")
    print(f"job / recipe: {job_rate / recipe_rate:.2f}; job / decoding by Pillow alone: {job_rate / plain:.2f}")
    print(f"{equal} of {len(contents)} captions are those of the whole images")


if __name__ == "__main__":
    main()
