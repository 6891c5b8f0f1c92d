"""Captions tables become score tables: COCO's figures, whatever the partitions, and nobody dropped in silence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs import evaluate_captions
from jobs.common import documents, scores, segments, tables
from jobs.common.batches import unpack
from jobs.common.files import Folder, lease
from jobs.common.frequencies import collect_frequencies, read_frequencies, sum_frequencies, write_frequencies
from jobs.common.segments import CAPTION_LENGTH
from jobs.common.session import exit_status
from nic_model.metrics.bleu import corpus_bleu, segment_counts, signature
from nic_model.metrics.cider import cider, document_frequencies, reference_vectors
from nic_model.metrics.segments import KeyFrequencies
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


def test_executor_functions_need_no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, document frequencies, counts and sums, in batches of two images, none, and the rest. Of each image a
    second model's caption failed."""
    rows = [
        ("a", 1, ["A dog ."], ["A dog", None, "dogs"]),
        ("b", 1, [], ["A dog"]),
        ("c", 0, ["A dog"], None),
        ("d", 1, ["A dog"], []),
        ("e", 1, [""], ["A dog"]),
    ]
    named = [
        {"image_id": i, "image": ord(i), "n_listed": n, "slices": [("lang", "en")], "references": there}
        | {"captions": [*here, None], "model_ids": ["m"] * len(here) + ["n"], "decode_ids": ["d"] * (len(here) + 1)}
        for i, n, here, there in rows
    ]
    batches = [pa.RecordBatch.from_pylist(part, segments.IMAGES) for part in (named[:2], [], named[2:])]
    monkeypatch.setattr(segments, "_ROWS", 2)
    words = pa.Table.from_batches(segments.find_words(batches))
    seen = words.filter(words["matched"].is_valid()).select(segments.SEEN.names).to_pylist()
    assert [row["matched"] for row in seen] == [True, True]
    assert [(row["here"], row["there"], row["model_ids"].count("n")) for row in seen] == [("a", "a", 1), ("c", "e", 1)]
    counts = words.filter(words["part"].is_valid()).select(documents.COUNTS.names)
    parts = counts.sort_by("part").to_batches(max_chunksize=7)
    sums = {row["ngram"]: row["n_images"] for batch in documents.sum_frequencies(parts) for row in batch.to_pylist()}
    assert sums.pop(None) == 2
    assert list(sums.values()) == [2, 2, 2]  # a, dog, a dog; not dogs, which one image has
    keys = np.sort(np.array(list(sums)).view(np.uint64))
    frequencies = KeyFrequencies(keys, np.array([sums[int(key)] for key in keys.view(np.int64)]), 2)
    worded = words.filter(words["worded"].is_valid()).select(["worded"]).to_batches()
    figures = pa.Table.from_batches(segments.count_segments(worded, [("m", "d")], frequencies, by=("lang",)))
    (everything, of_slice) = figures.filter(figures["sums"].is_valid()).to_pylist()
    assert (everything["model_id"], everything["slice"], everything["value"]) == ("m", None, None)
    assert (of_slice["model_id"], of_slice["slice"], of_slice["value"]) == ("m", "lang", "en")
    assert of_slice["sums"] == everything["sums"]
    counted = list(unpack(figures.filter(figures["counted"].is_valid()).select(["counted"]).to_batches()))
    assert [batch.num_rows for batch in counted] == [2, 3]
    found = {row["image_id"]: row for batch in counted for row in batch.to_pylist()}
    assert [found[i]["missing"] for i in "abcde"] == [None, "caption", "references", "references", None]
    assert [found[i]["n_references"] for i in "abcde"] == [2, 1, 0, 0, 1]
    assert [found[i]["n_words"] for i in "abcde"] == [2, None, None, None, 0]
    assert found["a"]["bleu_counts"] == segment_counts(["a", "dog"], [["a", "dog"], ["dogs"]]).tolist()
    assert found["a"]["bleu_1"] == pytest.approx(100)
    assert found["a"]["rouge_l"] == pytest.approx(100)
    assert found["a"]["cider"] == 0  # what both images have in common weighs nothing
    assert found["a"]["slices"] == [("lang", "en")]
    assert found["b"]["bleu_counts"] is None
    assert found["b"]["bleu_4"] is None
    assert (found["e"]["bleu_1"], found["e"]["rouge_l"], found["e"]["cider"]) == (0, 0, 0)


