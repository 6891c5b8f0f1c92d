"""How the job, started as users start it, takes what is wrong with more than an image: how long, and what it says.

    .venv/bin/python -m tests.e2e.trouble

captions a hundred objects of a sound S3 server, of one that answers a third of all requests with 503 SlowDown, and of
one that answers nothing for a minute, from the start or after 30 requests: all must end in the same rows. Then with
wrong keys, with none, with a bucket that is not there, where every object is denied, and with a full disk: each must
end with one line. Prints for each case the exit status, the seconds and that line. `--only` chooses cases by their
names.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from tests.e2e.cluster import plain_environment
from tests.e2e.flaky import flaky
from tests.e2e.seaweed import BUCKETS, Seaweed, seaweed
from tests.nic_model.test_captioner import photographs
from tests.tiny import tiny_model_directory

PROJECT = Path(__file__).parents[2]
OBJECTS = 100
WRONG = ("reader-key", "wrong")
FULL = "64k"  # a disk that holds no wave


@dataclass(frozen=True)
class Case:
    """`images` are the objects, a manifest of them, or another place; `said` stands in the one line of a run that must
    end, and is None where all rows must be there."""

    images: str
    said: str | None = None
    identity: tuple[str, ...] | None = ()
    server: dict[str, float] = field(default_factory=dict)
    full: bool = False


CASES = {
    "sound server": Case("s3://photos/many"),
    "a third of the answers 503": Case("s3://photos/many", server={"failing": 1 / 3}),
    "silent for 60 s from the start": Case("s3://photos/many", server={"silence": 60.0}),
    "silent for 60 s meanwhile": Case("s3://photos/many", server={"silence": 60.0, "after": 30}),
    "wrong secret": Case("s3://photos/many", "SignatureDoesNotMatch", WRONG),
    "wrong secret, manifest": Case("manifest.jsonl", "SignatureDoesNotMatch", WRONG),
    "unknown key, manifest": Case("manifest.jsonl", "InvalidAccessKeyId", ("nobody", "wrong")),
    "no keys": Case("s3://photos/many", "NoCredentialsError", None),
    "no keys, manifest": Case("manifest.jsonl", "NoCredentialsError", None),
    "no such bucket": Case("s3://nothing-here/", "NoSuchBucket", ("admin-key", "admin-secret")),
    "denied everywhere": Case("s3://locked/", "none of 8 objects tried can be read"),
    "denied everywhere, manifest": Case("locked.jsonl", "none of 8 objects tried can be read"),
    "disk full": Case("s3://photos/many", "No space left on device", full=True),
}


@dataclass(frozen=True)
class Ended:
    """How a run ended, and the lines in which it said why."""

    status: int
    seconds: float
    errors: list[str]
    captions: Path

    def rows(self) -> list[tuple[str, str]]:
        """image_id and status; nothing where there is no table."""
        if not self.captions.exists():
            return []
        table = pq.read_table(self.captions, columns=["image_id", "status"]).to_pylist()
        return sorted((row["image_id"], row["status"]) for row in table)

    def is_as_wanted(self, case: Case, objects: int) -> bool:
        if case.said is None:
            return self.status == 0 and self.rows() == [(f"{n:03}.png", "ok") for n in range(objects)]
        return self.status in (1, 2) and len(self.errors) == 1 and case.said in self.errors[0] and not self.rows()


@dataclass(frozen=True)
class Trouble:
    """A server with objects, and a model."""

    server: Seaweed
    folder: Path
    model: Path

    def run(self, name: str) -> Ended:
        case = CASES[name]
        place = self.folder / name.replace(" ", "-").replace(",", "")
        place.mkdir()
        options = ["--images", case.images, "--captions", place / "out" / "captions", "--model", self.model]
        command = [PROJECT / "spark-submit.sh", "--master", "local[2]", "jobs/caption_images.py", *options]
        if case.full:
            # A disk of its own that nobody else sees.
            (place / "out").mkdir()
            mount = f'mount -t tmpfs -o size={FULL} none "$0" && exec "$@"'
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, place / "out", *command]
        with flaky(self.server.ports[0], **case.server) as front:
            begun = time.monotonic()
            done = subprocess.run(
                [*map(str, command), "--s3-endpoint", front.endpoint],
                cwd=self.folder,
                env=self.environment(case.identity),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # Spark puts both into one anyway
                check=False,
            )
            seconds = time.monotonic() - begun
        (place / "printed").write_text(done.stdout)
        errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        return Ended(done.returncode, seconds, errors, place / "out" / "captions")

    def environment(self, identity: tuple[str, ...] | None) -> dict[str, str]:
        given = self.server.environment(*(identity or ()))
        if identity is None:
            del given["AWS_SHARED_CREDENTIALS_FILE"]
            given["HOME"] = str(self.folder)  # where nobody has left any
        return plain_environment(NIC_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", **given)


def prepare(server: Seaweed, folder: Path, objects: int = OBJECTS) -> Trouble:
    """With `objects` images below s3://photos/many, and as many in s3://locked, which may be listed and not read."""
    client = server.admin()
    for number, content in enumerate(photographs(objects)):
        client.put_object(Bucket="photos", Key=f"many/{number:03}.png", Body=content)
        client.put_object(Bucket="locked", Key=f"{number:03}.png", Body=content)
    for name, prefix in (("manifest", "photos/many"), ("locked", "locked")):
        rows = [{"image_id": f"{n:03}.png", "uri": f"s3://{prefix}/{n:03}.png"} for n in range(objects)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Trouble(server, folder, tiny_model_directory(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--keep", type=Path, help="folder for what the runs print (default: a temporary one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    bad = []
    with tempfile.TemporaryDirectory(prefix="trouble-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with seaweed(folder / "s3") as server:
            for bucket in BUCKETS:
                server.admin().create_bucket(Bucket=bucket)
            at = prepare(server, folder)
            for name in (name for name in CASES if options.only in name):
                ended = at.run(name)
                verdict = "" if ended.is_as_wanted(CASES[name], OBJECTS) else "  NOT AS IT SHOULD BE"
                said = "; ".join(ended.errors) or f"{len(ended.rows())} rows"
                print(f"{name:30} exit {ended.status}, {ended.seconds:5.1f} s: {said}{verdict}", flush=True)
                bad += [name] if verdict else []
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
