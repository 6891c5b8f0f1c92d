"""N-grams of captions, as COCO's BLEU and CIDEr count them: of one caption as text, of many at once as numbers."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

ORDER = 4

# How often each n-gram occurs, at n - 1, for n = 1 to 4. An n-gram is its words with spaces between.
NGrams = tuple[Counter[str], Counter[str], Counter[str], Counter[str]]

Keys = NDArray[np.uint64]

# The key of an n-gram is its words' keys as the digits of a number to this base, modulo 2 ** 64.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def split_words(tokens: Sequence[str]) -> list[str]:
    """The words of tokens. As in COCO, a token with a no-break space in it (`1 1/2`) is two."""
    return " ".join(tokens).split()


def count_ngrams(tokens: Sequence[str]) -> NGrams:
    """How often each n-gram of the tokens occurs."""
    ones = split_words(tokens)
    twos = [f"{a} {b}" for a, b in pairwise(ones)]
    threes = [f"{a} {b}" for a, b in zip(twos, ones[2:], strict=False)]
    fours = [f"{a} {b}" for a, b in zip(threes, ones[3:], strict=False)]
    return Counter(ones), Counter(twos), Counter(threes), Counter(fours)


@lru_cache(maxsize=1 << 17)
def word_key(word: str) -> int:
    """A number below 2 ** 64 that stands for the word, everywhere and always the same.

    Of 10 million n-grams two have the same key with a probability of 3 in a million.
    """
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class KeyedNGrams:
    """The n-grams of C captions, one row for each that a caption has, sorted by n-gram and then by caption."""

    keys: Keys  # (K,) of all n-grams, sorted
    orders: NDArray[np.int64]  # (K,) n - 1 of each
    rank: NDArray[np.int64]  # (rows,) which of the keys
    caption: NDArray[np.int64]  # (rows,) 0 to C - 1, or a document
    count: NDArray[np.int64]  # (rows,) how often it occurs there


def key_ngrams(words: Keys, lengths: NDArray[np.int64], documents: NDArray[np.int64] | None = None) -> KeyedNGrams:
    """Of captions with `lengths` (C,) words, whose keys stand one after another in `words`.

    documents: (C,) sorted; captions with the same number are counted as one. None: each by itself.
    """
    of = np.repeat(np.arange(len(lengths)), lengths)
    keys, captions, sizes = [words], [of], [len(words)]
    longer = words
    for n in range(1, ORDER):
        longer = longer[:-1] * _BASE + words[n:]
        within = of[: len(longer)] == of[n:]
        keys.append(longer[within])
        captions.append(of[n:][within])
        sizes.append(len(keys[-1]))
    every, caption = np.concatenate(keys), np.concatenate(captions)
    if documents is not None:
        caption = documents[caption]
    order = np.argsort(every, kind="stable")
    every = every[order]
    first = starts(every)
    # The sort is stable: an n-gram's captions stand in order.
    caption = caption[order]
    at = np.flatnonzero(first | starts(caption))
    orders = np.repeat(np.arange(ORDER), sizes)[order[first]]
    return KeyedNGrams(every[first], orders, np.cumsum(first)[at] - 1, caption[at], np.diff(at, append=len(every)))


def count_documents(words: Keys, lengths: NDArray[np.int64], images: NDArray[np.int64]) -> tuple[Keys, NDArray]:
    """The keys, sorted, of all n-grams of captions, and of how many images each is. `images` (C,) are sorted."""
    found = key_ngrams(words, lengths, images)
    return found.keys, np.bincount(found.rank, minlength=len(found.keys))


def starts(values: NDArray) -> NDArray[np.bool_]:
    """Where in sorted values another one begins."""
    found = np.ones(len(values), bool)
    found[1:] = values[1:] != values[:-1]
    return found
