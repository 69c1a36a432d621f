"""Operator timings as ONE tidy frame, whoever measured them: the readers of published tables, and the columns all share.

A row is one operator on one device at one shape. Columns that do not apply to a kind are NaN (numbers) or "" (text).

    column           kinds                         meaning
    kind             all                           gemm, attention_prefill, attention_decode, moe, memory, host,
                                                   all_reduce, all_gather, reduce_scatter, all_to_all, send_recv
    operator         memory                        rms_norm, rope, activation, embedding, sampling, ...
                     collectives                   implementation: nccl, custom, custom_eager
                     gemm, attention               kernel's own name, information only
    dtype, kv_dtype  gemm, attention, moe          bfloat16, float32, fp8, ...
    m, n, k          gemm                          out[m, n] = x[m, k] w[k, n]
    batch            attention, host               requests
    new_tokens       attention_prefill             new tokens per request
    context_tokens   attention                     prefill: tokens cached before the new ones, per request;
                                                   decode: tokens attended to per request, the new one included
    heads, kv_heads, head_width, window            window 0: no window
    tokens, hidden, inter, experts_per_token, experts       moe
    moved_bytes      memory                        bytes read and written at least once
    ranks, message_bytes                           collectives; bytes of the whole message on one rank
    seconds          all                           duration of one call
    source           all                           where the row comes from
"""

from __future__ import annotations

NUMBERS = (
    "m",
    "n",
    "k",
    "batch",
    "new_tokens",
    "context_tokens",
    "heads",
    "kv_heads",
    "head_width",
    "window",
    "tokens",
    "hidden",
    "inter",
    "experts_per_token",
    "experts",
    "moved_bytes",
    "ranks",
    "message_bytes",
)
TEXTS = ("kind", "operator", "dtype", "kv_dtype", "source")
COLUMNS = (*TEXTS, *NUMBERS, "seconds")
