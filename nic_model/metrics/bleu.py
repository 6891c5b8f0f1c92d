"""BLEU-1 to 4 (Papineni et al., 2002) as COCO's evaluation computes it: counts of a segment, which add up, and a
score of counts, however many segments they are of."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nic_model.metrics.ngrams import ORDER, count_ngrams

# Layout of counts: n-grams of the candidate also in a reference (n = 1..4), n-grams of the candidate (n = 1..4),
# tokens of the candidate, tokens of the reference nearest to it in length (the shorter of two).
SIZE = 2 * ORDER + 2

Counts = NDArray[np.int64]

# COCO's guards against dividing by zero. They also decide what a caption with no match scores.
_TINY, _SMALL = 1e-15, 1e-9


def segment_counts(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> Counts:
    """Counts of one tokenised caption against its references, int64 (10,). Raises ValueError without references."""
    if not references:
        raise ValueError("BLEU needs at least one reference for a caption")
    ours, theirs = count_ngrams(candidate), [count_ngrams(reference) for reference in references]
    matches = []
    for found, *others in zip(ours, *theirs, strict=True):
        most = [other.get for other in others]
        matches.append(sum([min(count, max([get(ngram, 0) for get in most])) for ngram, count in found.items()]))
    length, nearest = ours[0].total(), [reference[0].total() for reference in theirs]
    totals = [max(0, length - n) for n in range(ORDER)]
    return np.array([*matches, *totals, length, min((abs(r - length), r) for r in nearest)[1]], np.int64)


def bleu(counts: Iterable[int]) -> tuple[float, float, float, float]:
    """BLEU-1 to 4, 0 to 100, of the counts of a segment or of the sum over many."""
    *ngrams, candidate_length, reference_length = map(int, counts)
    ratio = (candidate_length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n, (matches, total) in enumerate(zip(ngrams[:ORDER], ngrams[ORDER:], strict=True), start=1):
        product *= (matches + _TINY) / (total + _SMALL)
        scores.append(100 * brevity * product ** (1 / n))
    one, two, three, four = scores
    return one, two, three, four


def corpus_bleu(
    candidates: Iterable[Sequence[str]], references: Iterable[Sequence[Sequence[str]]]
) -> tuple[float, float, float, float]:
    """BLEU-1 to 4, 0 to 100, of tokenised captions, each against its references. Raises ValueError."""
    pairs = zip(candidates, references, strict=True)
    return bleu(sum((segment_counts(*pair) for pair in pairs), np.zeros(SIZE, np.int64)))


def signature() -> str:
    """What the figures depend on, to be printed with them."""
    return "bleu:1-4|tok:ptb-coco|case:lower|reflen:closest|smooth:coco-tiny|version:1"
