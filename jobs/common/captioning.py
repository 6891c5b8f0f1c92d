"""Captioning as jobs, notebooks and SQL share it: by which models and settings, and what they make of a DataFrame."""

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common import storage, tables
from jobs.common.gpus import caption_profile, own_workers
from jobs.common.rows import INPUT
from jobs.common.session import bound_batches, ship_code
from jobs.common.sources import image_columns
from jobs.common.storage import Access
from jobs.common.udfs import ArrowFunction, CaptionerRecipe, caption_udf, import_workers
from nic_model.config import DECODE_ON, PRECISIONS, Config, DecodeConfig, check_device, option
from nic_model.model_files import FILES, ModelFiles, check_members, joint_id

# The folder of the project; this file may be in a zip of it, which spark-submit.sh keeps in build/.
_PARENTS = Path(__file__).resolve().parents
PROJECT = next((folder for folder in _PARENTS if (folder / "models").is_dir()), _PARENTS[2])
DEFAULT_MODEL = str(PROJECT / "models" / "attention")

Model = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # a model directory, or those of an ensemble


@dataclass(frozen=True)
class CaptioningConfig(Config):
    """By what means images are captioned. None of it changes which rows there are."""

    device: str = option("auto", "auto takes the GPU that Spark assigned to the task, or any; cpu, cuda, cuda:N")
    gpu_share: float = option(
        1.0,
        "of a GPU for each captioning task, where Spark gives GPUs to executors and none to tasks; 0.25: four share it",
    )
    precision: str = option("auto", "auto is fp16 on a GPU, fp32 on a CPU", choices=PRECISIONS)
    batch_size: int = option(0, "images captioned at once; 0: 256 on a GPU, 64 on a CPU", least=0)
    decode_on: str = option(
        "cpu", "gpu: JPEGs are decoded by nvJPEG, to pixels and captions that differ a little", choices=DECODE_ON
    )
    s3_endpoint: str = option("", "the S3 server's URL where it is not that of the AWS configuration")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"--gpu-share {self.gpu_share}: must be above 0 and at most 1")

    def profile(self, spark: SparkSession) -> ResourceProfile | None:
        """What Spark gives a captioning task beyond what it gives others."""
        return caption_profile(spark, self.device, self.gpu_share)


@dataclass(frozen=True)
class Captioning:
    """One or several models, which then write each caption together, and how they do it."""

    files: tuple[ModelFiles, ...]
    decode: DecodeConfig
    config: CaptioningConfig
    access: Access
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @cached_property
    def model_id(self) -> str:
        return joint_id(self.files)

    def keys(self) -> dict[str, str]:
        """What the rows of this run have in common with those of other runs of the same model and settings."""
        return {"model_id": self.model_id, "decode_id": self.decode.decode_id}

    def recipe(self, spark: SparkSession) -> CaptionerRecipe:
        """With the models broadcast."""
        config = self.config
        return CaptionerRecipe(
            tuple(files.model_id for files in self.files),
            self.decode,
            config.device,
            config.precision,
            config.batch_size,
            config.decode_on,
            files=spark.sparkContext.broadcast(self.files),
        )


def read_captioning(
    models: Sequence[str], config: CaptioningConfig, decode: Mapping[str, Any], access: Access
) -> Captioning:
    """Reads the models and checks that they fit together; `decode` changes the first one's decoding settings. Raises
    ValueError with one line."""
    twice = next((model for model in models if models.count(model) > 1), None)
    if twice:
        raise ValueError(f"--model {twice}: is given twice")
    files = tuple(read_model(model, access) for model in models)
    check_members(files)
    return Captioning(files, files[0].settings()[1].replace(**decode), config, access)


def read_model(location: str, access: Access | None = None) -> ModelFiles:
    """A model directory, local or on s3://. Raises ValueError with one line."""
    if not storage.is_s3(location):
        return ModelFiles.read(Path(location))
    with tempfile.TemporaryDirectory(prefix="nic-model-") as folder:
        return ModelFiles.read(storage.download_model(location, access or Access(), FILES, Path(folder)))


