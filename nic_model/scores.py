"""What captions of images with references score, again and again as training goes on."""

from collections.abc import Sequence
from statistics import fmean

from nic_model.metrics.bleu import corpus_bleu
from nic_model.metrics.cider import cider, document_frequencies, reference_vectors
from nic_model.metrics.rouge import rouge_l
from nic_model.metrics.tokenizer import tokenize

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")


class References:
    """Each image's references, tokenised and weighed once: tokenising them takes longer than scoring captions."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.tokens = [[tokenize(caption) for caption in theirs] for theirs in captions]
        self.frequencies = document_frequencies(self.tokens)
        self.vectors = [reference_vectors(theirs, self.frequencies) for theirs in self.tokens]


def score(captions: Sequence[str], references: References) -> dict[str, float]:
    """METRICS of the captions, 0 to 100, each against its references."""
    ours = [tokenize(caption) for caption in captions]
    figures = (
        *corpus_bleu(ours, references.tokens),
        fmean(rouge_l(*pair) for pair in zip(ours, references.tokens, strict=True)),
        fmean(cider(*pair, references.frequencies) for pair in zip(ours, references.vectors, strict=True)),
    )
    return dict(zip(METRICS, figures, strict=True))
