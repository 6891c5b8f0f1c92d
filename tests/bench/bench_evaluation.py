"""How fast captions are scored, beside COCO's own code on the same rows.

    .venv/bin/python tests/bench/bench_evaluation.py --data ../shared/flickr8k --rows 1000000

Makes a captions table and a references table, five references each, from Flickr8k by repetition with a word changed in
every text; evaluates them with and without CIDEr, intervals included, on two cores and 2 GiB of driver memory; then a
part of them (--beside) with this project and with pycocoevalcap, one after the other.
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

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

CHUNK = 50_000
ROW = tuple[str, str, list[str]]  # image_id, caption, references


def rows(data: Path) -> Iterator[ROW]:
    """Without end: the captions of Flickr8k, image after image, each time with other edits. The caption that is scored
    is one of the five before its own edit, so it is like its references, as a model's is."""
    tables = [pq.read_table(file, columns=["image_id", "captions"]) for file in sorted(data.glob("*.parquet"))]
    images = [row for table in tables for row in table.to_pylist()]
    words = sorted({word for row in images for text in row["captions"] for word in text.split()})
    rng = random.Random(0)

    def edited(text: str) -> str:
        parts = text.split()
        parts[rng.randrange(len(parts))] = rng.choice(words)
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


def evaluate(folder: Path, metrics: str) -> tuple[float, float, dict[str, float]]:
    """Seconds end to end, and without the start of Spark; and the scores."""
    command = [ROOT / "spark-submit.sh", "--master", "local[2]", "--driver-memory", "2g", "jobs/evaluate_captions.py"]
    command += ["--captions", folder / "captions", "--references", folder / "references", "--scores", folder / "scores"]
    environment = {**os.environ, "NIC_PYTHON": os.environ.get("NIC_PYTHON", sys.executable)}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--metrics", metrics], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stderr)
    corpus = pq.read_table(folder / "scores" / "corpus").to_pylist()
    return seconds, latest_run(folder), {row["metric"]: row["score"] for row in corpus}


def latest_run(folder: Path) -> float:
    """Seconds of the latest run."""
    runs = pq.read_table(f"{folder}/captions_runs", columns=["seconds", "started_at"])
    return max(runs.to_pylist(), key=lambda run: run["started_at"])["seconds"]


def evaluate_beside(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of pycocoevalcap in a process of its own, from tables to scores; and the scores."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, __file__, "--coco", folder], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - started
    pairs = (line.split("=") for line in done.stdout.splitlines() if line.startswith("score:"))
    return seconds, {name.removeprefix("score:"): float(value) for name, value in pairs}


def coco(folder: Path) -> None:
    """Prints COCO's scores of the tables in `folder`."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = pq.read_table(folder / "captions", columns=["image_id", "caption"]).to_pylist()
    references = pq.read_table(folder / "references").to_pylist()
    given = {row["image_id"]: [{"caption": text} for text in row["captions"]] for row in references}
    found = {row["image_id"]: [{"caption": row["caption"]}] for row in captions}
    tokenizer = PTBTokenizer()
    given, found = tokenizer.tokenize(given), tokenizer.tokenize(found)
    bleu, _ = Bleu(4).compute_score(given, found, verbose=0)
    rouge, _ = Rouge().compute_score(given, found)
    cider, _ = Cider().compute_score(given, found)
    for name, score in zip(
        ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"), (*bleu, rouge, cider), strict=True
    ):
        print(f"score:{name}={100 * float(score)!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of Flickr8k's Parquet files")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--beside", type=int, default=20_000, help="rows for both")
    parser.add_argument("--coco", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.coco:
        coco(options.coco)
        return
    with tempfile.TemporaryDirectory() as scratch:
        some, every = Path(scratch) / "some", Path(scratch) / "every"
        write(some, islice(rows(options.data), options.beside))
        ours, working, scores = evaluate(some, "bleu,rouge_l,cider")
        theirs, expected = evaluate_beside(some)
        print(f"{options.beside} rows, all metrics: {ours:.1f} s end to end, {working:.1f} s without Spark's start;"
              f" {options.beside / ours:.0f} rows/s")  # fmt: skip
        print(f"pycocoevalcap, without intervals: {theirs:.1f} s, {options.beside / theirs:.0f} rows/s")
        print(f"ratio {theirs / ours:.1f} end to end, {theirs / working:.1f} without Spark's start")
        print(f"largest difference of a score: {max(abs(scores[name] - expected[name]) for name in expected):.1e}")
        if not options.rows:
            return
        write(every, islice(rows(options.data), options.rows))
        for metrics in ("bleu,rouge_l", "cider", "bleu,rouge_l,cider"):
            seconds, working, _ = evaluate(every, metrics)
            print(f"{options.rows} rows, {metrics}: {seconds:.0f} s end to end, {working:.0f} s without Spark's start,"
                  f" {options.rows / seconds:.0f} rows/s")  # fmt: skip


if __name__ == "__main__":
    main()
