"""Objects on S3: listed, fetched, and told apart from what must not be read. The only user of boto3.

Executors run this: there is no Spark in it. Endpoint, region, profile, role and keys come from the ordinary AWS chain
(environment, shared files, instance metadata); `--s3-endpoint` alone can be given to a job, since it is no secret.
"""

import functools
import hashlib
import os
import random
import re
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    EndpointProviderError,
    HTTPClientError,
    IncompleteReadError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)

# Beyond this an image file is not read at all: no photograph is that large, but a film or a disk image named .jpg is.
MAX_BYTES = 256 * 1024 * 1024

# A request that fails for the moment (503 SlowDown, a reset, a time-out) is sent again, with growing random pauses:
# this often (if a third of all requests fail, one in half a million fails so often), then until it has failed so often
# while the server answered another, or for so long where that answers nobody.
TRIES = 12
FAILS_ALONE = 3
PAUSE_SECONDS = 20.0  # at most, between two of them
PATIENCE_SECONDS = 120.0
CONNECT_SECONDS = 5
READ_SECONDS = 20
BODY_TRIES = 4  # a body that breaks off is asked for anew

# How deep, and how many pages of each folder, are looked through to part a listing, and into how many parts at most.
DEPTH, PAGES, MOST_PARTS = 4, 10, 10_000

# What is wrong with the run, not with one object: going on would write an error row for each image.
SYSTEMIC = frozenset({
    "PermanentRedirect", "AuthorizationHeaderMalformed", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "AccountProblem",
    "AuthFailure", "UnrecognizedClientException", "NotSignedUp", "InvalidClientTokenId",
})  # fmt: skip

# What may be wrong with one object alone, as where a manifest names another bucket for it, or with all.
DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403", "Forbidden", "NoSuchBucket", "InvalidBucketName"})

# What is asked of S3 itself, of a directory bucket for a session first. Any other request is botocore's own, for
# credentials.
OPERATIONS = frozenset({"GetObject", "ListObjectsV2", "HeadBucket", "CreateSession"})

# S3's rules, and older ones, by which there are buckets still.
BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")

TRANSIENT = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestLimitExceeded",
    "TooManyRequestsException", "BandwidthLimitExceeded", "RequestTimeout", "InternalError", "ServiceUnavailable",
})  # fmt: skip


_MAKING = threading.Lock()


