"""Captions without the job: of any DataFrame, and by functions of SQL."""

import gc
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark import SparkFiles
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.caption_images import caption_dataframe, register_sql
from jobs.common import tables
from jobs.common.captioning import CaptioningConfig, read_captioning
from jobs.common.rows import INPUT, OUTPUT, STOPPED
from jobs.common.session import ship_code
from jobs.common.storage import Access, SystemicError
from jobs.common.udfs import caption_udf, none_stopped
from nic_model.captioner import Caption, Captioner
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory

CONTENTS = {"a": photographs(2)[0], "b": photographs(2)[1], "corrupt": b"no image", "none": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(list(CONTENTS.items()), "image_id string, content binary").repartition(2)


@pytest.fixture(scope="module")
def right(model: Path) -> dict[str, Caption]:
    """What the model says of the two photographs, without Spark."""
    captioner = Captioner.load(model, batch_size=2)
    found = dict(zip("ab", captioner.caption([CONTENTS[name] for name in "ab"]), strict=True))  # type: ignore[misc]
    return {name: caption for name, caption in found.items() if isinstance(caption, Caption)}


def test_a_dataframe_gives_the_rows_of_the_captions_table(
    images: DataFrame, model: Path, right: dict[str, Caption]
) -> None:
    captions = caption_dataframe(images, str(model), batch_size=2, alternatives=1)
    assert captions.schema.simpleString() == tables.CAPTIONS.simpleString()
    rows = {row["image_id"]: row for row in captions.collect()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok", "b": "ok", "corrupt": "decode_error", "none": "fetch_error",
    }  # fmt: skip
    for name, caption in right.items():
        assert (rows[name]["caption"], rows[name]["width"]) == (caption.text, caption.width)
        assert rows[name]["log_prob"] == pytest.approx(caption.log_prob, abs=1e-4)
        assert len(rows[name]["alternatives"]) == 1
    assert {row["model_id"] for row in rows.values()} == {Captioner.load(model).model_id}


def test_it_is_lazy_and_takes_uris(spark: SparkSession, model: Path, right: dict[str, Caption], tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.png" for name in right}
    rows = [(file.as_uri(), "v1") for file in files.values()]
    captions = caption_dataframe(
        spark.createDataFrame(rows, "uri string, image_version string"), str(model), allow_local_uris=True
    )
    for name, file in files.items():  # not read before now
        file.write_bytes(CONTENTS[name] or b"")
    found = {row["image_id"]: (row["caption"], row["image_version"]) for row in captions.collect()}
    assert found == {file.as_uri(): (right[name].text, "v1") for name, file in files.items()}


def test_workers_look_for_no_garbage_among_what_stays(spark: SparkSession, images: DataFrame, model: Path) -> None:
    """Spark has them look after each task: hundreds of thousands of PyTorch's objects, for nothing."""
    captioning = read_captioning([str(model)], CaptioningConfig(), {}, Access())
    caption = caption_udf(captioning.recipe(spark), captioning.access)

    def observed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        captioned = sum(batch.num_rows for batch in caption(batches))
        seen = {"captioned": [captioned], "frozen": [gc.get_freeze_count()], "collecting": [gc.isenabled()]}
        yield pa.RecordBatch.from_pydict(seen)

    absent = {"image_version": F.lit(None).cast("string"), "uri": F.lit(None).cast("string"), "attempts": F.lit(1)}
    rows = images.withColumns(absent).select(INPUT.names)
    seen = rows.mapInArrow(observed, "captioned long, frozen long, collecting boolean").collect()
    assert sum(row["captioned"] for row in seen) == len(CONTENTS)
    assert all(row["collecting"] and row["frozen"] > 100_000 for row in seen)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("image_id string", {}, "images: needed are image_id and content, or uri, or bucket and key: bucket must be"),
        ("image_id string, content string", {}, "content must be binary, is string; it has image_id string, content"),
        (
            "image_id string, content binary",
            {"beam": 3},
            "beam: no such option; allowed are allow_local_uris, alternat",
        ),
        ("image_id string, content binary", {"beam_size": 0}, "--beam-size 0: must be at least 1"),
        ("image_id string, content binary", {"device": "tpu"}, "--device tpu: allowed are auto, cpu, cuda"),
        ("image_id string, content binary", {"model": "nowhere"}, "--model nowhere: no such directory"),
    ],
)
def test_what_does_not_serve_is_refused_at_once(
    spark: SparkSession, columns: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        caption_dataframe(spark.createDataFrame([], columns), **options)  # type: ignore[arg-type]


def test_sql(spark: SparkSession, images: DataFrame, model: Path, right: dict[str, Caption]) -> None:
    register_sql(spark, model=str(model), batch_size=3)
    images.createOrReplaceTempView("images")
    found = spark.sql("SELECT image_id, caption(content) AS caption, caption_details(content) AS d FROM images")
    kinds = {f.name: f.dataType for f in found.schema["d"].dataType}  # type: ignore[attr-defined]
    assert kinds == {f.name: f.dataType for f in tables.CAPTIONS if f.name in kinds}
    assert list(kinds) == ["caption", "log_prob", "alternatives", "width", "height", "status", "error_message"]
    rows = {row["image_id"]: row for row in found.collect()}
    texts = {name: caption.text for name, caption in right.items()}
    assert {name: row["caption"] for name, row in rows.items()} == {**texts, "corrupt": None, "none": None}
    assert {name: row["d"] and row["d"]["caption"] for name, row in rows.items()} == {
        **texts, "corrupt": None, "none": None,
    }  # fmt: skip
    assert rows["none"]["d"] is None
    assert rows["corrupt"]["d"]["status"] == "decode_error"
    assert rows["corrupt"]["d"]["error_message"]
    assert rows["a"]["d"]["height"] == right["a"].height


def test_sql_says_what_it_takes(spark: SparkSession, model: Path) -> None:
    register_sql(spark, "describe_image", str(model))
    assert spark.sql("SELECT describe_image(NULL) AS nothing").head()["nothing"] is None  # type: ignore[index]
    with pytest.raises(PythonException, match="takes the bytes of an encoded image, binary, not string"):
        spark.sql("SELECT describe_image('a.jpg')").collect()
    with pytest.raises(ValueError, match="must be a plain word"):
        register_sql(spark, "a caption", str(model))


def test_code_is_shipped_once(spark: SparkSession) -> None:
    for _ in range(2):
        ship_code(spark)
    (archive,) = [there for there in spark.sparkContext.listFiles if "/nic-" in there]
    local = Path(SparkFiles.getRootDirectory(), archive.rpartition("/")[2])
    assert {"jobs/common/udfs.py", "nic_model/captioner.py"} <= set(zipfile.ZipFile(local).namelist())
    assert Path(spark.sparkContext._temp_dir, local.name).exists()  # where it goes when Spark does


def test_a_run_that_cannot_go_on_ends_the_query() -> None:
    row = dict.fromkeys(OUTPUT.names) | {"status": STOPPED, "error_message": "the keys are wrong"}
    with pytest.raises(SystemicError, match="the keys are wrong"):
        list(none_stopped([pa.RecordBatch.from_pylist([row], schema=OUTPUT)]))
