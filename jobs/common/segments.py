"""What executors make of captions and references: words, then counts and scores of each segment. No Spark in it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nic_model.metrics.bleu import ORDER, SIZE, bleu
from nic_model.metrics.ngrams import Keys, count_documents, starts
from nic_model.metrics.segments import KeyFrequencies, Segments, key_texts, score_rouge_l, score_segments

_STRINGS, _LONGS, _INTS = pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.int32())

# A row for each image: all that is known of it. `model_ids`, `decode_ids` and `captions` are parallel.
IMAGES = pa.schema([
    ("image_id", pa.string()),
    ("n_listed", pa.int32()),  # rows of the references table that it has
    ("slices", pa.map_(pa.string(), pa.string())),
    ("model_ids", _STRINGS),
    ("decode_ids", _STRINGS),
    ("captions", _STRINGS),
    ("references", _STRINGS),
])  # fmt: skip

# The same, with words instead of references. Only what can be scored has words: an image with captions and references.
WORDED = pa.schema([
    *list(IMAGES)[:-1],
    ("n_references", pa.int32()),
    ("n_same", pa.int32()),  # captions by the same model and decoding: more than one is an error
    ("rouge_l", pa.list_(pa.float64())),  # of each caption
    ("words", _LONGS),  # keys of all captions' words, and then
    ("lengths", _INTS),  # how many words each has
    ("reference_words", _LONGS),
    ("reference_lengths", _INTS),
])  # fmt: skip

# A row for each image and model: the table of segments, but for the run.
COUNTED = pa.schema([
    *((name, pa.string()) for name in ("image_id", "model_id", "decode_id", "caption")),
    ("n_references", pa.int32()),
    ("missing", pa.string()),
    *((f"bleu_{n}", pa.float64()) for n in range(1, ORDER + 1)),
    ("rouge_l", pa.float64()),
    ("cider", pa.float64()),
    ("n_words", pa.int32()),
    ("bleu_counts", _LONGS),
    ("slices", pa.map_(pa.string(), pa.string())),
])  # fmt: skip

# Document frequencies that a task counted, a row for each part of the n-grams, by their keys' first bits. Part -1 has
# one n-gram, which stands for all images.
COUNTS = pa.schema([("part", pa.int32()), ("ngrams", _LONGS), ("n_images", _LONGS)])

FREQUENCIES = pa.schema([("ngram", pa.int64()), ("n_images", pa.int64())])

PARTS = 256

# N-grams that a task holds before it hands their counts on: some 100 MB.
_HELD = 4_000_000


def find_words(batches: Iterable[pa.RecordBatch], with_rouge: bool = True) -> Iterator[pa.RecordBatch]:
    """For each row of IMAGES one of WORDED."""
    for batch in batches:
        rows = np.arange(batch.num_rows)
        given, of_image = batch.column("references").flatten(), np.repeat(rows, _sizes(batch, "references"))
        valid = given.is_valid().to_numpy(zero_copy_only=False)
        n_captions, n_references = _sizes(batch, "captions"), np.bincount(of_image[valid], minlength=len(rows))
        scored = (n_captions > 0) & (n_references > 0)
        ours = batch.column("captions").flatten().filter(pa.array(np.repeat(scored, n_captions)))
        texts = key_texts(pa.concat_arrays([ours, given.filter(pa.array(valid & scored[of_image]))]))
        n_ours, n_theirs = n_captions * scored, n_references * scored
        rouge = pa.nulls(len(rows), pa.list_(pa.float64()))
        if with_rouge:
            segments = Segments(texts.tokens, texts.n_tokens, np.repeat(rows, n_ours), n_theirs)
            rouge = _lists(n_ours, pa.array(score_rouge_l(segments), pa.float64()))
        before, words = texts.n_words[: len(ours)].sum(), texts.words.view(np.int64)
        lengths = texts.n_words.astype(np.int32)
        columns = {
            **{name: batch.column(name) for name in IMAGES.names[:-1]},
            "n_references": n_references.astype(np.int32),
            "n_same": _most_alike(batch),
            "rouge_l": rouge,
            "words": _lists(_sums(lengths[: len(ours)], n_ours), words[:before]),
            "lengths": _lists(n_ours, lengths[: len(ours)]),
            "reference_words": _lists(_sums(lengths[len(ours) :], n_theirs), words[before:]),
            "reference_lengths": _lists(n_theirs, lengths[len(ours) :]),
        }
        yield pa.RecordBatch.from_pydict(columns, WORDED)


def _most_alike(batch: pa.RecordBatch) -> np.ndarray:
    """How many captions of each row, at most, are by the same model and decoding."""
    sizes = _sizes(batch, "captions")
    if sizes.max(initial=0) < 2:
        return sizes.astype(np.int32)
    ids = zip(batch.column("model_ids").to_pylist(), batch.column("decode_ids").to_pylist(), strict=True)
    alike = [max(Counter(zip(*pair, strict=True)).values(), default=0) for pair in ids]
    return np.array(alike, np.int32)


def _lists(sizes: np.ndarray, values: np.ndarray | pa.Array) -> pa.Array:
    """Lists of so many of the values, one after another."""
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(sizes)), pa.int32()), pa.array(values))


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of so many of the values each, one after another."""
    return np.diff(np.append(0, np.cumsum(values))[np.append(0, np.cumsum(sizes))])


