"""A real S3 server on loopback: SeaweedFS, with credentials, as a process."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.e2e.cluster import free_ports, stop_group

START_SECONDS = 120
KEY, SECRET = "reader-key", "reader-secret-never-to-be-seen"
ADMIN_KEY, ADMIN_SECRET = "admin-key", "admin-secret"
# The reader may list `locked`, but get no object of it.
BUCKETS = ("photos", "tables", "locked")


@dataclass
class Seaweed:
    """A running server. `stop` and `start` keep its data and its ports."""

    folder: Path
    ports: list[int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def environment(self, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """The AWS configuration of a reader: a credentials file, and no other of this machine's."""
        file = self.folder / f"credentials-{key}-{hashlib.sha256(secret.encode()).hexdigest()[:8]}"
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        nowhere = str(self.folder / "no-config")
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(file),
            "AWS_CONFIG_FILE": nowhere,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def admin(self) -> Any:
        """A client that may do everything."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ADMIN_KEY,
            aws_secret_access_key=ADMIN_SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
        )

    @property
    def catalog(self) -> str:
        """The URL of the server's Iceberg REST catalog. Its warehouses are table buckets."""
        return f"http://127.0.0.1:{self.ports[8]}"

    def requests(self) -> Counter[str]:
        """How many the server has answered, by `BUCKET KIND`: GET, HEAD, LIST, PUT and others."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[9]}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        pattern = r'^SeaweedFS_s3_request_total{bucket="(.*?)",code=".*?",type="(.*?)"} (\S+)$'
        counts = Counter[str]()
        for bucket, kind, count in re.findall(pattern, text, re.MULTILINE):
            counts[f"{bucket} {kind}"] += int(float(count))
        return counts

    def create_table_bucket(self, name: str) -> None:
        """The administrator alone may create tables in the bucket `lake`; the reader may read and write their files."""
        weed = Path(sys.executable).with_name("weed")
        master = f"127.0.0.1:{self.ports[1]}.{self.ports[5]}"  # the second is the port of its other protocol
        said = subprocess.run(
            [weed, "shell", f"-master={master}"],
            input=f"s3tables.bucket -create -name {name} -account 000000000000\n",
            cwd=self.folder, text=True, capture_output=True, check=False, timeout=START_SECONDS,
        )  # fmt: skip
        if said.returncode or name not in said.stdout:
            raise RuntimeError(said.stdout + said.stderr)

    def create_namespace(self, bucket: str, name: str) -> None:
        """In the REST catalog of a table bucket."""

        def ask(path: str, body: bytes, **headers: str) -> Any:
            request = urllib.request.Request(f"{self.catalog}/v1/{path}", body, headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        who = {"grant_type": "client_credentials", "client_id": ADMIN_KEY, "client_secret": ADMIN_SECRET}
        token = ask("oauth/tokens", urllib.parse.urlencode(who).encode())["access_token"]
        body = json.dumps({"namespace": [name]}).encode()
        ask(f"{bucket}/namespaces", body, Authorization=f"Bearer {token}")

    def start(self) -> None:
        s3, master, volume, filer, s3_grpc, master_grpc, volume_grpc, filer_grpc, catalog, metrics = self.ports
        options = {
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": catalog,
            "s3.port.lance": 0,  # else a fixed port, which two servers on one machine cannot both have
            "s3.config": self.folder / "identities.json",
            "metricsPort": metrics,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.volumeSizeLimitMB": 64,
            "master.electionTimeout": "1s",  # of one: after a restart it waits for no other
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 100,
            "volume.preStopSeconds": 1,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
        }
        weed = Path(sys.executable).with_name("weed")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._await()

    def stop(self) -> None:
        assert self.process is not None
        stop_group(self.process)

    def kill(self) -> None:
        """Ends it at once, in the middle of whatever it does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _await(self) -> None:
        assert self.process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                log = (self.folder / "log").read_text()
                raise RuntimeError(f"{log[:2000]}\n...\n{log[-4000:]}")
            try:
                self.admin().create_bucket(Bucket="ready")
                self.admin().put_object(Bucket="ready", Key="now", Body=b"yes")
                return
            except ClientError as error:
                if error.response["Error"]["Code"] in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                    return
            except BotoCoreError:
                pass
            time.sleep(0.3)
        raise TimeoutError((self.folder / "log").read_text()[-4000:])


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """A server with its data below `folder`, an administrator, and a reader, to whom BUCKETS are open."""
    (folder / "data").mkdir(parents=True)
    identities = [
        _identity("admin", ADMIN_KEY, ADMIN_SECRET, ["Admin", "Read", "List", "Tagging", "Write"]),
        _identity(
            "reader", KEY, SECRET, ["Read:photos", "List:photos", "List:locked"]
            + [f"{action}:{bucket}" for action in ("Read", "Write", "List") for bucket in ("tables", "lake")],
        ),
    ]  # fmt: skip
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    server = Seaweed(folder, free_ports(10))
    server.start()
    try:
        yield server
    finally:
        server.kill()  # rather than wait for it: its data go too
        shutil.rmtree(folder / "data", ignore_errors=True)


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
