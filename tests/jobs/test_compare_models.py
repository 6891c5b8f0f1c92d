"""Two models on the same images: paired differences, and a gate for schedulers."""

import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs import compare_models, evaluate_captions
from jobs.common import tables
from jobs.common.session import exit_status

WORDS = "a dog cat man runs sits on the grass sofa red".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def scored(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scores of four: good d1 repeats a reference, good d2 does but in one image, bad writes noise, and new like good
    d1 but for the images 30 to 39, of which it has 35 to 39 not captioned."""
    folder = tmp_path_factory.mktemp("compared")
    rng = random.Random(0)
    texts = {i: [" ".join(rng.choices(WORDS, k=8)) for _ in range(3)] for i in range(40)}
    noise = {i: " ".join(rng.choices(WORDS, k=8)) for i in range(40)}
    by_model = {
        ("good", "d1"): {i: texts[i][0] for i in range(40)},
        ("good", "d2"): {i: texts[i][0] for i in range(40)} | {0: noise[0]},
        ("bad", "d1"): noise,
        ("new", "d1"): {i: texts[i][0] if i < 30 else noise[i] for i in range(35)},
    }
    rows = [
        {"image_id": str(i), "caption": text, "status": "ok", "model_id": model, "decode_id": decode}
        for (model, decode), captions in by_model.items()
        for i, text in captions.items()
    ]
    spark.createDataFrame(rows, tables.CAPTIONS).write.parquet(str(folder / "captions"))
    spark.createDataFrame([(str(i), of) for i, of in texts.items()], tables.REFERENCES).write.parquet(
        str(folder / "references")
    )
    tables_of = [item for name in ("captions", "references", "scores") for item in (f"--{name}", str(folder / name))]
    assert evaluate_captions.main([*tables_of, "--metrics", "bleu,rouge_l"]) == 0
    return str(folder / "scores")


def compare(scores: str, baseline: str, candidate: str, *options: str) -> int:
    given = ["--scores", scores, "--baseline", baseline, "--candidate", candidate, *options]
    return exit_status(lambda: compare_models.main(given))


def test_differences(spark: SparkSession, scored: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(scored, "bad", "new", "--fail-if-worse", "bleu_4,rouge_l") == 0
    assert "35 images that both captioned, 5 that only one captioned" in capsys.readouterr().out
    table = spark.read.parquet(f"{scored}/comparisons")
    assert table.schema.simpleString() == tables.COMPARISONS.simpleString()
    rows = {row["metric"]: row for row in table.where("baseline_model_id = 'bad'").collect()}
    assert set(rows) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"}
    for row in rows.values():
        assert (row["n_segments"], row["n_missing"]) == (35, 5)
        assert row["difference"] == pytest.approx(row["candidate"] - row["baseline"])
        assert 0 < row["ci_low"] < row["difference"] < row["ci_high"]
        assert row["p_value"] == pytest.approx(2 / 1001)
        assert row["signature"].endswith("|ci:95|bootstrap:poisson|replicates:1000|seed:0")


GATES = [
    ("good:d1", "bad", ["--fail-if-worse", "bleu_4"], 1, "significantly worse: bleu_4"),
    ("good:d1", "bad", ["--fail-if-worse", "rouge_l,bleu_1"], 1, "significantly worse: bleu_1, rouge_l"),
    ("good:d1", "bad", [], 0, ""),
    ("good:d1", "good:d2", ["--fail-if-worse", "rouge_l"], 0, ""),  # worse in one image: by chance
    ("good", "bad", [], 2, "--baseline good: has several decodings, name one: good:d1, good:d2"),
    ("bad", "best", [], 2, "--candidate best: is not among the scores, which are of: bad:d1, good:d1"),
    ("bad", "bad:d1", [], 2, "--candidate bad:d1: is the baseline"),
    ("bad", "new", ["--fail-if-worse", "cider"], 2, "--fail-if-worse cider: the scores are without"),
    ("bad", "new", ["--fail-if-worse", "bleu"], 2, "--fail-if-worse bleu: must be one of bleu_1"),
]


@pytest.mark.parametrize(("baseline", "candidate", "options", "status", "said"), GATES)
def test_gate(
    scored: str,
    capsys: pytest.CaptureFixture[str],
    baseline: str,
    candidate: str,
    options: list[str],
    status: int,
    said: str,
) -> None:
    assert compare(scored, baseline, candidate, *options) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (status != 0)
    assert said in "".join(errors)


def test_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(str(tmp_path), "a", "b") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_model_without_an_id_is_a_model(spark: SparkSession, scored: str, tmp_path: Path) -> None:
    """As other tools' tables have."""
    for name in ("segments", "corpus"):
        rows = spark.read.parquet(f"{scored}/{name}")
        ids = {key: F.when(F.col("model_id") != "bad", F.col(key)) for key in ("decode_id", "model_id")}
        rows.withColumns(ids).where("model_id is null or model_id = 'new'").write.parquet(str(tmp_path / name))
    assert compare(str(tmp_path), "null", "new") == 0
    assert compare(str(tmp_path), "null:null", "new", "--fail-if-worse", "bleu_1") == 0
    assert compare(str(tmp_path), "new", "null", "--fail-if-worse", "bleu_1") == 1
