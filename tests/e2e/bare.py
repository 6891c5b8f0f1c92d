"""The samples captioned by workers whose Python has none of our packages, with only what `--pack` made.

    .venv/bin/python -m tests.e2e.bare

Packs, starts a standalone cluster of two workers, and captions the samples with the options that `--pack` printed and
a bare Python for the executors (`--python`, of the same minor version; default: a virtual environment of this one with
nothing in it). Captions them on this machine as well: both tables must be the same. About 3.5 GB go to a temporary
folder and as many again to each worker.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.e2e.cluster import plain_environment, standalone_cluster

LAUNCHER = Path(__file__).parents[2] / "spark-submit.sh"


def run(*words: str | Path, **environment: str) -> tuple[str, float]:
    """What the launcher printed, and the seconds it took. Raises RuntimeError where it fails."""
    environment = plain_environment(NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **environment)
    clock = time.monotonic()
    done = subprocess.run([LAUNCHER, *words], env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout, time.monotonic() - clock


def bare_python(folder: Path) -> Path:
    """One that has only its standard library."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def captions(folder: Path) -> list[dict[str, str]]:
    rows = pq.read_table(folder, columns=["image_id", "status", "caption"]).to_pylist()
    return sorted(rows, key=lambda row: row["image_id"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", type=Path, help="the executors' (default: one made with no packages)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bare-") as temporary:
        folder = Path(temporary)
        python = options.python or bare_python(folder / "python")
        lacks = subprocess.run([python, "-c", "import numpy"], cwd=folder, capture_output=True, check=False)
        if not lacks.returncode:
            parser.error(f"--python {python}: has numpy; a bare one is wanted")
        said, seconds = run("--pack", folder / "pack")
        print(f"packed in {seconds:.0f} s: {said.splitlines()[0]}", flush=True)
        printed = re.search(r"--archives .* (?=JOB)", said)
        assert printed
        (folder / "cluster").mkdir()
        job = ("jobs/caption_images.py", "--device", "cpu", "--captions")
        with standalone_cluster(folder / "cluster") as cluster:
            spark = ("--master", cluster.url, "--executor-memory", "1g", *shlex.split(printed[0]))
            _, seconds = run(*spark, *job, folder / "there", PYSPARK_PYTHON=os.fspath(python))
        run(*job, folder / "here")
        there, here = captions(folder / "there"), captions(folder / "here")
    ok = sum(row["status"] == "ok" for row in there)
    print(f"{len(there)} rows in {seconds:.0f} s, {ok} ok; the same as with the packages installed: {there == here}")
    return 0 if there == here and ok == len(there) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
