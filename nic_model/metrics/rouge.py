"""ROUGE-L (Lin, 2004, section 3) as COCO's evaluation computes it."""

from collections.abc import Hashable, Sequence

BETA = 1.2  # recall weighs BETA squared times as much as precision


def rouge_l(candidate: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> float:
    """ROUGE-L, 0 to 100, of one tokenised caption: the best precision and the best recall of all references.

    A corpus scores the mean of its segments. As in COCO, a caption without tokens has one, which is empty. Raises
    ValueError without references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference for a caption")
    candidate = candidate or [""]
    places = _places(candidate)
    common = [(_common_length(places, reference or [""]), len(reference) or 1) for reference in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common)
    if not recall:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _places(tokens: Sequence[Hashable]) -> dict[Hashable, int]:
    """For each token a number with the bits set at which it stands."""
    places: dict[Hashable, int] = {}
    for at, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << at
    return places


def _common_length(places: dict[Hashable, int], tokens: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a row of the table at a time, as the bits of a
    number (Allison and Dix, 1986).

    A bit of `row` is set where the length in the table is one more than in the column before. A token that stands
    nowhere changes nothing.
    """
    row = 0
    for here in filter(None, map(places.get, tokens)):
        either = here | row
        row = either & ~(either - (row << 1 | 1))
    return row.bit_count()
