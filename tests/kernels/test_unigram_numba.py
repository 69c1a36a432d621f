"""The fast Viterbi finds the reference's segmentation whatever the trie looks like."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.kernels.tokenizers.unigram_numba import tokenize
from llmlab.reference.tokenizers.unigram import Vocabulary
from llmlab.reference.tokenizers.unigram import tokenize as plainly

PIECES = st.lists(st.text(alphabet="aé世🤖\x00\xff", min_size=1, max_size=5), unique=True, max_size=20)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(pieces=PIECES, seed=st.integers(0, 99), text=st.text(alphabet="aé世🤖\x00\xffz", max_size=30), user=st.booleans())
def test_any_pieces_and_any_text(dtype: type, pieces: list[str], seed: int, text: str, user: bool) -> None:
    scores_V = -np.random.default_rng(seed).uniform(0.1, 9, len(pieces) + 1).astype(dtype)
    defined = frozenset([1]) if user and pieces else frozenset()
    vocabulary = Vocabulary(("", *pieces), scores_V, 0, float(scores_V.min()) - 10.0, defined)
    assert tokenize(vocabulary, text) == plainly(vocabulary, text)


@pytest.mark.parametrize("count", [1, 300, 5000])
def test_tries_of_every_size(count: int) -> None:
    rng = np.random.default_rng(count)
    pieces = sorted({"".join(map(chr, rng.integers(0x60, 0x60 + count // 8 + 2, rng.integers(1, 6)))) for _ in range(count)})
    vocabulary = Vocabulary(("", *pieces), -rng.uniform(1, 9, len(pieces) + 1), 0, -30.0)
    text = "".join(rng.choice(pieces, 400)) + "".join(map(chr, rng.integers(0x20, 0x3000, 200)))
    assert tokenize(vocabulary, text) == plainly(vocabulary, text)


def test_a_megabyte_of_one_letter_is_one_pass() -> None:
    vocabulary = Vocabulary(("", "a", "aaaaaaaa"), np.array([0.0, -1.0, -1.0]), 0, -11.0)
    assert tokenize(vocabulary, "a" * 1_000_000) == [2] * 125_000


@pytest.mark.data
@pytest.mark.parametrize("name", ["test_model.model", "test_ja_model.model"])
def test_a_long_text_in_one_piece_is_cut_as_sentencepiece_cuts_it(name: str, data: Path) -> None:
    """On the whole book, nine times as long, sentencepiece 0.2.3 cuts as sums in float64 do; on short ties, as float32."""
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    from llmlab.reference.tokenizers.sentencepiece import normalize, read_model

    folder = data / "tokenizers/sentencepiece"
    if not folder.is_dir():
        pytest.skip("needs tokenizers under LLMLAB_DATA")
    book = (folder / "botchan.txt").read_text(encoding="utf-8")[:30_000]
    model = read_model(folder / name)
    ids = np.array(tokenize(model.unigram, normalize(model, book)))
    again = np.concatenate([[False], (ids[1:] == model.unknown) & (ids[:-1] == model.unknown)])  # a run of unknown is one id
    assert ids[~again].tolist() == spm.SentencePieceProcessor(model_file=str(folder / name)).encode(book)
