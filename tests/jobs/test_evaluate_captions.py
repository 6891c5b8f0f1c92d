"""Captions tables become score tables: COCO's figures, whatever the partitions, and nobody dropped in silence."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs import evaluate_captions
from jobs.common import scores, tables
from jobs.common.session import exit_status
from nic_model.metrics.bleu import corpus_bleu, segment_counts, signature
from nic_model.metrics.tokenizer import tokenize

DEV = Path(__file__).parents[3] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"

# image_id, caption, status; every one by model m1 and decoding d1 unless a test says otherwise.
CAPTIONS = [
    ("a.jpg", "A dog runs on the grass .", "ok"),
    ("b.jpg", "A man", "ok"),
    ("c.jpg", None, "decode_error"),
    ("d.jpg", "Two girls dance in the rain .", "ok"),
    (None, None, "invalid_id"),
    (None, None, "invalid_id"),
]
REFERENCES = [
    ("a.jpg", ["A dog runs over the grass .", "Dog on grass"]),
    ("b.jpg", ["A man climbs", None]),
    ("c.jpg", ["A cat"]),
    ("e.jpg", ["A horse", "A brown horse"]),
    ("f.jpg", []),
    ("g.jpg", None),
]


def captions_table(
    spark: SparkSession, rows: Sequence[tuple[str | None, str | None, str]], model: str = "m1", decode: str = "d1"
) -> DataFrame:
    full = [{"image_id": i, "caption": c, "status": s, "model_id": model, "decode_id": decode} for i, c, s in rows]
    return spark.createDataFrame(full, tables.CAPTIONS)


def write(spark: SparkSession, folder: Path, captions: DataFrame | None = None, references: object = None) -> list[str]:
    """The job's arguments, for tables with these rows."""
    here, there = str(folder / "captions"), str(folder / "references")
    (captions if captions is not None else captions_table(spark, CAPTIONS)).write.parquet(here)
    rows = REFERENCES if references is None else references
    spark.createDataFrame(rows, tables.REFERENCES).write.parquet(there)
    return ["--captions", here, "--references", there, "--scores", str(folder / "scores")]


def read(spark: SparkSession, folder: Path, name: str) -> list[Row]:
    table = spark.read.parquet(str(folder / "scores" / name))
    assert table.schema.simpleString() == getattr(tables, name.upper()).simpleString()
    return table.collect()


@pytest.fixture(scope="module")
def dev() -> dict[str, list[str]]:
    table = pq.read_table(DEV, columns=["image_id", "captions"])
    return dict(zip(table["image_id"].to_pylist(), table["captions"].to_pylist(), strict=True))


def test_count_segments_needs_no_spark() -> None:
    schema = pa.schema([*((n, pa.string()) for n in scores.PAIRS.names[:4]), ("captions", pa.list_(pa.string()))])
    rows = [
        ("a", "m", "d", "A dog .", ["A dog", None, "dogs"]),
        ("b", "m", "d", None, ["A dog"]),
        ("c", "m", "d", "A dog", None),
        ("d", "m", "d", "A dog", []),
        ("e", "m", "d", "", ["A dog"]),
    ]
    named = [dict(zip(schema.names, row, strict=True)) for row in rows]
    batches = [pa.RecordBatch.from_pylist(part, schema) for part in (named[:2], [], named[2:])]
    counted = list(scores.count_segments(batches))
    assert [batch.num_rows for batch in counted] == [2, 0, 3]
    found = {row["image_id"]: row for batch in counted for row in batch.to_pylist()}
    assert [found[i]["missing"] for i in "abcde"] == [None, "caption", "references", "references", None]
    assert [found[i]["n_references"] for i in "abcde"] == [2, 1, 0, 0, 1]
    assert found["a"]["bleu_counts"] == segment_counts(["a", "dog"], [["a", "dog"], ["dogs"]]).tolist()
    assert found["a"]["bleu_1"] == pytest.approx(100)
    assert found["b"]["bleu_counts"] is None
    assert found["b"]["bleu_4"] is None
    assert found["e"]["bleu_1"] == 0


