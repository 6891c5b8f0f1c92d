"""CIDEr-D and ROUGE-L equal COCO's, whose own code is run beside them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from nic_model.metrics.cider import DocumentFrequencies, cider, document_frequencies, reference_vectors
from nic_model.metrics.rouge import rouge_l
from nic_model.metrics.tokenizer import tokenize

DEV = Path(__file__).parents[3] / "shared" / "flickr8k" / "dev-00000-of-00001.parquet"

# Candidate and references, tokens with spaces between. A no-break space stays within its token.
CASES = [
    ("a dog runs on grass", ["a dog runs on grass"]),
    ("a dog runs on grass", ["a dog runs on grass", "a cat sits", "dogs"]),
    ("the the the the", ["the dog the", "a the"]),  # clipped
    ("a a b a a b", ["a b a a", "a a a a a"]),
    ("grass on runs dog a", ["a dog runs on grass"]),
    ("", ["a dog"]),
    ("", [""]),
    ("", ["", "a dog"]),
    ("dog", [""]),
    ("dog", ["dog"]),
    ("dog", ["dog", "dog", "dog"]),  # duplicates count
    ("a dog", ["a dog runs over the very long green grass of the park near the old house by the river"]),
    ("one cup", ["1\u00a01/2 cups of 1\u00a01/2"]),
    ("1\u00a01/2 cups", ["1 1/2 cups", "1\u00a01/2 cups"]),
    ("собака бежит по траве", ["собака бежит", "人 走 路"]),
    ("x y z", ["a b c d", "e"]),
]


def coco(metric: Cider | Rouge, candidates: Sequence[str], references: Sequence[list[str]]) -> tuple[float, list]:
    """COCO's score of the corpus and of each segment, on its own scale."""
    ids = range(len(candidates))
    score, segments = metric.compute_score({i: references[i] for i in ids}, {i: [candidates[i]] for i in ids})
    return score, list(segments)


def split(texts: Sequence[str]) -> list[list[str]]:
    return [text.split(" ") if text else [] for text in texts]


def all_cider(candidates: Sequence[str], references: Sequence[list[str]]) -> list[float]:
    tokens = [split(texts) for texts in references]
    frequencies = document_frequencies(tokens)
    return [
        cider(candidate, reference_vectors(texts, frequencies), frequencies)
        for candidate, texts in zip(split(candidates), tokens, strict=True)
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def dev() -> list[list[str]]:
    """Tokens, with spaces between, of the captions of Flickr8k's dev images: five each."""
    table = pq.read_table(DEV, columns=["captions"])
    return [[" ".join(tokenize(text)) for text in texts] for texts in table["captions"].to_pylist()]


@pytest.mark.parametrize(("candidate", "references"), CASES)
def test_rouge_of_a_segment(candidate: str, references: list[str]) -> None:
    expected, _ = coco(Rouge(), [candidate], [references])
    (tokens,) = split([candidate])
    assert rouge_l(tokens, split(references)) == pytest.approx(100 * expected, abs=1e-9)


def test_cider_of_edge_cases() -> None:
    candidates, references = [case[0] for case in CASES], [case[1] for case in CASES]
    score, segments = coco(Cider(), candidates, references)
    ours = all_cider(candidates, references)
    assert ours == pytest.approx([100 * value for value in segments], abs=1e-9)
    assert mean(ours) == pytest.approx(100 * score, abs=1e-9)


def test_flickr8k(dev: list[list[str]]) -> None:
    """One human caption of each image against the other four."""
    candidates, references = [texts[0] for texts in dev], [texts[1:] for texts in dev]
    rouge = [rouge_l(*pair) for pair in zip(split(candidates), map(split, references), strict=True)]
    for metric, ours, known in ((Rouge(), rouge, 49.2), (Cider(), all_cider(candidates, references), 80.4)):
        score, segments = coco(metric, candidates, references)
        assert ours == pytest.approx([100 * value for value in segments], abs=1e-9)
        assert mean(ours) == pytest.approx(100 * score, abs=1e-9)
        assert mean(ours) == pytest.approx(known, abs=0.05)


def test_document_frequencies() -> None:
    references = [[["a", "dog"], ["a", "a", "cat"]], [["a", "dog", "runs"]], [[]]]
    frequencies = document_frequencies(references)
    assert frequencies.n_documents == 3
    assert {ngram: n for ngram, n in frequencies.counts.items() if n > 1} == {"a": 2, "dog": 2, "a dog": 2}
    assert frequencies.counts["a a cat"] == 1
    assert document_frequencies([]).n_documents == 0


def test_what_is_in_one_document_may_be_left_out(dev: list[list[str]]) -> None:
    texts = [split(five) for five in dev[:50]]
    whole = document_frequencies([five[1:] for five in texts])
    pruned = DocumentFrequencies({ngram: n for ngram, n in whole.counts.items() if n > 1}, whole.n_documents)
    for candidate, *others in texts:
        scores = [cider(candidate, reference_vectors(others, one), one) for one in (whole, pruned)]
        assert scores[0] == scores[1]


def test_one_document_weighs_nothing() -> None:
    assert all_cider(["a dog"], [["a dog"]]) == [0]


def test_no_references() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        rouge_l(["a"], [])
    with pytest.raises(ValueError, match="at least one reference"):
        reference_vectors([], DocumentFrequencies({}, 2))
