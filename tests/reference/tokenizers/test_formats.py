"""What only reading and writing vocabulary files has."""

import base64
import dataclasses
import gzip
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers import formats, sentencepiece
from llmlab.reference.tokenizers._byte_level import CL100K, GPT2, LLAMA3
from llmlab.reference.tokenizers._gguf import metadata
from llmlab.reference.tokenizers.byte_bpe import babble, encode, train
from llmlab.reference.tokenizers.formats import FORMATS, JsonTokenizer, load_tokenizer, use_tokenizer_json, write_tokenizer_json

SPEC = {
    "added_tokens": [{"id": 5, "content": "[x]", "special": True}],
    "normalizer": None,
    "pre_tokenizer": None,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "merges": [["a", "b"]], "unk_token": "<unk>"},
}


def made(**changes: Any) -> JsonTokenizer:
    return JsonTokenizer(SPEC | changes)


# Laws


def test_added_tokens_are_taken_out_before_anything_is_cut() -> None:
    assert made().encode("ab[x]b") == [2, 5, 1]
    assert made().decode([2, 5, 1]) == "abb"
    assert made().decode([2, 5, 1], skip_special=False) == "ab[x]b"


def test_white_space_goes_with_a_token_that_takes_it_along() -> None:
    entry = {"id": 5, "content": "[x]", "special": True, "lstrip": True, "rstrip": True}
    assert made(added_tokens=[entry]).encode("a  [x] \n b") == [0, 5, 1]


def test_a_token_that_must_be_a_word_is_left_in_one() -> None:
    entry = {"id": 5, "content": "ab", "single_word": True, "special": True}
    assert made(added_tokens=[entry] * 0).encode("ab") == [2]
    model = SPEC["model"] | {"vocab": {"a": 0, "b": 1, "<unk>": 3}, "merges": []}  # type: ignore[operator]
    assert made(added_tokens=[entry], model=model).encode("ab") == [5]
    assert made(added_tokens=[entry], model=model).encode("aba") == [0, 1, 0]


@given(text=st.text(max_size=30))
def test_a_file_written_is_read_back_alike(text: str) -> None:
    again = JsonTokenizer(json.loads(json.dumps(made().to_json())))
    assert again.encode(text) == made().encode(text)


def test_the_comparison_refuses_one_wrong_id() -> None:
    example = FORMATS.examples(np.random.default_rng(4))
    result = use_tokenizer_json(**example)
    assert FORMATS.same(result, dict(result))
    assert not FORMATS.same(result, result | {"ids": [*result["ids"], 1]})


# Recognizing and refusing