def test_tables(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_captions.main(write(spark, tmp_path)) == 0
    segments = {row["image_id"]: row for row in read(spark, tmp_path, "segments")}
    assert {image: row["missing"] for image, row in segments.items()} == {
        "a.jpg": None,
        "b.jpg": None,
        "c.jpg": "caption",  # captioning it failed
        "d.jpg": "references",
        "e.jpg": "caption",
        "f.jpg": "caption",
        "g.jpg": "caption",
    }
    assert segments["b.jpg"]["n_references"] == 1
    assert all((row["bleu_4"] is None) == (row["missing"] is not None) for row in segments.values())
    assert {(row["model_id"], row["decode_id"]) for row in segments.values()} == {("m1", "d1")}

    expected = corpus_bleu(
        [tokenize("A dog runs on the grass ."), tokenize("A man")],
        [[tokenize(text) for text in ("A dog runs over the grass .", "Dog on grass")], [tokenize("A man climbs")]],
    )
    corpus = sorted(read(spark, tmp_path, "corpus"), key=lambda row: row["metric"])
    assert [row["metric"] for row in corpus] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    assert [row["score"] for row in corpus] == pytest.approx(expected, abs=1e-12)
    for row in corpus:
        assert (row["n_segments"], row["n_missing"], row["ci_low"], row["ci_high"]) == (2, 5, None, None)
        assert (row["signature"], row["run_id"]) == (signature(), segments["a.jpg"]["run_id"])
    (run,) = spark.read.parquet(str(tmp_path / "captions_runs")).collect()
    assert (run["job"], run["n_images"], run["counts"]) == ("evaluate_captions", 7, {"ok": 2, "missing": 5})
    assert f"BLEU-4 {expected[3]:.1f}" in capsys.readouterr().out


def test_flickr8k(spark: SparkSession, tmp_path: Path, dev: dict[str, list[str]]) -> None:
    """One human caption of each image against the other four, in any order and any partitions."""
    captions = captions_table(spark, [(image, texts[0], "ok") for image, texts in dev.items()])
    references = spark.createDataFrame([(image, texts[1:]) for image, texts in dev.items()], tables.REFERENCES)
    expected = corpus_bleu(
        [tokenize(texts[0]) for texts in dev.values()], [[tokenize(t) for t in texts[1:]] for texts in dev.values()]
    )
    assert expected == pytest.approx((62.8, 44.3, 30.7, 21.2), abs=0.05)
    for partitions in (1, 7):
        pairs = scores.pair(captions.repartition(partitions), references.orderBy(F.rand(partitions)))
        segments = pairs.mapInArrow(scores.count_segments, scores.COUNTED)
        (score,) = scores.score_segments(segments.repartition(partitions))
        assert tuple(score.scores.values()) == expected
        assert (score.n_segments, score.n_missing) == (1000, 0)


def test_each_model_and_decoding_by_itself(spark: SparkSession, tmp_path: Path) -> None:
    """The second model captioned one image less, and everything of the third failed."""
    tables_of_models = [
        captions_table(spark, [("a.jpg", "A dog", "ok"), ("b.jpg", "A man", "ok")], "m1", "d1"),
        captions_table(spark, [("a.jpg", "A dog", "ok")], "m1", "d2"),
        captions_table(spark, [("a.jpg", None, "fetch_error")], "m2", "d1"),
    ]
    captions = tables_of_models[0].unionByName(tables_of_models[1]).unionByName(tables_of_models[2])
    arguments = write(spark, tmp_path, captions, [("a.jpg", ["A dog"]), ("b.jpg", ["A man runs"])])
    assert evaluate_captions.main(arguments) == 0
    corpus = [row for row in read(spark, tmp_path, "corpus") if row["metric"] == "bleu_1"]
    found = {(r["model_id"], r["decode_id"]): (r["n_segments"], r["n_missing"]) for r in corpus}
    assert found == {("m1", "d1"): (2, 0), ("m1", "d2"): (1, 1), ("m2", "d1"): (0, 2)}
    assert {r["model_id"] for r in corpus if r["score"] is None} == {"m2"}
    assert len(read(spark, tmp_path, "segments")) == 6


def test_catalog_tables(spark: SparkSession) -> None:
    spark.sql("CREATE DATABASE IF NOT EXISTS gallery")
    captions_table(spark, CAPTIONS).write.mode("overwrite").saveAsTable("gallery.captions")
    spark.createDataFrame(REFERENCES, tables.REFERENCES).write.mode("overwrite").saveAsTable("gallery.refs")
    arguments = ["--captions", "gallery.captions", "--references", "gallery.refs", "--scores", "gallery.scores"]
    for _ in range(2):  # the second run replaces the scores, and adds to the runs
        assert evaluate_captions.main(arguments) == 0
    assert spark.read.table("gallery.scores_segments").count() == 7
    assert spark.read.table("gallery.scores_corpus").count() == 4
    assert spark.read.table("gallery.captions_runs").count() == 2


A, B = ("a", "A dog", "ok"), ("b", "A man", "ok")
BAD = [
    ([A, A], [("a", ["x"])], "image_id a is there 2 times"),
    ([A, B], [("b", ["x"]), ("b", ["y"])], "image_id b is there 2 times"),
    ([("dir/a.jpg", "A dog", "ok")], [("a", ["x"])], "'dir/a.jpg' in the one, 'a' in the other"),
    ([("a", None, "decode_error")], [("a", ["x"])], "no row with a caption"),
    ([A], [("a", []), ("b", None)], "no row with references"),
    ([A], [], "no row with references"),
    ([], [("a", ["x"])], "no row with a caption"),
]


@pytest.mark.parametrize(("captions", "references", "said"), BAD)
def test_bad_rows(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str], captions: list, references: list, said: str
) -> None:
    arguments = write(spark, tmp_path, captions_table(spark, captions), references)
    assert_refused(arguments, said, capsys)
    assert not (tmp_path / "scores").exists()


