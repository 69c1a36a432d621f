"""The fast tokenizer gives the reference's ids on texts its rules and its memory could trip over."""

from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llmlab.kernels.tokenizers._merging_numba import LONGEST_KEPT, SCANNED
from llmlab.kernels.tokenizers.byte_bpe_numba import classes, tables_of, tokenize
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, QWEN2
from llmlab.reference.tokenizers.byte_bpe import Vocabulary, babble, encode, from_ranks, train

PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2, "unknown": r"[a-z]+|\s"}
TRICKY = st.text(alphabet="aZsStTlLvVrReE'é世1234²  \t\n\r\u00a0\u3000ſ!<|end>🤖\u0301\x1c\x85", max_size=60)
_made: dict[str, Vocabulary] = {}


def learned(pattern: str) -> Vocabulary:
    """A small vocabulary with that pattern, made once; its tables remember words from one example to the next."""
    if pattern not in _made:
        text = babble(np.random.default_rng(3), 400)
        _made[pattern] = train([text], 420, pattern=PATTERNS[pattern], special=["<|end|>"])
    return _made[pattern]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TRICKY)
def test_pieces_are_cut_like_the_pattern_cuts_them(pattern: str, text: str) -> None:
    vocabulary = learned(pattern)
    expected = encode(vocabulary, text)
    assert tokenize(vocabulary, text) == expected
    assert tokenize(vocabulary, text) == expected  # now from memory


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text())
def test_any_text_gives_the_same_ids(pattern: str, text: str) -> None:
    assert tokenize(learned(pattern), text) == encode(learned(pattern), text)


WORDS = st.lists(
    st.tuples(st.sampled_from(["", " ", "(", "'", "\t", "\n", "\0", "é"]), st.text(alphabet="az", max_size=18)), max_size=6
)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(words=WORDS, end=st.sampled_from(["", "\0", "é", "[", "`", "{"]))
def test_words_around_every_length_that_is_read_at_once(pattern: str, words: list[tuple[str, str]], end: str) -> None:
    text = "".join(lead + word for lead, word in words) + end
    for _ in range(2):
        assert tokenize(learned(pattern), text) == encode(learned(pattern), text)


@given(data=st.binary())
def test_bytes_that_are_no_text_give_the_same_ids(data: bytes) -> None:
    assert tokenize(learned("llama3"), data) == encode(learned("llama3"), data)


@pytest.mark.parametrize("special", [{}, {"<|end|>": 1000}])
def test_half_a_character_becomes_the_replacement_character(special: dict[str, int]) -> None:
    vocabulary = from_ranks(learned("llama3").ids, pattern=LLAMA3, special=special)
    assert tokenize(vocabulary, "ka\ud800lo") == encode(vocabulary, "ka\ufffdlo")


@pytest.mark.parametrize("length", [LONGEST_KEPT, LONGEST_KEPT + 1, SCANNED, SCANNED + 1, 1000, 30_000])
@pytest.mark.parametrize("letters", ["k", "ka", "lo mi", " "])
def test_pieces_of_every_length_class(letters: str, length: int) -> None:
    text = (letters * length)[:length]
    for whole in (False, True):
        vocabulary = learned("llama3")
        if whole:
            vocabulary = from_ranks(vocabulary.ids, pattern=LLAMA3)
        assert tokenize(vocabulary, text) == encode(vocabulary, text)


def test_a_token_is_itself_whatever_the_merges_say() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    for whole in (True, False):
        vocabulary = from_ranks(ranks, whole_pieces=whole)
        assert tokenize(vocabulary, "abc") == encode(vocabulary, "abc") == ([256] if whole else [97, 98, 99])


def test_a_full_memory_forgets_nothing_and_changes_nothing() -> None:
    vocabulary = from_ranks(learned("gpt2").ids, pattern=GPT2)
    tables = tables_of(vocabulary)
    tables.words[3][3] = tables.words[3][2]  # no room for another word
    text = babble(np.random.default_rng(9), 300)
    assert tokenize(vocabulary, text) == encode(vocabulary, text) == tokenize(vocabulary, text)


def test_every_code_point_has_the_class_the_pattern_language_gives_it() -> None:
    kinds = classes()
    for point in [*range(0x3000), 0x3400, 0x4E00, 0xAC00, 0x1D7CE, 0x1F916, 0x10FFFF]:
        character = chr(point)
        named = [r"[\r\n]", r"\s", r"\p{L}", r"\p{N}"]
        expected = next((code for code, pattern in zip((4, 3, 1, 2), named) if regex.fullmatch(pattern, character)), 0)
        assert kinds[point] == expected, hex(point)


@pytest.mark.data
def test_a_real_vocabulary_on_a_real_book(data: Path) -> None:
    from llmlab.reference.tokenizers._files import load_tiktoken

    folder = data / "tokenizers"
    if not folder.is_dir():
        pytest.skip("needs tokenizers under LLMLAB_DATA")
    tiktoken = pytest.importorskip("tiktoken", reason="needs tiktoken")
    vocabulary = load_tiktoken(folder / "llama3/tokenizer.model")
    theirs = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=dict(vocabulary.ids), special_tokens={})
    book = (folder / "sentencepiece/botchan.txt").read_text(encoding="utf-8")
    assert tokenize(vocabulary, book) == theirs.encode_ordinary(book)
