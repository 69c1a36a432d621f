"""Llama 3.1's rotary embedding on the CPU: the rotary kernel with its scaled frequencies."""

import numpy as np

from llmlab.kernels.positions.rope_numba import rotate
from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope_llama3 import ROPE_LLAMA3, llama3_frequencies


@twin(ROPE_LLAMA3, backend="numba")
def rope_llama3(x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 500000.0, **bands: float) -> np.ndarray:
    frequencies_R = llama3_frequencies(x_BTNH.shape[-1], theta=theta, **bands)
    return rotate(x_BTNH, positions_BT, frequencies_R, interleaved=False, direction=1.0)


@twin(ROPE_LLAMA3, backend="numba", of="backward")
def rope_llama3_backward(
    dout_BTNH: np.ndarray, x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 500000.0, **bands: float
) -> tuple[np.ndarray, None]:
    frequencies_R = llama3_frequencies(x_BTNH.shape[-1], theta=theta, **bands)
    return rotate(dout_BTNH, positions_BT, frequencies_R, interleaved=False, direction=-1.0), None
