"""The models of a tokenizer.json, which give ids to one piece: BPE with its options, WordPiece, Unigram, WordLevel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers import unigram, wordpiece
from llmlab.reference.tokenizers.bpe import Pairs, merge

Encode = Callable[[str], list[int]]


def model_of(path: Path, entry: Any) -> tuple[Encode, dict[str, int]]:
    """Return what encodes a piece, and token -> id.

    Raises:
        InputError: another model, or a vocabulary that is none.
    """
    if not isinstance(entry, Mapping):
        raise InputError(path, "model", entry, "must be an object")
    kind = entry.get("type") or ("Unigram" if isinstance(entry.get("vocab"), list) else "BPE")
    makers = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram, "WordLevel": _wordlevel}
    if kind not in makers:
        raise InputError(path, "model.type", kind, f"must be one of {', '.join(makers)}")
    if entry.get("dropout"):
        raise InputError(path, "model.dropout", entry["dropout"], "random merges are not here")
    return makers[kind](path, entry)


def _vocabulary(path: Path, entry: Mapping[str, Any]) -> dict[str, int]:
    vocab = entry.get("vocab")
    if not isinstance(vocab, dict):
        raise InputError(path, "model.vocab", type(vocab).__name__, "must map tokens to ids")
    for token, number in vocab.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31:
            raise InputError(path, f"model.vocab[{token!r}]", number, "must be a whole number from 0 on")
    return vocab


def _unknown(path: Path, entry: Mapping[str, Any], ids: Mapping[str, int], field: str = "unk_token") -> int | None:
    token = entry.get(field)
    if token is None:
        return None
    if token not in ids:
        raise InputError(path, f"model.{field}", token, "is not in the vocabulary")
    return ids[token]


def _merges(path: Path, entry: Mapping[str, Any], ids: Mapping[str, int], prefix: str) -> Pairs:
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, given in enumerate(entry.get("merges") or []):
        parts = given.split(" ") if isinstance(given, str) else given
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InputError(path, f"model.merges[{rank}]", given, "must be two tokens")
        left, right = parts
        joined = left + (right[len(prefix) :] if prefix else right)
        for token in (left, right, joined):
            if token not in ids:
                raise InputError(path, f"model.merges[{rank}]", given, f"{token!r} is not in the vocabulary")
        pairs[ids[left], ids[right]] = rank, ids[joined]
    return pairs


def _bpe(path: Path, entry: Mapping[str, Any]) -> tuple[Encode, dict[str, int]]:
    ids, prefix, suffix = (
        _vocabulary(path, entry),
        entry.get("continuing_subword_prefix") or "",
        entry.get("end_of_word_suffix") or "",
    )
    pairs, unknown = _merges(path, entry, ids, prefix), _unknown(path, entry, ids)
    fuses, whole = bool(entry.get("fuse_unk")), bool(entry.get("ignore_merges"))
    of_byte = [ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)] if entry.get("byte_fallback") else []
    seen: dict[str, list[int]] = {}

    def start(piece: str) -> list[int]:
        found: list[int] = []
        open_run = False  # of unknown characters
        for place, character in enumerate(piece):
            symbol = (prefix if place else "") + character + (suffix if place == len(piece) - 1 else "")
            if symbol in ids:
                found.append(ids[symbol])
                open_run = False
                continue
            letters = [of_byte[byte] for byte in symbol.encode()] if of_byte else [-1]
            if -1 not in letters:
                found += letters
            elif unknown is not None:
                if not (open_run and fuses):
                    found.append(unknown)
                open_run = True
        return found

    def encode(piece: str) -> list[int]:
        if whole and piece in ids:
            return [ids[piece]]
        if piece not in seen:
            seen[piece] = merge(pairs, start(piece))
        return seen[piece]

    return encode, ids


def _wordpiece(path: Path, entry: Mapping[str, Any]) -> tuple[Encode, dict[str, int]]:
    ids = _vocabulary(path, entry)
    if entry.get("continuing_subword_prefix", "##") != "##":
        raise InputError(path, "model.continuing_subword_prefix", entry["continuing_subword_prefix"], "must be ##")
    token = entry.get("unk_token", wordpiece.UNKNOWN)
    _unknown(path, {"unk_token": token}, ids)
    vocabulary = wordpiece.Vocabulary(ids, token, int(entry.get("max_input_chars_per_word", 100)))
    return lambda piece: wordpiece.split_word(vocabulary, piece), ids


def _wordlevel(path: Path, entry: Mapping[str, Any]) -> tuple[Encode, dict[str, int]]:
    ids = _vocabulary(path, entry)
    unknown = _unknown(path, entry, ids)
    missing = [] if unknown is None else [unknown]
    return lambda piece: [ids[piece]] if piece in ids else missing, ids


def _unigram(path: Path, entry: Mapping[str, Any]) -> tuple[Encode, dict[str, int]]:
    """Sums are in float64, unknown characters in a row are one, and where bytes fall back, theirs."""
    vocab = entry.get("vocab")
    try:
        pieces, scores = tuple(str(piece) for piece, _ in vocab), np.array([float(score) for _, score in vocab])  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise InputError(path, "model.vocab", type(vocab).__name__, "must be pairs of a piece and its score") from error
    unknown = entry.get("unk_id")
    if not pieces or not isinstance(unknown, int) or not 0 <= unknown < len(pieces):
        raise InputError(path, "model.unk_id", unknown, f"must be one of {len(pieces)} pieces")
    vocabulary = unigram.Vocabulary(pieces, scores, unknown, float(scores.min()) - 10.0)
    ids = {piece: number for number, piece in enumerate(pieces)}
    of_byte = [ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)] if entry.get("byte_fallback") else [-1]
    falls_back = -1 not in of_byte

    def encode(piece: str) -> list[int]:
        found: list[int] = []
        open_run = False
        for start, end, number in unigram.viterbi(vocabulary, piece):
            if number != unknown:
                found.append(number)
            elif falls_back:
                found += [of_byte[byte] for byte in piece[start:end].encode()]
            elif not open_run:
                found.append(number)
            open_run = number == unknown
        return found

    return encode, ids
