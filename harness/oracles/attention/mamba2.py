"""Hugging Face's chunk scan as oracle of attention.mamba2. Its states are (H, M), ours (M, H).

What a chunk leaves to its state it weighs by differences of running sums of logs, which lose the digits the sums have in
common (with 8 positions of fast decay more than the tolerance); chunks of 4 keep that small.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.mamba2 import MAMBA2


@oracle(
    MAMBA2,
    library="transformers.models.mamba2.modeling_mamba2.mamba2_chunk_scan",
    dtype="float32",
    needs=("transformers", "torch"),
)
def chunk_scan(
    x_BTKGH: np.ndarray,
    dt_BTKG: np.ndarray,
    a_KG: np.ndarray,
    b_BTKM: np.ndarray,
    c_BTKM: np.ndarray,
    d_KG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers.models.mamba2 import modeling_mamba2

    out_BTNH, state_BNHM = modeling_mamba2.mamba2_chunk_scan(
        torch.tensor(x_BTKGH).flatten(2, 3),
        torch.tensor(dt_BTKG).flatten(2),
        torch.tensor(a_KG).flatten(),
        torch.tensor(b_BTKM),
        torch.tensor(c_BTKM),
        chunk_size=4,
        D=torch.tensor(d_KG).flatten(),
        initial_states=torch.tensor(state_BKGMH).flatten(1, 2).mT,
        return_final_states=True,
    )
    return out_BTNH.reshape(x_BTKGH.shape).numpy(), state_BNHM.mT.reshape(state_BKGMH.shape).numpy()
