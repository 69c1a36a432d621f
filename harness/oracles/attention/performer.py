"""performer-pytorch's features (without the epsilon it adds) and its linear attention, as oracle of attention.performer."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.performer import PERFORMER


@oracle(PERFORMER, library="performer_pytorch.performer_pytorch.linear_attention", needs=("torch", "performer_pytorch"))
def performer(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, projection_MH: np.ndarray, *, causal: bool = False
) -> np.ndarray:
    return with_epsilon(q_BTNH, k_BSNH, v_BSNH, projection_MH, causal=causal, epsilon=0.0)


def with_epsilon(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, projection_MH: np.ndarray, *, causal: bool, epsilon: float
) -> np.ndarray:
    """The library with what it adds to every feature."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compares versions with distutils
        from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda, linear_attention, softmax_kernel

    q, k, v = (torch.from_numpy(x).transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    projection = torch.from_numpy(projection_MH)
    queries = softmax_kernel(q, projection_matrix=projection, is_query=True, eps=epsilon)
    keys = softmax_kernel(k, projection_matrix=projection, is_query=False, eps=epsilon)
    if not causal:
        return linear_attention(queries, keys, v).transpose(1, 2).numpy()
    before = k.shape[2] - q.shape[2]  # it knows only as many queries as keys
    queries = torch.nn.functional.pad(queries, (0, 0, before, 0), value=1.0)
    out = causal_linear_attention_noncuda(queries, keys, v, eps=0.0)
    return out[:, :, before:].transpose(1, 2).numpy()
