"""Hugging Face's normalizers and pre-tokenizers, and tiktoken's own way through a pattern."""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers._byte_level import CL100K, GPT2, LLAMA3
from llmlab.reference.tokenizers.pretokenize import NORMALIZERS, PRETOKENIZE

_SIGN = r"\p{P}$+<=>^`|~"
PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "llama3": LLAMA3, "bert": rf"[{_SIGN}]|[^\s{_SIGN}]+|\s+"}


@oracle(PRETOKENIZE, library="tokenizers.pre_tokenizers", needs=("tokenizers",))
def tokenizers(text: str, *, normalizer: str, cut: str) -> list[str]:
    from tokenizers import NormalizedString, PreTokenizedString, Regex, normalizers, pre_tokenizers

    prepared = NormalizedString(text)
    made = {"nfc": normalizers.NFC(), "nfkc": normalizers.NFKC(), "bert": normalizers.BertNormalizer()}
    if normalizer in made:
        made[normalizer].normalize(prepared)
    if cut == "bert":
        cutter = pre_tokenizers.BertPreTokenizer()
    else:
        cutter = pre_tokenizers.Split(Regex(PATTERNS[cut]), "isolated")
    pieces = PreTokenizedString(prepared.normalized)
    cutter.pre_tokenize(pieces)
    return [piece for piece, _, _ in pieces.get_splits()]


@oracle(PRETOKENIZE, library="tiktoken.Encoding", needs=("tiktoken",))
def tiktoken(text: str, *, normalizer: str, cut: str) -> list[str]:
    """Where every stretch of the text is a token, tiktoken's tokens are its pieces."""
    import tiktoken

    prepared = NORMALIZERS[normalizer](text)
    stretches = {prepared[i:j].encode() for i in range(len(prepared)) for j in range(i + 1, len(prepared) + 1)}
    tokens = [*(bytes([byte]) for byte in range(256)), *sorted(token for token in stretches if len(token) > 1)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(cut, pat_str=PATTERNS[cut], mergeable_ranks=ranks, special_tokens={})
    pieces = [piece.decode() for piece in encoding.decode_tokens_bytes(encoding.encode_ordinary(prepared))]
    return [piece for piece in pieces if piece.strip()] if cut == "bert" else pieces
