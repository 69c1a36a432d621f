"""What only character BPE has."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.tokenizers.bpe import END_OF_WORD, decode, encode, merge, train, zipf_words

WORDS = st.lists(st.text(alphabet="abc", min_size=1, max_size=8), min_size=1, max_size=12)


def test_the_example_of_the_paper() -> None:
    """Algorithm 1: the first symbol is "es", and "est" at the end of a word is one. Its ties are in no stated order."""
    learned = train("low " * 5 + "lower " * 2 + "newest " * 6 + "widest " * 3, 15)
    assert list(learned.symbols[-3:]) == ["es", "t</w>", "est</w>"]  # all nine times; lower ids first


@given(words=WORDS, room=st.integers(0, 20))
def test_counting_again_after_every_merge_learns_the_same(words: list[str], room: int) -> None:
    corpus = " ".join(words)
    symbols = ["<unk>", *sorted(set("".join(words))), END_OF_WORD]
    size, spelled = len(symbols) + room, [[*word, END_OF_WORD] for word in words]
    while len(symbols) < size:
        counts = Counter(pair for word in spelled for pair in pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], symbols.index(pair[0]), symbols.index(pair[1])))
        if "".join(best) not in symbols:
            symbols.append("".join(best))
        for word in spelled:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = ["".join(best)]
                place += 1
    assert train(corpus, size).symbols == tuple(symbols)


@given(words=WORDS)
def test_decoding_undoes_encoding_of_words_seen(words: list[str]) -> None:
    learned = train(" ".join(words), 30)
    assert decode(learned, encode(learned, " ".join(words))) == " ".join(words)


def test_a_word_of_the_corpus_becomes_one_symbol_when_there_is_room() -> None:
    learned = train("banana banana", 100)
    assert encode(learned, "banana") == [learned.ids["banana" + END_OF_WORD]]


def test_the_end_of_a_word_is_part_of_what_is_learned() -> None:
    learned = train("aest bcest test estx", 100)
    assert learned.ids["est" + END_OF_WORD] != learned.ids["est"]


def test_a_vocabulary_too_small_for_the_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=3"):
        train("abc", 3)


def test_ids_that_no_symbol_has_are_named() -> None:
    with pytest.raises(ValueError, match="id=99"):
        decode(train("abc", 10), [1, 99])


@pytest.mark.parametrize("letters", ["a", "ab"])
def test_looks_at_pairs_grow_linearly_with_one_long_word(letters: str) -> None:
    learned = train(" ".join([letters * 40, letters * 33]), 40)

    def looks(length: int) -> int:
        seen = [0]

        def count() -> None:
            seen[0] += 1

        merge(learned.pairs, [learned.ids[letters[place % len(letters)]] for place in range(length)], count=count)
        return seen[0]

    assert looks(2000) <= 2 * looks(1000) + 8


def test_made_up_words_repeat_as_words_do() -> None:
    counts = Counter(zipf_words(np.random.default_rng(0), 20_000, distinct=100).split()).most_common()
    assert 1.5 < counts[0][1] / counts[1][1] < 2.5
