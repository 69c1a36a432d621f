"""The fast trainer learns the reference's symbols where its bookkeeping could slip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.tokenizers.bpe_numba import learn_and_segment, white_space
from llmlab.reference.tokenizers.bpe import learn_and_segment as plainly
from llmlab.reference.tokenizers.bpe import zipf_words


@settings(max_examples=60)
@given(words=st.lists(st.text(alphabet="ab</w>", min_size=1, max_size=12), max_size=10), room=st.integers(0, 40))
def test_overlapping_and_ambiguous_merges(words: list[str], room: int) -> None:
    corpus = " ".join(words)
    size = len(set("".join(words))) + 2 + room
    assert learn_and_segment(corpus, size, corpus + " abba c") == plainly(corpus, size, corpus + " abba c")


@pytest.mark.parametrize("text", ["a" * 3000, "ab" * 2000 + " x", "\x1c a\u3000b\u2029c\x85", "\ud800 é"])
def test_long_words_and_every_white_space(text: str) -> None:
    corpus = zipf_words(np.random.default_rng(1), 200, distinct=50) + " aaaa abab"
    assert learn_and_segment(corpus, 120, text) == plainly(corpus, 120, text)


def test_tables_grow_with_the_corpus() -> None:
    corpus = zipf_words(np.random.default_rng(2), 4000, distinct=1500)
    assert learn_and_segment(corpus, 1500, corpus) == plainly(corpus, 1500, corpus)


def test_no_white_space_lies_beyond_the_table() -> None:
    assert not any(chr(point).isspace() for point in range(white_space().size, 0x110000))
