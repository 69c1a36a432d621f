"""Hugging Face's WordPiece with BERT's normalizer and cut, on the same vocabulary."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.wordpiece import CONTINUES, WORDPIECE, Vocabulary


@oracle(WORDPIECE, library="tokenizers.models.WordPiece", needs=("tokenizers",))
def tokenizers(vocabulary: Vocabulary, text: str) -> list[int]:
    return hugging_face(vocabulary).encode(text, add_special_tokens=False).ids


def hugging_face(vocabulary: Vocabulary) -> Any:
    """The library's tokenizer with the same pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = models.WordPiece(
        dict(vocabulary.ids),
        unk_token=vocabulary.unknown,
        max_input_chars_per_word=vocabulary.longest_word,
        continuing_subword_prefix=CONTINUES,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=vocabulary.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
