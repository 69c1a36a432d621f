"""Rotary embedding in PyTorch: a float64 table of angles, the rotation in at least float32."""

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope import ROPE, inverse_frequencies


@twin(ROPE, backend="torch")
def rope(
    x_BTNH: Tensor,
    positions_BT: Tensor,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: Tensor | None = None,
) -> Tensor:
    if frequencies is None:
        frequencies = torch.from_numpy(inverse_frequencies(x_BTNH.shape[-1], theta))
    return rotate(x_BTNH, positions_BT, frequencies, interleaved=interleaved)


def rotate(x_BTNH: Tensor, positions_BT: Tensor, frequencies_R: Tensor, *, interleaved: bool) -> Tensor:
    """Turn every pair by position * frequency."""
    if 2 * frequencies_R.numel() != x_BTNH.shape[-1]:
        raise ValueError(f"{frequencies_R.numel()} frequencies do not make H={x_BTNH.shape[-1]} a head of pairs")
    kind = torch.float64 if x_BTNH.dtype == torch.float64 else torch.float32
    angle_BT1R = (positions_BT[..., None].double() * frequencies_R.to(x_BTNH.device, torch.float64))[:, :, None]
    cos_BT1R, sin_BT1R, x = angle_BT1R.cos().to(kind), angle_BT1R.sin().to(kind), x_BTNH.to(kind)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    turned = (a * cos_BT1R - b * sin_BT1R, b * cos_BT1R + a * sin_BT1R)
    out = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return out.to(x_BTNH.dtype)
