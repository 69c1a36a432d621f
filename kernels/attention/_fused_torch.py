"""PyTorch's fused attention with what its public call lacks: log-sum-exp, queries at the end of the keys, gradients of both.

Everything here takes the family's layout, (batch, position, key head, query heads per key head, width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab.reference.attention._masked import require_keys

RECOMPUTED = "the fused backward takes softmax again from the rounded log-sum-exp: one rounding more than the formula has"

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return (out_BTKGH, lse_BTKG); differentiable in both. Query t sits at position S - T + t.

    Raises:
        ValueError: causal with more queries than keys.
    """
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    if q_BTKGH.numel() == 0 or S == 0:  # the fused kernel divides by the number of keys
        return constant_like(q_BTKGH, 0.0), constant_like(q_BTKGH.sum(-1), -torch.inf)
    causal = causal and T > 1
    if not q_BTKGH.is_cuda:
        out_BTKGH, lse_BTKG = _Fused.apply(*(_dense_rows(x) for x in (q_BTKGH, k_BSKH, v_BSKH)), causal)
        return out_BTKGH, lse_BTKG
    return _plain(q_BTKGH, k_BSKH, v_BSKH, causal)


def constant_like(x: Tensor, value: float) -> Tensor:
    """A tensor of one value that is part of the graph of x, its gradient zero."""
    return x.masked_fill(torch.ones((), dtype=torch.bool, device=x.device), value)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _plain(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The formula with a score matrix, where no fused kernel returns a differentiable lse."""
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    scores_BKGTS = torch.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH).float() * q_BTKGH.shape[-1] ** -0.5
    if causal:
        hidden_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTKGH.device).triu(S - T + 1)
        scores_BKGTS = scores_BKGTS.masked_fill(hidden_TS, -torch.inf)
    lse_BKGT = scores_BKGTS.logsumexp(-1)
    weights_BKGTS = torch.exp(scores_BKGTS - lse_BKGT.masked_fill(lse_BKGT == -torch.inf, 0)[..., None])
    out_BTKGH = torch.einsum("bkgts,bskh->btkgh", weights_BKGTS.to(v_BSKH.dtype), v_BSKH)
    return out_BTKGH, lse_BKGT.permute(0, 3, 1, 2).to(q_BTKGH.dtype)


class _Fused(torch.autograd.Function):
    """PyTorch's flash kernel for CPUs on one or two rectangles of the score matrix.

    Its causal form wants as many queries as keys. With more keys, those before the first query are a rectangle that
    everyone sees; the square after it is causal; the two merge by their log-sum-exps, and the backward of each runs with
    the merged result and lse.
    """

    @staticmethod
    def forward(ctx: Any, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        parts = _parts(q_BTKGH.shape[1], k_BSKH.shape[1], causal)
        results = [_run(q_BTKGH, k_BSKH[:, keys], v_BSKH[:, keys], square) for keys, square in parts]
        out_BTKGH, lse_BTKG = results[0]
        for other_out, other_lse in results[1:]:
            total_BTKG = torch.logaddexp(lse_BTKG, other_lse)
            shift_BTKG = total_BTKG.masked_fill(total_BTKG == -torch.inf, 0)
            shares = [torch.exp(lse - shift_BTKG)[..., None] for lse in (lse_BTKG, other_lse)]
            out_BTKGH = (shares[0] * out_BTKGH + shares[1] * other_out).to(q_BTKGH.dtype)
            lse_BTKG = total_BTKG
        ctx.save_for_backward(q_BTKGH, k_BSKH, v_BSKH, out_BTKGH, lse_BTKG)
        ctx.parts = parts
        ctx.set_materialize_grads(False)
        return out_BTKGH, lse_BTKG.to(q_BTKGH.dtype)

    @staticmethod
    def backward(ctx: Any, dout_BTKGH: Tensor | None, dlse_BTKG: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dout = torch.zeros_like(out) if dout_BTKGH is None else dout_BTKGH
        if dlse_BTKG is not None:
            # the kernel subtracts sum(dout out); one more column of width makes that sum(dout out) - dlse
            pad = (0, 1)
            q, k, v = (torch.nn.functional.pad(x, pad) for x in (q, k, v))
            dout = torch.nn.functional.pad(dout, pad, value=1.0)
            out = torch.cat([out, -dlse_BTKG[..., None]], dim=-1)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for keys, square in ctx.parts:
            part = _run_backward(dout, q, k[:, keys], v[:, keys], out, lse, square, scale)
            dq += part[0]
            dk[:, keys] += part[1]
            dv[:, keys] += part[2]
        if dlse_BTKG is not None:
            dq, dk, dv = dq[..., :-1], dk[..., :-1], dv[..., :-1]
        return dq, dk, dv, None


def _parts(T: int, S: int, causal: bool) -> list[tuple[slice, bool]]:
    """Ranges of keys, and whether the queries see them causally."""
    if not causal:
        return [(slice(0, S), False)]
    return ([(slice(0, S - T), False)] if S > T else []) + [(slice(S - T, S), True)]


def _fold(x_BTKG: Tensor) -> Tensor:
    """Query heads of one key head become further queries of it: (B, K, G T, ...)."""
    return x_BTKG.transpose(1, 2).transpose(2, 3).flatten(2, 3)


def _unfold(x_BKQ: Tensor, T: int) -> Tensor:
    return x_BKQ.unflatten(2, (-1, T)).transpose(2, 3).transpose(1, 2)


def _run(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, square: bool) -> tuple[Tensor, Tensor]:
    T, K, G = q_BTKGH.shape[1:4]
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    if square:  # every query head walks its own triangle
        q_BNTH = q_BTKGH.flatten(2, 3).transpose(1, 2)
        out, lse = _forward(q_BNTH, _repeat(k_BKSH, G), _repeat(v_BKSH, G), 0.0, True)
        out_BTKGH, lse_BTKG = out.transpose(1, 2).unflatten(2, (K, G)), lse.transpose(1, 2).unflatten(2, (K, G))
    else:
        out, lse = _forward(_fold(q_BTKGH), k_BKSH, v_BKSH, 0.0, False)
        out_BTKGH, lse_BTKG = _unfold(out, T), _unfold(lse, T)
    # where all scores are -inf the kernel's lse is 0, and a NaN score it takes for a hidden one
    unseen_BTKG, lost_BTKG = torch.isinf(q_BTKGH).any(-1) & (lse_BTKG == 0), torch.isnan(q_BTKGH).any(-1)
    lse_BTKG = lse_BTKG.masked_fill(unseen_BTKG, -torch.inf).masked_fill(lost_BTKG, torch.nan)
    return out_BTKGH.masked_fill(lost_BTKG[..., None], torch.nan), lse_BTKG


def _repeat(x_BKSH: Tensor, G: int) -> Tensor:
    return x_BKSH if G == 1 else x_BKSH.repeat_interleave(G, dim=1)


def _run_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, square: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    T, K, G = q.shape[1:4]
    k_BKSH, v_BKSH = k.transpose(1, 2), v.transpose(1, 2)
    if square:
        whole = [x.flatten(2, 3).transpose(1, 2) for x in (dout, q, out, lse)]
        dq, dk, dv = _backward(
            whole[0], whole[1], _repeat(k_BKSH, G), _repeat(v_BKSH, G), whole[2], whole[3], 0.0, True, scale=scale
        )
        dk, dv = (x.unflatten(1, (K, G)).sum(2) for x in (dk, dv))
        dq_BTKGH = dq.transpose(1, 2).unflatten(2, (K, G))
    else:
        folded = [_fold(x) for x in (dout, q, out, lse)]
        dq, dk, dv = _backward(folded[0], folded[1], k_BKSH, v_BKSH, folded[2], folded[3], 0.0, False, scale=scale)
        dq_BTKGH = _unfold(dq, T)
    return dq_BTKGH, dk.transpose(1, 2), dv.transpose(1, 2)
