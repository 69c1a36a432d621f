"""The steps of a tokenizer.json around its model, each made from its entry: normalizers, cuts, decoders, templates.

The format is that of Hugging Face's tokenizers library; what each step does is that library's documentation and behavior.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import regex

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers import pretokenize
from llmlab.reference.tokenizers._byte_level import GPT2, bytes_by_character, compiled, to_characters
from llmlab.reference.tokenizers.sentencepiece import Charsmap, readable

Entry = Mapping[str, Any]
Normalizer = Callable[[str], str]
Cut = Callable[[str, bool], list[str]]
"""Pieces of a text; the flag says whether it stands at the very start."""
Decoder = Callable[[list[str]], list[str]]

WHITE_SPACE = r"\p{White_Space}"
BRACED = regex.compile(r"<0x([0-9A-Fa-f]{2})>")


class Reader:
    """Makes steps from entries; `path` is named in errors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, field: str, value: object, why: str = "is not a step known here") -> InputError:
        """The error for an entry."""
        return InputError(self.path, field, value, why)

    def pattern(self, entry: Any, field: str) -> str:
        """The regular expression of {"Regex": ...} or {"String": ...}."""
        if isinstance(entry, Mapping) and isinstance(entry.get("String"), str):
            return regex.escape(entry["String"])
        source = entry.get("Regex") if isinstance(entry, Mapping) else None
        if not isinstance(source, str):
            raise self.refuse(field, entry, "must be a String or a Regex")
        try:
            regex.compile(source)
        except regex.error as error:
            raise self.refuse(field, source, f"is no regular expression: {error}") from error
        return source

    def normalizer(self, entry: Entry | None) -> Normalizer:
        """What rewrites a text before it is cut."""
        if entry is None:
            return str
        kind = _kind(entry)
        if kind == "Sequence":
            steps = [self.normalizer(step) for step in entry.get("normalizers", [])]
            return lambda text: _chain(steps, text)
        if kind in ("NFC", "NFD", "NFKC", "NFKD"):
            return lambda text: unicodedata.normalize(kind, text)  # type: ignore[arg-type]
        if kind == "Replace":
            pattern, content = compiled(self.pattern(entry.get("pattern"), "normalizer.pattern")), entry.get("content", "")
            return lambda text: pattern.sub(lambda _: content, text)
        if kind == "Prepend":
            return lambda text: entry.get("prepend", "") + text if text else text
        if kind == "Lowercase":
            return lambda text: "".join(map(str.lower, text))
        if kind == "StripAccents":
            return lambda text: "".join(one for one in text if unicodedata.category(one) != "Mn")
        if kind == "Strip":
            return partial(_stripped, left=entry.get("strip_left", True), right=entry.get("strip_right", True))
        if kind == "BertNormalizer":
            return partial(
                pretokenize.bert_normalize,
                clean=entry.get("clean_text", True),
                chinese=entry.get("handle_chinese_chars", True),
                strip_accents=entry.get("strip_accents"),
                lowercase=entry.get("lowercase", True),
            )
        if kind == "ByteLevel":
            return lambda text: to_characters(text.encode("utf-8", "surrogateescape"))
        if kind == "Precompiled":
            try:
                charsmap = Charsmap.parse(base64.b64decode(entry.get("precompiled_charsmap") or ""))
            except (ValueError, TypeError) as error:
                raise self.refuse("normalizer.precompiled_charsmap", "", str(error)) from error
            return partial(precompiled, charsmap)
        raise self.refuse("normalizer.type", kind)

    def cut(self, entry: Entry | None) -> Cut:
        """What cuts a normalized text into the pieces the model sees one by one."""
        if entry is None:
            return lambda text, _: [text]
        kind = _kind(entry)
        if kind == "Sequence":
            return partial(_each, [self.cut(step) for step in entry.get("pretokenizers", [])])
        if kind == "ByteLevel":
            return partial(_byte_level, bool(entry.get("add_prefix_space", True)), bool(entry.get("use_regex", True)))
        if kind == "BertPreTokenizer":
            return lambda text, _: pretokenize.bert(text)
        if kind == "Metaspace":
            scheme = entry.get("prepend_scheme", "always" if entry.get("add_prefix_space", True) else "never")
            return partial(_metaspace, entry.get("replacement", "▁"), scheme, bool(entry.get("split", True)))
        behavior, invert = entry.get("behavior", "Isolated"), False
        if kind == "Split":
            pattern, invert = self.pattern(entry.get("pattern"), "pre_tokenizer.pattern"), bool(entry.get("invert"))
        elif kind == "Digits":
            pattern = r"\p{N}" if entry.get("individual_digits") else r"\p{N}+"
        elif kind == "Punctuation":
            pattern = r"[\p{P}$+<=>^`|~]"
        elif kind == "Whitespace":
            pattern, behavior, invert = r"\w+|[^\w\s]+", "Removed", True
        elif kind == "WhitespaceSplit":
            pattern, behavior = WHITE_SPACE, "Removed"
        elif kind == "CharDelimiterSplit":
            pattern, behavior = regex.escape(str(entry.get("delimiter", " "))), "Removed"
        else:
            raise self.refuse("pre_tokenizer.type", kind)
        if behavior not in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            raise self.refuse("pre_tokenizer.behavior", behavior)
        return lambda text, _: split(pattern, behavior, invert, text)

    def decoder(self, entry: Entry | None) -> Decoder:
        """What makes tokens text again; the results are joined."""
        if entry is None:
            return lambda tokens: [" ".join(tokens)]
        kind = _kind(entry)
        if kind == "Sequence":
            steps = [self.decoder(step) for step in entry.get("decoders", [])]
            return lambda tokens: _chain(steps, tokens)
        if kind == "ByteLevel":
            return _from_byte_level
        if kind == "ByteFallback":
            return _from_byte_tokens
        if kind == "Fuse":
            return lambda tokens: ["".join(tokens)]
        if kind == "Replace":
            pattern, content = compiled(self.pattern(entry.get("pattern"), "decoder.pattern")), entry.get("content", "")
            return lambda tokens: [pattern.sub(lambda _: content, token) for token in tokens]
        if kind == "Strip":
            return partial(_unpadded, entry.get("content", " "), int(entry.get("start", 0)), int(entry.get("stop", 0)))
        if kind == "Metaspace":
            scheme = entry.get("prepend_scheme", "always" if entry.get("add_prefix_space", True) else "never")
            return partial(_from_metaspace, entry.get("replacement", "▁"), scheme != "never")
        if kind == "WordPiece":
            return partial(_from_word_pieces, entry.get("prefix", "##"), bool(entry.get("cleanup", True)))
        if kind == "BPEDecoder":
            return partial(_from_suffixes, entry.get("suffix", "</w>"))
        raise self.refuse("decoder.type", kind)

    def template(self, entry: Entry | None, ids: Mapping[str, int]) -> list[list[int] | None]:
        """What surrounds one text: ids, and None where the text itself stands."""
        if entry is None or _kind(entry) == "ByteLevel":
            return [None]
        kind = _kind(entry)
        if kind == "Sequence":
            found: list[list[int] | None] = [None]
            for step in entry.get("processors", []):
                inner = self.template(step, ids)
                found = [part for outer in inner for part in (found if outer is None else [outer])]
            return found
        try:
            if kind in ("BertProcessing", "RobertaProcessing"):
                return [[int(entry["cls"][1])], None, [int(entry["sep"][1])]]
            if kind == "TemplateProcessing":
                named = entry.get("special_tokens", {})
                return [
                    list(named[part["SpecialToken"]["id"]]["ids"]) if "SpecialToken" in part else None
                    for part in entry["single"]
                ]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise self.refuse("post_processor", kind, f"lacks {error}") from error
        raise self.refuse("post_processor.type", kind)