def test_tables(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_captions.main(write(spark, tmp_path)) == 0
    found = {row["image_id"]: row for row in read(spark, tmp_path, "segments")}
    assert {image: row["missing"] for image, row in found.items()} == {
        "a.jpg": None,
        "b.jpg": None,
        "c.jpg": "caption",  # captioning it failed
        "d.jpg": "references",
        "e.jpg": "caption",
        "f.jpg": "caption",
        "g.jpg": "caption",
    }
    assert found["b.jpg"]["n_references"] == 1
    assert all((row["bleu_4"] is None) == (row["missing"] is not None) for row in found.values())
    assert {(row["model_id"], row["decode_id"]) for row in found.values()} == {("m1", "d1")}

    expected = corpus_bleu(
        [tokenize("A dog runs on the grass ."), tokenize("A man")],
        [[tokenize(text) for text in ("A dog runs over the grass .", "Dog on grass")], [tokenize("A man climbs")]],
    )
    corpus = sorted(read(spark, tmp_path, "corpus"), key=lambda row: row["metric"])
    assert [row["metric"] for row in corpus] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "rouge_l"]
    assert [row["score"] for row in corpus[:4]] == pytest.approx(expected, abs=1e-12)
    for row in corpus:
        assert (row["n_segments"], row["n_missing"], row["run_id"]) == (2, 5, found["a.jpg"]["run_id"])
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
    assert corpus[0]["signature"] == f"{signature()}|ci:95|bootstrap:poisson|replicates:1000|seed:0"
    assert corpus[4]["signature"].startswith("cider:d|n:1-4|sigma:6|df:evaluated-references|tok:ptb-coco|")
    (run,) = spark.read.parquet(str(tmp_path / "captions_runs")).collect()
    assert (run["job"], run["n_images"], run["counts"]) == ("evaluate_captions", 7, {"ok": 2, "missing": 5})
    assert f"BLEU-4 {expected[3]:.1f}" in capsys.readouterr().out


def test_figures_do_not_depend_on_partitions(spark: SparkSession, tmp_path: Path, dev: dict[str, list[str]]) -> None:
    """One human caption of each image against the other four, in any order and any partitions: to the last bit."""
    captions = captions_table(spark, [(image, texts[0], "ok") for image, texts in dev.items()])
    rows = [(image, texts[1:]) for image, texts in dev.items()]
    expected = corpus_bleu(
        [tokenize(texts[0]) for texts in dev.values()], [[tokenize(t) for t in texts[1:]] for texts in dev.values()]
    )
    how, found = scores.Evaluation(by=(CAPTION_LENGTH,)), []
    for partitions in (1, 7):
        references = spark.createDataFrame(rows, tables.REFERENCES).orderBy(F.rand(partitions))
        images = scores.gather(captions.repartition(partitions), references).repartition(partitions)
        words = scores.find_words(images, how).persist()
        write_frequencies(sum_frequencies(words.repartition(partitions)), str(tmp_path / "frequencies"))
        shared = read_frequencies(spark, str(tmp_path / "frequencies"))
        again = collect_frequencies(sum_frequencies(words))
        assert np.array_equal(shared.keys, again.keys)
        assert np.array_equal(shared.counts, again.counts)
        assert shared.n_documents == again.n_documents
        figures = scores.count_segments(words.repartition(partitions), [("m1", "d1")], shared, how)
        found.append(scores.score_segments(figures.repartition(partitions), how))
        words.unpersist()
    assert found[0] == found[1]
    everything = next(score for score in found[0] if score.slice is None)
    assert (everything.n_segments, everything.n_missing) == (1000, 0)
    assert tuple(everything.scores[f"bleu_{n}"].score for n in (1, 2, 3, 4)) == expected
    assert expected == pytest.approx((62.8, 44.3, 30.7, 21.2), abs=0.05)
    assert everything.scores["rouge_l"].score == pytest.approx(49.2, abs=0.05)
    assert everything.scores["cider"].score == pytest.approx(80.4, abs=0.05)
    assert sum(score.n_segments for score in found[0] if score.slice) == 1000


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
    assert spark.read.table("gallery.scores_corpus").count() == 6
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
    (tmp_path / "coco.json").write_text('{"annotations": []}\n' * 10)
    assert_refused([*arguments[:3], str(tmp_path / "coco.json"), *arguments[4:]], "coco.json: ", capsys)
    within = [*arguments[:5], f"{arguments[1]}/scores"]
    assert_refused(within, f"captions/scores/segments: --captions {arguments[1]} is there, and is read", capsys)
    (tmp_path / "scores" / "segments").mkdir(parents=True)
    (tmp_path / "scores" / "segments" / "thesis.pdf").touch()
    assert_refused(arguments, "holds thesis.pdf", capsys)


