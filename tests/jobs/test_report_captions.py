"""What a report says, from tables to page; how it looks and works in a browser stands in test_report_page.py."""

import io
import json
import math
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyspark.sql import SparkSession

from jobs import evaluate_captions, report_captions
from jobs.common import report, tables, thumbnails
from jobs.common.rows import CAPTIONED
from jobs.common.session import exit_status
from jobs.common.storage import Access
from nic_model.checkpoint import CaptionModel, save_model
from nic_model.config import DecodeConfig
from nic_model.model_files import ModelFiles
from nic_model.vocabulary import Vocabulary
from tests import tiny
from tests.report_pages import HARM, page_of

PROJECT = Path(__file__).parents[2]
SAMPLES = sorted(path.name for path in (PROJECT / "samples" / "images").iterdir())


def attending_model() -> CaptionModel:
    torch.manual_seed(0)
    config = tiny.CONFIG.replace(decoder="show_attend_tell", attention_size=8)
    return CaptionModel(config, Vocabulary(tiny.WORDS)).eval()


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "attending"
    save_model(directory, attending_model(), DecodeConfig(), {})
    return directory


def jpeg(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(written, "JPEG")
    return written.getvalue()


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), CAPTIONED)


@pytest.mark.parametrize(("size", "expected"), [((400, 300), (64, 48)), ((100, 1000), (6, 64)), ((30, 20), (30, 20))])
def test_thumbnails_keep_the_shape_and_never_grow(size: tuple[int, int], expected: tuple[int, int]) -> None:
    [made] = thumbnails.thumbnail_batches([batch({"image_id": "a", "content": jpeg(*size)})], 64, Access())
    [row] = made.to_pylist()
    assert (row["width"], row["height"]) == expected
    assert Image.open(io.BytesIO(row["jpeg"])).size == expected
    assert row["words"] is None


