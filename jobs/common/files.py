"""Files and folders on whatever file system Spark writes to, put in place whole; and the lease on a table."""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0  # a run shows that it lives this often...
WATCH_SECONDS = 20.0  # ...and has died if it has not for so long


class Folder:
    """A folder, named as Spark names it: a local path or a URI."""

    def __init__(self, spark: SparkSession, location: str) -> None:
        self.spark, self.location = spark, location.rstrip("/")
        self._conf = spark._jsc.hadoopConfiguration()
        self._system = self._path("").getFileSystem(self._conf)
        self.is_local = self._system.getUri().getScheme() == "file"

    @staticmethod
    def is_reached(spark: SparkSession, location: str) -> bool:
        """Whether Hadoop has a file system for it."""
        try:
            return bool(location) and Folder(spark, location) is not None
        except Py4JJavaError:
            return False

    def _path(self, name: str) -> Any:
        assert self.spark._jvm is not None
        return self.spark._jvm.org.apache.hadoop.fs.Path(self.at(name))

    def at(self, name: str) -> str:
        """The location of `name` in the folder."""
        return f"{self.location}/{name}" if name else self.location or "/"

    def shares_system(self, other: "Folder") -> bool:
        """Whether a file can be moved from one to the other: they are on one file system, on one disk."""
        if self.is_local and other.is_local:
            return self._device() == other._device()
        mine, theirs = (system.getCanonicalServiceName() or system.getUri().toString() for system in
                        (self._system, other._system))  # fmt: skip
        return bool(mine == theirs)

    def _device(self) -> int:
        path = Path(self._path("").toUri().getPath()).absolute()
        return next(folder for folder in (path, *path.parents) if folder.exists()).stat().st_dev

    def whole(self, name: str) -> str:
        """The location of `name` with the file system that it is on."""
        return str(self._system.makeQualified(self._path(name)).toString())

    def exists(self, name: str = "") -> bool:
        return bool(self._system.exists(self._path(name)))

    def names(self, name: str = "") -> list[str]:
        """What is in the folder `name` below this one, hidden files left out; nothing where it does not exist."""
        if not self.exists(name):
            return []
        found = (status.getPath().getName() for status in self._system.listStatus(self._path(name)))
        return sorted(found_name for found_name in found if not found_name.startswith(("_", ".")))

    def delete(self, name: str = "") -> None:
        self._system.delete(self._path(name), True)

    def delete_empty(self) -> None:
        """Removes the folder unless something is in it."""
        try:
            if self._system.exists(self._path("")) and not self._system.listStatus(self._path("")):
                self._system.delete(self._path(""), False)
        except Exception as error:
            logger.debug("%s stays: it is in use again, or out of reach: %s", self.location, error)

    def place(self, source: "Folder", name: str, target: str) -> None:
        """Moves the file `name` of `source` to `target` here, replacing what is there, in one step that a reader sees
        whole or not at all. Both folders are on one file system."""
        start, end = source._path(name), self._path(target)
        self._system.mkdirs(self._path(""))
        scheme = self._system.getUri().getScheme()
        if self.is_local:
            # Hadoop keeps a checksum in a second file, which cannot be replaced in the same step: do without.
            self._system.delete(self._path(f".{target}.crc"), False)
            Path(start.toUri().getPath()).replace(end.toUri().getPath())
        elif not self._system.exists(end):
            if not self._system.rename(start, end):
                raise OSError(f"{start} could not be renamed to {end}")
        elif scheme in ("hdfs", "viewfs"):
            fs = self.spark._jvm.org.apache.hadoop.fs  # type: ignore[union-attr]
            options = self.spark.sparkContext._gateway.new_array(fs.Options.Rename, 1)  # type: ignore[union-attr]
            options[0] = fs.Options.Rename.OVERWRITE
            fs.FileContext.getFileContext(self._system.getUri(), self._conf).rename(start, end, options)
        else:  # an object store: an object appears, or is replaced, once it is written
            util = self.spark._jvm.org.apache.hadoop.fs.FileUtil  # type: ignore[union-attr]
            util.copy(self._system, start, self._system, end, False, True, self._conf)

    def write_text(self, name: str, text: str, overwrite: bool = True) -> bool:
        """Whether it was written: not where the file exists and `overwrite` is false."""
        if self.is_local:
            return self._write_local(Path(self._path(name).toUri().getPath()), text, overwrite)
        try:
            stream = self._system.create(self._path(name), overwrite)
        except Exception as error:  # py4j's, around Java's FileAlreadyExistsException
            if overwrite or not self.exists(name):
                raise OSError(f"{self.at(name)} cannot be written: {str(error).splitlines()[0]}") from None
            return False
        stream.write(bytearray(text.encode()))
        stream.close()
        return True

    @staticmethod
    def _write_local(path: Path, text: str, overwrite: bool) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        written.write_text(text, encoding="utf-8")
        try:
            if not overwrite:
                _link(written, path)
                return True
            written.replace(path)
        except FileExistsError:
            return False
        finally:
            written.unlink(missing_ok=True)
        return True

    def read_text(self, name: str) -> str | None:
        """None where there is no such file."""
        try:
            stream = self._system.open(self._path(name))
        except Exception:
            if self.exists(name):
                raise
            return None
        try:
            return bytes(stream.readAllBytes()).decode()
        finally:
            stream.close()


