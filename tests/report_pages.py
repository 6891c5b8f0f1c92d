"""Reports made without Spark: real photographs, made-up figures, and texts that would do harm if they were markup."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common.report import Report, gallery
from jobs.common.storage import Access
from jobs.common.thumbnails import CAPTIONED, thumbnail_batches

DEV = Path(__file__).parents[2] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"
HARM = "</script><img src=x onerror='document.title=1'><b>dog</b> {{ 7 * 7 }} &amp;"
WORDS = ["a", HARM, "dog", "man", "in", "the", "on", "runs", "grass"]
METRICS = ["bleu_1", "bleu_4", "cider"]
CELLS = 49


def thumbnails(n: int, size: int = 192) -> list[dict[str, Any]]:
    """Of `n` of the dev photographs, with their references."""
    table = pq.read_table(DEV).slice(0, n)
    rows = [
        {"image_id": row["image_id"], "content": row["content"], "caption": row["captions"][0]}
        for row in table.to_pylist()
    ]
    [made] = thumbnail_batches([pa.RecordBatch.from_pylist(rows, CAPTIONED)], size, access=Access())
    references = table["captions"].to_pylist()
    return [{**seen, "references": texts} for seen, texts in zip(made.to_pylist(), references, strict=True)]


def page_of(n: int, photographs: int = 40, seed: int = 0) -> Report:
    """A report of `n` images: every tenth failed, every second of the others has attention, the second is hostile."""
    rng = random.Random(seed)
    seen = thumbnails(min(n, photographs))
    rows, pictures = [], {}
    for number in range(n):
        picture = seen[number % len(seen)]
        failed = number % 10 == 9
        caption = HARM if number == 1 else f"a dog number {number} runs"
        scores = {name: None if failed else rng.uniform(0, 100) for name in METRICS}
        rows.append({
            "image_id": HARM if number == 1 else f"photo-{number:05}.jpg",
            "caption": None if failed else caption,
            "status": "decode_error" if failed else "ok",
            "error_message": HARM if failed else None,
            "captions": [HARM] if number == 1 else picture["references"],
            "log_prob": None if failed else -rng.uniform(1, 20),
            **scores,
        })  # fmt: skip
        attended = {"words": caption.split(), "attention": rng.randbytes(CELLS * len(caption.split()))}
        if not failed:
            pictures[rows[-1]["image_id"]] = picture | (attended if number % 2 == 0 else {"words": None})
    return Report(
        location="out/captions",
        model_id="0123456789abcdef",
        decode_id="fedcba9876543210",
        counts={"ok": n - n // 10, "decode_error": n // 10},
        language={"n_words": 812, "n_captions": n // 2, "mean_length": 9.4},
        lengths=[(float(words), 1 + (words - 4) * (16 - words)) for words in range(5, 16)],
        words=[
            (word, 900 - 40 * rank)
            for rank, word in enumerate(["a", HARM, *["dog\x01", "man", "in", "the", "on", "runs", "grass"]])
        ],
        repeated=[("a dog runs", 31), (HARM, 2)],
        failures=[
            {
                "status": "decode_error",
                "count": n // 10,
                "examples": [{"image_id": None, "error_message": HARM}, {"image_id": HARM, "error_message": None}],
            }
        ],
        runs=[_run(n, HARM)],  # type: ignore[list-item]
        models=[_scores(name, start) for name, start in (("this model", 30.0), ("76543210, decoding fedcba98", 27.5))],
        metrics=METRICS,
        histograms=[("cider", 15.0, [(15.0 * at, 30 + 7 * at) for at in range(20)])],
        images=gallery(rows, pictures, METRICS),  # type: ignore[arg-type]
    )


def _run(n: int, source: str) -> dict[str, Any]:
    return {
        "run_id": "5f" * 16,
        "started_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "seconds": 71.5,
        "n_images": n,
        "images_per_second": 28.0,
        "counts": {"ok": n - n // 10, "decode_error": n // 10},
        "source": source,
    }


def _scores(name: str, start: float) -> dict[str, Any]:
    scores = {
        metric: {"metric": metric, "score": start + at, "ci_low": start + at - 1.5, "ci_high": start + at + 1.25}
        for at, metric in enumerate(METRICS)
    }
    return {"name": name, "n_segments": 900, "n_missing": 100, "scores": scores}