def _kind(entry: Any) -> str:
    return str(entry.get("type")) if isinstance(entry, Mapping) else repr(entry)


def _chain(steps: Sequence[Callable[[Any], Any]], value: Any) -> Any:
    for step in steps:
        value = step(value)
    return value


def _stripped(text: str, *, left: bool, right: bool) -> str:
    start, end = 0, len(text)
    while left and start < end and pretokenize.is_white_space(text[start]):
        start += 1
    while right and end > start and pretokenize.is_white_space(text[end - 1]):
        end -= 1
    return text[start:end]


def precompiled(charsmap: Charsmap, text: str) -> str:
    """SentencePiece's rules as Hugging Face applies them: cluster by cluster, and the shortest rule instead of the longest.

    A grapheme cluster of under 6 bytes is replaced as a whole if a rule matches its start; else each character is, by itself.
    """
    out: list[str] = []
    for cluster in regex.findall(r"\X", text):
        replaced = _shortest(charsmap, cluster) if len(cluster.encode()) < 6 else None
        if replaced is not None:
            out.append(replaced)
            continue
        for character in cluster:
            one = _shortest(charsmap, character)
            out.append(character if one is None else one)
    return "".join(out)


def _shortest(charsmap: Charsmap, text: str) -> str | None:
    found = next(charsmap.prefixes(text.encode(), 0), None)
    return None if found is None else found[1].decode("utf-8", "replace")


