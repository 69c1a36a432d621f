"""Normalization and pre-tokenization: how a text is prepared and cut before any vocabulary sees it.

Cuts of GPT-2 (Radford et al. 2019, section 2.2), cl100k and Llama 3 (tiktoken's published patterns) and BERT (Devlin et al.
2018, arXiv:1810.04805, `BasicTokenizer` of the authors' program); Unicode's NFC and NFKC (UAX 15) and BERT's own normalization.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers._byte_level import CL100K, GPT2, LLAMA3, isolate


def gpt2(text: str) -> list[str]:
    """Contractions, then runs of letters, digits or other signs, each with one space in front; nothing is lost.

    >>> gpt2("I'll go  now")
    ['I', "'ll", ' go', ' ', ' now']
    """
    return isolate(GPT2, text)


def cl100k(text: str) -> list[str]:
    """As GPT-2, but one sign of any kind may lead a word, digits come in threes, and line ends stay with what they end.

    >>> cl100k("(word) 12345")
    ['(word', ')', ' ', '123', '45']
    """
    return isolate(CL100K, text)


def llama3(text: str) -> list[str]:
    """Llama 3 cuts as cl100k does."""
    return isolate(LLAMA3, text)


def bert(text: str) -> list[str]:
    """Cut at white space, which is dropped, and around every punctuation sign, which stands alone.

    >>> bert("don't stop")
    ['don', "'", 't', 'stop']
    """
    pieces: list[str] = []
    start = 0
    for place, character in enumerate(text):
        alone = is_punctuation(character)
        if alone or is_white_space(character):
            pieces += [text[start:place], character] if alone else [text[start:place]]
            start = place + 1
    return [piece for piece in (*pieces, text[start:]) if piece]


def is_white_space(character: str) -> bool:
    """Unicode's property White_Space. `str.isspace` also counts the separators U+001C to U+001F, which have it not."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def is_punctuation(character: str) -> bool:
    """What BERT isolates: every ASCII sign that is no letter, digit or space (so $ + < = > ^ ` | ~ too), and Unicode's P*."""
    if character.isascii():
        return "!" <= character <= "~" and not character.isalnum()
    return unicodedata.category(character).startswith("P")


def is_chinese(character: str) -> bool:
    """BERT's list of CJK ideograph blocks, which has neither kana nor hangul."""
    point = ord(character)
    return any(first <= point <= last for first, last in CHINESE_BLOCKS)


CHINESE_BLOCKS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""The sixth starts at U+2B820 in Google's program; Hugging Face's has U+2B920, and its files are what is read here."""


def nfc(text: str) -> str:
    """Canonical composition.

    >>> len(nfc("e" + chr(0x301)))
    1
    """
    return unicodedata.normalize("NFC", text)


def nfkc(text: str) -> str:
    """Compatibility composition: ligatures, circled digits, full-width letters become plain ones.

    >>> nfkc("ﬁ ② Ａ")
    'fi 2 A'
    """
    return unicodedata.normalize("NFKC", text)


def bert_normalize(
    text: str, *, clean: bool = True, chinese: bool = True, strip_accents: bool | None = None, lowercase: bool = True
) -> str:
    """Drop control characters, make all white space plain, put spaces around ideographs, strip accents, lower the case.

    `strip_accents` left open follows `lowercase`. Letters are lowered one by one, so a final sigma is not told apart.

    >>> bert_normalize("Café 世界")
    'cafe  世  界 '
    """
    if clean:
        text = "".join(" " if is_white_space(one) else one for one in text if not _is_control(one))
    if chinese:
        text = "".join(f" {one} " if is_chinese(one) else one for one in text)
    if lowercase if strip_accents is None else strip_accents:
        text = "".join(one for one in unicodedata.normalize("NFD", text) if unicodedata.category(one) != "Mn")
    return "".join(map(str.lower, text)) if lowercase else text


def _is_control(character: str) -> bool:
    if character in "\t\n\r":
        return False
    return character in "\x00\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs")


NORMALIZERS: Mapping[str, Callable[[str], str]] = {"none": str, "nfc": nfc, "nfkc": nfkc, "bert": bert_normalize}
CUTS: Mapping[str, Callable[[str], list[str]]] = {"gpt2": gpt2, "cl100k": cl100k, "llama3": llama3, "bert": bert}


def pretokenize(text: str, *, normalizer: str, cut: str) -> list[str]:
    """Return the pieces of a text after one of `NORMALIZERS` and one of `CUTS` (2019 to 2024, see the module).

    Raises:
        ValueError: a name that is in neither.

    >>> pretokenize("Ｈi, there", normalizer="nfkc", cut="gpt2")
    ['Hi', ',', ' there']
    """
    if normalizer not in NORMALIZERS or cut not in CUTS:
        raise ValueError(f"normalizer={normalizer!r}, cut={cut!r}: known are {', '.join(NORMALIZERS)} and {', '.join(CUTS)}")
    return CUTS[cut](NORMALIZERS[normalizer](text))


_SIGNS = [
    *"aZé ßΣ世界'’\t\n\r\x0b\x1c\x85\x00\x7f09٣½Ⅻ²_-#.,!?/<|>$^",
    "\u00a0\u3000\u200b\u200d\u2028\ufeff\u00ad",
    "e\u0301\u0323",
    "ﬁ①Ａ",
    "🤖👩‍👩‍👧🏽",
    "שָׁלוֹם",
    "हिन्दी",
    "한글",
    "İſK",
    "'S'll'Re",
    "  \n \n  x",
    "1234567",
]


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    text = "".join(rng.choice(_SIGNS, int(rng.choice([0, 1, 5, 40]))))
    return {"text": text, "normalizer": str(rng.choice([*NORMALIZERS])), "cut": str(rng.choice([*CUTS]))}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    return {"text": "".join(rng.choice(_SIGNS, 100_000)), "normalizer": "none", "cut": "llama3"}


PRETOKENIZE = Procedure(
    reference=pretokenize,
    examples=_examples,
    paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners; arXiv:1810.04805",
    shapes={"100k signs, llama-3 cut": _timed},
)
