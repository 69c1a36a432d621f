"""Cross-entropy on the GPU: one program per position, an online log-sum-exp with a running maximum per lane."""

import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.cross_entropy import CROSS_ENTROPY

LARGEST_CHUNK = 4096


@twin(CROSS_ENTROPY, backend="triton")
def cross_entropy(
    logits_BTV: Tensor,
    targets_BT: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    logits_BTV, targets_BT = logits_BTV.contiguous(), targets_BT.contiguous()
    loss_BT = logits_BTV.new_empty(targets_BT.shape)
    V = logits_BTV.shape[-1]
    if targets_BT.numel():
        block, warps = row_block(V, LARGEST_CHUNK)
        chosen = label_smoothing, z_loss, ignore_index
        _position[(targets_BT.numel(),)](logits_BTV, targets_BT, loss_BT, *chosen, V, BLOCK=block, num_warps=warps)
    return loss_BT


@triton.jit
def _position(logits_ptr, targets_ptr, loss_ptr, smoothing, z_loss, ignore_index, V, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + m)
    loss = 0.0
    if target != ignore_index:
        v = tl.arange(0, BLOCK)
        peaks = tl.full((BLOCK,), -float("inf"), tl.float32)
        totals = tl.zeros((BLOCK,), tl.float32)
        sums = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, V, BLOCK):
            inside = first + v < V
            x = tl.load(logits_ptr + m * V + first + v, mask=inside, other=-float("inf")).to(tl.float32)
            higher = tl.where(x > peaks, x, peaks)
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            totals = totals * tl.exp(peaks - shift) + tl.exp(x - shift)
            peaks = higher
            sums += tl.where(inside, x, 0.0)
        peak = tl.max(peaks, 0)
        lse = peak + tl.log(tl.sum(totals * tl.exp(peaks - peak), 0))
        at_target = tl.load(logits_ptr + m * V + target).to(tl.float32)
        loss = lse - at_target + z_loss * lse * lse
        if smoothing != 0.0:
            loss += smoothing * (at_target - tl.sum(sums, 0) / V)
    tl.store(loss_ptr + m, loss)


_TYPES = {
    "logits_ptr": "*bf16",
    "targets_ptr": "*i64",
    "loss_ptr": "*bf16",
    "smoothing": "fp32",
    "z_loss": "fp32",
    "ignore_index": "i32",
    "V": "i32",
}
AOT = [Ahead(_position, _TYPES, {"BLOCK": LARGEST_CHUNK}, divisible=("V",), num_warps=row_block(LARGEST_CHUNK)[1])]
