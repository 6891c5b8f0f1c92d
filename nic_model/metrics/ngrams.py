"""N-grams of a caption, as COCO's BLEU and CIDEr count them."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

ORDER = 4

# How often each n-gram occurs, at n - 1, for n = 1 to 4. An n-gram is its words with spaces between.
NGrams = tuple[Counter[str], Counter[str], Counter[str], Counter[str]]


def count_ngrams(tokens: Sequence[str]) -> NGrams:
    """N-grams of the tokens. As in COCO, a token with a no-break space in it (`1 1/2`) is two words here."""
    ones = " ".join(tokens).split()
    twos = [f"{a} {b}" for a, b in pairwise(ones)]
    threes = [f"{a} {b}" for a, b in zip(twos, ones[2:], strict=False)]
    fours = [f"{a} {b}" for a, b in zip(threes, ones[3:], strict=False)]
    return Counter(ones), Counter(twos), Counter(threes), Counter(fours)
