"""NTK scaling: transformers' dynamic rule; the static one is its value for a context of one token, grown `factor` times."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.positions._scaled import transformers_scaling, turned
from llmlab.reference.positions.rope_ntk import ROPE_NTK


@oracle(ROPE_NTK, library="transformers ROPE_INIT_FUNCTIONS['dynamic']", dtype="float32", needs=("torch", "transformers"))
def rope_ntk(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    max_position_embeddings: int | None = None,
) -> np.ndarray:
    sizes = {"context": 1, "length": factor, "factor": 1.0}
    if max_position_embeddings is not None:
        sizes = {"context": max_position_embeddings, "length": int(positions_BT.max()) + 1, "factor": factor}
    return turned(x_BTNH, positions_BT, *transformers_scaling("dynamic", x_BTNH.shape[-1], rope_theta=theta, **sizes))
