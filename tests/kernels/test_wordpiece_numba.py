"""The fast tokenizer normalizes and cuts every character as the reference does."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.kernels.tokenizers.wordpiece_numba import tokenize
from llmlab.reference.tokenizers.wordpiece import UNKNOWN, Vocabulary
from llmlab.reference.tokenizers.wordpiece import tokenize as plainly

LETTERS = [UNKNOWN, *"abcé世界!,.'-ab", "##a", "##b", "##ab", "##é", "##e", "e", "ss", "##ss", "##ß", "가", "##가", "##ᅡ", "ᄀ"]
CASED, LOWERED = (
    Vocabulary({piece: number for number, piece in enumerate(LETTERS)}, lowercase=lowercase) for lowercase in (False, True)
)
TRICKY = st.text(alphabet="abAÉé\u0301世!. \t\u200b\x1c\u3000İßſ가\u302e\u302a\x00\ufffd\u0130ǅ", max_size=40)


@pytest.mark.parametrize("vocabulary", [CASED, LOWERED], ids=["cased", "lowered"])
@given(text=TRICKY | st.text())
def test_any_text_gives_the_same_ids(vocabulary: Vocabulary, text: str) -> None:
    assert tokenize(vocabulary, text) == plainly(vocabulary, text)


@pytest.mark.parametrize("lowercase", [False, True])
def test_every_character_is_folded_as_the_reference_folds_it(lowercase: bool) -> None:
    """A vocabulary of everything single characters can become tells all of them apart."""
    points = [point for point in range(0x30000) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co", "Lo")]
    points += [*range(0xAC00, 0xAC80), *range(0x4E00, 0x4E80), *range(0xF8F0, 0xFA20), 0xE0001, 0xE01EF, 0xF0000, 0x10FFFD]
    texts = [chr(point) for point in points]
    pieces = {one for text in texts for form in ("NFC", "NFD") for one in unicodedata.normalize(form, text)}
    pieces |= {one for piece in pieces for one in piece.lower()}
    ids = {piece: number for number, piece in enumerate([UNKNOWN, *sorted(pieces), *(f"##{one}" for one in sorted(pieces))])}
    vocabulary = Vocabulary(ids, lowercase=lowercase)
    whole = " ".join(f"a{text}b" for text in texts if unicodedata.combining(text) == 0 or unicodedata.category(text) == "Mn")
    assert tokenize(vocabulary, whole) == plainly(vocabulary, whole)


@pytest.mark.parametrize("length", [63, 64, 65, 99, 100, 101, 5000])
def test_words_of_every_length_class(length: int) -> None:
    for word in ("a" * length, "é" * length, "ab" * length):
        assert tokenize(CASED, word) == plainly(CASED, word)
