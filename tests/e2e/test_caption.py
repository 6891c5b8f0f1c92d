"""The README's first command, run as a user runs it, here and on a standalone cluster of two workers."""

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.cluster import free_ports, plain_environment

PROJECT = Path(__file__).parents[2]
DEV = PROJECT.parent / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"
SAMPLES = sorted(path.name for path in (PROJECT / "samples" / "images").iterdir())


def submit(cwd: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The launcher, from another folder than the project's, with neither PYTHONPATH nor our packages installed."""
    done = subprocess.run(
        [PROJECT / "spark-submit.sh", *arguments],
        cwd=cwd,
        env=plain_environment(NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **environment),
        text=True,
        capture_output=True,
        timeout=400,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def captions(path: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(path, columns=["image_id", "status", "caption"]).to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: (row["status"], row["caption"]) for row in rows}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the job was run in with no arguments, and what it printed."""
    folder = tmp_path_factory.mktemp("local")
    done = submit(folder, "jobs/caption_images.py")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_samples_are_captioned_without_arguments(local: tuple[Path, str]) -> None:
    folder, printed = local
    found = captions(folder / "out" / "captions")
    assert sorted(found) == SAMPLES
    for name, (status, caption) in found.items():
        assert status == "ok"
        assert len(caption.split()) >= 3
        assert any(line.startswith(name) and line.endswith(caption) for line in printed.splitlines())
    assert f"{len(SAMPLES)} images in " in printed
    words = [" ".join(found[name][1] for name in names) for names in (["dog.jpg", "two_dogs.jpg"], SAMPLES)]
    assert "dog" in words[0]
    assert {"dog", "man"} <= set(words[1].split())


def test_cluster_gives_the_same_captions(local: tuple[Path, str], cluster_url: str, tmp_path: Path) -> None:
    done = submit(tmp_path, "--master", cluster_url, "jobs/caption_images.py", "--captions", tmp_path / "captions")
    assert done.returncode == 0, done.stderr
    assert captions(tmp_path / "captions") == captions(local[0] / "out" / "captions")


class Scraper(threading.Thread):
    """Reads what Spark's page says at `url`, again and again, and keeps the lines that `name` is in."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(daemon=True)
        self.url, self.name_of_metric, self.done = url, name, threading.Event()
        self.seen: set[str] = set()

    def run(self) -> None:
        while not self.done.wait(0.2):
            try:
                with urllib.request.urlopen(self.url, timeout=5) as answer:
                    self.seen |= {line for line in answer.read().decode().splitlines() if self.name_of_metric in line}
            except OSError:
                pass  # not up yet, or gone


def test_real_photographs_are_scored_on_the_cluster(
    cluster_url: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sixty of the dev photographs from Parquet, captioned and evaluated: far above what a wrong model would get.
    Meanwhile the driver's page tells how many are done; all logs are JSON."""
    some = pq.read_table(DEV).slice(0, 60)
    pq.write_table(some.select(["image_id", "content"]), tmp_path / "images.parquet")
    pq.write_table(some.select(["image_id", "captions"]), tmp_path / "references.parquet")
    options = ["--images", "images.parquet", "--captions", tmp_path / "captions", "--references", "references.parquet"]
    (port,) = free_ports(1)
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics/prometheus", "_images_")
    scraper.start()
    page = ["--conf", f"spark.ui.port={port}"]
    job = ["--master", cluster_url, *page, "jobs/caption_images.py", *options]
    done = submit(tmp_path, *job, NIC_LOG_FORMAT="json")
    scraper.done.set()
    assert done.returncode == 0, done.stderr
    told = 'metrics_caption_images_driver_AccumulatorSource_images_{}_Value{{type="gauges"}} {}'
    assert {told.format("ok", 60), told.format("left", 0), told.format("decode_error", 0)} <= scraper.seen, scraper.seen

    (run_id,) = {row["run_id"] for row in pq.read_table(tmp_path / "captions").to_pylist()}
    logs = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert {line["context"].get("run_id") for line in logs if line["logger"].startswith("jobs")} == {run_id}
    assert any(line["msg"].startswith("60 images in ") for line in logs)
    files = tmp_path_factory.getbasetemp().glob("cluster[0-9]*/worker-*/work/*/*/stderr")
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("{")]
    logs = [json.loads(line) for line in lines]
    assert {line["logger"] for line in logs} == {"jobs.executor"}
    assert all({"run_id", "stage", "partition", "attempt"} == set(line["context"]) for line in logs)
    assert sum(int(line["msg"].split()[1]) for line in logs if line["msg"].startswith("captioned ")) == 60

    in_job = {row["metric"]: row["score"] for row in pq.read_table(tmp_path / "captions_scores" / "corpus").to_pylist()}
    assert in_job["bleu_1"] > 50
    assert in_job["bleu_4"] > 10

    scores = ["--captions", "captions", "--references", "references.parquet", "--scores", tmp_path / "scores"]
    done = submit(tmp_path, "--master", cluster_url, "jobs/evaluate_captions.py", *scores)
    assert done.returncode == 0, done.stderr
    again = {row["metric"]: row["score"] for row in pq.read_table(tmp_path / "scores" / "corpus").to_pylist()}
    assert again == in_job
    assert f"BLEU-4 {in_job['bleu_4']:.1f}" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam-size", "0"], "error: --beam-size 0: must be at least 1\n"),
        (["--images", "nowhere"], "error: --images nowhere: no such folder\n"),
    ],
)
def test_bad_options_end_it_at_once(options: list[str], message: str, tmp_path: Path) -> None:
    done = submit(tmp_path, "jobs/caption_images.py", *options)
    assert done.returncode == 2
    assert done.stdout + done.stderr == message  # Spark puts both into one