def test_bad_tables(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(spark, tmp_path)
    names = spark.createDataFrame([("a.jpg", "A dog")], "image_id string, captions string")
    names.write.parquet(str(tmp_path / "text"))
    said = "captions must be array<string>, is string"
    assert_refused([*arguments[:3], str(tmp_path / "text"), *arguments[4:]], said, capsys)
    assert_refused([*arguments[:3], str(tmp_path / "nowhere"), *arguments[4:]], "no such file or folder", capsys)
    assert_refused(["--captions", arguments[3], *arguments[2:]], "model_id must be string, is missing", capsys)
    (tmp_path / "scores" / "segments").mkdir(parents=True)
    (tmp_path / "scores" / "segments" / "thesis.pdf").touch()
    assert_refused(arguments, "holds thesis.pdf", capsys)


def assert_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says why, and status 2."""
    assert exit_status(lambda: evaluate_captions.main(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_counts_do_not_depend_on_order(spark: SparkSession) -> None:
    rng = random.Random(0)
    words = "a dog cat man runs sits on the grass sofa red".split()  # noqa: SIM905
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(60)]
    captions = captions_table(spark, [(str(i), texts[i], "ok") for i in range(60)])
    forwards = spark.createDataFrame([(str(i), texts[i:] + texts[:i]) for i in range(60)], tables.REFERENCES)
    backwards = spark.createDataFrame([(str(i), texts[i::-1] + texts[:i:-1]) for i in range(60)], tables.REFERENCES)
    found = [
        scores.score_segments(scores.pair(captions, references).mapInArrow(scores.count_segments, scores.COUNTED))
        for references in (forwards, backwards)
    ]
    assert found[0] == found[1]
