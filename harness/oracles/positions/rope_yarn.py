"""The paper's YaRN: transformers' `llama3` rule is its blend (linear in turns), transformers' `yarn` gives its temperature.

transformers' own `yarn` frequencies follow the authors' release instead, see tests/reference/positions/test_rope_yarn.py.
"""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.positions._scaled import transformers_scaling, turned
from llmlab.reference.positions.rope_yarn import ROPE_YARN


@oracle(
    ROPE_YARN,
    library="transformers ROPE_INIT_FUNCTIONS: 'llama3' frequencies, 'yarn' factor",
    dtype="float32",
    needs=("torch", "transformers"),
)
def rope_yarn(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    original_max_position_embeddings: int = 2048,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> np.ndarray:
    same = {"rope_theta": theta, "factor": factor, "original_max_position_embeddings": original_max_position_embeddings}
    head_width, context = x_BTNH.shape[-1], int(factor * original_max_position_embeddings)
    frequencies_R, _ = transformers_scaling(
        "llama3", head_width, context=context, low_freq_factor=beta_slow, high_freq_factor=beta_fast, **same
    )
    _, attention_factor = transformers_scaling("yarn", head_width, context=context, **same)
    return turned(x_BTNH, positions_BT, frequencies_R, attention_factor)
