"""Every command that stands in the README and in infra's documents.

Each is held against the program that it calls: its options are parsed by the job's own parser and checked as the job
checks them before Spark starts, against real images, tables and S3 objects that stand where the document says. In this
process and on one Spark session are run: captioning a folder, evaluating, comparing, the report, and the lines of
Python. Run elsewhere are the first command (test_caption.py), those of infra/local (test_local.py), and the launcher's
(test_launcher.py). A command of a program that this test does not know fails it.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs import caption_images, compare_models, evaluate_captions, report_captions
from jobs.common.targets import PACKAGES
from nic_model.model_files import ModelFiles
from nic_model.train import read_configs
from tests.e2e.cluster import spark_home
from tests.e2e.seaweed import ADMIN_KEY, ADMIN_SECRET, Seaweed
from tests.e2e.test_s3 import configured
from tests.tiny import tiny_model_directory

PROJECT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "infra/README.md", "infra/TUNING.md")
SPARK_OPTIONS = {"--master", "--packages", "--conf", "--executor-memory", "--driver-memory", "--archives"}
LOCAL = PROJECT / "infra" / "local" / "cluster.sh"


def commands(document: str) -> list[str]:
    """Of its indented blocks, one for each command, and of the code that stands in its sentences."""
    text = (PROJECT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n)+", re.sub(r"\\\n\s+", "", text), re.MULTILINE)
    found = [line.strip() for block in blocks for line in block.splitlines()]
    return found + re.findall(r"`((?:\./spark-submit\.sh|make|python3?|\.venv/bin/python) [^`]+)`", text)


COMMANDS = [(document, line) for document in DOCUMENTS for line in commands(document)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents call /data, and models/mine: photographs in folders, in Parquet, with references."""
    folder = tmp_path_factory.mktemp("data")
    images = sorted((PROJECT / "samples" / "images").iterdir())[:4]
    for place in ("photos", "photos/2026-11"):
        (folder / place).mkdir()
        for file in images[:2]:
            shutil.copy(file, folder / place)
    content = pa.table({"image_id": [file.name for file in images], "content": [file.read_bytes() for file in images]})
    pq.write_table(content, folder / "images-0.parquet")
    shutil.copy(PROJECT / "samples" / "references.parquet", folder / "refs.parquet")
    tiny_model_directory(folder, 0).rename(folder / "mine")
    tiny_model_directory(folder, 1).rename(folder / "other")
    return folder


@pytest.fixture(scope="module")
def bucket(s3: Seaweed) -> Iterator[None]:
    """s3://bucket/photos, and s3://bucket/models/mine; this process's AWS configuration is the server's."""
    s3.admin().create_bucket(Bucket="bucket")
    s3.admin().put_object(Bucket="bucket", Key="photos/a.jpg", Body=b"not looked at")
    with configured(s3, ADMIN_KEY, ADMIN_SECRET):
        os.environ["AWS_ENDPOINT_URL"] = s3.endpoint
        yield


def real(words: list[str], data: Path) -> list[str]:
    """The words, with what they stand for in place of the documents' names."""
    names = {"/data/refs": f"{data}/refs.parquet", "models/mine": f"{data}/mine", "models/attention": f"{data}/mine",
             "models/attentive": f"{data}/other"}  # fmt: skip
    return [names.get(word) or re.sub(r"^/data/", f"{data}/", word) for word in words]


def written(data: Path) -> None:
    """Tables where a document says that an earlier command has written them, for checks that look at them."""
    for name in ("captions", "scores/segments", "scores/corpus"):
        (data / name).mkdir(parents=True, exist_ok=True)


def check_spark_options(words: list[str]) -> None:
    hadoop = next(Path(spark_home(), "jars").glob("hadoop-client-api-*.jar")).stem.rpartition("-")[2]
    packages = {*(package for _, package in PACKAGES.values()), f"org.apache.hadoop:hadoop-aws:{hadoop}"}
    for option, value in zip(words[::2], words[1::2], strict=True):
        assert option in SPARK_OPTIONS, option
        if option == "--packages":
            assert set(value.split(",")) <= packages
        if option == "--conf":
            assert re.fullmatch(r"spark\.[\w.-]+=\S+", value), value


def check_submit(words: list[str], data: Path) -> None:
    at = next((at for at, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        assert words[0] in ("--pack", "--setup", "--help")
        return
    check_spark_options(words[:at])
    job = importlib.import_module(words[at].removesuffix(".py").replace("/", "."))
    given = words[at + 1 :]
    if given == ["--images", "...", "--captions", "..."]:
        given = []
    options = job.parse_args(real(given, data))
    if hasattr(job, "check"):
        written(data)
        job.check(options)


def check_python(words: list[str], data: Path) -> None:
    if words[0] == "-c":
        compile(words[1], "document", "exec")  # and run by test_the_commands_in_their_order
    elif words[0] == "-m":
        module = importlib.import_module(words[1])
        options = module.parse_args(real(words[2:], data))
        if words[1] == "nic_model.train":
            read_configs(options)
    else:
        program = (PROJECT / words[0]).read_text()
        assert all(f'"{word}"' in program for word in words[1:] if word.startswith("--"))


def check_local(words: list[str]) -> None:
    usage = subprocess.run([LOCAL, "--help"], text=True, capture_output=True, check=True).stdout
    assert f"cluster.sh {words[0]}" in usage
    assert all(f"\n  {word} " in usage for word in words if word.startswith("--"))


def test_the_documents_have_commands() -> None:
    assert {document for document, _ in COMMANDS} == set(DOCUMENTS)
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command(document: str, command: str, data: Path, bucket: None) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "./spark-submit.sh":
        check_submit(words[1:], data)
    elif words[0] in ("python", ".venv/bin/python"):
        check_python(words[1:], data)
    elif words[0] == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=PROJECT, capture_output=True, check=False).returncode == 0
    elif words[0] == "infra/local/cluster.sh":
        check_local(words[1:])
    else:
        pytest.fail(f"{document}: {command}: what is it?")


def test_the_commands_in_their_order(
    spark: SparkSession, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From photographs to scores and the page, as one reads the README."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    for name in ("captions", "scores"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    lines = [shlex.split(line, comments=True) for _, line in COMMANDS]

    def run(job: ModuleType, with_option: str, model: str = "mine") -> str:
        file = f"jobs/{job.__name__.rpartition('.')[2]}.py"
        words = next(words for words in lines if words[1:2] == [file] and with_option in words)
        models = iter(ModelFiles.read(tmp_path / name).model_id for name in ("mine", "other"))
        given = [next(models) if word == "MODEL" else word for word in real(words[2:], tmp_path)]
        if job is caption_images:
            given += ["--model", str(tmp_path / model)]
        assert job.main(given) in ((0, 1) if job is compare_models else (0,))
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    for model in ("mine", "other"):
        assert "4 images in " in run(caption_images, "/data/photos", model)
    assert "CIDEr" in run(evaluate_captions, "--scores")
    assert "2 images that both captioned" in run(compare_models, "--fail-if-worse")
    assert "4 of 4 images in" in run(report_captions, "--out")
    for words in lines:
        if words[1:2] == ["-c"]:
            code = words[2].replace("/data/", f"{tmp_path}/")
            done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
            assert "cider" in done.stdout
