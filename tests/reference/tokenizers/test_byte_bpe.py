"""What only byte-level BPE has."""

import base64
import json
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers._byte_level import CL100K, GPT2, LLAMA3, byte_alphabet, isolate, to_bytes, to_characters
from llmlab.reference.tokenizers._files import load_gpt2, load_tiktoken, load_tokenizer_json
from llmlab.reference.tokenizers.byte_bpe import (
    BYTE_BPE,
    Vocabulary,
    babble,
    decode,
    decode_bytes,
    encode,
    from_merges,
    from_ranks,
    merge,
    tokenize,
    train,
)


@pytest.fixture(scope="module")
def tiny() -> Vocabulary:
    texts = [babble(np.random.default_rng(seed), 300) for seed in range(3)]
    return train(texts, 600, pattern=LLAMA3, special=["<|end|>", "<|end|>more"])


# Laws


@given(st.text())
def test_decoding_undoes_encoding(text: str) -> None:
    vocabulary = _tiny()
    assert decode(vocabulary, encode(vocabulary, text)) == text


@given(st.binary())
def test_bytes_that_are_no_text_survive(data: bytes) -> None:
    vocabulary = _tiny()
    assert decode_bytes(vocabulary, encode(vocabulary, data)) == data


@cache
def _tiny() -> Vocabulary:
    return train([babble(np.random.default_rng(1), 300)], 400, pattern=GPT2)


@given(st.text(alphabet="ab c'1", max_size=40))
def test_merging_by_heap_equals_merging_by_search(text: str) -> None:
    vocabulary = _tiny()
    ids = [vocabulary.byte_ids[byte] for byte in text.encode()]
    expected = list(ids)
    while True:
        ranked = [(vocabulary.pairs[pair][0], i) for i, pair in enumerate(pairwise(expected)) if pair in vocabulary.pairs]
        if not ranked:
            break
        _, i = min(ranked)
        expected[i : i + 2] = [vocabulary.pairs[expected[i], expected[i + 1]][1]]
    assert merge(vocabulary.pairs, ids) == expected


def test_lone_surrogates_become_the_replacement_character(tiny: Vocabulary) -> None:
    assert decode(tiny, encode(tiny, "a\ud800b")) == "a\ufffdb"
    assert encode(tiny, "\ud83e\udd16") == encode(tiny, "🤖")


def test_special_tokens_are_found_longest_first_and_only_when_wanted(tiny: Vocabulary) -> None:
    end, more = tiny.special["<|end|>"], tiny.special["<|end|>more"]
    assert encode(tiny, "<|end|>more<|end|>") == [more, end]
    assert end not in encode(tiny, "<|end|>", special=False)
    assert decode(tiny, [more, end]) == "<|end|>more<|end|>"


def test_ids_that_no_token_has_are_named(tiny: Vocabulary) -> None:
    with pytest.raises(ValueError, match="600"):
        decode(tiny, [600])


def test_half_a_character_decodes_to_the_replacement_character(tiny: Vocabulary) -> None:
    plain = train(["x"], 256)
    assert decode(plain, encode(plain, "世")[:2]) == "\ufffd"


def test_the_byte_alphabet_is_one_printable_character_per_byte() -> None:
    assert len(set(byte_alphabet())) == 256
    assert all(character.isprintable() and not character.isspace() for character in byte_alphabet())
    assert to_bytes(to_characters(bytes(range(256)))) == bytes(range(256))


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(isolate(GPT2, text)) == text
    assert "".join(isolate(LLAMA3, text)) == text


@pytest.mark.parametrize("letters", ["a", " ", "ab"])
def test_looks_at_pairs_grow_linearly_with_one_piece(letters: str) -> None:
    learned = train([letters * 40, letters * 33], 270, pattern=LLAMA3)

    def looks(length: int) -> int:
        seen = [0]

        def count() -> None:
            seen[0] += 1

        encode(learned, (letters * length)[:length], merge_piece=partial(merge, count=count))
        return seen[0]

    assert 0 < looks(4000) <= 2 * looks(2000) + 64


def test_a_megabyte_in_one_piece_decodes_to_itself() -> None:
    learned, text = train(["ab" * 40, "ab" * 33], 270, pattern=LLAMA3), "ab" * 500_000
    ids = encode(learned, text)
    assert len(ids) < len(text) / 16
    assert decode(learned, ids) == text


