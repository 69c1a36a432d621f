"""Vocabulary files: tiktoken ranks, GPT-2's vocab.json with merges.txt, Hugging Face tokenizer.json of byte-level BPE."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import regex

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, to_bytes
from llmlab.reference.tokenizers.byte_bpe import Vocabulary, from_merges, from_ranks

_PUNCTUATION = r"[\p{P}$+<=>^`|~]"  # what Hugging Face calls punctuation: ASCII signs and Unicode category P


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, "", path.name, f"is not UTF-8: {error.reason} at byte {error.start}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, "", path.name, f"is not valid JSON: {error}") from error


def load_tiktoken(path: str | Path, *, pattern: str = LLAMA3, special: Mapping[str, int] | None = None) -> Vocabulary:
    """Read a rank file: one line per token, its bytes in base64, a space, its rank.

    Raises:
        InputError: no such file, a malformed line (with its number), or a single byte without a token.
    """
    path = Path(path)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise InputError(path, f"line {number}", line[:60], "is not a token in base64 and its rank") from error
    try:
        return from_ranks(ranks, pattern=pattern, special=dict(special or {}), name=str(path))
    except ValueError as error:
        raise InputError(path, "", path.name, str(error)) from error


def load_gpt2(
    vocab: str | Path, merges: str | Path, *, pattern: str = GPT2, special: Mapping[str, int] | None = None
) -> Vocabulary:
    """Read GPT-2's two files: vocab.json, tokens in the byte alphabet to ids, and merges.txt, one merge per line.

    Raises:
        InputError: a file is absent or malformed.
    """
    vocab, merges = Path(vocab), Path(merges)
    lines = [line for line in _text(merges).split("\n") if line and not line.startswith("#version")]
    return _merged(vocab, _json(vocab), lines, pattern=pattern, special=dict(special or {}), name=str(vocab))


def _merged(path: Path, vocab: Any, merges: Iterable[Any], *, known: Iterable[str] = (), **more: Any) -> Vocabulary:
    if not isinstance(vocab, dict) or not all(isinstance(number, int) for number in vocab.values()):
        raise InputError(path, "vocab", type(vocab).__name__, "must map tokens to whole numbers")
    aside = set(known)
    ids: dict[bytes, int] = {}
    for token, number in vocab.items():
        try:
            ids[to_bytes(token)] = number
        except KeyError as error:
            if token not in aside:  # a special token need not be written in the byte alphabet
                raise InputError(path, "vocab", token, f"has {error.args[0]!r}, which stands for no byte") from error
    try:
        pairs = [_pair(merge) for merge in merges]
        return from_merges(ids, pairs, **more)
    except (ValueError, KeyError) as error:
        raise InputError(path, "merges", path.name, str(error)) from error


def _pair(merge: Any) -> tuple[bytes, bytes]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{merge!r} is not two tokens")
    return to_bytes(parts[0]), to_bytes(parts[1])


def load_tokenizer_json(path: str | Path) -> Vocabulary:
    """Read a tokenizer.json whose model is BPE over bytes (GPT-2, Llama 3, Qwen, Falcon, GPT-NeoX).

    Raises:
        InputError: no such file, not JSON, another model, or a step this implementation does not have.
    """
    path = Path(path)
    parsed = _json(path)
    model = parsed.get("model") if isinstance(parsed, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise InputError(path, "model.type", model.get("type") if isinstance(model, dict) else model, "must be BPE")
    for unsupported in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(unsupported):
            raise InputError(path, f"model.{unsupported}", model[unsupported], "is not byte-level BPE as here")
    special, added = _added(path, parsed.get("added_tokens") or [])
    before, pattern, after = _patterns(path, parsed.get("pre_tokenizer"))
    return _merged(
        path,
        model.get("vocab"),
        model.get("merges") or [],
        known=[*special, *added],
        pattern=pattern,
        before=before,
        after=after,
        nfc=_normalizes(path, parsed.get("normalizer")),
        special=special,
        added=added,
        whole_pieces=bool(model.get("ignore_merges")),
        name=str(path),
    )


def _added(path: Path, entries: Any) -> tuple[dict[str, int], dict[str, int]]:
    special: dict[str, int] = {}
    normalized: dict[str, int] = {}
    for entry in entries:
        try:
            text, number = entry["content"], int(entry["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(path, "added_tokens", entry, "must have an id and a content") from error
        for unsupported in ("lstrip", "rstrip", "single_word"):
            if entry.get(unsupported):
                raise InputError(
                    path, f"added_tokens.{unsupported}", text, "tokens that take in their surroundings are not here"
                )
        (normalized if entry.get("normalized") else special)[text] = number
    return special, normalized


def _normalizes(path: Path, entry: Any) -> bool:
    if entry is None:
        return False
    steps = entry.get("normalizers", []) if entry.get("type") == "Sequence" else [entry]
    for step in steps:
        if step.get("type") != "NFC":
            raise InputError(path, "normalizer", step.get("type"), "must be NFC or none")
    return bool(steps)


def _patterns(path: Path, entry: Any) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """What cuts before the bytes are written in their alphabet, the pattern itself, and what cuts after."""
    if not isinstance(entry, dict):
        raise InputError(path, "pre_tokenizer", entry, "must hold a ByteLevel step")
    steps = entry.get("pretokenizers", []) if entry.get("type") == "Sequence" else [entry]
    kinds = [step.get("type") for step in steps]
    if kinds.count("ByteLevel") != 1:
        raise InputError(path, "pre_tokenizer", kinds, "must hold one ByteLevel step")
    at = kinds.index("ByteLevel")
    if steps[at].get("add_prefix_space"):
        raise InputError(path, "pre_tokenizer.add_prefix_space", True, "is not byte-level BPE as here")
    before, after = ([_cut(path, step) for step in some] for some in (steps[:at], steps[at + 1 :]))
    if steps[at].get("use_regex", True):
        return tuple(before), GPT2, tuple(after)
    return tuple(before[:-1]), before[-1] if before else "", tuple(after)


def _cut(path: Path, step: Mapping[str, Any]) -> str:
    """The pattern whose matches a step cuts out."""
    kind, behavior = step.get("type"), step.get("behavior", "Isolated")
    if kind == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    if kind == "Punctuation" and behavior in ("Isolated", "Contiguous"):
        return _PUNCTUATION + ("+" if behavior == "Contiguous" else "")
    if kind == "Split" and behavior == "Isolated" and not step.get("invert"):
        given = step.get("pattern") or {}
        pattern = given["Regex"] if "Regex" in given else regex.escape(given.get("String", ""))
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise InputError(path, "pre_tokenizer.pattern", pattern, f"is no regular expression: {error}") from error
        return pattern
    raise InputError(path, "pre_tokenizer", kind, f"with behavior {behavior!r} is not a step known here")
