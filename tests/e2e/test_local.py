"""infra/local as an operator uses it: up, nights with new images and a broken one, and down with nothing left."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.e2e.cluster import free_ports, plain_environment
from tests.tiny import tiny_model_directory

PROJECT = Path(__file__).parents[2]
COMMAND = PROJECT / "infra" / "local" / "cluster.sh"
PORTS = 14
S3_PORTS = 8  # the first of them are SeaweedFS's
SECONDS = 300


def cluster(verb: str, folder: Path, *options: object, status: int = 0) -> str:
    """What the command printed; it must end with `status`."""
    done = subprocess.run(
        ["bash", COMMAND.name, verb, "--folder", folder, *map(str, options)],
        cwd=COMMAND.parent,
        # A proxy, as companies have, is not asked for what is here.
        env=plain_environment(NIC_PYTHON=sys.executable, http_proxy="http://127.0.0.1:9", no_proxy=""),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def first_of_free_ports() -> int:
    """Of PORTS in a row that nothing listens on."""
    while True:
        [first] = free_ports(1)
        if first + PORTS < 65536 and not any(listens(port) for port in range(first, first + PORTS)):
            return first


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def sessions(folder: Path) -> set[int]:
    """Those that the cluster's processes lead."""
    return {int(file.read_text().split()[0]) for file in (folder / "run").glob("*.pid")}


def members(leaders: set[int]) -> list[str]:
    """Processes that still run in these sessions."""
    found = []
    for process in psutil.process_iter(["pid", "status", "cmdline"]):
        try:
            if os.getsid(process.pid) in leaders and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or []))
        except ProcessLookupError:
            continue
    return found


def captions(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "tables" / "captions", columns=["image_id", "status"]).to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row["status"] for row in rows}


def scored(folder: Path) -> int:
    """Images that count in the scores."""
    [n] = {row["n_segments"] for row in pq.read_table(folder / "tables" / "scores" / "corpus").to_pylist()}
    return n


def test_nights_on_one_machine(tmp_path: Path) -> None:
    folder, images = tmp_path / "local", tmp_path / "images"
    (images / "new").mkdir(parents=True)
    for name in ("dog.jpg", "hikers.jpg"):
        shutil.copy(PROJECT / "samples" / "images" / name, images)
    shutil.copy(PROJECT / "samples" / "images" / "drummers.jpg", images / "new")
    (images / "new" / "broken.jpg").write_bytes(b"no image")
    port = first_of_free_ports()
    try:
        options = ["--port", port, "--model", tiny_model_directory(tmp_path)]
        cluster("up", folder, *options, "--references", PROJECT / "samples" / "references.parquet", "--memory", "1g")
        wait_until(lambda: all(listens(port + number) for number in range(PORTS)))
        assert "is up" in cluster("up", folder, *options, status=2)
        leaders = sessions(folder)
        assert len(leaders) == 5

        assert "2 files are in s3://images" in cluster("put", folder, images / "dog.jpg", images / "hikers.jpg")
        cluster("night", folder)
        assert captions(folder) == {"dog.jpg": "ok", "hikers.jpg": "ok"}
        assert scored(folder) == 2

        # The next night is the schedule's own: its time is changed while it waits.
        cluster("put", folder, images / "new")
        settings = (folder / "settings").read_text()
        soon = time.strftime("%H:%M:%S", time.localtime(time.time() + 2))
        (folder / "settings").write_text(settings.replace("at=02:00\n", f"at={soon}\n"))
        wait_until(lambda: len(list(folder.glob("nights/*/status"))) == 2)
        nights = sorted(folder.glob("nights/*/status"))
        assert [file.read_text() for file in nights] == ["0\n", "0\n"], (nights[-1].parent / "log").read_text()
        assert captions(folder) == {
            "dog.jpg": "ok",
            "hikers.jpg": "ok",
            "drummers.jpg": "ok",
            "broken.jpg": "decode_error",
        }
        assert scored(folder) == 3
        log = (nights[1].parent / "log").read_text()
        assert "2 images in " in log
        assert f"compared with the night of {nights[0].parent.name}" in log
        assert " of 2 images -> " in log
        page = (folder / "report.html").read_text()
        assert all(f'"{name}"' in page for name in captions(folder))
        assert "status 0" in cluster("status", folder)
    finally:
        leaders = sessions(folder)
        cluster("down", folder)
    assert members(leaders) == []
    assert not [number for number in range(PORTS) if listens(port + number)]
    assert not [file for number in range(S3_PORTS) for file in Path("/tmp").glob(f"seaweedfs-*-{port + number}.sock")]
    assert "not up" in cluster("night", folder, status=2)
    assert "not up" in cluster("put", folder, images, status=2)
    (folder / "nights" / "9999-12-31").mkdir()
    assert "9999-12-31, status none: it runs, or was cut short" in cluster("status", folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--at", "noon o'clock"], "--at noon o'clock: must be a time of day"),
        (["--cores", "0"], "--cores 0: must be a whole number, at least 1"),
        (["--memory", "2"], "--memory 2: must be as 2g or 2048m"),
        (["--images", "/data/photos"], "--images /data/photos: must be as s3://bucket or s3://bucket/prefix"),
        (["--metric", "ciderr"], "--metric ciderr: allowed are bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider"),
        (["--model", "nowhere"], "nowhere: no model directory"),
        (["--references", "nowhere"], "nowhere: no such table"),
        (["--port", "65530"], "--port 65530: must be at most 65522"),
        (["--size", "1"], "--size: no such option"),
        (["--folder", "a b"], "/a b: Spark wants no space in it"),
    ],
)
def test_bad_options_get_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    printed = cluster("up", tmp_path, *options, status=2)
    assert said in printed
    assert printed.count("\n") == 1


def test_a_port_in_use_gets_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in cluster("up", tmp_path, "--port", port, status=2)
    assert not (tmp_path / "run").exists()
