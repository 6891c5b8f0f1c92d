"""What executors make of captions and references: words, then counts and scores of each segment. No Spark in it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.common import bootstrap
from jobs.common.batches import pack, partly, regroup, unpack, widen
from jobs.common.documents import COUNTS, Documents
from nic_model.metrics.bleu import ORDER, SIZE, bleu
from nic_model.metrics.ngrams import Keys
from nic_model.metrics.segments import KeyFrequencies, Segments, key_texts, score_rouge_l, score_segments

_STRINGS, _LONGS, _INTS = pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.int32())

# A row for each image: all that is known of it. `model_ids`, `decode_ids` and `captions` are parallel; a caption that
# failed is null, and says that its model is there.
IMAGES = pa.schema([
    ("image_id", pa.string()),
    ("image", pa.int64()),  # a hash of it
    ("n_listed", pa.int32()),  # rows of the references table that it has
    ("slices", pa.map_(pa.string(), pa.string())),
    ("model_ids", _STRINGS),
    ("decode_ids", _STRINGS),
    ("captions", _STRINGS),
    ("references", _STRINGS),
])  # fmt: skip

# The same, with words instead of references, and captions that there are. Only what can be scored has words: an image
# with captions and references.
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

# What a batch is found to be, so that tables which cannot be scored are refused.
SEEN = pa.schema([
    ("model_ids", _STRINGS),  # of each model and decoding once, and
    ("decode_ids", _STRINGS),
    ("n_listed", pa.int32()),  # the most that an image has, and
    ("listed", pa.string()),  # that image
    ("n_same", pa.int32()),
    ("same", pa.string()),
    ("here", pa.string()),  # the first image with a caption, or null
    ("there", pa.string()),  # with references
    ("matched", pa.bool_()),  # whether one has both
])  # fmt: skip

# What `find_words` gives: rows of a batch, and rows of COUNTS. Batches go through Spark as the bytes of Arrow's stream,
# which it need not convert row by row.
WORDS = pa.schema([("worded", pa.binary()), *SEEN, *COUNTS])

# What `count_segments` gives: batches of COUNTED, and rows of bootstrap.SUMS.
FIGURES = pa.schema([("counted", pa.binary()), *bootstrap.SUMS])

# What slices may be by, beside columns of the references table: words of the caption, in these steps, whose names sort.
CAPTION_LENGTH = "caption_length"
_STEPS = (0, 6, 9, 12, 15, 20)

# Images of a batch, which are counted at once; those with long texts come in smaller ones.
_ROWS, _BYTES = 4096, 1 << 24


def find_words(
    batches: Iterable[pa.RecordBatch], with_rouge: bool = True, with_frequencies: bool = True
) -> Iterator[pa.RecordBatch]:
    """Rows of WORDS for rows of IMAGES."""
    documents = Documents()
    for batch in regroup(batches, _ROWS, _BYTES):
        worded = _find_words(batch, with_rouge)
        yield partly(WORDS, {"worded": [pack(worded)], **_see(batch, worded)})
        if with_frequencies:
            words, lengths = _words(worded, "reference_words"), _flat(worded, "reference_lengths")
            yield from (
                widen(rows, WORDS) for rows in documents.add(words, lengths, _sizes(worded, "reference_lengths"))
            )
    if with_frequencies:
        yield from (widen(rows, WORDS) for rows in documents.rest())


def _see(batch: pa.RecordBatch, worded: pa.RecordBatch) -> dict[str, list]:
    """The columns of SEEN, of the same rows of IMAGES and of WORDED, of which there is at least one."""
    ids = zip(*(batch.column(name).flatten().to_pylist() for name in ("model_ids", "decode_ids")), strict=True)
    models = list(set(ids))
    images, n_listed, n_same = worded.column("image_id"), _numbers(worded, "n_listed"), _numbers(worded, "n_same")
    here, there = n_same > 0, _numbers(worded, "n_references") > 0
    seen = {
        "model_ids": [model for model, _ in models],
        "decode_ids": [decode for _, decode in models],
        "n_listed": n_listed.max(),
        "listed": images[n_listed.argmax()].as_py(),
        "n_same": n_same.max(),
        "same": images[n_same.argmax()].as_py(),
        "here": pc.min(images.filter(pa.array(here))).as_py(),
        "there": pc.min(images.filter(pa.array(there))).as_py(),
        "matched": bool(np.any(here & there)),
    }
    return {name: [value] for name, value in seen.items()}


def _find_words(batch: pa.RecordBatch, with_rouge: bool) -> pa.RecordBatch:
    """For each row of IMAGES one of WORDED."""
    rows = np.arange(batch.num_rows)
    captions, made = _valid(batch, "captions")
    given, listed = _valid(batch, "references")
    n_captions, n_references = np.bincount(made, minlength=len(rows)), np.bincount(listed, minlength=len(rows))
    scored = (n_captions > 0) & (n_references > 0)
    ours, theirs = captions.filter(pa.array(scored[made])), given.filter(pa.array(scored[listed]))
    texts = key_texts(pa.concat_arrays([ours, theirs]))
    n_ours, n_theirs = n_captions * scored, n_references * scored
    rouge = pa.nulls(len(rows), pa.list_(pa.float64()))
    if with_rouge:
        segments = Segments(texts.tokens, texts.n_tokens, np.repeat(rows, n_ours), n_theirs)
        rouge = _lists(n_ours, pa.array(score_rouge_l(segments), pa.float64()))
    before, words = texts.n_words[: len(ours)].sum(), texts.words.view(np.int64)
    lengths = texts.n_words.astype(np.int32)
    columns = {
        **{name: batch.column(name) for name in IMAGES.names[:-1]},
        "captions": _lists(n_captions, captions),
        "n_references": n_references.astype(np.int32),
        "rouge_l": rouge,
        "words": _lists(_sums(lengths[: len(ours)], n_ours), words[:before]),
        "lengths": _lists(n_ours, lengths[: len(ours)]),
        "reference_words": _lists(_sums(lengths[len(ours) :], n_theirs), words[before:]),
        "reference_lengths": _lists(n_theirs, lengths[len(ours) :]),
    }
    there = batch.column("captions").flatten().is_valid()
    for name in ("model_ids", "decode_ids"):
        columns[name] = _lists(n_captions, batch.column(name).flatten().filter(there))
    columns["n_same"] = _most_alike(n_captions, columns["model_ids"], columns["decode_ids"])
    return pa.RecordBatch.from_pydict(columns, WORDED)


def _valid(batch: pa.RecordBatch, name: str) -> tuple[pa.Array, np.ndarray]:
    """What is not null in the lists, one after another, and which row each is of."""
    items = batch.column(name).flatten()
    valid = items.is_valid()
    of = np.repeat(np.arange(batch.num_rows), _sizes(batch, name))
    return items.filter(valid), of[valid.to_numpy(zero_copy_only=False)]


def _most_alike(n_captions: np.ndarray, *ids: pa.Array) -> np.ndarray:
    """How many captions of each row, at most, are by the same model and decoding."""
    if n_captions.max(initial=0) < 2:
        return n_captions.astype(np.int32)
    pairs = zip(*(of.to_pylist() for of in ids), strict=True)
    return np.array([max(Counter(zip(*pair, strict=True)).values(), default=0) for pair in pairs], np.int32)


def _lists(sizes: np.ndarray, values: np.ndarray | pa.Array) -> pa.Array:
    """Lists of so many of the values, one after another."""
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(sizes)), pa.int32()), pa.array(values))


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of so many of the values each, one after another."""
    return np.diff(np.append(0, np.cumsum(values))[np.append(0, np.cumsum(sizes))])


