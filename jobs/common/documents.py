"""Document frequencies as executors count and sum them. No Spark in it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa

from jobs.common.batches import pack, regroup
from nic_model.metrics.ngrams import Keys, count_documents, starts

# What a task counted, a row for each part of the n-grams, by their keys' first bits, as the bytes of whole numbers: of
# 64 bits and, of a task's images, of 32. Part -1 has one n-gram, which stands for all images.
COUNTS = pa.schema([("part", pa.int32()), ("ngrams", pa.binary()), ("n_images", pa.binary())])

FREQUENCIES = pa.schema([("ngram", pa.int64()), ("n_images", pa.int64())])

# Batches of FREQUENCIES, and how many rows they have.
PACKED = pa.schema([("frequencies", pa.binary()), ("n_rows", pa.int64())])

PARTS = 256

_ROWS = 1 << 18

# N-grams that a task holds before it hands their counts on: some 100 MB.
_HELD = 4_000_000


class Documents:
    """Counts in how many images each n-gram is, and gives rows of COUNTS, to be summed: a part may come more than
    once."""

    def __init__(self) -> None:
        self._images = 0
        self._held: list[tuple[Keys, np.ndarray]] = []

    def add(self, words: Keys, lengths: np.ndarray, many: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Of more images, of which each has so many references; `words` and `lengths` as key_ngrams takes them."""
        self._images += int(np.count_nonzero(many))
        self._held.append(count_documents(words, lengths, np.repeat(np.arange(len(many)), many)))
        if sum(len(keys) for keys, _ in self._held) > _HELD:
            self._held = [_merge(self._held)]
            if len(self._held[0][0]) > _HELD / 2:
                yield _parts(*self._held.pop())

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What is still held."""
        if self._held:
            yield _parts(*_merge(self._held))
        yield _rows([-1], [np.zeros(1, np.int64)], [np.array([self._images])])


def pack_frequencies(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of PACKED for rows of COUNTS: see sum_frequencies."""
    for batch in regroup(sum_frequencies(batches), _ROWS, _ROWS * 16):
        yield pa.RecordBatch.from_pydict({"frequencies": [pack(batch)], "n_rows": [batch.num_rows]}, PACKED)


def sum_frequencies(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of FREQUENCIES, of n-grams of more than one image, for all rows of COUNTS of some parts, sorted by part."""
    rows = (row for batch in batches for row in zip(*batch.columns, strict=True))
    for part, same in groupby(rows, lambda row: row[0].as_py()):
        keys, counts = _merge([_numbers(*row[1:]) for row in same])
        shared = counts > 1
        ngrams = pa.nulls(1, pa.int64()) if part < 0 else pa.array(keys[shared].view(np.int64))
        yield pa.RecordBatch.from_arrays([ngrams, pa.array(counts if part < 0 else counts[shared])], schema=FREQUENCIES)


def _numbers(keys: pa.Scalar, counts: pa.Scalar) -> tuple[Keys, np.ndarray]:
    return np.frombuffer(keys.as_buffer(), np.uint64), np.frombuffer(counts.as_buffer(), np.uint32).astype(np.int64)


def _merge(parts: list[tuple[Keys, np.ndarray]]) -> tuple[Keys, np.ndarray]:
    """Sums of the same key."""
    if len(parts) == 1:
        return parts[0]
    keys, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")  # the faster kind here
    keys = keys[order]
    first = np.flatnonzero(starts(keys))
    return keys[first], np.add.reduceat(counts[order], first) if len(keys) else counts


def _parts(keys: Keys, counts: np.ndarray) -> pa.RecordBatch:
    """Rows of COUNTS. `keys` are sorted."""
    sizes = np.bincount((keys // np.uint64(2**64 // PARTS)).astype(np.int64), minlength=PARTS)
    ends = np.cumsum(sizes)[:-1]
    return _rows(range(PARTS), np.split(keys, ends), np.split(counts, ends))


def _rows(parts: Sequence[int], keys: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> pa.RecordBatch:
    columns = [parts, [of.tobytes() for of in keys], [of.astype(np.uint32).tobytes() for of in counts]]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, COUNTS, strict=True)], schema=COUNTS
    )
