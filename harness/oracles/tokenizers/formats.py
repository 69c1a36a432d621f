"""Hugging Face's tokenizers library reading the same tokenizer.json."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.formats import FORMATS


@oracle(FORMATS, library="tokenizers.Tokenizer", needs=("tokenizers",))
def tokenizers(content: str, text: str) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return {"ids": ids, "surrounded": tokenizer.encode(text).ids, "decoded": tokenizer.decode(ids)}
