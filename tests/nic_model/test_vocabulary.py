import pytest

from nic_model.vocabulary import EOS, PAD, SOS, UNK, Vocabulary, sentence

CAPTIONS = ["A dog runs .", "A dog, a cat!", "The man's dog isn't here"]


def test_words_are_counted_and_cut() -> None:
    assert Vocabulary.build(CAPTIONS, min_count=2).words[4:] == ["a", "dog"]
    assert Vocabulary.build(CAPTIONS, min_count=1).words[:6] == ["<pad>", "<sos>", "<eos>", "<unk>", "a", "dog"]


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    ids = vocabulary.encode("A DOG meows.")
    assert ids == [SOS, vocabulary.encode("a")[1], vocabulary.encode("dog")[1], UNK, EOS]
    assert vocabulary.encode("a dog a dog", max_tokens=2) == vocabulary.encode("a dog")
    assert vocabulary.decode([*vocabulary.encode("a cat"), PAD, PAD]) == ["a", "cat"]
    assert vocabulary.encode("") == [SOS, EOS]


def test_json_both_ways() -> None:
    vocabulary = Vocabulary(["déjà", "vu", "'s"])
    assert Vocabulary.from_json(vocabulary.to_json()).words == vocabulary.words


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", '["a", "a"]', '["<eos>"]', "["])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own message
        Vocabulary.from_json(text)


@pytest.mark.parametrize(
    "caption", ["the man's hat", "a dog isn't here", "two-year-old boys' game", "they're on a beach"]
)
def test_sentence_undoes_the_tokeniser(caption: str) -> None:
    vocabulary = Vocabulary.build([caption], min_count=1)
    assert sentence(vocabulary.decode(vocabulary.encode(caption))) == caption.replace("'  ", " ").replace(
        "boys' ", "boys "
    )
