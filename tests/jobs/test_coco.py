"""The score tables equal what COCO's own code gives for the same captions, its tokeniser in Java included."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from pyspark.sql import SparkSession

from jobs.common import scores
from nic_model.captioner import Caption, Captioner

ROOT = Path(__file__).parents[2]
DEV = ROOT.parent / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")

Row = tuple[str, str, list[str]]  # image_id, caption, references


def model_captions() -> list[Row]:
    """What the model that ships says of the 1,000 dev images."""
    rows = pq.read_table(DEV, columns=["image_id", "content", "captions"]).to_pylist()
    captioner = Captioner.load(ROOT / "models" / "attention")
    found = captioner.caption([row["content"] for row in rows])
    assert all(isinstance(caption, Caption) for caption in found)
    return [(row["image_id"], caption.text, row["captions"]) for row, caption in zip(rows, found, strict=True)]


def human_captions() -> list[Row]:
    """Each of the 5,000 references of the dev images against the other four of its image."""
    rows = pq.read_table(DEV, columns=["image_id", "captions"]).to_pylist()
    return [
        (f"{row['image_id']}#{at}", text, row["captions"][:at] + row["captions"][at + 1 :])
        for row in rows
        for at, text in enumerate(row["captions"])
    ]


def coco(rows: list[Row]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of the corpus by metric, and of segments by metric and image; 0 to 100, CIDEr to 1000."""
    tokenize = PTBTokenizer().tokenize
    given = tokenize({image: [{"caption": text} for text in texts] for image, _, texts in rows})
    found = tokenize({image: [{"caption": caption}] for image, caption, _ in rows})
    bleu, by_order = Bleu(4).compute_score(given, found, verbose=0)
    (rouge, rouges), (cider, ciders) = (metric.compute_score(given, found) for metric in (Rouge(), Cider()))
    corpus = dict(zip(METRICS, (*bleu, rouge, cider), strict=True))
    columns = dict(zip(METRICS, (*by_order, rouges, ciders), strict=True))
    return (
        {metric: 100 * score for metric, score in corpus.items()},
        {metric: dict(zip(given, (100 * v for v in values), strict=True)) for metric, values in columns.items()},
    )


@pytest.mark.parametrize(("make", "size"), [(model_captions, 1_000), (human_captions, 5_000)])
def test_tables_equal_coco(spark: SparkSession, tmp_path: Path, make: Callable[[], list[Row]], size: int) -> None:
    rows = make()
    assert len(rows) == size
    ids, captions, references = zip(*rows, strict=True)
    same = {name: [value] * size for name, value in (("status", "ok"), ("model_id", "m"), ("decode_id", "d"))}
    pq.write_table(pa.table({"image_id": ids, "caption": captions, **same}), tmp_path / "captions.parquet")
    pq.write_table(pa.table({"image_id": ids, "captions": references}), tmp_path / "references.parquet")
    paths = [str(tmp_path / name) for name in ("captions.parquet", "references.parquet", "scores")]
    (score,) = scores.evaluate(spark, *paths, run_id="run")
    expected, by_segment = coco(rows)
    assert {metric: of.score for metric, of in score.scores.items()} == pytest.approx(expected, abs=1e-6)
    segments = pq.read_table(tmp_path / "scores" / "segments").to_pylist()
    assert len(segments) == size
    for metric in METRICS:
        ours = {row["image_id"]: row[metric] for row in segments}
        assert ours == pytest.approx(by_segment[metric], abs=1e-6)
