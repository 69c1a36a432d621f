"""Shared by the tokenizers' tests: texts that trip tokenizers up, and where real vocabularies lie."""

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from llmlab.reference.tokenizers.byte_bpe import babble

RUNS = ("a", " ", "\n", "ab", "!", "9", "é", "🤖", " \n", "'s", "\u0301", "\r\n", "\t ", "世界", "_")
SIGNS = [
    *"aZé ß世界'’\t\n\r\x0b\x0c\x1c\x85\x00\x7f09٣½Ⅻ²_-#.,!?/\\\"<|>",
    "\u00a0\u2003\u3000\u200b\u200d\u2028\ufeff",
    "\u0301\u0951\u20e3",
    "🤖👩‍👩‍👧🏽🇫🇷",
    "שלום",
    "हिन्दी",
    "ไทย",
    "한글",
    "ſ",
    "K",
    "İ",
    "ǅ",
    "'S'T'RE'lL'd've'm",
    "'ſ",
    "<|endoftext|>",
    "\ud7ff\ue000\U0010ffff",
    "  \n \n  x",
    "1234567",
]


OLD = unicodedata.ucd_3_2_0
SETTLED = [
    point
    for point in range(0x110000)
    if (kind := OLD.category(chr(point))) not in ("Cn", "Cs", "Co") and kind == unicodedata.category(chr(point))
]
"""Characters that every table of Unicode, however old, has in the same category."""


@pytest.fixture(scope="session")
def settled(nasty: list[str]) -> list[str]:
    """Those of the texts that libraries with an old table of Unicode see as we do."""
    everywhere = {*map(chr, SETTLED), *"🤖🏽👩👧🇫🇷", *"\U0010ffff\ue000"}
    return [text for text in nasty if everywhere.issuperset(text)]


@pytest.fixture(scope="session")
def nasty() -> list[str]:
    """Over five hundred texts: runs, mixtures of signs that patterns treat specially, and characters from all of Unicode."""
    draw, count = random.Random(7), 480
    fixed = ["", *(run * times for run in RUNS for times in (1, 2, 3, 7, 40, 130)), *SIGNS]
    mixed = ["".join(draw.choices(SIGNS, k=draw.randint(1, 12))) for _ in range(count // 2)]
    anything = [
        "".join(
            chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(draw.randint(1, 20))
        )
        for _ in range(count // 4)
    ]
    old = ["".join(map(chr, draw.choices(SETTLED, k=draw.randint(1, 20)))) for _ in range(count // 2)]
    words = [babble(np.random.default_rng(seed), 8) for seed in range(count // 4)]
    return fixed + mixed + anything + old + words


@pytest.fixture(scope="session")
def folder(data: Path) -> Path:
    if not (data / "tokenizers").is_dir():
        pytest.skip("needs tokenizers under LLMLAB_DATA")
    return data / "tokenizers"