def split(pattern: str, behavior: str, invert: bool, text: str) -> list[str]:
    """Cut at the matches of a pattern (at what lies between them with `invert`) and say where they go.

    >>> split("-", "MergedWithPrevious", False, "a-b--c")
    ['a-', 'b-', '-', 'c']
    """
    parts: list[tuple[str, bool]] = []
    place = 0
    for match in compiled(pattern).finditer(text):
        start, end = match.span()
        if start < end:
            parts += [(text[place:start], invert), (text[start:end], not invert)]
            place = end
    parts = [part for part in (*parts, (text[place:], invert)) if part[0]]
    if behavior == "Removed":
        return [piece for piece, cut in parts if not cut]
    if behavior == "Contiguous":
        return ["".join(piece for piece, _ in run) for _, run in groupby(parts, key=lambda part: part[1])]
    if behavior == "Isolated":
        return [piece for piece, _ in parts]
    backward = behavior == "MergedWithNext"
    merged: list[str] = []
    after_cut = True
    for piece, cut in reversed(parts) if backward else parts:
        if cut and not after_cut:
            merged[-1] = piece + merged[-1] if backward else merged[-1] + piece
        else:
            merged.append(piece)
        after_cut = cut
    return merged[::-1] if backward else merged


def _each(cuts: Sequence[Cut], text: str, at_start: bool) -> list[str]:
    pieces = [text]
    for cut in cuts:
        pieces = [piece for number, whole in enumerate(pieces) for piece in cut(whole, at_start and number == 0)]
    return pieces


def _byte_level(prefix: bool, cuts: bool, text: str, _: bool) -> list[str]:
    if prefix and not text.startswith(" "):
        text = " " + text
    pieces = split(GPT2, "Isolated", False, text) if cuts else [text]
    return [to_characters(piece.encode("utf-8", "surrogateescape")) for piece in pieces]


def _metaspace(mark: str, scheme: str, cuts: bool, text: str, at_start: bool) -> list[str]:
    text = text.replace(" ", mark)
    if (scheme == "always" or (scheme == "first" and at_start)) and not text.startswith(mark):
        text = mark + text
    return split(regex.escape(mark), "MergedWithNext", False, text) if cuts else [text]


def _from_byte_level(tokens: list[str]) -> list[str]:
    table = bytes_by_character()
    found = [
        bytes(table[one] for one in token) if all(one in table for one in token) else token.encode("utf-8", "surrogatepass")
        for token in tokens
    ]
    return [b"".join(found).decode("utf-8", "replace")]


def _from_byte_tokens(tokens: list[str]) -> list[str]:
    out: list[str] = []
    for is_byte, run in groupby(tokens, key=lambda token: BRACED.fullmatch(token) is not None):
        if not is_byte:
            out += run
            continue
        letters = bytes(int(token[3:5], 16) for token in run)
        try:
            out.append(letters.decode())
        except UnicodeDecodeError:
            out += ["\ufffd"] * len(letters)
    return out


def _unpadded(content: str, start: int, stop: int, tokens: list[str]) -> list[str]:
    out = []
    for token in tokens:
        first, last = 0, len(token)
        while first < min(start, len(token)) and token[first] == content:
            first += 1
        while last > first and len(token) - last < stop and token[last - 1] == content:
            last -= 1
        out.append(token[first:last])
    return out


def _from_metaspace(mark: str, prefixed: bool, tokens: list[str]) -> list[str]:
    return [token.replace(mark, "" if prefixed and number == 0 else " ") for number, token in enumerate(tokens)]


_CLEANED = (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")
_CLEANED_LATER = (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")


def _from_word_pieces(prefix: str, cleanup: bool, tokens: list[str]) -> list[str]:
    out = []
    for number, token in enumerate(tokens):
        if number:
            token = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        for found, instead in (*_CLEANED, *_CLEANED_LATER) if cleanup else ():
            token = token.replace(found, instead)
        out.append(token)
    return out


def _from_suffixes(suffix: str, tokens: list[str]) -> list[str]:
    last = len(tokens) - 1
    return [token.replace(suffix, "" if number == last else " ") for number, token in enumerate(tokens)]


def clean(text: str | bytes) -> str:
    """A text as the steps take it; each byte that is no UTF-8 is U+FFFD."""
    return readable(text)