def test_a_thumbnail_for_each_row_whatever_the_images_are(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(jpeg(50, 50))
    rows = [{"image_id": str(number), "content": content} for number, content in enumerate([None, b"", b"junk"])]
    rows += [{"image_id": None, "content": jpeg(9, 9)}, {"image_id": "b", "uri": (tmp_path / "b.jpg").as_uri()}]
    made = list(thumbnails.thumbnail_batches([batch(*rows), batch()], 64, Access(local=True)))
    assert [part.num_rows for part in made] == [5, 0]
    assert [row["image_id"] for row in made[0].to_pylist()] == ["0", "1", "2", None, "b"]
    assert [row["jpeg"] is None for row in made[0].to_pylist()] == [True, True, True, True, False]


def test_a_server_that_is_away_is_told_once() -> None:
    away = Access("http://127.0.0.1:9", patience=0)
    rows = [{"image_id": name, "uri": f"s3://photos/{name}"} for name in ("a", "b")]
    [made] = thumbnails.thumbnail_batches([batch(*rows), batch(*rows)], 64, away)
    [row] = made.to_pylist()
    assert row["problem"].startswith("s3://photos: ")
    assert row["image_id"] is None


def test_attention_is_the_models() -> None:
    model = attending_model()
    [made] = thumbnails.thumbnail_batches(
        [batch(*({"image_id": "a", "content": jpeg(90, 60), "caption": text} for text in ("a dog's hat .", "", None)))],
        64,
        Access(),
        model=model,
    )
    first, empty, none = made.to_pylist()
    assert first["words"] == ["a", "dog", "'s", "hat"]
    assert (empty["words"], none["words"]) == (None, None)
    seen = np.frombuffer(first["attention"], np.uint8).reshape(4, -1)
    assert (seen.max(axis=1) == 255).all()
    rgb = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    looked = thumbnails.look(model, rgb, "a dog")
    assert looked.shape == (2, seen.shape[1])
    # As a caption goes on, what it has said so far does not change where it looked.
    assert (thumbnails.look(model, rgb, "a dog runs")[:2] == looked).all()


def embedded(page: str) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_carries_no_markup_from_tables() -> None:
    page = report.render(page_of(3))
    assert "<img" not in page
    assert "<b>dog" not in page
    assert page.count("<script") == 2
    assert embedded(page)["images"][1]["caption"] == HARM
    assert "http" not in re.sub(r'xmlns(:xlink)?="http[^"]*"|http-equiv|"http://www.w3.org/2000/svg"', "", page)


def captions_table(spark: SparkSession, folder: Path, model_id: str) -> None:
    """Two of the samples failed; another model captioned one image, a year earlier."""
    rows = [
        {"image_id": name, "caption": f"a dog runs {'fast ' * number}", "log_prob": -float(number), "status": "ok"}
        for number, name in enumerate(SAMPLES[:-2])
    ]
    rows += [{"image_id": SAMPLES[-2], "status": "too_large", "error_message": HARM}]
    rows += [{"image_id": None, "status": "invalid_id", "error_message": "image_id is null"}]
    constants = {"decode_id": "d1", "run_id": "r1", "captioned_at": datetime(2026, 5, 1, tzinfo=UTC)}
    rows = [row | constants | {"model_id": model_id} for row in rows]
    rows.append(rows[0] | {"model_id": "older", "captioned_at": datetime(2025, 5, 1, tzinfo=UTC), "caption": "a cat"})
    # Of the first version, which had fewer columns.
    spark.createDataFrame(rows, tables.FIRST_CAPTIONS).write.parquet(str(folder / "captions"))
    run = {"run_id": "r1", "job": "caption_images", "started_at": constants["captioned_at"], "seconds": 2.0}
    run |= {"n_images": 12, "images_per_second": 6.0, "counts": {"ok": 10}, "model_id": model_id, "decode_id": "d1"}
    tables.append_run(spark, str(folder / "captions"), run)


def test_what_is_no_number_is_left_out() -> None:
    """JSON has no word for it, and a page whose data is none shows nothing."""
    row = {"image_id": "a", "caption": "a dog", "status": "ok", "error_message": None, "captions": None}
    scores = {"cider": math.nan, "bleu_4": math.inf, "rouge_l": 41.256, "log_prob": -math.inf}
    [image] = report.gallery([{**row, **scores}], {}, ["cider", "bleu_4", "rouge_l"])  # type: ignore[list-item]
    assert image["measures"] == [None, None, 41.26, None]


def test_times_are_told_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark gives them as the driver's, whatever zone that is in."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        made = page_of(2)
        made.runs = [{**made.runs[0], "started_at": datetime(2026, 1, 2, 21, 4)}]  # type: ignore[list-item, dict-item]
        assert "2026-01-03 02:04 UTC" in report.render(made)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_from_tables_to_page(spark: SparkSession, tmp_path: Path, model_directory: Path) -> None:
    captions_table(spark, tmp_path, ModelFiles.read(model_directory).model_id)
    given = ["--captions", str(tmp_path / "captions"), "--references", str(PROJECT / "samples" / "references.parquet")]
    given += ["--scores", str(tmp_path / "scores")]
    assert evaluate_captions.main(given) == 0
    out = tmp_path / "pages" / "report.html"
    assert report_captions.main([*given, "--model", str(model_directory), "--out", str(out)]) == 0
    page = out.read_text()
    data = embedded(page)
    images = {image["id"]: image for image in data["images"]}
    assert set(images) == {*SAMPLES[:-1], None}
    assert data["measures"][:4] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    first = images[SAMPLES[0]]
    assert first["caption"].startswith("a dog runs")
    assert len(first["references"]) == 5
    assert first["words"] == ["a", "dog", "runs"]
    assert first["width"] == 192 or first["height"] == 192
    assert all("jpeg" in image for image in images.values() if image["status"] == "ok")
    assert images[SAMPLES[-2]]["message"] == HARM
    for said in ("too_large", "image_id is null", "<dd>83.3%</dd>", "2026-05-01 00:00 UTC", "images/s"):
        assert said in page
    assert "a cat" not in json.dumps(data)

    older = report_captions.check(report_captions.parse_args([*given[:2], "--model-id", "older"]))
    assert report_captions.choose(spark.read.parquet(given[1]), older) == {"model_id": "older", "decode_id": "d1"}


def test_of_many_images_the_extremes_are_picked(spark: SparkSession) -> None:
    rows = [(f"{n:03}", "ok" if n % 5 else "fetch_error", float(n) if n % 5 else None) for n in range(100)]
    table = spark.createDataFrame(rows, "image_id string, status string, score double")
    picked = [row["image_id"] for row in report.pick(table, "score", 20)]
    assert len(set(picked)) == 20
    assert picked[:5] == ["000", "005", "010", "015", "020"]
    assert {"001", "002", "003", "004", "006", "099", "098", "097", "096", "094"} <= set(picked)
    assert len(report.pick(table, "score", 1000)) == 100
    # What fits is all shown, however many failed.
    mostly = table.where("status != 'ok' or image_id < '004'")
    assert len(report.pick(mostly, "score", 40)) == 23
    assert sum(row["status"] == "ok" for row in report.pick(mostly, "score", 8)) == 3


def test_metrics_without_a_score_are_not_shown(spark: SparkSession) -> None:
    rows = [{"image_id": "a", "bleu_1": 50.0, "bleu_4": 0.0}, {"image_id": "b"}]
    assert report.scored(spark.createDataFrame(rows, tables.SEGMENTS)) == ["bleu_1", "bleu_4"]


def test_models_of_other_names_are_told_apart(spark: SparkSession) -> None:
    ids = ["vit-gpt2-base", "vit-gpt2-large", "0123456789abcdef", None]
    rows = [{"model_id": name, "decode_id": "greedy", "metric": "cider", "score": 1.0} for name in ids]
    keys = {"model_id": "vit-gpt2-base", "decode_id": "greedy"}
    found = report.corpus_scores(spark.createDataFrame(rows, tables.CORPUS), keys)
    assert [model["name"] for model in found] == [
        "this model",
        "null, decoding greedy",
        "01234567, decoding greedy",
        "vit-gpt2-large, decoding greedy",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--captions", "nowhere"], "--captions nowhere: no such file"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--scores", "nowhere"], "--scores nowhere/segments: no such file"),
        (["--references", "nowhere"], "--references nowhere: no such file"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--thumbnail-size", "4"], "--thumbnail-size 4: allowed are 32 to 1024"),
        (["--out", "."], "--out .: is a folder"),
        (["--out", "pages/"], "--out pages/: is a folder"),
        (["--out", "s3://bucket/a.html"], "--out s3://bucket/a.html: Hadoop writes to S3, and calls this s3a://bucket"),
        (["--model", str(PROJECT / "models" / "nic")], "decoder show_tell looks at no places"),
    ],
)
def test_bad_options_end_it_before_spark_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    given = ["--captions", str(tmp_path), "--out", str(tmp_path / "report.html"), *options]
    assert exit_status(lambda: report_captions.main(given)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_a_model_that_captioned_nothing_gets_one_line(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spark.createDataFrame([], tables.CAPTIONS).write.parquet(str(tmp_path / "captions"))
    given = ["--captions", str(tmp_path / "captions"), "--model-id", "m9"]
    assert exit_status(lambda: report_captions.main(given)) == 2
    assert f"error: --captions {tmp_path}/captions: no rows of model_id m9" in capsys.readouterr().err
