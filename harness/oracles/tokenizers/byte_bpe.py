"""tiktoken for vocabularies whose ranks say all, Hugging Face tokenizers for those with a list of merges."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers._byte_level import to_characters
from llmlab.reference.tokenizers.byte_bpe import BYTE_BPE, Vocabulary


@oracle(BYTE_BPE, library="tiktoken.Encoding", needs=("tiktoken",))
def tiktoken(vocabulary: Vocabulary, text: str) -> list[int]:
    return tiktoken_encoding(vocabulary).encode(text, allowed_special="all")


def tiktoken_encoding(vocabulary: Vocabulary) -> Any:
    """The library's encoding of the same ranks; never fetched by name. Where ids are no ranks, merges in order are."""
    import tiktoken

    return tiktoken.Encoding(
        vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=dict(vocabulary.ids),
        special_tokens=dict(vocabulary.special),
    )


@oracle(BYTE_BPE, library="tokenizers.models.BPE", needs=("tokenizers",))
def tokenizers(vocabulary: Vocabulary, text: str) -> list[int]:
    return hugging_face(vocabulary).encode(text, add_special_tokens=False).ids


def hugging_face(vocabulary: Vocabulary) -> Any:
    """The library's tokenizer with the same tokens, merges, pattern and special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    named = {number: to_characters(token) for token, number in vocabulary.ids.items()}
    ordered = sorted(vocabulary.pairs, key=lambda pair: vocabulary.pairs[pair][0])
    model = models.BPE(
        vocab={token: number for number, token in named.items()} | dict(vocabulary.special),
        merges=[(named[left], named[right]) for left, right in ordered],
        ignore_merges=vocabulary.whole_pieces,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(vocabulary.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    in_order = sorted(vocabulary.special, key=lambda text: vocabulary.special[text])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in in_order])
    return tokenizer
