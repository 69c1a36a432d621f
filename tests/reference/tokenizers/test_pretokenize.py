"""What only normalization and pre-tokenization have."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.tokenizers.pretokenize import (
    CHINESE_BLOCKS,
    CUTS,
    bert,
    bert_normalize,
    cl100k,
    gpt2,
    is_chinese,
    is_punctuation,
    is_white_space,
    llama3,
    nfkc,
    pretokenize,
)

OLD = unicodedata.ucd_3_2_0
SETTLED = [
    chr(point)
    for point in range(0x110000)
    if (kind := OLD.category(chr(point))) not in ("Cn", "Cs") and kind == unicodedata.category(chr(point))
]
"""Characters that Unicode has had since 3.2 in one category: every table, however old, says the same about them."""


@given(text=st.text())
def test_cuts_of_byte_level_vocabularies_lose_nothing(text: str) -> None:
    assert "".join(gpt2(text)) == "".join(cl100k(text)) == "".join(llama3(text)) == text


@given(text=st.text())
def test_bert_loses_white_space_and_nothing_else(text: str) -> None:
    assert "".join(bert(text)) == "".join(one for one in text if not is_white_space(one))
    assert all(len(piece) == 1 or not any(map(is_punctuation, piece)) for piece in bert(text))


@given(text=st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    assert nfkc(nfkc(text)) == nfkc(text)
    once = bert_normalize(text, chinese=False)
    assert bert_normalize(once, chinese=False) == once


def test_an_accented_letter_and_its_parts_are_one_to_bert() -> None:
    assert bert_normalize("e\u0301") == bert_normalize("é") == "e"
    assert bert_normalize("É", strip_accents=False) == "é"
    assert bert_normalize("É", lowercase=False) == "É"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nfx"):
        pretokenize("a", normalizer="nfx", cut="gpt2")
    with pytest.raises(ValueError, match="claude"):
        pretokenize("a", normalizer="nfc", cut="claude")


def test_every_settled_character_is_cut_and_normalized_as_hugging_face_does() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    cutter, normalizer = tokenizers.pre_tokenizers.BertPreTokenizer(), tokenizers.normalizers.BertNormalizer()
    text = "".join(f"a{one}b " for one in SETTLED)
    assert [piece for piece, _ in cutter.pre_tokenize_str(text)] == bert(text)
    assert normalizer.normalize_str("q".join(SETTLED)) == bert_normalize("q".join(SETTLED))


def test_hugging_face_knows_no_mark_and_no_punctuation_later_than_unicode_8() -> None:
    """Its categories come from an old table: U+08D4 is a mark since Unicode 9, U+2E43 punctuation since Unicode 9."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    assert tokenizers.normalizers.BertNormalizer().normalize_str("\u08d4") == "\u08d4"
    assert bert_normalize("\u08d4") == ""
    assert len(tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str("a\u2e43b")) == 1
    assert len(bert("a\u2e43b")) == 3


def test_hugging_face_leaves_256_ideographs_uncut() -> None:
    """Google's list has the block U+2B820 to U+2CEAF; Hugging Face's starts it at U+2B920, and so does every file it wrote."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    normalizer = tokenizers.normalizers.BertNormalizer()
    left = [point for point in range(0x2B820, 0x2CEB0) if normalizer.normalize_str(chr(point)) == chr(point)]
    assert left == list(range(0x2B820, 0x2B920))
    assert not is_chinese(chr(0x2B820))
    assert is_chinese(chr(CHINESE_BLOCKS[5][0]))


def test_separators_of_ascii_are_no_white_space() -> None:
    """Python's `str.split` and `str.isspace` take U+001C to U+001F for white space; Unicode does not."""
    assert bert("a\x1cb") == ["a\x1cb"]
    assert "\x1c".isspace()


@pytest.mark.parametrize("cut", CUTS)
def test_pieces_of_a_megabyte_of_one_letter(cut: str) -> None:
    assert pretokenize("a" * 1_000_000, normalizer="none", cut=cut) == ["a" * 1_000_000]
