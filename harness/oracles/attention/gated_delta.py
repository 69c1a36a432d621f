"""flash-linear-attention's recurrence and Hugging Face's chunked form (Qwen3-Next) as oracles of attention.gated_delta."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.gated_delta import GATED_DELTA


@oracle(
    GATED_DELTA,
    library="fla.ops.gated_delta_rule.naive_recurrent_gated_delta_rule",
    dtype="float32",
    needs=("fla", "einops", "torch"),
)
def recurrent(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from llmlab.harness.oracles.attention._fla import naive

    G = v_BTKGH.shape[3]
    q_BTNM, k_BTNM = (torch.tensor(x).repeat_interleave(G, dim=2) for x in (q_BTKM, k_BTKM))
    v_BTNH, beta_BTN, log_decay_BTN = (torch.tensor(x).flatten(2, 3) for x in (v_BTKGH, beta_BTKG, log_decay_BTKG))
    out_BTNH, after_BNMH = naive("gated_delta_rule").naive_recurrent_gated_delta_rule(
        q_BTNM,
        k_BTNM,
        v_BTNH,
        beta_BTN,
        log_decay_BTN,
        scale=1.0,
        initial_state=torch.tensor(state_BKGMH).flatten(1, 2),
        output_final_state=True,
    )
    return out_BTNH.reshape(v_BTKGH.shape).numpy(), after_BNMH.reshape(state_BKGMH.shape).numpy()


@oracle(
    GATED_DELTA,
    library="transformers.models.qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule",
    dtype="float32",
    needs=("transformers", "torch"),
)
def in_chunks(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    import inspect

    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next

    unscaled_BTKM = q_BTKM * q_BTKM.shape[-1] ** 0.5  # it always divides by this; the paper does not
    v_BTNH, beta_BTN, log_decay_BTN = (torch.tensor(x).flatten(2, 3) for x in (v_BTKGH, beta_BTKG, log_decay_BTKG))
    plain = inspect.unwrap(modeling_qwen3_next.torch_chunk_gated_delta_rule)  # else it hands over to fla's GPU kernel
    out_BTNH, after_BNMH = plain(
        torch.tensor(unscaled_BTKM),
        torch.tensor(k_BTKM),
        v_BTNH,
        log_decay_BTN,
        beta_BTN,
        chunk_size=16,
        initial_state=torch.tensor(state_BKGMH).flatten(1, 2),
        output_final_state=True,
    )
    return out_BTNH.reshape(v_BTKGH.shape).numpy(), after_BNMH.reshape(state_BKGMH.shape).numpy()
