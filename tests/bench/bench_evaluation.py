"""How fast captions are scored, beside COCO's own code on the same rows.

    .venv/bin/python tests/bench/bench_evaluation.py --data flickr8k --rows 1000000

Makes captions tables and references tables, five references each, from Flickr8k by repetition with a word changed in
every text. Scores some rows (--beside) with this project, on two cores and 2 GiB of driver memory, and with
pycocoevalcap, one after the other, three times, each time other rows, and prints the shortest time of either; then
scores all with this project, without and with CIDEr (--metrics).

Both start from the same Parquet files and end with the scores, in a process that is running and has imported what it
needs. This one has scored as many other rows three times before it is timed, so that the JVM is warm; the first of
those times, and what starting Spark takes, are printed apart. This project's figures include its intervals and the
tables it writes, which pycocoevalcap does not have.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["SPARK_CONF_DIR"] = str(ROOT / "infra")  # as spark-submit.sh has it

from jobs.common import scores  # noqa: E402
from jobs.common.session import build_session  # noqa: E402

CHUNK = 50_000
WARMING = 3  # evaluations before those that are timed
ROUNDS = 3
ALL = "bleu,rouge_l,cider"
ROW = tuple[str, str, list[str]]  # image_id, caption, references


def rows(data: Path) -> Iterator[ROW]:
    """Without end: the captions of Flickr8k, image after image, each time with other edits. The caption that is scored
    is one of the five before its own edit, so it is like its references, as a model's is."""
    tables = [pq.read_table(file, columns=["image_id", "captions"]) for file in sorted(data.glob("*.parquet"))]
    images = [row for table in tables for row in table.to_pylist()]
    words = sorted({word for row in images for text in row["captions"] for word in text.split()})
    rng = random.Random(0)

    def edited(text: str) -> str:
        # Not the last word: where a line ends in "plan B." COCO's tokeniser looks at the next caption too.
        parts = text.split()
        parts[rng.randrange(max(1, len(parts) - 1))] = rng.choice(words)
        return " ".join(parts)

    turn = 0
    while True:
        for row in images:
            texts = row["captions"]
            yield f"{turn:04}/{row['image_id']}", edited(rng.choice(texts)), [edited(text) for text in texts]
        turn += 1


def write(folder: Path, every: Iterator[ROW]) -> None:
    """Tables of captions and references."""
    for name in ("captions", "references"):
        (folder / name).mkdir(parents=True)
    for part in range(sys.maxsize):
        chunk = list(islice(every, CHUNK))
        if not chunk:
            return
        ids, captions, references = zip(*chunk, strict=True)
        same = {name: [value] * len(ids) for name, value in (("status", "ok"), ("model_id", "m"), ("decode_id", "d"))}
        table = pa.table({"image_id": ids, "caption": captions, **same})
        pq.write_table(table, folder / "captions" / f"{part:03}.parquet")
        table = pa.table({"image_id": ids, "captions": references})
        pq.write_table(table, folder / "references" / f"{part:03}.parquet")


def evaluate(spark: SparkSession, folder: Path, metrics: str) -> tuple[float, dict[str, float]]:
    """Seconds from tables to tables, and the scores."""
    started = time.monotonic()
    paths = [str(folder / name) for name in ("captions", "references", "scores")]
    (score,) = scores.evaluate(spark, *paths, run_id="run", evaluation=scores.Evaluation(tuple(metrics.split(","))))
    return time.monotonic() - started, {metric: of.score or 0.0 for metric, of in score.scores.items()}


def session() -> SparkSession:
    """Two cores, and 2 GiB for the driver, which is the executor too."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = str(ROOT)
    local = SparkSession.builder.master("local[2]").config("spark.driver.memory", "2g")
    local.config("spark.ui.enabled", "false").getOrCreate()
    return build_session("bench_evaluation")


def evaluate_beside(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of pycocoevalcap, in a process of its own, from tables to scores; and the scores."""
    done = subprocess.run([sys.executable, __file__, "--coco", folder], stdout=subprocess.PIPE, text=True, check=True)
    pairs = (line.split("=") for line in done.stdout.splitlines() if line.startswith("coco:"))
    found = {name.removeprefix("coco:"): float(value) for name, value in pairs}
    return found.pop("seconds"), found


def coco(folder: Path) -> None:
    """Prints COCO's scores of the tables in `folder`, and how long it took to make them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    started = time.monotonic()
    captions = pq.read_table(folder / "captions", columns=["image_id", "caption"]).to_pylist()
    references = pq.read_table(folder / "references").to_pylist()
    given = {row["image_id"]: [{"caption": text} for text in row["captions"]] for row in references}
    made = {row["image_id"]: [{"caption": row["caption"]}] for row in captions}
    tokenizer = PTBTokenizer()
    given, made = tokenizer.tokenize(given), tokenizer.tokenize(made)
    bleu, _ = Bleu(4).compute_score(given, made, verbose=0)
    rouge, _ = Rouge().compute_score(given, made)
    cider, _ = Cider().compute_score(given, made)
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
    found = {name: 100 * float(score) for name, score in zip(names, (*bleu, rouge, cider), strict=True)}
    for name, value in {"seconds": time.monotonic() - started, **found}.items():
        print(f"coco:{name}={value!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of Flickr8k's Parquet files")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--beside", type=int, default=20_000, help="rows for both")
    parser.add_argument("--metrics", nargs="*", default=["bleu,rouge_l", ALL], help="of each run over all rows")
    parser.add_argument("--coco", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.coco:
        coco(options.coco)
        return
    started = time.monotonic()
    spark = session()
    starting = time.monotonic() - started
    with tempfile.TemporaryDirectory() as scratch:
        more, size = rows(options.data), options.beside
        folders = [Path(scratch) / str(number) for number in range(WARMING + ROUNDS)]
        for folder in folders:
            write(folder, islice(more, size))
        first, *_ = (evaluate(spark, folder, ALL)[0] for folder in folders[:WARMING])
        pairs = [(evaluate(spark, folder, ALL), evaluate_beside(folder)) for folder in folders[WARMING:]]
        ours, theirs = (min(seconds for seconds, _ in side) for side in zip(*pairs, strict=True))
        worst = max(abs(found[name] - expected[name]) for (_, found), (_, expected) in pairs for name in expected)
        print(
            f"{size} rows, all metrics, with intervals, from Parquet to tables: {ours:.1f} s, {size / ours:.0f} rows/s"
        )
        print(f"  the first in a session, the JVM cold: {first:.1f} s, and {starting:.1f} s for Spark to start")
        print(f"pycocoevalcap, without intervals, from the same Parquet: {theirs:.1f} s, {size / theirs:.0f} rows/s")
        print(f"  {theirs / ours:.1f} times as long; largest difference of a score {worst:.1e}")
        print("  each time:", ", ".join(f"{a:.1f} and {b:.1f} s" for (a, _), (b, _) in pairs), flush=True)
        if not options.rows:
            return
        every = Path(scratch) / "every"
        write(every, islice(rows(options.data), options.rows))
        for metrics in options.metrics:
            seconds, _ = evaluate(spark, every, metrics)
            print(f"{options.rows} rows, {metrics}, with intervals: {seconds:.0f} s,"
                  f" {options.rows / seconds:.0f} rows/s, {theirs / size * options.rows / seconds:.1f} times"
                  " pycocoevalcap's rate", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