class ObjectError(Exception):
    """One object cannot be had: `status` is `fetch_error` or `too_large`, the text says why."""

    def __init__(self, status: str, message: str, denied: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.denied = denied


class SystemicError(Exception):
    """No object can be had: credentials, bucket or server are at fault. The run must stop."""


@dataclass(frozen=True)
class Access:
    """How executors reach images. Travels to them, so it holds no secret."""

    endpoint: str | None = None
    local: bool = False  # whether `file:` uris and paths are read
    patience: float = PATIENCE_SECONDS  # how long a server that answers nobody is waited for, unless it is silent


@dataclass(frozen=True)
class Listed:
    """An object of a listing. `version` is its ETag."""

    key: str
    version: str
    size: int


def client(access: Access, threads: int = 16) -> Any:
    """One for each process and endpoint: clients are thread-safe, slow to make, and keep connections alive."""
    with _MAKING:  # or threads that begin together would each make one
        return _client(access.endpoint, threads, os.getpid())


@functools.lru_cache(maxsize=4)
def _client(endpoint: str | None, threads: int, _: int) -> Any:
    try:
        # It sends nothing again by itself: `standard` would, but only until all threads together had some 35 to 100
        # failures, which a minute of SlowDown gives, and after that each image failed at its first; `adaptive` adds a
        # limit on this side's rate, which a server that fails at random drives down to a request every two seconds.
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                max_pool_connections=threads,
                tcp_keepalive=True,
                s3={"addressing_style": "path"} if endpoint or os.environ.get("AWS_ENDPOINT_URL") else {},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise SystemicError(_one_line(error)) from None


def forget_clients() -> None:
    """The next one reads the AWS configuration anew."""
    _client.cache_clear()
    boto3.DEFAULT_SESSION = None


def ask(access: Access, bucket: str, operation: str, **parameters: Any) -> Any:
    """The answer to one request about `bucket`, sent again while the server fails for the moment.

    Raises ObjectError, also where the server answers others and not this one; SystemicError where it answers nobody.
    """
    asked, begun, alone = getattr(client(access), operation), time.monotonic(), 0
    for tried in count(1):
        try:
            return asked(Bucket=bucket, **parameters)
        except (BotoCoreError, ClientError) as error:
            problem = classify(error, bucket)
            if not is_transient(error):
                raise problem from None
            # One that takes a request and is silent is the right server, and busy.
            patience = PATIENCE_SECONDS if isinstance(error, ReadTimeoutError) else access.patience
        waited = time.monotonic() - begun
        alone += tried >= TRIES and _answers(access, bucket)
        if alone == FAILS_ALONE:
            raise ObjectError("fetch_error", f"{problem} ({tried} tries)")
        if waited >= patience:
            raise SystemicError(f"s3://{bucket}: {problem} ({tried} tries in {waited:.0f} s)")
        time.sleep(random.uniform(0, min(PAUSE_SECONDS, 2.0**tried / 4)))
    raise AssertionError("unreachable")


def is_transient(error: BotoCoreError | ClientError) -> bool:
    """Whether the same request may be answered a moment later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error.response["Error"].get("Code") in TRANSIENT
    return isinstance(error, ConnectionError | HTTPClientError)


def _answers(access: Access, bucket: str) -> bool:
    """Whether the server answers at all, were it to refuse."""
    try:
        client(access).head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        return not is_transient(error)
    return True


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key` (`s3a`, `s3n` too). The key is taken as it stands: `%41` is three characters.

    Raises ObjectError for another scheme, a missing part, and keys that would climb out of a folder.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not separator or scheme.lower() not in ("s3", "s3a", "s3n"):
        kind = f"{scheme}://" if separator else uri.partition(":")[0] + ":" if ":" in uri else "a local path"
        raise ObjectError("fetch_error", f"uri refused: {printable(kind[:40])} is not read; allowed is s3://bucket/key")
    if not bucket or not key:
        raise ObjectError("fetch_error", "uri refused: not s3://bucket/key")
    if any(part in (".", "..") for part in key.split("/")):
        raise ObjectError("fetch_error", "uri refused: it has a . or .. in its path")
    if not BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ObjectError("fetch_error", f"uri refused: {bucket[:70]!r} is no bucket's name")
    if has_controls(key):
        raise ObjectError("fetch_error", "uri refused: it has control characters")
    if len(key.encode()) > 1024:
        raise ObjectError("fetch_error", "uri refused: the key is longer than 1024 bytes")
    return bucket, key


def has_controls(text: str) -> bool:
    """Whether it has controls, or separators of lines or paragraphs."""
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 or letter in "\u2028\u2029" for letter in text)


def printable(text: str) -> str:
    """With what could act on a terminal escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_s3(location: str) -> bool:
    return location.startswith("s3://")


def hadoop_name(location: str) -> str:
    """As Hadoop, and so Spark, names it: `s3a://` for `s3://`; any other as it is."""
    return f"s3a://{location[5:]}" if is_s3(location) else location


def _path_of(uri: str) -> str:
    """Of a `file:` uri. Raises ValueError where it is none."""
    return urllib.parse.unquote(urllib.parse.urlsplit(uri).path, errors="surrogateescape")


class Download:
    """An object or file that is open: its `size` in bytes is known before any of it is read."""

    def __init__(self, uri: str, access: Access) -> None:
        """Raises ObjectError or SystemicError."""
        self.uri, self.access = uri, access
        self._body: Any = None
        scheme = uri.partition(":")[0].lower()
        if access.local and (scheme == "file" or uri.startswith("/")):
            self._open_file(uri)
        else:
            self.bucket, self.key = split_uri(uri)
            self._open_object()

    def _open_file(self, uri: str) -> None:
        try:
            # A named pipe would be waited for, and a device read without end.
            number = os.open(uri if uri.startswith("/") else _path_of(uri), os.O_RDONLY | os.O_NONBLOCK)
            about = os.fstat(number)
            if not stat.S_ISREG(about.st_mode):
                os.close(number)
                raise OSError(None, "not a regular file")
            self._body, self.size = os.fdopen(number, "rb"), about.st_size
        except (OSError, ValueError) as error:
            raise ObjectError("fetch_error", f"{type(error).__name__}: {getattr(error, 'strerror', error)}") from None

    def _open_object(self) -> None:
        answer = ask(self.access, self.bucket, "get_object", Key=self.key)
        self._body, self.size = answer["Body"], answer["ContentLength"]
        etag = answer["ETag"].strip('"')
        # Of an object stored in parts, or encrypted with a key of KMS, the ETag is no hash of the content.
        plain = len(etag) == 32 and "kms" not in answer.get("ServerSideEncryption", "")
        self.md5 = etag if plain else None

    def read(self) -> bytes:
        """All of it. Raises ObjectError or SystemicError."""
        for attempt in range(BODY_TRIES):
            try:
                with closing(self._body) as body:
                    return bytes(body.read())
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, OSError) as error:
                if not hasattr(self, "bucket") or attempt == BODY_TRIES - 1:
                    raise ObjectError("fetch_error", _one_line(error)) from None
                self._open_object()
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Leaves unread what has not been read."""
        self._body.close()


def classify(error: BotoCoreError | ClientError, bucket: str) -> ObjectError | SystemicError:
    """What a failed request means: an object's failure, or the run's."""
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code", "")
        text = f"{code}: {error.response['Error'].get('Message', '')}".rstrip(": ")
        if code in SYSTEMIC or error.operation_name not in OPERATIONS:
            return SystemicError(f"s3://{bucket}: {text}")
        return ObjectError("fetch_error", text, denied=code in DENIED)
    if isinstance(error, ParamValidationError | EndpointProviderError) or is_transient(error):
        return ObjectError("fetch_error", _one_line(error))
    return SystemicError(f"s3://{bucket}: {_one_line(error)}")  # credentials or configuration


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def list_objects(bucket: str, prefix: str, access: Access, delimiter: str = "") -> Iterator[list[Listed] | list[str]]:
    """Pages of objects whose keys begin with `prefix`; with a delimiter, pages of the prefixes below it too, as str.

    Raises SystemicError where listing is refused.
    """
    parameters = {"Prefix": prefix, "Delimiter": delimiter}
    while True:
        try:
            page = ask(access, bucket, "list_objects_v2", **parameters)
        except (ObjectError, SystemicError) as error:
            reason = str(error).removeprefix(f"s3://{bucket}: ")
            raise SystemicError(f"s3://{bucket}/{prefix}: {reason}") from None
        # A key that ends in / is the marker of a folder.
        yield [
            Listed(entry["Key"], entry["ETag"].strip('"'), entry["Size"])
            for entry in page.get("Contents", [])
            if not entry["Key"].endswith("/")
        ]
        yield [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        if not page.get("IsTruncated"):
            return
        parameters["ContinuationToken"] = page["NextContinuationToken"]


def split_listing(bucket: str, prefix: str, access: Access, wanted: int) -> list[tuple[str, str]]:
    """Prefixes and delimiters whose listings together are that of `prefix`, in whatever order a server lists: some
    `wanted` of them or more, where there are folders to part it by. Raises SystemicError."""
    parts: list[tuple[str, str]] = []
    level = [prefix]
    for _ in range(DEPTH):
        if not level or len(parts) + len(level) >= wanted:
            break
        looked: list[tuple[str, str]] = []
        deeper: list[str] = []
        for folder in level:
            pages = list(islice(list_objects(bucket, folder, access, "/"), 2 * PAGES + 1))
            if len(pages) > 2 * PAGES:  # too long to be looked through here
                looked.append((folder, ""))
                continue
            looked.append((folder, "/"))
            deeper += [name for page in pages for name in page if isinstance(name, str)]
        if len(deeper) > MOST_PARTS:  # small ones: to list each would take more requests than all of them together
            break
        parts += looked
        level = deeper
    return parts + [(folder, "") for folder in level]


def probe(uris: list[str], access: Access) -> None:
    """Opens each of a few objects. Raises SystemicError where none can be had for a reason that is not theirs."""
    denied: list[str] = []
    for uri in uris:
        try:
            with closing(Download(uri, access)):
                return
        except ObjectError as error:
            denied += [str(error)] * error.denied
    if len(denied) == len(uris) > 2:
        raise SystemicError(f"none of {len(uris)} objects tried can be read, the first of them {uris[0]}: {denied[0]}")


def download_model(location: str, access: Access, names: tuple[str, ...], below: Path) -> Path:
    """The files of a model directory on S3, in a folder of its name below another.

    Each is compared with the hash that S3 keeps where it is a plain MD5. Raises ValueError.
    """
    folder = below / (PurePosixPath(location).name or "model")
    folder.mkdir()
    for name in names:
        try:
            opened = Download(f"{location.rstrip('/')}/{name}", access)
            content = opened.read()
        except (ObjectError, SystemicError) as error:
            raise ValueError(f"--model {location}: {name}: {error}") from None
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if opened.md5 not in (None, digest):
            raise ValueError(
                f"--model {location}: {name} came damaged: its MD5 is {digest}, not {opened.md5} as S3 says"
            )
        (folder / name).write_bytes(content)
    return folder
