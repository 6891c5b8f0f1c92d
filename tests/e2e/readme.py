"""The README's commands for tables on S3 and in catalogs, as written but for the names of places, on a real S3 server.

.venv/bin/python tests/e2e/readme.py
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e import bulk  # noqa: E402
from tests.e2e.bulk import LAKE, Table  # noqa: E402
from tests.e2e.seaweed import ADMIN_KEY, ADMIN_SECRET, BUCKETS, SECRET, Seaweed, seaweed  # noqa: E402
from tests.nic_model.test_captioner import photographs  # noqa: E402
from tests.tiny import tiny_model_directory  # noqa: E402

COUNT = 100
README = (ROOT / "README.md").read_text().replace("\\\n", " ")
COMMANDS = re.findall(r"^    \./spark-submit\.sh (.*--format (?:delta|iceberg).*)", README, re.MULTILINE)
KINDS = ("s3a://bucket/captions", "type=hadoop", "type=rest")  # what tells each from the others


def prepare(s3: Seaweed) -> None:
    """Puts the images and the manifest, and makes the REST catalog's namespace."""
    bulk.put_objects(s3, photographs(4), COUNT)
    s3.create_table_bucket("lake")
    s3.create_namespace("lake", "media")


def run(kind: str, s3: Seaweed, folder: Path) -> None:
    """Runs the command. Raises AssertionError unless its table is right afterwards, and no secret was printed."""
    (command,) = (command for command in COMMANDS if kind in command)
    for place, real in (
        ("s3://bucket/photos", f"s3://photos/{bulk.PREFIX}"),
        ("s3://bucket/manifest.jsonl", "s3://tables/manifest.jsonl"),
        ("s3a://bucket/", "s3a://tables/"),
        ("/data/lake", f"{folder}/lake"),
        ("http://catalog:8181", s3.catalog),
    ):
        command = command.replace(place, real)
    words = shlex.split(command)
    settings = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--conf")
    secret = {f"{LAKE}.credential": f"{ADMIN_KEY}:{ADMIN_SECRET}"} if kind == "type=rest" else {}
    properties = folder / "catalog.properties"
    properties.write_text("".join(f"{key} {value}\n" for key, value in secret.items()))
    table = Table(words[words.index("--format") + 1], words[words.index("--captions") + 1], settings | secret)

    launched, environment = bulk.launcher(s3, Table(table.format, table.location), "local[2]")
    launched += ["--properties-file", str(properties), "--load-spark-defaults", *words]
    launched += ["--s3-endpoint", s3.endpoint, "--model", str(tiny_model_directory(folder))]
    done = subprocess.run(launched, env=environment, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(text in done.stdout + done.stderr for text in (SECRET, ADMIN_SECRET))
    listed = "manifest" not in command  # and so without what is missing or in the other bucket
    numbers = [n for n in range(COUNT) if not listed or bulk.kind_of(n) in ("good", "corrupt")]
    failed = {} if listed else {"fetch_error": 2}
    assert bulk.check(s3, table, numbers) == {"ok": 96, "decode_error": 2, **failed}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, seaweed(Path(temporary, "s3")) as server:
        for bucket in BUCKETS:
            server.admin().create_bucket(Bucket=bucket)
        prepare(server)
        for number, kind in enumerate(KINDS):
            place = Path(temporary, str(number))
            place.mkdir()
            run(kind, server, place)
            print(f"the README's command with {kind}: its table has one row for each image, the right one")
