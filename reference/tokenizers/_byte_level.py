"""What byte-level BPE vocabularies share: the printable alphabet for bytes, and how a text is cut before merging."""

from __future__ import annotations

from functools import cache

import regex

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""Radford et al. 2019: contractions, then runs of letters, digits or other signs, each with one space in front."""

LLAMA3 = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+"""
)
"""cl100k and Llama 3: any one sign may lead letters, at most three digits, line ends stay with what they end."""

CL100K = LLAMA3

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""The same with single digits."""


@cache
def byte_alphabet() -> tuple[str, ...]:
    """Return the character GPT-2 writes for each byte: itself where printable, else the next unused one from U+0100 on.

    >>> byte_alphabet()[ord("a")], byte_alphabet()[ord(" ")], byte_alphabet()[ord("\\n")]
    ('a', 'Ġ', 'Ċ')
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@cache
def bytes_by_character() -> dict[str, int]:
    """The byte each character of the alphabet stands for."""
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def to_characters(data: bytes) -> str:
    """Write bytes in the printable alphabet."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in data)


def to_bytes(characters: str) -> bytes:
    """Read bytes back from the printable alphabet.

    Raises:
        KeyError: a character outside it.
    """
    table = bytes_by_character()
    return bytes(table[character] for character in characters)


def byte_order() -> list[int]:
    """Bytes in the order vocabularies number them: by their character in the alphabet, '!' first."""
    alphabet = byte_alphabet()
    return sorted(range(256), key=lambda byte: alphabet[byte])


@cache
def compiled(pattern: str) -> regex.Pattern[str]:
    """A pattern in the syntax of the `regex` module (Unicode classes, possessive repeats), compiled once."""
    return regex.compile(pattern)


def isolate(pattern: str, text: str) -> list[str]:
    """Cut out every match and keep what lies between; the pieces joined are the text.

    >>> isolate("[0-9]", "a12b")
    ['a', '1', '2', 'b']
    """
    pieces, place = [], 0
    for match in compiled(pattern).finditer(text):
        start, end = match.span()
        if start == end:
            continue
        if start > place:
            pieces.append(text[place:start])
        pieces.append(text[start:end])
        place = end
    if place < len(text):
        pieces.append(text[place:])
    return pieces
