"""What runs on an executor: Arrow record batches of images in, of captions out. No Spark here, so that it can be run,
measured and debugged in any Python."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from threading import Condition
from typing import Any

import pyarrow as pa
import torch

from jobs.common import storage
from jobs.common.rows import OUTPUT, STOPPED
from jobs.common.storage import Access, Download, ObjectError, SystemicError
from nic_model.captioner import Caption, Captioner, Failure

THREADS = 16  # objects fetched at once by a Python worker
AHEAD_ROWS = 128  # images fetched, at most, before they are captioned...
AHEAD_BYTES = 256 * 1024 * 1024  # ...and how much they may hold together; the next image in turn is always fetched

MAX_ID = 2048  # characters

Row = dict[str, Any]  # of INPUT
Fetched = tuple[bytes | Failure, int]  # the content or why there is none, and the bytes taken from the budget


def caption_batches(
    batches: Iterable[pa.RecordBatch], captioner: Captioner, access: Access | None = None
) -> Iterator[pa.RecordBatch]:
    """For each row of INPUT one of OUTPUT, in their order, whatever the images are. Images are fetched and decoded
    while those before them are captioned.

    An image without content is fetched from its uri as `access` allows, ahead of captioning. Once fetching has failed
    for a reason that is not an image's, all further rows are STOPPED, unfetched. Where a GPU has no room for one image
    alone, a row that is STOPPED is the last.
    """
    with (
        closing(fetch_ahead(_rows(batches), access or Access())) as fetched,
        closing(captioner.caption_stream(fetched)) as captioned,
    ):
        try:
            while group := list(islice(captioned, captioner.batch_size)):
                yield _record_batch([row for row, _ in group], [result for _, result in group])
        except torch.OutOfMemoryError as error:
            yield stopped(f"no room for one image on {captioner.device}: {error}")


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    for batch in batches:
        others = batch.drop_columns(["content"]).to_pylist()
        # One by one, so that a batch of large images is not copied as a whole.
        for row, content in zip(others, batch["content"], strict=True):
            row["content"] = content.as_py()
            yield row


def stopped(reason: str) -> pa.RecordBatch:
    """One row of OUTPUT, of no image, which tells the driver to stop the run."""
    return _record_batch([{}], [Failure(STOPPED, " ".join(reason.split()))])


class ByteBudget:
    """Bytes held by images that are fetched and not captioned yet. The first in turn passes even when it is spent, or
    those behind it, which wait to be captioned after it, would keep it out for ever."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._turn = limit, 0, 0
        self._changed = Condition()

    def take(self, size: int, position: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held + size <= self._limit or position <= self._turn)
            self._held += size

    def give_back(self, size: int) -> None:
        """The first in turn is done: it held `size` bytes."""
        with self._changed:
            self._held -= size
            self._turn += 1
            self._changed.notify_all()


def fetch_ahead(
    rows: Iterable[Row], access: Access, threads: int = THREADS, limit: int = AHEAD_BYTES
) -> Generator[tuple[Row, bytes | Failure], None, None]:
    """Each row, in order, without its content, and that content or why there is none; later ones are being fetched
    meanwhile."""
    budget = ByteBudget(limit)
    stopped: list[Failure] = []

    def fetch_one(row: Row, position: int) -> Fetched:
        if stopped:
            return stopped[0], 0
        try:
            return fetch(row["image_id"], None, row["uri"], access, lambda size: budget.take(size, position))
        except SystemicError as error:
            stopped.append(Failure(STOPPED, str(error)))
            return stopped[0], 0

    pending: deque[tuple[Row, Callable[[], Fetched]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for position, row in enumerate(rows):
            content, ahead = row.pop("content"), AHEAD_ROWS
            if content is None:
                pending.append((row, pool.submit(fetch_one, row, position).result))
            else:  # nothing to wait for, so nothing to hold
                pending.append((row, partial(fetch, row["image_id"], content, None, access)))
                ahead = 0
            del content
            while len(pending) > ahead:
                yield _first(pending, budget)
        while pending:
            yield _first(pending, budget)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for _ in pending:
            budget.give_back(0)  # lets those pass that wait for their turn


def _first(pending: deque[tuple[Row, Callable[[], Fetched]]], budget: ByteBudget) -> tuple[Row, bytes | Failure]:
    row, wait = pending.popleft()
    content, size = wait()
    budget.give_back(size)
    return row, content


def check_id(image_id: str | None) -> str | None:
    """What is wrong with an image_id, or None. It is printed, joined on and made into keys."""
    if image_id is None:
        return "image_id is null"
    if not image_id.strip():
        return "image_id is empty"
    if len(image_id) > MAX_ID:
        return f"image_id has {len(image_id)} characters; at most {MAX_ID} are allowed"
    if storage.has_controls(image_id):
        return "image_id has control characters"
    return None


def fetch(
    image_id: str | None, content: bytes | None, uri: str | None, access: Access, take: Any = lambda size: None
) -> Fetched:
    """The image's bytes, fetched from `uri` where `content` is null, or why there are none; and for how many bytes
    `take` was called, which may wait. Raises SystemicError."""
    problem = check_id(image_id)
    if problem:
        return Failure("invalid_id", problem), 0
    if content is None and uri is None:
        return Failure("fetch_error", "content and uri are null"), 0
    if content is not None:
        if len(content) > storage.MAX_BYTES:
            return _too_large(len(content)), 0
        return content, 0  # it is in memory already
    assert uri is not None
    try:
        opened = Download(uri, access)
        if opened.size > storage.MAX_BYTES:
            opened.close()
            return _too_large(opened.size), 0
        take(opened.size)
    except ObjectError as error:
        return Failure(error.status, str(error)), 0
    try:
        return opened.read(), opened.size
    except ObjectError as error:
        return Failure(error.status, str(error)), opened.size
    except SystemicError:
        take(-opened.size)
        raise


def _too_large(size: int) -> Failure:
    return Failure("too_large", f"{size} bytes; at most {storage.MAX_BYTES} are read")


def _record_batch(rows: list[Row], results: list[Caption | Failure]) -> pa.RecordBatch:
    now = datetime.now(UTC)
    return pa.RecordBatch.from_pylist(
        [
            {**row, "captioned_at": now}
            | (_caption_columns(result) if isinstance(result, Caption) else _failure_columns(result))
            for row, result in zip(rows, results, strict=True)
        ],
        schema=OUTPUT,
    )


def _caption_columns(caption: Caption) -> Row:
    return {
        "caption": caption.text,
        "log_prob": caption.log_prob,
        "alternatives": [{"caption": text, "log_prob": log_prob} for text, log_prob in caption.alternatives],
        "width": caption.width,
        "height": caption.height,
        "status": "ok",
    }


def _failure_columns(failure: Failure) -> Row:
    return {"status": failure.status, "error_message": failure.message}
