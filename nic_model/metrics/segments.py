"""Words, BLEU's counts and scores of many captions at once: the same figures as bleu.py, rouge.py and cider.py give.

Words and n-grams are numbers here (ngrams.py). A segment's figures do not depend on the others that are counted with
it, to the last bit: what belongs to a segment is summed in the order of its n-grams' keys and of its references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nic_model.metrics import bleu
from nic_model.metrics.cider import SIGMA
from nic_model.metrics.ngrams import ORDER, KeyedNGrams, Keys, key_ngrams, split_words, word_key
from nic_model.metrics.rouge import rouge_l
from nic_model.metrics.tokenizer import is_one_piece, tokenize_piece

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KeyedTexts:
    """Tokenised captions, one after another, (C,) of them. A token that is two words (`1 1/2`) is what ROUGE-L counts;
    all else counts words."""

    tokens: Keys
    n_tokens: Ints
    words: Keys
    n_words: Ints


def key_texts(texts: pa.Array) -> KeyedTexts:
    """The keys of captions' tokens and words. `texts` are strings, none of them null. A piece of text is looked up
    once, however many captions have it. Bytes that are no UTF-8, which a column of strings may hold, count as U+FFFD.
    """
    texts = _valid(texts)
    perhaps = np.flatnonzero(pc.match_substring_regex(texts, _PERHAPS_ONE_PIECE).to_numpy(zero_copy_only=False))
    asked = texts.take(pa.array(perhaps)).to_pylist()
    whole = perhaps[[at for at, text in enumerate(asked) if is_one_piece(text)]]
    one_piece = np.zeros(len(texts), bool)
    one_piece[whole] = True
    # A text that is one piece takes the place of the one that nothing splits into.
    lists = pc.split_pattern(pc.if_else(pa.array(one_piece), "", texts), " ")
    n_pieces = lists.value_lengths().to_numpy().astype(np.int64)
    encoded = lists.flatten().dictionary_encode()
    found, distinct = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
    found[(np.cumsum(n_pieces) - n_pieces)[whole]] = len(distinct) + np.arange(len(whole))
    keys = [_keys(piece) for piece in (*distinct, *texts.take(pa.array(whole)).to_pylist())]
    tokens, words = (_join([pair[at] for pair in keys], found, n_pieces) for at in range(2))
    return KeyedTexts(*tokens, *words)


def _valid(texts: pa.Array) -> pa.Array:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.large_binary()).to_pylist()
        return pa.array([text.decode("utf-8", errors="replace") for text in raw], texts.type)
    return texts


# In RE2, which searches many texts at once but knows another Unicode: wherever is_one_piece may say yes.
_PERHAPS_ONE_PIECE = r"[<0-9]|[^\x00-\x7f]|\. "


@lru_cache(maxsize=1 << 16)
def _keys(piece: str) -> tuple[Sequence[int], Sequence[int]]:
    """Of the tokens and of the words of a piece of text."""
    tokens = tokenize_piece(piece)
    return tuple(map(word_key, tokens)), tuple(map(word_key, split_words(tokens)))


def _join(lists: Sequence[Sequence[int]], found: Ints, n_pieces: Ints) -> tuple[Keys, Ints]:
    """`lists[at]` for each of `found`, one after another; and how long each text is, of `n_pieces` lists."""
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    keys = np.fromiter(chain.from_iterable(lists), np.uint64)
    many = sizes[found]
    end = np.append(0, np.cumsum(many))
    at = np.arange(end[-1]) + np.repeat((np.cumsum(sizes) - sizes)[found] - end[:-1], many)
    return keys[at], np.diff(end[np.append(0, np.cumsum(n_pieces))])


@dataclass(frozen=True)
class KeyFrequencies:
    """Document frequencies by key. What is not there is in one document."""

    keys: Keys  # (K,) sorted
    counts: Ints  # (K,) at least 1
    n_documents: int

    def idf(self, keys: Keys) -> Floats:
        """ln(documents / documents that have the n-gram), for each of `keys`."""
        found = np.ones(len(keys), np.int64)
        if len(self.keys):
            at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            found = np.where(self.keys[at] == keys, self.counts[at], 1)
        return np.log(float(self.n_documents)) - np.log(found.astype(np.float64))


@dataclass(frozen=True)
class Segments:
    """S candidates and the references of I images, of which each candidate is compared with those of one.

    words: keys of all words: first those of the candidates, then those of the references, image by image.
    lengths: words of each candidate, then of each reference, (S + R,).
    images: which image each candidate is of, (S,).
    n_references: of each image, at least 1 where it has a candidate, (I,).
    """

    words: Keys
    lengths: Ints
    images: Ints
    n_references: Ints


def score_segments(segments: Segments, frequencies: KeyFrequencies | None) -> tuple[Ints, Floats | None]:
    """BLEU's counts (S, 10), as bleu.py lays them out, and CIDEr-D (S,), 0 to 1000, where there are frequencies."""
    found = key_ngrams(segments.words, segments.lengths)
    pairs = _Pairs.of(segments)
    ours, theirs = _matches(segments, found, pairs)
    counts = _bleu_counts(segments, found, pairs, ours, theirs)
    return counts, _cider(segments, found, pairs, ours, theirs, frequencies) if frequencies else None