def transform(images: DataFrame, captioning: Captioning, caption: ArrowFunction) -> DataFrame:
    """A row of the captions table for each row of `images`, which has rows.INPUT's columns; lazily. `caption` is
    `caption_udf` of `captioning.recipe`."""
    profile = captioning.config.profile(images.sparkSession)
    with own_workers(images.sparkSession, profile):
        captioned = images.select(INPUT.names).mapInArrow(caption, tables.CAPTIONED, profile=profile)
    constants = {name: F.lit(value) for name, value in {**captioning.keys(), "run_id": captioning.run_id}.items()}
    return captioned.withColumns(constants).select(tables.CAPTIONS.names)


def caption_dataframe(images: DataFrame, model: Model = DEFAULT_MODEL, **options: Any) -> DataFrame:
    """Captions of `images`, lazily: for each of its rows one of the captions table (`tables.CAPTIONS`), bad ones too.

    `images` has `image_id` and `content`, the encoded image, or `uri`, `s3://bucket/key`; `image_version` is carried
    along. `model` is a model directory, local or on s3://, or several, as an ensemble. `options` are those of the job,
    as Python names: `beam_size=5, device="cpu"`; and `allow_local_uris=True`, to read uris that are files.

    The models are read now, the images whenever Spark computes the rows, in as many tasks as `images` has partitions:
    repartition few large ones before, and write or cache what is to be used twice. Raises ValueError for columns,
    models or options that do not serve. What is wrong with the run itself, as wrong keys of S3, ends the query.
    """
    columns = image_columns(images, "images")[0]
    captioning = _interactive(images.sparkSession, model, options)
    rows = images.select(*columns, F.lit(1).alias("attempts"))
    if "content" not in rows.columns:
        rows = rows.withColumn("content", F.lit(None).cast("binary"))
    return transform(rows, captioning, caption_udf(captioning.recipe(images.sparkSession), captioning.access))


def register_sql(spark: SparkSession, name: str = "caption", model: Model = DEFAULT_MODEL, **options: Any) -> None:
    """Makes `SELECT caption(content) FROM images` work in `spark`: the caption of the encoded image, a string; null
    where there is none, because `content` is null or no image that can be read.

    `caption_details(content)` says more, and why: a struct of `caption, log_prob, alternatives, width, height, status,
    error_message`, as in the captions table; null for null. `name` names both; `model` and `options` are as of
    `caption_dataframe`. Raises ValueError as that does.
    """
    if not name.isidentifier():
        raise ValueError(f"name {name!r}: must be a plain word, as SQL's functions have")
    recipe = _interactive(spark, model, options).recipe(spark)

    def details(contents: Iterator[pa.Array]) -> Iterator[pa.Array]:
        yield from import_workers().caption_details(contents, recipe)

    def caption(contents: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for each in details(contents):
            yield each.field("caption")

    spark.udf.register(name, F.arrow_udf(caption, T.StringType()))  # type: ignore[call-overload]
    spark.udf.register(f"{name}_details", F.arrow_udf(details, tables.DETAILS))  # type: ignore[call-overload]


def _interactive(spark: SparkSession, model: Model, options: Mapping[str, Any]) -> Captioning:
    """For a session that no job has made."""
    if not isinstance(spark, SparkSession):
        raise ValueError("captions need a classic Spark session: Spark Connect has no broadcasts to send the model by")
    given = dict(options)
    access = Access(given.get("s3_endpoint") or None, bool(given.pop("allow_local_uris", False)))
    decoding, means = ({f.name for f in fields(kind)} for kind in (DecodeConfig, CaptioningConfig))
    if unknown := sorted(set(given) - decoding - means):
        allowed = ", ".join(sorted(decoding | means | {"allow_local_uris"}))
        raise ValueError(f"{', '.join(unknown)}: no such option; allowed are {allowed}")
    config = CaptioningConfig(**{name: value for name, value in given.items() if name in means})
    decode = {name: value for name, value in given.items() if name in decoding}
    models = [str(model)] if isinstance(model, str | os.PathLike) else [str(one) for one in model]
    captioning = read_captioning(models, config, decode, access)
    bound_batches(spark)
    ship_code(spark)
    return captioning
