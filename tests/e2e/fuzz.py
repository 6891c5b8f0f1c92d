"""Damaged images and rows, many of them, through what executors run: a row for each, whatever they are.

    .venv/bin/python -m tests.e2e.fuzz --cases 1000000

Small images of all formats have bytes changed, cut out, doubled and put in, in PNG often with checksums made right
again, under ids and uris of which some are bad; `tests/jobs/test_bad_input.py` does so in small with Hypothesis. Each
case is fetched and decoded; one in 50 goes through the model too. Processes of their own do it, so that a crash in a
decoder's C code is seen. Prints how many cases ended in which status; ends with 1 where one was lost or a process died.
"""

import argparse
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.common.executor import caption_batches, check_id, fetch_ahead
from jobs.common.rows import INPUT
from jobs.common.storage import Access
from nic_model.captioner import Captioner, Failure
from nic_model.images import ImageError, decode
from tests.hostile_images import encode, opened, photographs
from tests.tiny import tiny_model_directory

BURST = 1000  # cases of one seed
MODEL_EVERY = 50  # bursts
FORMATS = ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG")
IDS = (None, "", " ", "a\0", "\x1b[2J", "x" * 3000, "ünï", "a/b.jpg")
URIS = (
    None,
    "",
    "file:///etc/passwd",
    "../a",
    "s3://",
    "s3://b",
    "s3://b/../c",
    "s3://b\0/c",
    "http://h/a",
    "s3://ü/a",
)
KNOWN = {"ok", "invalid_id", "fetch_error", "decode_error", "too_large"}


@cache
def originals() -> list[bytes]:
    """Small images: one of each format and kind of pixels."""
    (photo,) = photographs(1)
    small = opened(photo).resize((24, 18))
    kinds = [encode(small, form) for form in FORMATS]
    kinds += [encode(small.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    kinds += [encode(small.convert(mode), "TIFF") for mode in ("1", "F", "CMYK")]
    kinds += [encode(small, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    kinds += [
        encode(small, "JPEG", progressive=True),
        encode(small.convert("L"), "JPEG"),
        encode(small, "WEBP", lossless=True),
    ]
    kinds += [encode(small, form, save_all=True, append_images=[small.rotate(9)]) for form in ("GIF", "PNG", "WEBP")]
    return kinds


def damaged(chance: random.Random) -> bytes:
    content = bytearray(chance.choice(originals()))
    for _ in range(chance.randint(1, 5)):
        at, length = chance.randint(0, len(content)), chance.choice((0, 1, 1, 2, 4, 8, 64))
        put = chance.choice(
            (b"", chance.randbytes(1), chance.randbytes(4), b"\xff" * 4, bytes(4), content[at : at + length] * 2)
        )
        content[at : at + length] = put
    if chance.random() < 0.1:
        del content[chance.randint(0, len(content)) :]
    return mended(bytes(content)) if chance.random() < 0.5 else bytes(content)


def mended(content: bytes) -> bytes:
    """A PNG with the right checksums, as far as its chunks can be told; anything else as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    mended, at = bytearray(content), 8
    while at + 12 <= len(mended):
        end = at + 8 + struct.unpack_from(">I", mended, at)[0]
        if end + 4 > len(mended):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(mended[at + 4 : end]))
        at = end + 4
    return bytes(mended)


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """BURST rows as executors are given them. None of them asks a server."""
    chance = random.Random(seed)
    for number in range(BURST):
        odd = chance.random()
        content = None if odd < 0.05 else damaged(chance)
        image_id = chance.choice(IDS) if odd > 0.9 else f"{seed}/{number}"
        yield {"image_id": image_id, "uri": chance.choice(URIS), "content": content, "attempts": 1}


def burst(seed: int) -> Counter[str]:
    """Statuses of one seed's cases. Raises AssertionError where a row is lost, moved, or says what cannot be."""
    given = list(rows(seed))
    counts: Counter[str] = Counter()
    if seed % MODEL_EVERY == 0:
        batch = pa.RecordBatch.from_pylist(given, schema=INPUT)
        found = [(row, row["status"]) for out in caption_batches([batch], captioner()) for row in out.to_pylist()]
    else:
        found = [(row, _status(result)) for row, result in fetch_ahead((dict(row) for row in given), Access())]
    assert [row["image_id"] for row, _ in found] == [row["image_id"] for row in given], seed
    for (_, status), row in zip(found, given, strict=True):
        assert status in KNOWN, (seed, status)
        assert (status == "invalid_id") == (check_id(row["image_id"]) is not None), seed
        counts[status] += 1
    return counts


def _status(result: bytes | Failure) -> str:
    if isinstance(result, Failure):
        return result.status
    try:
        shape = decode(result, 32).rgb.shape
    except ImageError as error:
        return error.status
    assert shape == (3, 32, 32)
    return "ok"


@cache
def captioner() -> Captioner:
    with tempfile.TemporaryDirectory() as folder:
        return Captioner.load(tiny_model_directory(Path(folder)), batch_size=32, engine="pytorch")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed; each makes a thousand cases")
    options = parser.parse_args()
    seeds = range(options.first, options.first + -(-options.cases // BURST))
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        try:
            for done in pool.map(burst, seeds):
                counts += done
        except BrokenProcessPool:
            print(f"a process died between seeds {seeds[counts.total() // BURST]} and {seeds[-1]}")
            return 1
    by_status = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    print(f"{counts.total()} cases in {time.monotonic() - begun:.0f} s: {by_status}; lost 0, crashes 0")
    return 0 if counts.total() == len(seeds) * BURST else 1


if __name__ == "__main__":
    sys.exit(main())
