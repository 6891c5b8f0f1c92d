"""CIDEr-D (Vedantam et al., 2015, section 5 and its appendix) as COCO's evaluation computes it: n-grams of order 1 to
4, weighted by how few images they tell of; clipped; penalised for another length."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nic_model.metrics.ngrams import ORDER, NGrams, count_ngrams

SIGMA = 6.0  # of the penalty for another length, in words


@dataclass(frozen=True)
class DocumentFrequencies:
    """How many documents each n-gram occurs in. A document is all references of one image.

    counts: by n-gram (its words with spaces between), at least 1. One that is not there weighs as if it were in one
        document, so those in one document only may be left out.
    n_documents: at least 1. With one document every weight, and so every score, is 0.
    """

    counts: Mapping[str, int]
    n_documents: int


@dataclass(frozen=True)
class Vector:
    """tf-idf weights of one caption."""

    weights: tuple[dict[str, float], ...]  # by n-gram, at n - 1
    norms: tuple[float, ...]  # at n - 1
    length: int  # in bigrams, as COCO counts it


def document_frequencies(references: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
    """Of tokenised references, a sequence of them for each image."""
    counts: Counter[str] = Counter()
    n_documents = 0
    for n_documents, texts in enumerate(references, start=1):  # noqa: B007 - the last is wanted
        counts.update(document([count_ngrams(tokens) for tokens in texts]))
    return DocumentFrequencies(counts, n_documents)


def document(references: Iterable[NGrams]) -> set[str]:
    """The n-grams of one image's references."""
    return {ngram for ngrams in references for counts in ngrams for ngram in counts}


def reference_vectors(references: Sequence[Sequence[str]], frequencies: DocumentFrequencies) -> list[Vector]:
    """What is computed once of the tokenised references of an image. Raises ValueError without references."""
    if not references:
        raise ValueError("CIDEr needs at least one reference for a caption")
    return [weigh(count_ngrams(tokens), frequencies) for tokens in references]


def cider(candidate: Sequence[str], vectors: Sequence[Vector], frequencies: DocumentFrequencies) -> float:
    """CIDEr-D, 0 to 1000, of one tokenised caption against `reference_vectors` of the same frequencies.

    A corpus scores the mean of its segments. 100 on this scale is 1.0 where others print CIDEr-D 0 to 10.
    """
    return similarity(weigh(count_ngrams(candidate), frequencies), vectors)


def weigh(ngrams: NGrams, frequencies: DocumentFrequencies) -> Vector:
    """tf-idf weights: how often an n-gram occurs times ln(documents / documents that have it)."""
    log, get, most = math.log, frequencies.counts.get, math.log(frequencies.n_documents)
    weights = tuple({ngram: tf * (most - log(get(ngram, 1))) for ngram, tf in counts.items()} for counts in ngrams)
    norms = tuple(math.sqrt(sum([weight * weight for weight in of.values()])) for of in weights)
    return Vector(weights, norms, ngrams[1].total())


def similarity(candidate: Vector, references: Sequence[Vector]) -> float:
    """CIDEr-D, 0 to 1000, of a caption against its references, of which there is at least one."""
    total = 0.0
    for reference in references:
        cosines = 0.0
        for ours, theirs, our_norm, their_norm in zip(
            candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
        ):
            if our_norm and their_norm:
                get = theirs.get
                # What the reference lacks adds min(ours, 0) * 0.
                found = [(weight, other) for ngram, weight in ours.items() if (other := get(ngram))]
                cosines += sum([min(pair) * pair[1] for pair in found]) / (our_norm * their_norm)
        total += cosines * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
    return 1000 * total / (ORDER * len(references))
