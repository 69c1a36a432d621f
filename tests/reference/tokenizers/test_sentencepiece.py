"""What only the SentencePiece framework has."""

import contextlib
import dataclasses
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers.sentencepiece import (
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    USER_DEFINED,
    Model,
    decode,
    encode,
    fields,
    normalize,
    parse_model,
    read_model,
    readable,
)

FILES = [
    "llama2.c/tokenizer.model",
    "mistral-common/tokenizer.model.v3",
    "grok-1/tokenizer.model",
    "sentencepiece/test_model.model",
    "sentencepiece/test_ja_model.model",
    "onnxruntime-extensions/nmt/vocab.joint.spm",
    "../weights/tinyllamas/tok512.model",
]


def model(**changes: object) -> Model:
    letters = ("<unk>", "<s>", "▁", *"abc", "ab", "▁a", "[x]", *(f"<0x{byte:02X}>" for byte in range(256)))
    types = (UNKNOWN, CONTROL, *[NORMAL] * 6, USER_DEFINED, *[6] * 256)
    scores = np.array([0, 0, -3, -4, -4, -4, -2, -2.5, 0, *[0] * 256], np.float32)
    return dataclasses.replace(Model(letters, scores, types), **changes)  # type: ignore[arg-type]


@given(text=st.text(alphabet="ab c世🤖", max_size=20), kind=st.sampled_from(["unigram", "bpe"]))
def test_decoding_undoes_encoding_where_bytes_fall_back_and_spaces_stay(text: str, kind: str) -> None:
    whole = model(kind=kind, byte_fallback=True, squeeze_spaces=False)
    assert decode(whole, encode(whole, text)) == text


@given(text=st.text(alphabet="a b", max_size=20))
def test_squeezed_text_is_words_with_one_space(text: str) -> None:
    assert normalize(model(dummy_prefix=False), text) == "▁".join(text.split())


def test_spaces_can_belong_to_the_end_of_words() -> None:
    assert normalize(model(space_after=True), " a b ") == "a▁b▁"


def test_unknown_characters_in_a_row_are_one_id() -> None:
    assert encode(model(), "xyzax") == [2, 0, 3, 0]


def test_a_user_defined_piece_is_never_cut() -> None:
    for kind in ("unigram", "bpe"):
        assert 8 in encode(model(kind=kind), "a[x]b")


def test_bytes_that_are_no_text_are_replacement_characters_one_by_one() -> None:
    assert readable(b"a\xe4\xb8b\xff") == "a\ufffd\ufffdb\ufffd"
    assert readable("a\ud800b") == "a\ufffdb"


def test_the_comparison_refuses_one_wrong_id() -> None:
    example = SENTENCEPIECE.examples(np.random.default_rng(1))
    ids = encode(**example)
    assert SENTENCEPIECE.same(ids, list(ids))
    assert not SENTENCEPIECE.same(ids, [*ids, 3])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_long_run_of_one_letter(kind: str) -> None:
    """Steps are counted where they are made, in the tests of BPE and Unigram; here that nothing else is quadratic."""
    whole = model(kind=kind)
    assert len(encode(whole, "a" * 200_000)) == 200_000


BROKEN = {
    "empty": b"",
    "text": b"hello world, this is no model",
    "cut short": bytes([0x0A, 0x7F, 0x0A]),
    "endless number": b"\xff" * 20,
    "group": bytes([0x0B]),
    "no unknown piece": bytes([0x0A, 0x03, 0x0A, 0x01, 0x61]),
    "piece is no text": bytes([0x0A, 0x03, 0x0A, 0x01, 0xFF]),
    "rules cut short": bytes([0x1A, 0x04, 0x12, 0x02, 0xFF, 0xFF]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_clear_line(case: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(BROKEN[case])
    with pytest.raises(InputError, match=r"x\.model"):
        read_model(tmp_path / "x.model")


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_model_or_one_clear_line(data: bytes) -> None:
    with contextlib.suppress(InputError):
        parse_model(data)


def test_an_absent_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_model(tmp_path / "absent.model")


def test_ids_that_no_piece_has_are_named() -> None:
    with pytest.raises(ValueError, match="id=999"):
        decode(model(), [999])


def test_what_is_trained_elsewhere_is_read() -> None:
    """A model trained by the library itself, with its built-in rules nmt_nfkc."""
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    import io

    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a cat and a hat ①ﬁ"] * 20),
        model_writer=written,
        vocab_size=40,
        model_type="unigram",
        user_defined_symbols=["[x]"],
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    ours, theirs = parse_model(written.getvalue()), spm.SentencePieceProcessor(model_proto=written.getvalue())
    for text in ("the hat", "  ①  ﬁ\tcat[x]\u3000①", "e\u0301\u200b", "[x][x] ☃", ""):
        assert normalize(ours, text) == theirs.normalize(text)
        assert encode(ours, text) == theirs.encode(text)
    assert [number for number, _ in fields(written.getvalue())].count(1) == len(ours.pieces)


# Real vocabularies


@cache
def loaded(path: Path) -> tuple[Model, Any]:
    """A real model, as it is read here and by the library, once for all tests."""
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    return read_model(path), spm.SentencePieceProcessor(model_file=str(path))


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_real_models_give_the_ids_of_the_library(name: str, folder: Path, nasty: list[str]) -> None:
    ours, theirs = loaded(folder / name)
    assert len(nasty) > 500
    assert [encode(ours, text) for text in nasty] == theirs.encode(nasty)
    for text in nasty[::5]:
        assert normalize(ours, text) == theirs.normalize(text), repr(text)


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_real_models_decode_any_ids_as_the_library(name: str, folder: Path) -> None:
    ours, theirs = loaded(folder / name)
    draw = random.Random(3)
    drawn = [[draw.randrange(draw.choice([300, len(ours.pieces)])) for _ in range(draw.randint(0, 12))] for _ in range(300)]
    assert [decode(ours, ids) for ids in drawn] == [theirs.decode(ids) for ids in drawn]
