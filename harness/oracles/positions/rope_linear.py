"""Position interpolation: transformers' frequencies and rotation."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.positions._scaled import transformers_scaling, turned
from llmlab.reference.positions.rope_linear import ROPE_LINEAR


@oracle(ROPE_LINEAR, library="transformers ROPE_INIT_FUNCTIONS['linear']", dtype="float32", needs=("torch", "transformers"))
def rope_linear(x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0, factor: float = 4.0) -> np.ndarray:
    found = transformers_scaling("linear", x_BTNH.shape[-1], context=2048, rope_theta=theta, factor=factor)
    return turned(x_BTNH, positions_BT, *found)