def assert_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says why, and status 2."""
    assert exit_status(lambda: evaluate_captions.main(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_slices(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By columns of the references, null among their values, and by length; what is missing is counted in each."""
    captions = [("a", "A dog runs", "ok"), ("b", "A man", "ok"), ("c", "A cat sits on a very red sofa", "ok")]
    captions += [("d", None, "decode_error"), ("x", "nobody knows", "ok")]
    arguments = write(spark, tmp_path, captions_table(spark, captions), [("a", ["A dog runs"])])
    references = [
        ("a", ["A dog runs"], "web", 1),
        ("b", ["A dog"], "web", 2),
        ("c", ["A cat"], None, 1),
        ("d", ["x"], "film", 1),
    ]
    schema = "image_id string, captions array<string>, source string, missing int"
    spark.createDataFrame(references, schema).write.mode("overwrite").parquet(arguments[3])
    by = ["--metrics", "rouge_l", "--by", "source,missing,caption_length"]
    assert evaluate_captions.main([*arguments, *by]) == 0
    found = {(row["slice"], row["value"]): row for row in read(spark, tmp_path, "slices")}
    assert {key: (row["n_segments"], row["n_missing"]) for key, row in found.items()} == {
        ("source", "web"): (2, 0),
        ("source", "film"): (0, 1),
        ("source", None): (1, 1),
        ("missing", "1"): (2, 1),
        ("missing", "2"): (1, 0),
        ("missing", None): (0, 1),
        ("caption_length", "00-05"): (2, 0),
        ("caption_length", "06-08"): (1, 0),
        ("caption_length", None): (0, 2),
    }
    assert found["source", "web"]["score"] == pytest.approx(75)
    assert found["source", "film"]["score"] is None
    (corpus,) = read(spark, tmp_path, "corpus")
    assert (corpus["metric"], corpus["n_segments"], corpus["n_missing"]) == ("rouge_l", 3, 2)
    assert_refused([*arguments, "--by", "colour"], "--by colour: must be caption_length or a column of", capsys)
    assert_refused([*arguments, "--by", "captions"], "--by captions: must be caption_length or a column of", capsys)
    assert evaluate_captions.main([*arguments, "--metrics", "rouge_l"]) == 0
    assert not (tmp_path / "scores" / "slices").exists()


def test_saved_document_frequencies(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that one evaluation wrote give another, of fewer images, other figures."""
    references = [("a", ["A dog runs"]), ("b", ["A dog sits"]), ("c", ["A cat"]), ("d", ["One red bus"])]
    captions = captions_table(spark, [(image, "A dog naps", "ok") for image, _ in references])
    arguments = write(spark, tmp_path / "all", captions, references)
    assert evaluate_captions.main(arguments) == 0
    saved = spark.read.parquet(str(tmp_path / "all" / "scores" / "document_frequencies"))
    assert sorted(row["n_images"] for row in saved.collect()) == [2, 2, 3, 4]  # dog, a dog; a; images
    few = [*arguments[:4], "--scores", str(tmp_path / "few" / "scores"), "--metrics", "cider"]
    few[1] = str(tmp_path / "few" / "captions")
    captions.where("image_id < 'c'").write.parquet(few[1])
    found = []
    for more in ([], ["--document-frequencies", str(tmp_path / "all" / "scores" / "document_frequencies")]):
        assert evaluate_captions.main([*few, *more]) == 0
        rows = {row["image_id"]: row["cider"] for row in read(spark, tmp_path / "few", "segments")}
        texts = {image: [tokenize(text) for text in texts] for image, texts in references}
        known = document_frequencies([texts[image] for image in (texts if more else "ab")])
        assert rows["a"] == pytest.approx(
            cider(["a", "dog", "naps"], reference_vectors(texts["a"], known), known), abs=1e-9
        )
        found.append(rows["a"])
    assert found[0] != found[1]
    doubled = saved.unionByName(saved)
    doubled.write.parquet(str(tmp_path / "doubled"))
    assert_refused([*few, "--document-frequencies", str(tmp_path / "doubled")], "must have each ngram once", capsys)


def test_bytes_that_are_no_text_are_scored_as_far_as_they_go(spark: SparkSession, tmp_path: Path) -> None:
    """As a cast, or a file of another encoding, brings into a column of strings."""
    latin = F.expr("cast(X'61ff62' as string)")
    captions = captions_table(spark, [("a", "a dog", "ok"), ("b", "a cat", "ok")])
    captions = captions.withColumn("caption", F.when(F.col("image_id") == "a", latin).otherwise(F.col("caption")))
    references = spark.createDataFrame([("a", ["a dog"]), ("b", ["a cat"])], tables.REFERENCES)
    references = references.withColumns({"captions": F.array_append("captions", latin), "kind": F.expr("X'ff00'")})
    arguments = write(spark, tmp_path, captions)
    references.write.mode("overwrite").parquet(arguments[3])
    assert evaluate_captions.main([*arguments, "--by", "kind"]) == 0
    rows = {row["image_id"]: row["bleu_1"] for row in read(spark, tmp_path, "segments")}
    assert rows == {"a": pytest.approx(100), "b": pytest.approx(100)}
    assert {row["value"] for row in read(spark, tmp_path, "slices")} == {"\ufffd\0"}


def test_one_run_at_a_time_writes_scores(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write(spark, tmp_path)
    with lease(Folder(spark, tables.staging(spark, arguments[5])), "other", f"--scores {arguments[5]}"):
        assert_refused(arguments, f"--scores {arguments[5]} is being written by run other", capsys)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


BAD_OPTIONS = [
    (["--metrics", "bleu,spice"], "--metrics bleu,spice: must be some of bleu, rouge_l, cider"),
    (["--metrics", ""], "must be some of bleu, rouge_l, cider"),
    (["--seed", "-1"], "--seed -1: must be at least 0"),
    (["--metrics", "bleu", "--document-frequencies", "x"], "of no use without cider"),
    (["--document-frequencies", "nowhere"], "--document-frequencies nowhere: no such file or folder"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS)
def test_bad_options(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(["--captions", "x", "--references", "x", "--scores", "x", *options], said, capsys)
