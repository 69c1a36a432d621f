"""FlexAttention called on the family's layout."""

from collections.abc import Callable
from typing import Any

import numpy as np


def flex(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, seen: Callable[[Any, Any], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (out_BTKGH, lse_BTKG) of FlexAttention where `seen(t, s)` tells which key indices a query index sees."""
    import warnings

    import torch
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    B, T, K, G, H = q_BTKGH.shape
    q_BNTH = torch.tensor(q_BTKGH).reshape(B, T, K * G, H).transpose(1, 2)
    k_BKSH, v_BKSH = (torch.tensor(x).transpose(1, 2) for x in (k_BSKH, v_BSKH))
    mask = create_block_mask(lambda b, n, t, s: seen(t, s), None, None, T, k_BKSH.shape[2], device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks to be compiled
        out_BNTH, aux = flex_attention(
            q_BNTH, k_BKSH, v_BKSH, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True)
        )
    assert aux.lse is not None  # asked for
    return (
        out_BNTH.transpose(1, 2).reshape(q_BTKGH.shape).numpy(),
        aux.lse.transpose(1, 2).reshape(q_BTKGH.shape[:-1]).numpy(),
    )