def count_segments(
    batches: Iterable[pa.RecordBatch],
    models: Sequence[tuple[str, str]],
    frequencies: KeyFrequencies | None,
    with_bleu: bool = True,
    by: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[pa.RecordBatch]:
    """Rows of FIGURES for batches of the column `worded` of WORDS.

    models: model_id and decode_id. frequencies: where CIDEr is wanted. by: names of slices. seed: of the bootstrap.
    """
    sums = bootstrap.Sums(by, seed)
    for worded in unpack(batches):
        counted, images = _count_segments(worded, models, frequencies, with_bleu)
        yield partly(FIGURES, {"counted": [pack(counted)]})
        counted = counted.append_column("image", images)
        for name in by:
            counted = counted.append_column(f"slice:{name}", _find_values(counted, name))
        yield from (widen(rows, FIGURES) for rows in sums.add(counted))
    yield from (widen(rows, FIGURES) for rows in sums.rest())


def _find_values(counted: pa.RecordBatch, name: str) -> pa.Array:
    """The value, in the slice `name`, of each row of COUNTED; null where there is none."""
    if name != CAPTION_LENGTH:
        return pc.map_lookup(counted.column("slices"), pa.scalar(name), "first")
    labels = [*(f"{low:02}-{high - 1:02}" for low, high in pairwise(_STEPS)), f"{_STEPS[-1]}-"]
    n_words = counted.column("n_words")
    steps = np.searchsorted(_STEPS, pc.fill_null(n_words, 0).to_numpy(), side="right") - 1
    return pa.array(labels).take(pa.array(steps, mask=n_words.is_null().to_numpy(zero_copy_only=False)))


def _count_segments(
    batch: pa.RecordBatch, models: Sequence[tuple[str, str]], frequencies: KeyFrequencies | None, with_bleu: bool
) -> tuple[pa.RecordBatch, pa.Array]:
    """For each row of WORDED a row of COUNTED for each of `models` that ought to have, or has, a caption of it; and the
    hash of each row's image."""
    index = {model: at for at, model in enumerate(models)}
    model_ids, decode_ids = (pa.array(ids, pa.string()) for ids in zip(*models, strict=True))
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
    counted = pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in COUNTED], schema=COUNTED)
    return counted, batch.column("image").take(pa.array(image))


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
