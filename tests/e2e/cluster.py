"""A real Spark standalone cluster on loopback, started from pip's pyspark: a master and its workers as processes."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

START_SECONDS = 120
STOP_SECONDS = 10


@contextmanager
def standalone_cluster(
    folder: Path, workers: int = 2, cores: int = 1, memory: str = "2g", worker_env: dict[str, str] | None = None
) -> Iterator[str]:
    """Yields the `spark://` URL of a master with its workers registered, and stops them all on leaving.

    Logs and work directories go below `folder`, an existing directory: `worker-0/work/app-.../0/stderr` is what the
    first worker's executor printed. `worker_env` adds environment variables to the workers, such as
    SPARK_WORKER_OPTS.
    """
    with ExitStack() as processes:
        port, web_port = free_ports(2)
        url = f"spark://127.0.0.1:{port}"
        options = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(web_port)]
        running = [processes.enter_context(_daemon(folder / "master", "master.Master", options))]
        for number in range(workers):
            home = folder / f"worker-{number}"
            options = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0", "--cores", str(cores)]
            options += ["--memory", memory, "--work-dir", str(home / "work"), url]
            running.append(processes.enter_context(_daemon(home, "worker.Worker", options, worker_env)))
        _await_workers(f"http://127.0.0.1:{web_port}/json/", workers, running, folder)
        yield url


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would let a job find our packages or settings by accident."""
    hidden = ("SPARK_", "PYSPARK_", "PYTHON", "NIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | changes


@contextmanager
def _daemon(
    home: Path, name: str, options: list[str], env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    (home / "conf").mkdir(parents=True)
    environment = plain_environment(
        SPARK_HOME=spark_home(),
        SPARK_LOCAL_IP="127.0.0.1",
        SPARK_CONF_DIR=str(home / "conf"),
        SPARK_DAEMON_MEMORY="512m",
        SPARK_LOCAL_DIRS=str(home / "local"),
    )
    spark_class = Path(spark_home(), "bin", "spark-class")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [spark_class, f"org.apache.spark.deploy.{name}", *options],
            cwd=home,
            env=environment | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process started in a session of its own, with all that it started there."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_SECONDS)


def spark_home() -> str:
    """Where pip installed Spark."""
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(iter(spec.submodule_search_locations))


def _await_workers(status_url: str, workers: int, running: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = [process.returncode for process in running if process.poll() is not None]
        if ended:
            raise RuntimeError(f"a process of the cluster ended with {ended[0]}\n{_logs(folder)}")
        try:
            with urllib.request.urlopen(status_url, timeout=5) as answer:
                if json.load(answer)["aliveworkers"] == workers:
                    return
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    raise TimeoutError(f"{workers} workers did not register in {START_SECONDS} s\n{_logs(folder)}")


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(folder.glob("*/log")))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
