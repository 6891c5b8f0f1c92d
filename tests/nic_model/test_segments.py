"""Many captions at once score as one by one, to the last bit whatever is scored with them."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nic_model.metrics.bleu import segment_counts
from nic_model.metrics.cider import DocumentFrequencies, cider, document_frequencies, reference_vectors
from nic_model.metrics.ngrams import count_documents, key_ngrams, split_words, word_key
from nic_model.metrics.rouge import rouge_l
from nic_model.metrics.segments import KeyFrequencies, Segments, key_texts, score_rouge_l, score_segments
from nic_model.metrics.tokenizer import tokenize

Tokens = list[str]
Image = tuple[list[Tokens], list[Tokens]]  # candidates and references


def random_images(size: int) -> list[Image]:
    """None to three candidates, one to six references; few words, so that n-grams recur; some texts empty."""
    rng = random.Random(0)

    def text() -> Tokens:
        return rng.choices(["a", "dog", "cat", "runs", "on", "the", "grass", "1\u00a01/2"], k=rng.randint(0, 12))

    return [
        ([text() for _ in range(rng.randint(0, 3))], [text() for _ in range(rng.randint(1, 6))]) for _ in range(size)
    ]


def keyed(texts: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    words = [split_words(text) for text in texts]
    keys = np.array([word_key(word) for text in words for word in text], np.uint64)
    return keys, np.array([len(text) for text in words], np.int64)


def key_of(ngram: str) -> int:
    """Of n words: the last key of order n - 1."""
    (keys, lengths), n = keyed([ngram.split()]), len(ngram.split())
    found = key_ngrams(keys, lengths)
    (at,) = np.flatnonzero(found.orders == n - 1)
    return int(found.keys[at])


def key_frequencies(frequencies: DocumentFrequencies) -> KeyFrequencies:
    counts = sorted((key_of(ngram), count) for ngram, count in frequencies.counts.items() if count > 1)
    keys, numbers = np.array([key for key, _ in counts], np.uint64), np.array([n for _, n in counts], np.int64)
    return KeyFrequencies(keys, numbers, frequencies.n_documents)


def score(images: Sequence[Image], frequencies: KeyFrequencies | None) -> tuple[np.ndarray, np.ndarray | None]:
    words, lengths = keyed([text for ours, _ in images for text in ours] + [t for _, theirs in images for t in theirs])
    of = np.repeat(np.arange(len(images)), [len(ours) for ours, _ in images])
    many = np.array([len(theirs) for _, theirs in images], np.int64)
    return score_segments(Segments(words, lengths, of, many), frequencies)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return random_images(200)


@pytest.fixture(scope="module")
def frequencies(images: list[Image]) -> DocumentFrequencies:
    return document_frequencies([references for _, references in images])


def test_as_one_by_one(images: list[Image], frequencies: DocumentFrequencies) -> None:
    counts, ciders = score(images, key_frequencies(frequencies))
    pairs = [(ours, theirs) for candidates, theirs in images for ours in candidates]
    assert len(counts) == len(pairs)
    for (ours, theirs), found, value in zip(pairs, counts, ciders, strict=True):
        assert found.tolist() == segment_counts(ours, theirs).tolist()
        assert value == pytest.approx(cider(ours, reference_vectors(theirs, frequencies), frequencies), abs=1e-9)


def test_to_the_last_bit_in_any_company(images: list[Image], frequencies: DocumentFrequencies) -> None:
    known = key_frequencies(frequencies)
    _, together = score(images, known)
    backwards = [score(images[at : at + 7], known)[1] for at in range(0, len(images), 7)]
    assert np.array_equal(np.concatenate(backwards), together)


def test_without_frequencies_there_is_no_cider(images: list[Image]) -> None:
    counts, ciders = score(images, None)
    assert ciders is None
    assert len(counts) == sum(len(candidates) for candidates, _ in images)


NOTHING = [
    [],
    [([], [["a"]])],
    [([[]], [[]])],
]


@pytest.mark.parametrize("images", NOTHING)
def test_nothing_to_score(images: list[Image]) -> None:
    counts, ciders = score(images, KeyFrequencies(np.array([], np.uint64), np.array([], np.int64), 2))
    assert counts.tolist() == [[0] * 10] * sum(len(candidates) for candidates, _ in images)
    assert not ciders.any()


def test_documents(images: list[Image], frequencies: DocumentFrequencies) -> None:
    words, lengths = keyed([text for _, references in images for text in references])
    of = np.repeat(np.arange(len(images)), [len(references) for _, references in images])
    keys, counts = count_documents(words, lengths, of)
    assert np.array_equal(keys, np.unique(keys))
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == {
        key_of(ngram): count for ngram, count in frequencies.counts.items()
    }


def test_rouge_l_as_one_by_one(images: list[Image]) -> None:
    tokens = [text for ours, _ in images for text in ours] + [text for _, theirs in images for text in theirs]
    keys = np.array([word_key(token) for text in tokens for token in text], np.uint64)
    of = np.repeat(np.arange(len(images)), [len(ours) for ours, _ in images])
    many = np.array([len(theirs) for _, theirs in images], np.int64)
    found = score_rouge_l(Segments(keys, np.array([len(text) for text in tokens]), of, many))
    assert found == [rouge_l(text, theirs) for ours, theirs in images for text in ours]


TEXTS = [
    [],
    [""],
    ["A dog.", "", "1 1/2 dogs, no. 5", " a  dog ", "1 1/2 dogs, no. 5", "."],
    Path(__file__).with_name("hard_strings.txt").read_text(encoding="utf-8").splitlines(),
]


@pytest.mark.parametrize("texts", TEXTS, ids=len)
def test_keys_of_texts(texts: list[str]) -> None:
    found, tokens = key_texts(pa.array(texts, pa.string())), [tokenize(text) for text in texts]
    words = [split_words(text) for text in tokens]
    assert found.tokens.tolist() == [word_key(token) for text in tokens for token in text]
    assert found.n_tokens.tolist() == [len(text) for text in tokens]
    assert found.words.tolist() == [word_key(word) for text in words for word in text]
    assert found.n_words.tolist() == [len(text) for text in words]


def test_keys_are_the_same_everywhere() -> None:
    """Tables hold them: they must not change."""
    assert word_key("dog") == 0x9F9C5ED2C1C78439
    assert key_of("a dog") == 0x1E8F1F92FE90E179