def files(folder: Path) -> dict[str, Path]:
    """One small file of each format, all of the same byte-level vocabulary where they can be."""
    learned = train([babble(np.random.default_rng(0), 100)], 300, pattern=GPT2)
    lines = [f"{base64.b64encode(token).decode()} {number}" for token, number in learned.ids.items()]
    (folder / "ranks").write_text("\n".join(lines))
    spec = load_tokenizer(folder / "ranks").to_json()["model"]
    (folder / "vocab.json").write_text(json.dumps(spec["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, spec["merges"])))
    (folder / "tokenizer.json").write_text(json.dumps(load_tokenizer(folder / "ranks").to_json()))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\na\n##b\n")
    (folder / "words").write_text("1 'a' 1\n2 b'\\xff' 1\n3 'é' 2\n")
    (folder / "clip.gz").write_bytes(gzip.compress(b"#version\na b</w>\n"))
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}
    values |= {"tokenizer.ggml.tokens": list(spec["vocab"]), "tokenizer.ggml.merges": list(map(" ".join, spec["merges"]))}
    (folder / "vocab.gguf").write_bytes(gguf(values))
    return {path.name: path for path in folder.iterdir()}


def gguf(values: dict[str, Any]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        out += text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + text(value)
        else:
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return out


def test_one_vocabulary_in_four_formats_gives_the_same_ids(tmp_path: Path, nasty: list[str]) -> None:
    files(tmp_path)
    learned = train([babble(np.random.default_rng(0), 100)], 300, pattern=GPT2)
    tokenizers = [load_tokenizer(tmp_path / name) for name in ("ranks", "tokenizer.json", "vocab.json", "vocab.gguf")]
    by_id = {number: token for token, number in learned.ids.items()}
    for text in nasty[::25]:
        expected = encode(learned, text)
        assert all(tokenizer.encode(text) == expected for tokenizer in tokenizers[:3])
        named = [[*load_tokenizer(tmp_path / "vocab.gguf").to_json()["model"]["vocab"]][i] for i in tokenizers[3].encode(text)]
        assert b"".join(by_id[number] for number in expected).decode() == tokenizers[0].decode(expected)
        assert len(named) == len(expected)


def test_bytes_that_are_no_text_survive_byte_level_files(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(files(tmp_path)["ranks"])
    assert len(tokenizer.encode(b"a\xff\xfe")) == 3
    assert tokenizer.decode(tokenizer.encode(b"a\xff")) == "a\ufffd"


def test_every_format_is_recognized_by_its_content(tmp_path: Path) -> None:
    found = files(tmp_path)
    kinds = {name: type(load_tokenizer(path)).__name__ for name, path in found.items() if name != "merges.txt"}
    assert kinds.pop("words") == "GreedyTokenizer"
    assert set(kinds.values()) == {"JsonTokenizer"}
    assert load_tokenizer(tmp_path).encode("a") == load_tokenizer(found["tokenizer.json"]).encode("a")


BROKEN_SPECS: dict[str, dict[str, Any]] = {
    "merge of three": {"model": {"vocab": {"a": 0}, "merges": ["a a a"]}},
    "merge into nothing": {"model": {"vocab": {"a": 0}, "merges": ["a a"]}},
    "id is no number": {"model": {"vocab": {"a": "x"}}},
    "other model": {"model": {"type": "Neural"}},
    "dropout": {"model": {"vocab": {}, "dropout": 0.1}},
    "unigram without unknown": {"model": {"vocab": [["a", 0]]}},
    "unigram without scores": {"model": {"vocab": ["a"], "unk_id": 0}},
    "unknown is no token": {"model": {"vocab": {"a": 0}, "unk_token": "?"}},
    "normalizer": {"normalizer": {"type": "Shout"}},
    "cut": {"pre_tokenizer": {"type": "Knife"}},
    "behavior": {"pre_tokenizer": {"type": "Punctuation", "behavior": "Odd"}},
    "decoder": {"decoder": {"type": "Ring"}},
    "pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}},
    "no pattern": {"pre_tokenizer": {"type": "Split", "pattern": 3}},
    "added token": {"added_tokens": [{"content": "x"}]},
    "added id": {"added_tokens": [{"content": "x", "id": -1}]},
    "rules": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("case", BROKEN_SPECS)
def test_a_tokenizer_json_with_an_unknown_step_is_one_clear_line(case: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(SPEC | BROKEN_SPECS[case]))
    with pytest.raises(InputError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)


BROKEN: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "ranks: no number": ("ranks", lambda data: data + b"\nYQ== x"),
    "ranks: no base64": ("ranks", lambda data: data + b"\nYQ 7"),
    "ranks: a byte missing": ("ranks", lambda data: b"YQ== 0\n"),
    "json: cut short": ("tokenizer.json", lambda data: data[:200]),
    "json: neither kind": ("tokenizer.json", lambda data: b'{"a": "b"}'),
    "vocab.json: id": ("vocab.json", lambda data: b'{"a": 1.5}'),
    "vocab.txt: no unknown": ("vocab.txt", lambda data: b"a\nb\n"),
    "words: length": ("words", lambda data: b"1 'a' 2\n"),
    "words: code": ("words", lambda data: b"1 '' + open('/etc/passwd').read() + '' 1\n"),
    "gz: cut short": ("clip.gz", lambda data: b"\x1f\x8b" + data[5:20]),
    "gguf: cut short": ("vocab.gguf", lambda data: data[:-30]),
    "gguf: version": ("vocab.gguf", lambda data: data[:4] + b"\x09" + data[5:]),
    "gguf: other model": ("vocab.gguf", lambda data: data.replace(b"gpt2", b"gpt9")),
    "gguf: other cut": ("vocab.gguf", lambda data: data.replace(b"gpt-2", b"gpt-9")),
    "pickle": ("ranks", lambda data: b"\x80\x04\x95\x00"),
    "archive": ("ranks", lambda data: b"PK\x03\x04"),
    "binary": ("ranks", lambda data: b"\x00\x01\x02\x03" * 10),
    "empty": ("ranks", lambda data: b""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    name, action = BROKEN[case]
    path = files(tmp_path)[name]
    path.write_bytes(action(path.read_bytes()))
    with pytest.raises(InputError, match=path.name) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_absent_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(InputError, match="holds none"):
        load_tokenizer(tmp_path)
    found = files(tmp_path)
    monkeypatch.setattr(formats, "MOST_BYTES", 64)
    with pytest.raises(InputError, match="64"):
        load_tokenizer(found["tokenizer.json"])


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2_000_000)))
    monkeypatch.setattr(formats, "MOST_BYTES", 1_000_000)
    with pytest.raises(InputError, match="unpacks"):
        load_tokenizer(tmp_path / "bomb.gz")


@given(data=st.binary(max_size=60))
def test_any_metadata_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        metadata(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + data)


def test_rwkv_takes_the_longest_word(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("1 'a' 1\n2 'ab' 2\n3 'b' 1\n4 'abca' 4\n5 'c' 1\n")
    tokenizer = load_tokenizer(tmp_path / "words")
    assert tokenizer.encode("abcab") == [4, 3]
    assert tokenizer.decode([4, 3, 0]) == "abcab"
    with pytest.raises(ValueError, match="100"):
        tokenizer.encode("d")
    with pytest.raises(InputError, match="cannot say"):
        tokenizer.to_json()


def test_a_megabyte_of_one_letter(tmp_path: Path) -> None:
    assert len(load_tokenizer(files(tmp_path)["ranks"]).encode("a" * 1_000_000)) <= 1_000_000


# Real vocabularies


def hugging_face(path: Path) -> Callable[[list[str]], list[list[int]]]:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    return lambda texts: [found.ids for found in theirs.encode_batch(texts, add_special_tokens=False)]


def tiktoken(path: Path, pattern: str) -> Callable[[list[str]], list[list[int]]]:
    library = pytest.importorskip("tiktoken", reason="needs tiktoken")
    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return library.Encoding(path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary_batch


def pieces(path: Path) -> Callable[[list[str]], list[list[int]]]:
    library = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    return library.SentencePieceProcessor(model_file=str(path)).encode


def bert(path: Path, *, lowercase: bool) -> Callable[[list[str]], list[list[int]]]:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    from llmlab.harness.oracles.tokenizers import wordpiece as theirs
    from llmlab.reference.tokenizers.wordpiece import Vocabulary

    ids = {piece: number for number, piece in enumerate(path.read_text(encoding="utf-8").split("\n")) if piece}
    made = theirs.hugging_face(Vocabulary(ids, lowercase=lowercase))
    return lambda texts: [found.ids for found in made.encode_batch(texts)]


loaded = cache(load_tokenizer)
"""A real file is read once for all tests."""
ORT = "onnxruntime-extensions/"
UNCASED, CASED = "tensorflow-text/bert-uncased-vocab.txt", ORT + "bert_basic_cased_vocab.txt"
PHI3, CLIP, FALCON = ORT + "phi-3-mini.tokenizer.json", ORT + "clip/tokenizer.json", ORT + "falcon-tokenizer/tokenizer.json"
GPT2_RANKS = "openai-whisper/gpt2.tiktoken"
SAME: dict[str, tuple[str, Callable[[Path], Callable[[list[str]], list[list[int]]]]]] = {
    PHI3: (PHI3, hugging_face),
    ORT + "t5-small/tokenizer.json": (ORT + "t5-small/tokenizer.json", hugging_face),
    CLIP: (CLIP, hugging_face),
    FALCON: (FALCON, hugging_face),
    ORT + "phi-2/tokenizer.json": (ORT + "phi-2/tokenizer.json", hugging_face),
    "ChatRWKV/20B_tokenizer.json": ("ChatRWKV/20B_tokenizer.json", hugging_face),
    GPT2_RANKS: (GPT2_RANKS, lambda path: tiktoken(path, GPT2)),
    "openai-whisper/multilingual.tiktoken": ("openai-whisper/multilingual.tiktoken", lambda path: tiktoken(path, GPT2)),
    ORT + "phi-3-small/cl100k_base.tiktoken": (ORT + "phi-3-small/cl100k_base.tiktoken", lambda path: tiktoken(path, CL100K)),
    "llama3/tokenizer.model": ("llama3/tokenizer.model", lambda path: tiktoken(path, LLAMA3)),
    "llama2.c/tokenizer.bin": ("llama2.c/tokenizer.model", pieces),
    "llama.cpp/ggml-vocab-llama-spm.gguf": ("llama2.c/tokenizer.model", pieces),
    ORT + "gpt2.vocab": (GPT2_RANKS, lambda path: tiktoken(path, GPT2)),
    "llama.cpp/ggml-vocab-gpt-2.gguf": (GPT2_RANKS, lambda path: tiktoken(path, GPT2)),
    "llama.cpp/ggml-vocab-falcon.gguf": (FALCON, hugging_face),
    "CLIP/bpe_simple_vocab_16e6.txt.gz": (CLIP, hugging_face),
    UNCASED: (UNCASED, lambda path: bert(path, lowercase=True)),
    CASED: (CASED, lambda path: bert(path, lowercase=False)),
    "tensorflow-text/test_wp_en_vocab.txt": ("tensorflow-text/test_wp_en_vocab.txt", lambda path: bert(path, lowercase=True)),
    "llama.cpp/ggml-vocab-bert-bge.gguf": (UNCASED, lambda path: bert(path, lowercase=True)),
}
"""File -> the file its official library reads, and that library. SentencePiece's own files are in test_sentencepiece.py."""
TIES = ("onnxruntime-extensions/t5-small/tokenizer.json",)
"""Unigram files whose library takes another of several equally good cuts of a long run of one letter: the same pieces."""
OLD_TABLES = (CLIP, "CLIP/bpe_simple_vocab_16e6.txt.gz", UNCASED, CASED, "tensorflow-text/test_wp_en_vocab.txt")
"""Where the library's Unicode is older than Python's: its Oniguruma before 13, its categories before 9."""


@pytest.mark.data
@pytest.mark.parametrize("name", SAME)
def test_real_files_give_the_ids_of_their_library(name: str, folder: Path, nasty: list[str], settled: list[str]) -> None:
    source, library = SAME[name]
    texts = settled if name in OLD_TABLES or "bert" in name else nasty
    assert len(texts) > 500
    texts = [text for text in texts if "<|endoftext|>" not in text or source.endswith(".json")]  # tiktoken is asked for none
    ours = loaded(folder / name)
    for text, expected in zip(texts, library(folder / source)(texts)):
        found = ours.encode(text)
        if name in TIES and len(set(text)) == 1:  # a run of one letter is cut equally well in many orders
            found, expected = sorted(found), sorted(expected)
        assert found == expected, repr(text)


@pytest.mark.data
def test_the_small_llama2c_file_encodes_as_its_model_without_squeezing(folder: Path, nasty: list[str]) -> None:
    """tokenizer.bin does not say that spaces are squeezed, and llama2.c does not squeeze them."""
    weights = folder.parent / "weights/tinyllamas"
    model = dataclasses.replace(sentencepiece.read_model(weights / "tok512.model"), squeeze_spaces=False)
    ours = loaded(weights / "tok512.bin")
    assert [ours.encode(text) for text in nasty] == [sentencepiece.encode(model, text) for text in nasty]


@pytest.mark.data
@pytest.mark.parametrize("name", ["starcoder", "deepseek-coder", "phi-3"])
def test_other_gguf_vocabularies_encode_as_hugging_face_does_what_they_say(name: str, folder: Path, nasty: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    ours = loaded(folder / f"llama.cpp/ggml-vocab-{name}.gguf")
    texts = [text for text in nasty if "<|end" not in text]  # SentencePiece finds no control piece in a text
    if name == "phi-3":
        expected = hugging_face(folder / PHI3)(texts)
    else:
        expected = [found.ids for found in tokenizers.Tokenizer.from_str(json.dumps(ours.to_json())).encode_batch(texts)]
    for text, ids in zip(texts, expected):
        assert ours.encode(text) == ids, repr(text)


@pytest.mark.data
def test_rwkvs_words_are_the_longest_that_match(folder: Path, nasty: list[str]) -> None:
    ours = loaded(folder / "ChatRWKV/rwkv_vocab_v20230424.txt")
    assert isinstance(ours, formats.GreedyTokenizer)
    words = {number: word for word, number in ours.ids.items()}
    longest = max(map(len, ours.ids))
    for text in nasty:
        place, raw = 0, text.encode()
        for number in ours.encode(text):
            expected = next(
                raw[place : place + size] for size in range(longest, 0, -1) if raw[place : place + size] in ours.ids
            )
            assert words[number] == expected
            place += len(expected)
        assert place == len(raw)


ANSWERS = {
    "gpt-2": "llama.cpp/ggml-vocab-gpt-2.gguf",
    "llama-spm": "llama.cpp/ggml-vocab-llama-spm.gguf",
    "llama-bpe": "llama3/tokenizer.model",
    "bert-bge": "llama.cpp/ggml-vocab-bert-bge.gguf",
    "phi-3": "llama.cpp/ggml-vocab-phi-3.gguf",
    "falcon": "llama.cpp/ggml-vocab-falcon.gguf",
    "starcoder": "llama.cpp/ggml-vocab-starcoder.gguf",
    "deepseek-coder": "llama.cpp/ggml-vocab-deepseek-coder.gguf",
    "mpt": "ChatRWKV/20B_tokenizer.json",
}
"""Known-answer files of llama.cpp that have a vocabulary here; MPT's is GPT-NeoX's."""


@pytest.mark.data
@pytest.mark.parametrize("name", ANSWERS)
def test_all_47_known_answers_of_llama_cpp(name: str, folder: Path) -> None:
    base = folder / "llama.cpp" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{base}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(number) for number in line.split()] for line in Path(f"{base}.out").read_text().split("\n")]
    ours = loaded(folder / ANSWERS[name])
    assert len(texts) == 47
    for text, ids in zip(texts, expected):
        assert ours.encode(text) == ids, repr(text)


WRITTEN = [
    *(name for name in SAME if not name.endswith(".json")),
    "llama2.c/tokenizer.model",
    "../weights/tinyllamas/tok512.model",
]


@pytest.mark.data
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_encoded_alike_by_the_library(
    name: str, folder: Path, nasty: list[str], settled: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    ours = loaded(folder / name)
    write_tokenizer_json(ours, tmp_path / "tokenizer.json")
    texts = (settled if name in OLD_TABLES or "bert" in name else nasty)[::3]
    for text, ids in zip(texts, hugging_face(tmp_path / "tokenizer.json")(texts)):
        assert ours.encode(text) == ids, repr(text)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mistral-common/tokenizer.model.v3", "user-defined"),
        ("sentencepiece/test_model.model", "float32"),
        ("ChatRWKV/rwkv_vocab_v20230424.txt", "no such model"),
    ],
)
def test_what_no_tokenizer_json_can_say_is_refused(name: str, why: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        write_tokenizer_json(loaded(folder / name), tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