# Training


def test_training_stops_when_nothing_is_left_to_merge() -> None:
    assert len(train(["ab"], 1000)) == 257
    assert len(train([""], 300)) == 256
    with pytest.raises(ValueError, match="255"):
        train(["ab"], 255)


def test_equally_frequent_pairs_are_joined_in_the_order_of_their_ids() -> None:
    learned = train(["dc ba"], 257, pattern=r"\S+")
    assert learned.tokens[256] == b"ba"  # both pairs occur once; b comes before d


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3], ids=["gpt2", "llama3"])
def test_training_learns_the_merges_of_hugging_face(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    texts = [babble(np.random.default_rng(seed), 200) for seed in range(4)]
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytewise])
    theirs.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=700,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>"],
        ),
    )
    ours = train(texts, 700, pattern=pattern, special=["<|end|>"])
    assert {to_characters(token): number for token, number in ours.ids.items()} | dict(ours.special) == theirs.get_vocab()
    merges = json.loads(theirs.to_str())["model"]["merges"]
    in_order = sorted(ours.pairs, key=lambda pair: ours.pairs[pair][0])
    assert [[to_characters(ours.tokens[a]), to_characters(ours.tokens[b])] for a, b in in_order] == [
        list(merge) for merge in merges
    ]


def test_the_comparison_refuses_one_wrong_token() -> None:
    example = BYTE_BPE.examples(np.random.default_rng(2))
    ids = tokenize(**example)
    assert BYTE_BPE.same(ids, list(ids))
    assert not BYTE_BPE.same(ids, [*ids[:-1], ids[-1] + 1])
    assert not BYTE_BPE.same(ids, ids[:-1])


# Files


def rank_file(path: Path, vocabulary: Vocabulary) -> Path:
    lines = [
        f"{base64.b64encode(token).decode()} {number}"
        for token, number in sorted(vocabulary.ids.items(), key=lambda entry: entry[1])
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def json_file(path: Path, vocabulary: Vocabulary, **change: Any) -> Path:
    characters = {number: to_characters(token) for token, number in vocabulary.ids.items()}
    in_order = sorted(vocabulary.pairs, key=lambda pair: vocabulary.pairs[pair][0])
    split = {"type": "Split", "pattern": {"Regex": vocabulary.pattern}, "behavior": "Isolated", "invert": False}
    content = {
        "added_tokens": [{"id": number, "content": text, "special": True} for text, number in vocabulary.special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]},
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in characters.items()},
            "merges": [f"{characters[a]} {characters[b]}" for a, b in in_order],
        },
    }
    path.write_text(json.dumps(content | change))
    return path


def test_the_three_kinds_of_files_make_the_same_tokens(tiny: Vocabulary, tmp_path: Path, nasty: list[str]) -> None:
    ranks = load_tiktoken(rank_file(tmp_path / "x.tiktoken", tiny), special=tiny.special)
    whole = load_tokenizer_json(json_file(tmp_path / "tokenizer.json", tiny))
    parsed = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parsed["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(parsed["merges"]) + "\n")
    gpt2 = load_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt", pattern=LLAMA3, special=tiny.special)
    for text in nasty[::10]:
        expected = encode(tiny, text)
        assert encode(ranks, text) == encode(whole, text) == encode(gpt2, text) == expected


BROKEN_RANKS = {
    "not base64": "?? 0\n",
    "no rank": "YQ==\n",
    "rank is no number": "YQ== one\n",
    "bytes missing": "YQ== 0\n",
    "empty": "",
}


@pytest.mark.parametrize("case", BROKEN_RANKS)
def test_a_broken_rank_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_text(BROKEN_RANKS[case])
    with pytest.raises(InputError, match=r"x\.tiktoken"):
        load_tiktoken(tmp_path / "x.tiktoken")


BROKEN_JSON: dict[str, dict[str, Any]] = {
    "other model": {"model": {"type": "Unigram"}},
    "no model": {"model": None},
    "byte fallback": {"model": {"type": "BPE", "byte_fallback": True}},
    "no byte level": {"pre_tokenizer": {"type": "Whitespace"}},
    "lowercase": {"normalizer": {"type": "Lowercase"}},
    "merge of three": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a a"]}},
    "merge into nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}},
    "vocabulary is a list": {"model": {"type": "BPE", "vocab": ["a"], "merges": []}},
    "not in the alphabet": {"model": {"type": "BPE", "vocab": {"a b": 0}, "merges": []}},
    "added token without id": {"added_tokens": [{"content": "x"}]},
    "stripping token": {"added_tokens": [{"content": "x", "id": 1, "lstrip": True}]},
    "bad pattern": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
                {"type": "ByteLevel", "use_regex": False},
            ],
        }
    },
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_a_tokenizer_file_of_another_kind_is_one_clear_line(case: str, tiny: Vocabulary, tmp_path: Path) -> None:
    path = json_file(tmp_path / "tokenizer.json", tiny, **BROKEN_JSON[case])
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_tokenizer_json(path)


