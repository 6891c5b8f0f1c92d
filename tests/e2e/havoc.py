"""What a night may bring: processes of a running job are killed at random, and its S3 server goes away for a while."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from tests.e2e.cluster import Cluster
from tests.e2e.seaweed import Seaweed

KINDS = ("python worker", "executor", "spark worker", "driver", "s3 server")
AWAY_SECONDS = 4.0  # at most, beside what the server takes to start


@dataclass
class Havoc:
    """Kills, and counts what it has killed. `random` decides whom, and how long the S3 server is away."""

    cluster: Cluster
    server: Seaweed
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def cause(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        """Whether there was anything of that `kind` to kill."""
        kill: Callable[[subprocess.Popen[bytes]], bool] = getattr(self, f"_{kind.replace(' ', '_')}")
        happened = kill(driver)
        self.done[kind] += happened
        return happened

    def _python_worker(self, _: subprocess.Popen[bytes]) -> bool:
        # A worker is a fork of its executor's daemon, and has its command line.
        daemons = [process for process in self._descendants() if _runs(process, "pyspark.daemon")]
        pids = {process.pid for process in daemons}
        return self._kill_one([process for process in daemons if process.ppid() in pids])

    def _executor(self, _: subprocess.Popen[bytes]) -> bool:
        return self._kill_one([p for p in self._descendants() if _runs(p, "CoarseGrainedExecutorBackend")])

    def _spark_worker(self, _: subprocess.Popen[bytes]) -> bool:
        number = self.random.randrange(len(self.cluster.workers))
        self.cluster.workers[number].kill()
        self.cluster.restart_worker(number)
        return True

    def _driver(self, driver: subprocess.Popen[bytes]) -> bool:
        """The job's Java process, its Python process, or both at once."""
        try:
            python = [p for p in psutil.Process(driver.pid).children() if _runs(p, "caption_images.py")]
        except psutil.NoSuchProcess:
            return False
        if driver.poll() is not None or not python:
            return False
        which = self.random.choice(("java", "python", "both"))
        if which != "python":
            os.kill(driver.pid, signal.SIGKILL)
        if which != "java":
            python[0].kill()
        return True

    def _s3_server(self, _: subprocess.Popen[bytes]) -> bool:
        self.server.kill()
        time.sleep(self.random.uniform(0, AWAY_SECONDS))
        self.server.start()
        return True

    def _descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for worker in self.cluster.workers:
            try:
                found += psutil.Process(worker.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        return found

    def _kill_one(self, processes: list[psutil.Process]) -> bool:
        if not processes:
            return False
        try:
            self.random.choice(sorted(processes, key=lambda process: process.pid)).kill()
        except psutil.NoSuchProcess:
            return False
        return True


def _runs(process: psutil.Process, what: str) -> bool:
    try:
        return any(what in word for word in process.cmdline())
    except psutil.Error:
        return False