def count_frequencies(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of COUNTS for rows of WORDED, to be summed: a part may come more than once."""
    images = 0
    held: list[tuple[Keys, np.ndarray]] = []
    for batch in batches:
        lengths = _flat(batch, "reference_lengths")
        many = _sizes(batch, "reference_lengths")
        images += int(np.count_nonzero(many))
        held.append(count_documents(_words(batch, "reference_words"), lengths, np.repeat(np.arange(len(many)), many)))
        if sum(len(keys) for keys, _ in held) > _HELD:
            held = [_merge(held)]
            if len(held[0][0]) > _HELD / 2:
                yield _parts(*held.pop())
    if held:
        yield _parts(*_merge(held))
    yield pa.RecordBatch.from_pydict({"part": [-1], "ngrams": [[0]], "n_images": [[images]]}, COUNTS)


def sum_frequencies(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of FREQUENCIES, of n-grams of more than one image, for all rows of COUNTS of some parts, sorted by part."""
    rows = (row for batch in batches for row in zip(*batch.columns, strict=True))
    for part, same in groupby(rows, lambda row: row[0].as_py()):
        lists = [[column.values.to_numpy() for column in row[1:]] for row in same]
        keys, counts = _merge([(keys.view(np.uint64), counts) for keys, counts in lists])
        shared = counts > 1
        ngrams = pa.nulls(1, pa.int64()) if part < 0 else pa.array(keys[shared].view(np.int64))
        yield pa.RecordBatch.from_arrays([ngrams, pa.array(counts if part < 0 else counts[shared])], schema=FREQUENCIES)


def _merge(parts: list[tuple[Keys, np.ndarray]]) -> tuple[Keys, np.ndarray]:
    """Sums of the same key."""
    keys, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")  # the faster kind here
    keys = keys[order]
    first = np.flatnonzero(starts(keys))
    return keys[first], np.add.reduceat(counts[order], first) if len(keys) else counts


def _parts(keys: Keys, counts: np.ndarray) -> pa.RecordBatch:
    """Rows of COUNTS. `keys` are sorted."""
    sizes = np.bincount((keys // np.uint64(2**64 // PARTS)).astype(np.int64), minlength=PARTS)
    columns = [np.arange(PARTS, dtype=np.int32), _lists(sizes, keys.view(np.int64)), _lists(sizes, counts)]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=COUNTS)


def count_segments(
    batches: Iterable[pa.RecordBatch],
    models: Sequence[tuple[str, str]],
    frequencies: KeyFrequencies | None,
    with_bleu: bool = True,
) -> Iterator[pa.RecordBatch]:
    """For each row of WORDED a row of COUNTED for each of `models` that ought to have, or has, a caption of it.

    models: model_id and decode_id. frequencies: where CIDEr is wanted.
    """
    index = {model: at for at, model in enumerate(models)}
    model_ids, decode_ids = (pa.array(ids, pa.string()) for ids in zip(*models, strict=True))
    for batch in batches:
        captions = batch.column("captions").flatten()
        of_image = np.repeat(np.arange(batch.num_rows), _sizes(batch, "captions"))
        pairs = zip(*(batch.column(name).flatten().to_pylist() for name in ("model_ids", "decode_ids")), strict=True)
        of_model = np.fromiter((index[pair] for pair in pairs), np.int64)
        # Which caption, of all in the batch, each image has by each model; -1: none.
        caption = np.full((batch.num_rows, len(models)), -1)
        caption[of_image, of_model] = np.arange(len(captions))
        listed = _numbers(batch, "n_listed")[:, None] > 0
        image, model = np.nonzero(listed | (caption >= 0))
        caption = caption[image, model]
        n_references = _numbers(batch, "n_references")[image]
        # Its row among the captions that are scored.
        scorable = _numbers(batch, "n_references")[of_image] > 0
        row = np.where(caption >= 0, (np.cumsum(scorable) - 1)[caption] if len(captions) else -1, -1)
        row = np.where(n_references > 0, row, -1)
        missing = np.where(caption < 0, "caption", "references").astype(object)
        missing[row >= 0] = None
        columns = {
            "image_id": batch.column("image_id").take(pa.array(image)),
            "model_id": model_ids.take(pa.array(model)),
            "decode_id": decode_ids.take(pa.array(model)),
            "caption": captions.take(pa.array(caption, mask=caption < 0)),
            "n_references": pa.array(n_references),
            "missing": pa.array(missing, pa.string()),
            "slices": batch.column("slices").take(pa.array(image)),
            **_scores(batch, of_image[scorable], frequencies, with_bleu, pa.array(row, mask=row < 0)),
        }
        yield pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in COUNTED], schema=COUNTED)