def _link(file: Path, name: Path) -> None:
    """Gives a file a second name, which nobody else has. Raises FileExistsError."""
    try:
        name.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:  # a file system without such names (FAT, some of networks)
        with name.open("xb") as copy:
            copy.write(file.read_bytes())


@contextmanager
def lease(folder: Folder, owner: str, what: str) -> Iterator["Lease"]:
    """Holds `what` for the context, as told by a file in `folder`, which goes when it is empty: a run at a time.

    Raises ValueError where another run holds it and lives. One that died is found out by its silence, or at once where
    it ran on this machine.
    """
    held = Lease(folder, owner, what)
    held.take()
    beating = threading.Thread(target=held.keep, name="lease", daemon=True)
    beating.start()
    try:
        yield held
    finally:
        held.done.set()
        beating.join()
        held.release()
        folder.delete_empty()


class Lease:
    """See `lease`."""

    NAME = "lock"

    def __init__(self, folder: Folder, owner: str, what: str) -> None:
        self.folder, self.owner, self.what = folder, owner, what
        self.done = threading.Event()
        self._beat = 0
        self._writing = threading.Lock()  # on HDFS, who reads while it is being written reads nothing

    def _text(self) -> str:
        return f"{self.owner} {socket.gethostname()} {os.getpid()} {self._beat}"

    def take(self) -> None:
        while not self.folder.write_text(self.NAME, self._text(), overwrite=False):
            holder = self.folder.read_text(self.NAME)
            if holder is None:
                continue
            if not self._is_dead(holder):
                run, host, process = _parts(holder)
                raise ValueError(f"{self.what} is being written by run {run} (process {process} on {host}): try later")
            logger.warning("taking over %s from a run that has died: %s", self.what, holder)
            self.folder.delete(self.NAME)
        if not self.folder.is_local:
            time.sleep(1)  # an object store lets two create the same file: the last to write it has it
        self.check()

    def _is_dead(self, holder: str) -> bool:
        _, host, process = _parts(holder)
        if host == socket.gethostname() and process.isdigit() and int(process) != os.getpid():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                pass
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 5)
            if self.folder.read_text(self.NAME) != holder:
                return False
        return True

    def keep(self) -> None:
        """Shows, until done, that this run lives."""
        while not self.done.wait(BEAT_SECONDS):
            self._beat += 1
            try:
                with self._writing:
                    if self._is_mine():
                        self.folder.write_text(self.NAME, self._text())
            except Exception as error:  # the store may be away for a while; a commit checks again
                logger.warning("lock of %s: %s", self.what, str(error).splitlines()[0])

    def _is_mine(self) -> bool:
        return (self.folder.read_text(self.NAME) or "").startswith(f"{self.owner} ")

    def check(self) -> None:
        """Raises ValueError where another run has taken over: this one was silent too long."""
        with self._writing:
            mine = self._is_mine()
        if not mine:
            raise ValueError(f"another run has taken over {self.what}: this one stops; what it committed stays")

    def release(self) -> None:
        if self._is_mine():
            self.folder.delete(self.NAME)


def _parts(holder: str) -> list[str]:
    """Run, host and process; empty where the text was read while it was being written."""
    return (holder.split(" ") + [""] * 3)[:3]
