"""Confidence intervals by the Poisson bootstrap (Chamandy et al., 2012), from sums over segments.

A replicate draws each image k times with the probabilities of Poisson(1), which is what drawing N of N images with
replacement comes to where N is not small. How often follows from the seed, the replicate and the image alone: the same
in every partition, order and model, so that two models are compared on the same draws. All that is summed are whole
numbers: sums are the same to the last bit however Spark adds them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nic_model.metrics.bleu import ORDER, SIZE, bleu

REPLICATES = 1000
LEVEL = 95  # per cent

# Layout of sums: images scored, images missing, BLEU's counts, ROUGE-L and CIDEr. Those two are rounded to whole parts
# of 2 ** -24, which is within 3e-8 of the score; there is room for 500 million images.
ROUGE_L, CIDER = 2 + SIZE, 3 + SIZE
WIDTH = 4 + SIZE
UNIT = 2.0**24

SUMS = pa.schema([
    ("model_id", pa.string()),
    ("decode_id", pa.string()),
    ("slice", pa.string()),  # null: all
    ("value", pa.string()),
    ("sums", pa.binary()),  # (1 + REPLICATES, WIDTH) whole numbers of 64 bits; the first row has each image once
])  # fmt: skip

SCORES = pa.schema([
    *(f for f in SUMS if f.name != "sums"),
    ("n_segments", pa.int64()),
    ("n_missing", pa.int64()),
    ("metric", pa.string()),
    ("score", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
])  # fmt: skip

Ints = NDArray[np.int64]
Group = tuple[str | None, ...]  # model_id, decode_id, slice and value

_BLOCK = 512  # segments weighed at once: 4 MB of weights
_HELD = 2048  # groups that a task holds before it hands their sums on: 230 MB


def weights(images: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """How often each of REPLICATES draws each image, (images, REPLICATES). `images` are 64-bit hashes."""
    draws = np.arange(1, REPLICATES // 4 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # SplitMix64 (Steele et al., 2014) of image and seed, four draws of 16 bits from each number.
    start = _mix(images ^ _mix(np.array([seed], np.uint64)))
    return _POISSON[_mix(start[:, None] + draws).view(np.uint16)]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _poisson() -> NDArray[np.float64]:
    """Quantiles of Poisson(1) at 2 ** 16 even steps."""
    below = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])
    return np.searchsorted(below, (np.arange(2**16) + 0.5) / 2**16).astype(np.float64)


_POISSON = _poisson()


class Sums:
    """Adds up segments by model and slice, and gives rows of SUMS, to be added up: a group may come more than once."""

    def __init__(self, slices: Sequence[str], seed: int) -> None:
        self._slices, self._seed = slices, seed
        self._held: dict[Group, Ints] = {}

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Rows of segments: image (a hash, long), model_id, decode_id, missing, bleu_counts, rouge_l, cider and a
        column of strings, `slice:` before its name, for each of the slices."""
        for start in range(0, batch.num_rows, _BLOCK):
            self._add(batch.slice(start, _BLOCK))
            if len(self._held) > _HELD:
                yield from self.rest()

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What is still held."""
        yield from map(_rows, self._held.items())
        self._held.clear()

    def _add(self, block: pa.RecordBatch) -> None:
        values = _values(block)
        weighed = weights(block.column("image").to_numpy().view(np.uint64), self._seed)
        models = [block.column(name).to_pylist() for name in ("model_id", "decode_id")]
        for name in (None, *self._slices):
            groups: dict[Group, list[int]] = {}
            of_slice = block.column(f"slice:{name}").to_pylist() if name else [None] * len(block)
            for at, (model, decode, value) in enumerate(zip(*models, of_slice, strict=True)):
                groups.setdefault((model, decode, name, value), []).append(at)
            for group, rows in groups.items():
                sums = self._held.setdefault(group, np.zeros((1 + REPLICATES, WIDTH), np.int64))
                some = values[rows] if len(groups) > 1 else values
                sums[0] += some.sum(axis=0).astype(np.int64)
                # Whole numbers below 2 ** 53: exact.
                sums[1:] += ((weighed[rows] if len(groups) > 1 else weighed).T @ some).astype(np.int64)


def sum_segments(batches: Iterable[pa.RecordBatch], slices: Sequence[str], seed: int) -> Iterator[pa.RecordBatch]:
    """Rows of SUMS for rows of segments: see Sums."""
    sums = Sums(slices, seed)
    for batch in batches:
        yield from sums.add(batch)
    yield from sums.rest()


def add_sums(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """A row of SUMS for each group, for all its rows, sorted by group."""
    yield from map(_rows, _total(batches))


def _total(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Group, Ints]]:
    rows = (row for batch in batches for row in zip(*batch.columns, strict=True))
    for group, same in groupby(rows, lambda row: tuple(item.as_py() for item in row[:-1])):
        total = np.zeros((1 + REPLICATES, WIDTH), np.int64)
        for row in same:
            total += read_sums(row[-1])
        yield group, total


def score_sums(batches: Iterable[pa.RecordBatch], metrics: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Rows of SCORES, one for each metric of each group, for rows of SUMS sorted by group."""
    for group, sums in _total(batches):
        scores = scores_of(sums)
        same = {**dict(zip(SUMS.names, group, strict=False)), "n_segments": sums[0, 0], "n_missing": sums[0, 1]}
        yield pa.RecordBatch.from_pylist(
            [{**same, "metric": metric, **vars(interval(scores[metric]))} for metric in metrics], SCORES
        )