def _scores(
    batch: pa.RecordBatch, images: np.ndarray, frequencies: KeyFrequencies | None, with_bleu: bool, rows: pa.Array
) -> dict[str, pa.Array]:
    """The columns of figures, of the captions that can be scored, in the order and with the gaps of `rows`."""
    lengths = np.concatenate([_flat(batch, "lengths"), _flat(batch, "reference_lengths")])
    words = np.concatenate([_words(batch, "words"), _words(batch, "reference_words")])
    counts, cider = score_segments(Segments(words, lengths, images, _sizes(batch, "reference_lengths")), frequencies)
    nothing = np.full(len(images), None)
    by_order = np.array([bleu(segment) for segment in counts.tolist()]) if with_bleu else None
    rouge = batch.column("rouge_l").flatten()
    lists = _lists(np.full(len(counts), SIZE), counts.ravel())
    columns = {
        **{f"bleu_{n + 1}": nothing if by_order is None else by_order.reshape(-1, ORDER)[:, n] for n in range(ORDER)},
        "rouge_l": rouge if len(rouge) == len(images) else nothing,
        "cider": nothing if cider is None else cider,
        "n_words": counts[:, -2],
        "bleu_counts": lists if with_bleu else nothing,
    }
    return {name: pa.array(values, COUNTED.field(name).type).take(rows) for name, values in columns.items()}


def _sizes(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """How long each row's list is."""
    return pc.fill_null(pc.list_value_length(batch.column(name)), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _flat(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """The lists' numbers, one after another."""
    return batch.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def _words(batch: pa.RecordBatch, name: str) -> Keys:
    return _flat(batch, name).view(np.uint64)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)
