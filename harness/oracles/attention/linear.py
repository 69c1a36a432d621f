"""flash-linear-attention's recurrence as oracle of attention.linear.

Its `naive_chunk_linear_attn` takes whole chunks of 64 only and no state, so the recurrence is asked. It adds 1e-10 to the
weight, which is below its own rounding.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.linear import LINEAR


@oracle(LINEAR, library="fla.ops.linear_attn.naive_recurrent_linear_attn", dtype="float32", needs=("fla", "einops", "torch"))
def recurrent(
    q_BTNM: np.ndarray, k_BTNM: np.ndarray, v_BTNH: np.ndarray, state_BNMH: np.ndarray, total_BNM: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import torch

    from llmlab.harness.oracles.attention._fla import naive

    fq_BTNM, fk_BTNM = (torch.nn.functional.elu(torch.tensor(x)) + 1 for x in (q_BTNM, k_BTNM))
    before = (torch.tensor(state_BNMH), torch.tensor(total_BNM)[:, None])
    out_BTNH, (after_BNMH, total_B1NM) = naive("linear_attn").naive_recurrent_linear_attn(
        fq_BTNM, fk_BTNM, torch.tensor(v_BTNH), scale=1.0, initial_state=before, output_final_state=True, normalize=True
    )
    return out_BTNH.numpy(), after_BNMH.numpy(), total_B1NM[:, 0].numpy()