def score_rouge_l(segments: Segments) -> list[float]:
    """ROUGE-L (S,), 0 to 100. `words` are to be tokens."""
    keys, ends = segments.words.tolist(), np.cumsum(segments.lengths).tolist()
    texts = [keys[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    size, many = len(segments.images), segments.n_references.tolist()
    last = (size + np.cumsum(segments.n_references)).tolist()
    references = [texts[end - n : end] for end, n in zip(last, many, strict=True)]
    return [rouge_l(texts[at], references[image]) for at, image in enumerate(segments.images.tolist())]


@dataclass(frozen=True)
class _Pairs:
    """Each candidate with each of its references."""

    first: Ints  # (S,) the first pair of each candidate
    first_reference: Ints  # (S,) the caption that is its first reference
    candidate: Ints  # (pairs,)
    reference: Ints  # (pairs,) counted as captions: from S on

    @classmethod
    def of(cls, segments: Segments) -> "_Pairs":
        size, many = len(segments.images), segments.n_references[segments.images]
        before = np.cumsum(segments.n_references) - segments.n_references
        first_reference = size + before[segments.images]
        first = np.cumsum(many) - many
        candidate = np.repeat(np.arange(size), many)
        reference = np.arange(len(candidate)) - first[candidate] + first_reference[candidate]
        return cls(first, first_reference, candidate, reference)


def _matches(segments: Segments, found: KeyedNGrams, pairs: _Pairs) -> tuple[Ints, Ints]:
    """The rows of `found` of candidates, and beside each a row of the same n-gram in one of its references."""
    captions = len(segments.lengths)
    rows = np.flatnonzero(found.caption < len(segments.images))
    candidate = found.caption[rows]
    row_of = found.rank * captions + found.caption
    start = found.rank[rows] * captions + pairs.first_reference[candidate]
    low = np.searchsorted(row_of, start)
    many = np.searchsorted(row_of, start + segments.n_references[segments.images[candidate]]) - low
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(rows, many), np.repeat(low, many) + within


def _bleu_counts(segments: Segments, found: KeyedNGrams, pairs: _Pairs, ours: Ints, theirs: Ints) -> Ints:
    size = len(segments.images)
    counts = np.zeros((size, bleu.SIZE), np.int64)
    most = np.zeros(len(found.count), np.int64)  # in any reference, for each row of a candidate
    np.maximum.at(most, ours, found.count[theirs])
    rows = np.flatnonzero(most)
    cells = found.caption[rows] * ORDER + found.orders[found.rank[rows]]
    matches = np.bincount(cells, np.minimum(most, found.count)[rows], minlength=size * ORDER)
    counts[:, :ORDER] = matches.reshape(size, ORDER)
    lengths = segments.lengths[:size]
    counts[:, ORDER : 2 * ORDER] = np.maximum(0, lengths[:, None] - np.arange(ORDER))
    counts[:, -2] = lengths
    if size:
        # The nearest in length, the shorter of two: one number that is least for it.
        lengths_of, others = lengths[pairs.candidate], segments.lengths[pairs.reference]
        nearness = np.abs(others - lengths_of) * (others.max() + 1) + others
        counts[:, -1] = np.minimum.reduceat(nearness, pairs.first) % (others.max() + 1)
    return counts


def _cider(
    segments: Segments, found: KeyedNGrams, pairs: _Pairs, ours: Ints, theirs: Ints, frequencies: KeyFrequencies
) -> Floats:
    size = len(segments.images)
    order = found.orders[found.rank]
    weights = found.count * frequencies.idf(found.keys)[found.rank]
    squares = np.bincount(found.caption * ORDER + order, weights * weights, minlength=len(segments.lengths) * ORDER)
    norms = np.sqrt(squares).reshape(-1, ORDER)
    pair = pairs.first[found.caption[ours]] + found.caption[theirs] - pairs.first_reference[found.caption[ours]]
    products = np.bincount(
        pair * ORDER + order[ours],
        np.minimum(weights[ours], weights[theirs]) * weights[theirs],
        minlength=len(pairs.candidate) * ORDER,
    ).reshape(-1, ORDER)
    scale = norms[pairs.candidate] * norms[pairs.reference]
    cosines = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)
    bigrams = np.maximum(0, segments.lengths - 1)  # what COCO takes for the length
    difference = bigrams[pairs.candidate] - bigrams[pairs.reference]
    similar = sum(cosines.T) * np.exp(-(difference**2) / (2 * SIGMA**2))
    totals = np.bincount(pairs.candidate, similar, minlength=size)
    return 1000 * totals / (ORDER * segments.n_references[segments.images])
