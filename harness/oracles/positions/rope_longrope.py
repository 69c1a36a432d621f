"""LongRoPE: transformers' frequencies and rotation; tokens before `first_scaled`, which it does not know, by its plain ones."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.positions._scaled import transformers_scaling, turned
from llmlab.reference.positions.rope_longrope import ROPE_LONGROPE


@oracle(ROPE_LONGROPE, library="transformers ROPE_INIT_FUNCTIONS['longrope']", dtype="float32", needs=("torch", "transformers"))
def rope_longrope(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    factor_R: np.ndarray,
    *,
    theta: float = 10000.0,
    first_scaled: int = 0,
    attention_factor: float = 1.0,
) -> np.ndarray:
    def at(length: int) -> np.ndarray:
        found = transformers_scaling(
            "longrope",
            x_BTNH.shape[-1],
            context=4096,
            length=length,
            rope_theta=theta,
            short_factor=[1.0] * factor_R.size,
            long_factor=factor_R.tolist(),
            original_max_position_embeddings=1024,
            attention_factor=attention_factor,
        )
        return turned(x_BTNH, positions_BT, *found)

    return np.where((positions_BT < first_scaled)[..., None, None], at(1), at(4096))
