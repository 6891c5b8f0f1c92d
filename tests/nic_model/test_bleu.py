"""BLEU equals COCO's, whose own code is run beside it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from nic_model.metrics.bleu import SIZE, bleu, corpus_bleu, segment_counts, signature
from nic_model.metrics.tokenizer import tokenize

DEV = Path(__file__).parents[3] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"

# Candidate, references, counts: matches and n-grams of order 1 to 4, lengths of candidate and of nearest reference.
CASES = [
    ("a dog runs on grass", ["a dog runs on grass"], [5, 4, 3, 2, 5, 4, 3, 2, 5, 5]),
    ("a dog", ["a cat"], [1, 0, 0, 0, 2, 1, 0, 0, 2, 2]),
    ("the the the the", ["the dog the", "a the"], [2, 0, 0, 0, 4, 3, 2, 1, 4, 3]),
    ("a a b", ["a b", "a a"], [3, 2, 0, 0, 3, 2, 1, 0, 3, 2]),
    ("", ["a dog"], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    ("", [""], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("dog", ["dog"], [1, 0, 0, 0, 1, 0, 0, 0, 1, 1]),
    ("dog", [""], [0, 0, 0, 0, 1, 0, 0, 0, 1, 0]),
    ("a b c d", ["a b c d e f", "a b"], [4, 3, 2, 1, 4, 3, 2, 1, 4, 2]),  # equally near: the shorter counts
    ("a b c d", ["a b c d e", "a b"], [4, 3, 2, 1, 4, 3, 2, 1, 4, 5]),
    ("a b c d e f g", ["a b c d x e f g"], [7, 5, 3, 1, 7, 6, 5, 4, 7, 8]),
    ("x y z", ["a b c d", "e"], [0, 0, 0, 0, 3, 2, 1, 0, 3, 4]),
]


def coco(candidates: list[str], references: list[list[str]]) -> tuple[list[float], list[list[float]]]:
    """COCO's corpus scores, and those of each segment by order, 0 to 1."""
    ids = range(len(candidates))
    scores: tuple[list[float], list[list[float]]] = Bleu(4).compute_score(
        {i: references[i] for i in ids}, {i: [candidates[i]] for i in ids}, verbose=0
    )
    return scores


def counts_of(candidate: str, references: list[str]) -> np.ndarray:
    return segment_counts(candidate.split(), [reference.split() for reference in references])


@pytest.fixture(scope="module")
def dev() -> list[list[str]]:
    """Tokens, with spaces between, of the captions of Flickr8k's dev images: five each."""
    table = pq.read_table(DEV, columns=["captions"])
    return [[" ".join(tokenize(text)) for text in texts] for texts in table["captions"].to_pylist()]


@pytest.mark.parametrize(("candidate", "references", "expected"), CASES)
def test_segment_counts(candidate: str, references: list[str], expected: list[int]) -> None:
    counts = counts_of(candidate, references)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


@pytest.mark.parametrize(("candidate", "references"), [case[:2] for case in CASES])
def test_a_segment_scores_as_with_coco(candidate: str, references: list[str]) -> None:
    corpus, segments = coco([candidate], [references])
    scores = bleu(counts_of(candidate, references))
    assert scores == pytest.approx([100 * value for value in corpus], abs=1e-9)
    assert scores == pytest.approx([100 * values[0] for values in segments], abs=1e-9)


def test_flickr8k_scores_as_with_coco(dev: list[list[str]]) -> None:
    """One human caption of each image against the other four: all of them, and each alone."""
    candidates, references = [texts[0] for texts in dev], [texts[1:] for texts in dev]
    corpus, segments = coco(candidates, references)
    counts = [counts_of(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
    total = bleu(np.sum(counts, axis=0))
    assert total == pytest.approx([100 * value for value in corpus], abs=1e-9)
    assert total == pytest.approx((62.8, 44.3, 30.7, 21.2), abs=0.05)
    by_segment = np.array([bleu(one) for one in counts])
    assert by_segment == pytest.approx(100 * np.array(segments).T, abs=1e-9)


def test_all_edge_cases_as_one_corpus() -> None:
    candidates, references = [case[0] for case in CASES], [case[1] for case in CASES]
    corpus, _ = coco(candidates, references)
    ours = corpus_bleu([c.split() for c in candidates], [[r.split() for r in texts] for texts in references])
    assert ours == pytest.approx([100 * value for value in corpus], abs=1e-9)


def test_order_does_not_matter(dev: list[list[str]]) -> None:
    pairs = [(texts[0].split(), [text.split() for text in texts[1:]]) for texts in dev[:50]]
    forwards = corpus_bleu(*zip(*pairs, strict=True))
    assert corpus_bleu(*zip(*reversed(pairs), strict=True)) == forwards


def test_counts_of_nothing() -> None:
    assert np.zeros(SIZE, np.int64).tolist() == [0] * 10
    assert bleu(np.zeros(SIZE, np.int64)) == (0, 0, 0, 0)
    assert corpus_bleu([], []) == (0, 0, 0, 0)


def test_a_no_break_space_parts_words_as_with_coco() -> None:
    candidate, references = "1\u00a01/2 cups", ["1 1/2 cups of tea", "1\u00a01/2"]
    corpus, _ = coco([candidate], [references])
    ours = corpus_bleu([candidate.split(" ")], [[text.split(" ") for text in references]])
    assert ours == pytest.approx([100 * value for value in corpus], abs=1e-9)


def test_no_references() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        segment_counts(["a"], [])


def test_as_many_captions_as_references() -> None:
    with pytest.raises(ValueError, match="zip"):
        corpus_bleu([["a"]], [])


def test_signature_says_what_figures_depend_on() -> None:
    assert signature() == "bleu:1-4|tok:ptb-coco|case:lower|reflen:closest|smooth:coco-tiny|version:1"
