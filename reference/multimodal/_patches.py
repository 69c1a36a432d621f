"""Pictures cut into patches: the front of every vision encoder here.

Axes: B batch, C colour channel, I, J pixel row and column, P patch row, Q patch column, U, W pixel within a patch, D model
width.
"""

from __future__ import annotations

import numpy as np


def patches(pixels_BCIJ: np.ndarray, size: int) -> np.ndarray:
    """Return patches_BTE: T patches row by row, E = C size^2 pixels each, channel by channel.

    Raises:
        ValueError: sides that are no multiple of the patch.

    >>> patches(np.arange(16).reshape(1, 1, 4, 4), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    B, C, rows, columns = pixels_BCIJ.shape
    if rows % size or columns % size:
        raise ValueError(f"{rows} x {columns} pixels: both must be multiples of the patch size {size}")
    cut_BCPUQW = pixels_BCIJ.reshape(B, C, rows // size, size, columns // size, size)
    return np.einsum("bcpuqw->bpqcuw", cut_BCPUQW).reshape(B, (rows // size) * (columns // size), C * size * size)


def embedded_patches(pixels_BCIJ: np.ndarray, kernel_DCUW: np.ndarray, bias_D: np.ndarray | None = None) -> np.ndarray:
    """Project every patch: a convolution whose stride is its kernel; return x_BTD."""
    D, _, size, _ = kernel_DCUW.shape
    x_BTD = patches(pixels_BCIJ, size) @ kernel_DCUW.reshape(D, -1).T
    return x_BTD if bias_D is None else x_BTD + bias_D
