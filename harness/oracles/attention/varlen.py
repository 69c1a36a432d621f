"""PyTorch's FlexAttention with a document mask over the packed batch, as oracle of attention.varlen."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.varlen import VARLEN


@oracle(VARLEN, library="torch.nn.attention.flex_attention.flex_attention(document mask)", needs=("torch",))
def flex_documents(
    q_UKGH: np.ndarray,
    k_WKH: np.ndarray,
    v_WKH: np.ndarray,
    query_starts_Z: np.ndarray,
    key_starts_Z: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    import torch

    def documents(starts: np.ndarray, tokens: int, outside: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which document a token belongs to, and how many tokens of it follow."""
        index = np.searchsorted(starts[1:], np.arange(tokens), side="right")
        owned = np.arange(tokens) < starts[-1]
        end = starts[np.minimum(index + 1, len(starts) - 1)]
        return torch.tensor(np.where(owned, index, outside)), torch.tensor(end - np.arange(tokens))

    of_query, query_left = documents(query_starts_Z, len(q_UKGH), -1)
    of_key, key_left = documents(key_starts_Z, len(k_WKH), -2)
    out, _ = flex(
        q_UKGH[None],
        k_WKH[None],
        v_WKH[None],
        lambda t, s: (of_query[t] == of_key[s]) & ((query_left[t] <= key_left[s]) | (not causal)),
    )
    return out[0]
