"""Words and their numbers."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

from nic_model.metrics.tokenizer import tokenize

PAD, SOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")

# The tokeniser splits these from the word before them; a reader wants them back on it.
CLITICS = frozenset({"'s", "n't", "'re", "'ve", "'ll", "'d", "'m", "'"})


class Vocabulary:
    """The words a model can write, numbered from 4 by falling count; 0 to 3 are <pad> <sos> <eos> <unk>."""

    def __init__(self, words: Iterable[str]) -> None:
        """Raises ValueError for a word that is there twice."""
        self.words: list[str] = [*SPECIAL, *words]
        self._index = {word: index for index, word in enumerate(self.words)}
        if len(self._index) != len(self.words):
            twice = [word for word, count in Counter(self.words).items() if count > 1]
            raise ValueError(f"words that are in the vocabulary twice: {', '.join(twice[:5])}")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int) -> Self:
        """The words seen at least `min_count` times, most frequent first, ties in alphabetical order."""
        counts = Counter(token for caption in captions for token in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL]
        return cls(sorted(kept, key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str, max_tokens: int | None = None) -> list[int]:
        """<sos>, the first `max_tokens` words with <unk> for those not known, <eos>."""
        tokens = tokenize(caption)[:max_tokens]
        return [SOS, *(self._index.get(token, UNK) for token in tokens), EOS]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The words up to the first <eos>, without <sos> and <pad>."""
        words = []
        for index in ids:
            if index == EOS:
                break
            if index not in (PAD, SOS):
                words.append(self.words[index])
        return words

    def to_json(self) -> str:
        return json.dumps(self.words[len(SPECIAL) :], ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError where `text` is not a JSON list of different strings."""
        words = json.loads(text)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("a vocabulary is a JSON list of strings")
        return cls(words)


def sentence(words: Iterable[str]) -> str:
    """The words with single spaces between, clitics joined to the word before: `the man 's hat` -> `the man's hat`."""
    text = ""
    for word in words:
        text += word if not text or word in CLITICS else f" {word}"
    return text
