"""A real Spark standalone cluster on loopback, started from pip's pyspark: a master and its workers as processes."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

# Java that lives for a minute or two should not spend it on compiling, nor on reading classes that spark-submit.sh has
# archived; and what Spark takes Java's options from.
_ARCHIVES = [*Path(__file__).parents[2].glob("build/classes-*.jsa")]
ARCHIVED = " ".join(f'"-XX:SharedArchiveFile={archive}" -Xlog:cds=off -Xlog:cds+dynamic=off' for archive in _ARCHIVES)
BRIEF = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC {ARCHIVED}"
JAVA_OPTIONS = ("SPARK_SUBMIT_OPTS", "SPARK_DAEMON_JAVA_OPTS")

START_SECONDS = 120
STOP_SECONDS = 10


@dataclass
class Cluster:
    """A master and its workers. A worker that was killed can be started again."""

    folder: Path
    cores: int = 1
    memory: str = "2g"
    worker_env: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=lambda: free_ports(2))

    @property
    def url(self) -> str:
        return f"spark://127.0.0.1:{self.ports[0]}"

    def start(self, workers: int) -> None:
        port, web_port = self.ports
        options = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(web_port)]
        self.master = _daemon(self.folder / "master", "master.Master", options)
        self.workers = [self._start_worker(number) for number in range(workers)]
        self.await_workers()

    def restart_worker(self, number: int) -> None:
        """Starts it again after it has ended. Its executors find out by themselves."""
        self.workers[number].wait(STOP_SECONDS)
        self.workers[number] = self._start_worker(number)

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        home = self.folder / f"worker-{number}"
        options = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0", "--cores", str(self.cores)]
        options += ["--memory", self.memory, "--work-dir", str(home / "work"), self.url]
        return _daemon(home, "worker.Worker", options, self.worker_env)

    def await_workers(self) -> None:
        """Until all of them are registered. Raises RuntimeError where one ends, TimeoutError."""
        _await_workers(
            f"http://127.0.0.1:{self.ports[1]}/json/", len(self.workers), [self.master, *self.workers], self.folder
        )

    def stop(self) -> None:
        for process in [*reversed(self.workers), self.master]:
            stop_group(process)


@contextmanager
def standalone_cluster(
    folder: Path, workers: int = 2, cores: int = 1, memory: str = "2g", worker_env: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """Yields a master with its workers registered, and stops them all on leaving.

    Logs and work directories go below `folder`, an existing directory: `worker-0/work/app-.../0/stderr` is what the
    first worker's executor printed. `worker_env` adds environment variables to the workers, such as
    SPARK_WORKER_OPTS.
    """
    cluster = Cluster(folder, cores, memory, worker_env or {})
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.stop()


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would let a job find our packages or settings by accident."""
    hidden = ("SPARK_", "PYSPARK_", "PYTHON", "NIC_")
    kept = {name: value for name, value in os.environ.items() if name in JAVA_OPTIONS or not name.startswith(hidden)}
    return kept | changes


def _daemon(home: Path, name: str, options: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    home.mkdir(parents=True, exist_ok=True)
    environment = plain_environment(
        JDK_JAVA_OPTIONS=ARCHIVED,  # of executors too
        SPARK_HOME=spark_home(),
        SPARK_LOCAL_IP="127.0.0.1",
        SPARK_CONF_DIR=str(home / "none"),
        SPARK_DAEMON_MEMORY="512m",
        SPARK_LOCAL_DIRS=str(home / "local"),
    )
    spark_class = Path(spark_home(), "bin", "spark-class")
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [spark_class, f"org.apache.spark.deploy.{name}", *options],
            cwd=home,
            env=environment | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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
