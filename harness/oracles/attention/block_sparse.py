"""PyTorch's FlexAttention with a mask looked up in the layout, as oracle of attention.block_sparse."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._flex import flex
from llmlab.reference.attention.block_sparse import BLOCK_SPARSE


@oracle(BLOCK_SPARSE, library="torch.nn.attention.flex_attention.flex_attention(block_mask)", needs=("torch",))
def flex_layout(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, listed_KQL: np.ndarray, *, causal: bool = True
) -> np.ndarray:
    import torch

    T, S, Q = q_BTKGH.shape[1], k_BSKH.shape[1], listed_KQL.shape[1]
    C, heads = T // Q, []
    for head, listed_QL in enumerate(listed_KQL):
        layout = torch.zeros(Q, S // C, dtype=torch.bool)
        for i, row in enumerate(listed_QL):
            layout[i, row[row >= 0]] = True

        def seen(t, s, layout=layout):  # type: ignore[no-untyped-def]
            return layout[t // C, s // C] & ((s <= t + S - T) if causal else (s >= 0))

        one = np.s_[:, :, head : head + 1]
        heads.append(flex(q_BTKGH[one], k_BSKH[one], v_BSKH[one], seen)[0])
    return np.concatenate(heads, axis=2)