def read_sums(sums: pa.BinaryScalar) -> Ints:
    """The column of SUMS, (1 + REPLICATES, WIDTH)."""
    return np.frombuffer(sums.as_buffer(), np.int64).reshape(-1, WIDTH)


def _values(block: pa.RecordBatch) -> NDArray[np.float64]:
    """What is summed of each segment: whole numbers, 0 for what is missing."""
    values = np.zeros((len(block), WIDTH))
    values[:, 0] = block.column("missing").is_null().to_numpy(zero_copy_only=False)
    values[:, 1] = 1 - values[:, 0]
    counts = block.column("bleu_counts")
    values[counts.is_valid().to_numpy(zero_copy_only=False), 2 : 2 + SIZE] = (
        counts.flatten().to_numpy().reshape(-1, SIZE)
    )
    for name, at in (("rouge_l", ROUGE_L), ("cider", CIDER)):
        values[:, at] = np.rint(block.column(name).fill_null(0).to_numpy(zero_copy_only=False) * UNIT)
    return values


def _rows(item: tuple[Group, Ints]) -> pa.RecordBatch:
    group, sums = item
    columns = [*group, sums.tobytes()]
    return pa.RecordBatch.from_arrays([pa.array([c], f.type) for c, f in zip(columns, SUMS, strict=True)], schema=SUMS)


@dataclass(frozen=True)
class Interval:
    """A score or a difference, and where 95 % of the bootstrap's are. None where nothing was scored."""

    score: float | None
    low: float | None
    high: float | None


def scores_of(sums: Ints) -> dict[str, NDArray[np.float64]]:
    """Each metric of each row of sums (rows, WIDTH); nan where nothing was scored."""
    n_segments = sums[:, 0]
    orders = np.array([bleu(row) for row in sums[:, 2 : 2 + SIZE].tolist()])
    orders[n_segments == 0] = np.nan
    scores = {f"bleu_{n + 1}": orders[:, n] for n in range(ORDER)}
    for metric, at in (("rouge_l", ROUGE_L), ("cider", CIDER)):
        scores[metric] = np.divide(sums[:, at] / UNIT, n_segments, out=np.full(len(sums), np.nan), where=n_segments > 0)
    return scores


def interval(values: NDArray[np.float64]) -> Interval:
    """Of what was measured, values[0], and of the replicates after it; those that drew nothing do not count."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return Interval(None, None, None)
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(float(values[0]), float(low), float(high))


def p_value(differences: NDArray[np.float64]) -> float | None:
    """Two-sided: twice the share of replicates on the rarer side of no difference, at most 1."""
    drawn = differences[1:][~np.isnan(differences[1:])]
    if np.isnan(differences[0]) or not len(drawn):
        return None
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return min(1.0, 2 * (1 + int(rarer)) / (1 + len(drawn)))


def signature(seed: int) -> str:
    """What intervals and p-values depend on."""
    return f"ci:{LEVEL}|bootstrap:poisson|replicates:{REPLICATES}|seed:{seed}"
