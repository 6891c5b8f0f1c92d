"""What runs on an executor: Arrow record batches of images in, of captions out. No Spark here, so that it can be run,
measured and debugged in any Python."""

import os
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa

from nic_model.captioner import Caption, Captioner, Failure

# Beyond this an image file is not read at all: no photograph is that large, but a film or a disk image named .jpg is.
MAX_BYTES = 256 * 1024 * 1024

INPUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_version", pa.string()),
        ("uri", pa.string()),
        ("content", pa.binary()),
    ]
)

OUTPUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_version", pa.string()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("log_prob", pa.float64()),
        ("alternatives", pa.list_(pa.struct([("caption", pa.string()), ("log_prob", pa.float64())]))),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("captioned_at", pa.timestamp("us", tz="UTC")),
    ]
)


def caption_batches(
    batches: Iterable[pa.RecordBatch], captioner: Captioner, read_files: bool = False
) -> Iterator[pa.RecordBatch]:
    """For each row of INPUT one of OUTPUT, in their order, whatever the images are. Images are fetched and decoded
    while those before them are captioned.

    With `read_files`, an image without content is read from its `file:` uri.
    """
    captioned = captioner.caption_stream(_images(batches, read_files))
    while rows := list(islice(captioned, captioner.batch_size)):
        ids, versions, uris = zip(*(row for row, _ in rows), strict=True)
        yield _record_batch(ids, versions, uris, [result for _, result in rows])


Row = tuple[str | None, str | None, str | None]  # image_id, image_version, uri


def _images(batches: Iterable[pa.RecordBatch], read_files: bool) -> Iterator[tuple[Row, bytes | Failure]]:
    for batch in batches:
        ids, versions, uris = (batch.column(name).to_pylist() for name in ("image_id", "image_version", "uri"))
        for image_id, version, uri, content in zip(ids, versions, uris, batch.column("content"), strict=True):
            yield (image_id, version, uri), fetch(image_id, content.as_py(), uri if read_files else None)


def fetch(image_id: str | None, content: bytes | None, uri: str | None) -> bytes | Failure:
    """The image's bytes, read from the file `uri` where `content` is null, or why there are none."""
    if image_id is None:
        return Failure("invalid_id", "image_id is null")
    if content is None and uri is None:
        return Failure("fetch_error", "content is null")
    try:
        if content is None:
            file = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path, errors="surrogateescape"))
            with file.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                if size <= MAX_BYTES:
                    return opened.read()
        else:
            size = len(content)
            if size <= MAX_BYTES:
                return content
    except OSError as error:
        return Failure("fetch_error", f"{type(error).__name__}: {error.strerror}")
    return Failure("too_large", f"{size} bytes; at most {MAX_BYTES} are read")


def _record_batch(
    ids: Sequence[str | None],
    versions: Sequence[str | None],
    uris: Sequence[str | None],
    results: Sequence[Caption | Failure],
) -> pa.RecordBatch:
    now = datetime.now(UTC)
    rows = [
        {
            "image_id": image_id,
            "image_version": version,
            "uri": uri,
            "captioned_at": now,
            **(_caption_columns(result) if isinstance(result, Caption) else _failure_columns(result)),
        }
        for image_id, version, uri, result in zip(ids, versions, uris, results, strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=OUTPUT)


def _caption_columns(caption: Caption) -> dict[str, object]:
    return {
        "caption": caption.text,
        "log_prob": caption.log_prob,
        "alternatives": [{"caption": text, "log_prob": log_prob} for text, log_prob in caption.alternatives],
        "width": caption.width,
        "height": caption.height,
        "status": "ok",
    }


def _failure_columns(failure: Failure) -> dict[str, object]:
    return {"status": failure.status, "error_message": failure.message}