def test_a_truncated_tokenizer_file_is_one_clear_line(tiny: Vocabulary, tmp_path: Path) -> None:
    path = json_file(tmp_path / "tokenizer.json", tiny)
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match="not valid JSON"):
        load_tokenizer_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer_json(tmp_path / "absent.json")


def test_incomplete_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="byte"):
        from_ranks({b"a": 0})
    with pytest.raises(ValueError, match="no token"):
        from_merges({bytes([byte]): byte for byte in range(256)}, [(b"a", b"b")])


# Real vocabularies


RANKS = {
    "gpt2": ("openai-whisper/gpt2.tiktoken", GPT2),
    "cl100k": ("onnxruntime-extensions/phi-3-small/cl100k_base.tiktoken", CL100K),
    "llama3": ("llama3/tokenizer.model", LLAMA3),
}
JSON = {
    "phi-2": "onnxruntime-extensions/phi-2/tokenizer.json",
    "falcon": "onnxruntime-extensions/falcon-tokenizer/tokenizer.json",
    "gpt-neox": "ChatRWKV/20B_tokenizer.json",
}


@cache
def loaded(folder: Path, name: str) -> Vocabulary:
    """A real vocabulary, read once for all tests."""
    if name in RANKS:
        return load_tiktoken(folder / RANKS[name][0], pattern=RANKS[name][1])
    return load_tokenizer_json(folder / JSON[name])


@pytest.mark.data
@pytest.mark.parametrize("name", RANKS)
def test_real_ranks_give_the_ids_of_tiktoken(name: str, folder: Path, nasty: list[str]) -> None:
    pytest.importorskip("tiktoken", reason="needs tiktoken")
    from llmlab.harness.oracles.tokenizers.byte_bpe import tiktoken_encoding

    vocabulary = loaded(folder, name)
    theirs = tiktoken_encoding(vocabulary)
    strings = nasty
    assert len(strings) > 500
    for text in strings:
        ids = encode(vocabulary, text)
        assert ids == theirs.encode_ordinary(text), repr(text)
        assert decode(vocabulary, ids) == text


@pytest.mark.data
@pytest.mark.parametrize("name", JSON)
def test_real_tokenizer_files_give_the_ids_of_hugging_face(name: str, folder: Path, nasty: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    vocabulary = loaded(folder, name)
    theirs = tokenizers.Tokenizer.from_file(str(folder / JSON[name]))
    for text in nasty:
        assert encode(vocabulary, text) == theirs.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.data
def test_gpt2_by_merges_is_gpt2_by_ranks(folder: Path, nasty: list[str]) -> None:
    merged = load_gpt2(folder / "onnxruntime-extensions/gpt2.vocab", folder / "onnxruntime-extensions/gpt2.merges.txt")
    ranked = loaded(folder, "gpt2")
    for text in nasty[::4]:
        if "<|endoftext|>" not in text:
            assert encode(merged, text) == encode(ranked, text)


@pytest.mark.data
@pytest.mark.parametrize(("name", "answers"), [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("falcon", "falcon")])
def test_the_known_answers_of_llama_cpp(name: str, answers: str, folder: Path) -> None:
    base = folder / "llama.cpp" / f"ggml-vocab-{answers}.gguf"
    texts = Path(f"{base}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(number) for number in line.split()] for line in Path(f"{base}.out").read_text().split("\n")]
    vocabulary = loaded(folder, name)
    checked = list(zip(texts, expected))
    assert len(checked) >= 47
    for text, ids in checked[:47]:
        assert encode(vocabulary, text, special=False) == ids, repr(text)
