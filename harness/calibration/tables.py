"""Operator timings as ONE tidy frame, whoever measured them: the readers of published tables, and the columns all share.

A row is one operator on one device at one shape. Columns that do not apply to a kind are NaN (numbers) or "" (text).

    column           kinds                         meaning
    kind             all                           gemm, attention_prefill, attention_decode (each also with _mla), moe, memory,
                                                   host, all_reduce, all_gather, reduce_scatter, all_to_all, send_recv
    operator         memory                        rms_norm, rope, activation, embedding, sampling, ...
                     collectives                   implementation: nccl, custom, custom_eager
                     gemm, attention               kernel's own name, information only
                     attention_*_mla               dtype of the projections timed with it, "" where attention was timed alone
    dtype, kv_dtype  gemm, attention, moe          bfloat16, float32, fp8, ...
    m, n, k          gemm                          out[m, n] = x[m, k] w[k, n]
    batch            attention, host               requests
    new_tokens       attention_prefill             new tokens per request
    context_tokens   attention                     prefill: tokens cached before the new ones, per request;
                                                   decode: tokens attended to per request, the new one included
    heads, kv_heads, head_width, window            window 0: no window
    latent_width     attention_*_mla               elements cached per token; head_width is the mean of keys and values
    beside_s         attention_*_mla               seconds of the projections, from their own curves
    tokens, hidden, inter, experts_per_token, experts       moe, moe_parallel: of one device
    handled, matrices, ranks                       moe, moe_parallel: visits per token on all devices, 2 or 3, devices
    moved_bytes      memory                        bytes read and written at least once
    ranks, message_bytes                           collectives; bytes of the whole message on one rank
    seconds          all                           duration of one call
    source           all                           where the row comes from
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import DTYPE_BYTES, dtype_name

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
    "latent_width",
    "beside_s",
    "tokens",
    "hidden",
    "inter",
    "experts_per_token",
    "handled",
    "experts",
    "matrices",
    "moved_bytes",
    "ranks",
    "message_bytes",
)
TEXTS = ("kind", "operator", "dtype", "kv_dtype", "source")
COLUMNS = (*TEXTS, *NUMBERS, "seconds")


def tidy(columns: dict[str, Any]) -> pd.DataFrame:
    """Make a frame with exactly `COLUMNS` from those given; scalars are repeated."""
    length = max(
        (len(value) for value in columns.values() if hasattr(value, "__len__") and not isinstance(value, str)), default=1
    )
    frame = pd.DataFrame(index=range(length))
    for name in COLUMNS:
        value = columns.get(name, "" if name in TEXTS else np.nan)
        if isinstance(value, pd.Series):
            value = value.to_numpy()
        frame[name] = value
    frame[[*NUMBERS, "seconds"]] = frame[[*NUMBERS, "seconds"]].astype(float)
    return frame


def _read(path: Path, needed: Iterable[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(path, "", path.name, f"cannot be read: {error}") from None
    for column in needed:
        if column not in frame:
            raise InputError(path, column, None, f"missing column; found {', '.join(map(str, frame.columns[:12]))}")
    return frame


def check(frame: pd.DataFrame, path: object) -> pd.DataFrame:
    """Refuse times and sizes that cannot be.

    Raises:
        InputError: a time that is not a positive finite number, or a negative size; the message gives the row.
    """
    bad = ~(np.isfinite(frame["seconds"]) & (frame["seconds"] > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(path, "seconds", float(frame["seconds"].iloc[row]), f"must be positive and finite (row {row})")
    for column in NUMBERS:
        if (frame[column] < 0).any():
            row = int(np.flatnonzero(frame[column] < 0)[0])
            raise InputError(path, column, float(frame[column].iloc[row]), f"must not be negative (row {row})")
    return frame


# --- aiconfigurator: milliseconds, one file per operator, message sizes in elements ------------------------------------


def _aiconfigurator_gemm(path: Path) -> pd.DataFrame:
    t = _read(path, ("gemm_dtype", "m", "n", "k", "latency_ms"))
    return tidy(
        {
            "kind": "gemm",
            "operator": t.get("kernel_source", ""),
            "dtype": t.gemm_dtype.map(dtype_name),
            "m": t.m,
            "n": t.n,
            "k": t.k,
            "seconds": t.latency_ms * 1e-3,
        }
    )


def _aiconfigurator_attention(path: Path) -> pd.DataFrame:
    """Context tables time `isl` new tokens, generation tables one token against `step` cached ones and itself.

    A context row of a single new token is a decode step, and runs the decode kernel.
    """
    needed = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "step")
    t = _read(path, (*needed, "latency_ms"))
    decode = ("generation" in path.name) | (t.isl == 1)
    return tidy(
        {
            "kind": np.where(decode, "attention_decode", "attention_prefill"),
            "operator": t.get("kernel_source", ""),
            "dtype": t.attn_dtype.map(dtype_name),
            "kv_dtype": t.kv_cache_dtype.map(dtype_name),
            "batch": t.batch_size,
            "new_tokens": np.where(decode, 1, t.isl),
            "context_tokens": np.where(decode, t.step + 1, t.step),
            "heads": t.num_heads,
            "kv_heads": t.num_key_value_heads,
            "head_width": t.head_dim,
            "window": t.get("window_size", 0),
            "seconds": t.latency_ms * 1e-3,
        }
    )


def _aiconfigurator_mla(path: Path) -> pd.DataFrame:
    """Latent attention of DeepSeek-V3: of Hopper the whole module with its projections, of the A100 attention alone.

    A context row of a single new token is a decode step.
    """
    needed = ("mla_dtype", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step", "latency_ms")
    t = _read(path, needed)
    decode = ("generation" in path.name) | (t.isl == 1)
    return tidy(
        {
            "kind": np.where(decode, "attention_decode_mla", "attention_prefill_mla"),
            "operator": t["gemm_type"].map(dtype_name) if "gemm_type" in t else "",
            "dtype": t.mla_dtype.map(dtype_name),
            "kv_dtype": t.kv_cache_dtype.map(dtype_name),
            "batch": t.batch_size,
            "new_tokens": np.where(decode, 1, t.isl),
            "context_tokens": np.where(decode, t.step + 1, t.step),
            "heads": t.num_heads,
            "kv_heads": t.num_heads,
            "head_width": 160,  # 192 of keys, 128 of values
            "window": 0,
            "latent_width": 576,
            "seconds": t.latency_ms * 1e-3,
        }
    )


UNGATED_EXPERTS = {(2688, 1856), (5120, 5120), (2688, 1024), (4096, 2688), (1024, 2688)}
"""(hidden, inter) of tables whose experts have two matrices: Nemotron 3, squared ReLU."""


def _aiconfigurator_moe(path: Path) -> pd.DataFrame:
    """Experts split by tensor or expert parallelism and visited as by a router; `experts_per_token` falls on one device.

    Left out are the rows of a perfectly balanced router, which no trained one is; widths that are no multiple of 16, for
    which kernels fall back to unaligned loads; and one kernel of 8-bit operands per tensor (FlashInfer's CUTLASS under
    modelopt) that takes eight microseconds per expert whatever its size.
    """
    needed = ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    t = _read(path, (*needed, "distribution", "latency_ms"))
    t = t[(t.distribution != "balanced") & (t.moe_ep_size <= 16) & (t.inter_size / t.moe_tp_size % 16 == 0)]
    if "kernel_source" in t:
        t = t[~t.kernel_source.str.contains("modeloptfp8moe_flashinfer_cutlass")]
    ungated = pd.Series([pair in UNGATED_EXPERTS for pair in zip(t.hidden_size, t.inter_size)], index=t.index, dtype=bool)
    return tidy(
        {
            "kind": np.where(t.moe_ep_size > 1, "moe_parallel", "moe"),
            "operator": t.distribution,
            "dtype": t.moe_dtype.map(dtype_name),
            "tokens": t.num_tokens,
            "hidden": t.hidden_size,
            "inter": t.inter_size / t.moe_tp_size,
            "experts_per_token": t.topk / t.moe_ep_size,
            "handled": t.topk,
            "experts": t.num_experts / t.moe_ep_size,
            "matrices": np.where(ungated, 2, 3),
            "ranks": t.moe_ep_size,
            "seconds": t.latency_ms * 1e-3,
        }
    )


_IMPLEMENTATIONS = {"vllm_graph": "custom", "vllm_eager": "custom_eager"}


def _aiconfigurator_custom_all_reduce(path: Path) -> pd.DataFrame:
    t = _read(path, ("allreduce_dtype", "num_gpus", "message_size", "latency_ms", "backend"))
    dtype = t.allreduce_dtype.map(dtype_name)
    return tidy(
        {
            "kind": "all_reduce",
            "operator": t.backend.map(lambda backend: _IMPLEMENTATIONS.get(backend, backend)),
            "dtype": dtype,
            "ranks": t.num_gpus,
            "message_bytes": t.message_size * dtype.map(DTYPE_BYTES),
            "seconds": t.latency_ms * 1e-3,
        }
    )


def _aiconfigurator_nccl(path: Path) -> pd.DataFrame:
    t = _read(path, ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency_ms"))
    dtype = t.nccl_dtype.map(dtype_name)
    return tidy(
        {
            "kind": t.op_name.replace({"alltoall": "all_to_all"}),
            "operator": "nccl",
            "dtype": dtype,
            "ranks": t.num_gpus,
            "message_bytes": t.message_size * dtype.map(DTYPE_BYTES),
            "seconds": t.latency_ms * 1e-3,
        }
    )


# --- vidur: milliseconds, a column per operator of a layer -------------------------------------------------------------


def _vidur_layers(path: Path) -> pd.DataFrame:
    """Matrix products and element-wise operators of a layer, per number of tokens and tensor-parallel degree."""
    shape = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "num_tokens", "num_tensor_parallel_workers")
    t = _read(path, (*shape, "attn_pre_proj_ms", "mlp_up_proj_ms"))
    tp, width, tokens = t.num_tensor_parallel_workers, t.n_embd, t.num_tokens
    head = width / t.n_head
    heads, kv_heads = t.n_head / tp, np.maximum(t.n_kv_head / tp, 1)
    inner = t.n_expanded_embd / tp
    gated = 1.0 + t.get("use_gated_mlp", pd.Series(True, index=t.index)).astype(bool)
    gemms = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * head, width),
        "attn_post_proj": (width, heads * head),
        "mlp_up_proj": (gated * inner, width),
        "mlp_down_proj": (width, inner),
    }
    moved = {
        "input_layernorm": ("norm", 2 * width),
        "post_attention_layernorm": ("norm", 2 * width),
        "add": ("add", 3 * width),
        "mlp_act": ("activation", (gated + 1) * inner),
        "attn_rope": ("rope", 2 * (heads + kv_heads) * head),
        "emb": ("embedding", 2 * width),
    }
    parts = [
        tidy(
            {
                "kind": "gemm",
                "operator": name,
                "dtype": "bfloat16",
                "m": tokens,
                "n": n,
                "k": k,
                "seconds": t[f"{name}_ms"] * 1e-3,
            }
        )
        for name, (n, k) in gemms.items()
    ]
    parts += [
        tidy(
            {
                "kind": "memory",
                "operator": operator,
                "dtype": "bfloat16",
                "moved_bytes": 2.0 * tokens * elements,
                "seconds": t[f"{name}_ms"] * 1e-3,
            }
        )
        for name, (operator, elements) in moved.items()
        if f"{name}_ms" in t
    ]
    whole = pd.concat(parts, ignore_index=True)
    return whole[whole.seconds > 0].reset_index(drop=True)  # absent operators are stored as 0 or nothing


def _vidur_attention(path: Path) -> pd.DataFrame:
    needed = ("attn_decode_ms", "attn_prefill_ms", "n_embd", "n_q_head", "n_kv_head", "batch_size", "prefill_chunk_size")
    t = _read(path, (*needed, "kv_cache_size", "is_prefill", "num_tensor_parallel_workers"))
    tp = t.num_tensor_parallel_workers
    prefill = t.is_prefill.astype(bool)
    whole = tidy(
        {
            "kind": np.where(prefill, "attention_prefill", "attention_decode"),
            "operator": t.get("attention_backend", ""),
            "dtype": "bfloat16",
            "kv_dtype": "bfloat16",
            "batch": t.batch_size,
            "new_tokens": np.where(prefill, t.prefill_chunk_size, 1),
            "context_tokens": np.where(prefill, t.kv_cache_size, t.kv_cache_size + 1),
            "heads": t.n_q_head / tp,
            "kv_heads": np.maximum(t.n_kv_head / tp, 1),
            "head_width": t.n_embd / t.n_q_head,
            "window": 0,
            "seconds": np.where(prefill, t.attn_prefill_ms, t.attn_decode_ms) * 1e-3,
        }
    )
    return whole[whole.seconds > 0].reset_index(drop=True)


def _vidur_network(path: Path) -> pd.DataFrame:
    """Sizes are bytes; ranks of one node only, since the rows across nodes do not say what connects them."""
    t = _read(path, ("num_workers", "size", "collective", "devices_per_node"))
    column = f"time_stats.{t.collective.iloc[0]}.median"
    if column not in t:
        raise InputError(path, column, None, "missing column")
    t = t[t.num_workers == t.devices_per_node]
    return tidy(
        {
            "kind": t.collective,
            "operator": "nccl_pairwise" if "pairwise" in path.name else "nccl",
            "dtype": "bfloat16",
            "ranks": t.num_workers,
            "message_bytes": t["size"],
            "seconds": t[column] * 1e-3,
        }
    )


# --- inference-sim (blis): microseconds --------------------------------------------------------------------------------


def _blis_gemm(path: Path) -> pd.DataFrame:
    """Nothing in this table says so, but its rates are those of 8-bit operands."""
    t = _read(path, ("m", "k", "n", "latency_us"))
    return tidy(
        {"kind": "gemm", "operator": "blis", "dtype": "fp8", "m": t.m, "n": t.n, "k": t.k, "seconds": t.latency_us * 1e-6}
    )


def _blis_attention(path: Path) -> pd.DataFrame:
    t = _read(path, ("n_heads", "n_kv_heads", "head_dim", "tp", "dtype", "latency_us"))
    decode = "kv_len" in t
    if decode:  # the first row of each source file is a warm-up
        t = t[t.groupby("source").cumcount() > 0] if "source" in t else t.iloc[1:]
    return tidy(
        {
            "kind": "attention_decode" if decode else "attention_prefill",
            "operator": "blis",
            "dtype": t["dtype"].map(dtype_name),
            "kv_dtype": t["kv_dtype"].map(dtype_name) if "kv_dtype" in t else t["dtype"].map(dtype_name),
            "batch": t.batch_size if decode else 1,
            "new_tokens": 1 if decode else t.seq_len,
            "context_tokens": t.kv_len if decode else 0,
            "heads": t.n_heads / t.tp,
            "kv_heads": np.maximum(t.n_kv_heads / t.tp, 1),
            "head_width": t.head_dim,
            "window": 0,
            "seconds": t.latency_us * 1e-6,
        }
    )


# --- llmservingsim: microseconds, per model and layer ------------------------------------------------------------------


def _llmservingsim_dense(path: Path) -> pd.DataFrame:
    """Layers of whole models, timed layer by layer; shapes follow from the model and the tensor-parallel degree."""
    from llmlab.simulator.model.description import load_model

    t = _read(path, ("gpu", "model", "tp", "layer", "time_us"))
    rows = "tokens" if "tokens" in t else "sequences"
    if rows not in t:
        raise InputError(path, rows, None, "missing column")
    parts = []
    for (gpu, name, tp_text, layer), group in t.groupby(["gpu", "model", "tp", "layer"]):
        c, tp = load_model(re.sub("-Instruct-2507$", "", str(name))).config, int(str(tp_text).removeprefix("tp"))
        D, heads, kv_heads, H = c.hidden_size, c.num_attention_heads / tp, max(c.num_key_value_heads / tp, 1), c.head_dim
        inner = c.intermediate_size / tp
        gemms = {
            "qkv_proj": ((heads + 2 * kv_heads) * H, D),
            "o_proj": (D, heads * H),
            "gate_up_proj": (2 * inner, D),
            "down_proj": (D, inner),
            "lm_head": (c.vocab_size / tp, D),
        }
        moved = {
            "layernorm": ("norm", 4 * D),
            "final_layernorm": ("norm", 4 * D),
            "act_fn": ("activation", 3 * inner),
            "rotary_emb": ("rope", 2 * (heads + kv_heads) * H),
            "qk_norm": ("qk_norm", 2 * (heads + kv_heads) * H),
            "embedding": ("embedding", 2 * D),
            "sampler": ("sampling", 6 * c.vocab_size),
        }
        common = {"dtype": "bfloat16", "seconds": group.time_us * 1e-6, "source": str(gpu)}
        if layer in gemms:
            n, k = gemms[str(layer)]
            parts.append(tidy({"kind": "gemm", "operator": layer, "m": group[rows], "n": n, "k": k, **common}))
        elif layer in moved:
            operator, elements = moved[str(layer)]
            parts.append(tidy({"kind": "memory", "operator": operator, "moved_bytes": 2.0 * group[rows] * elements, **common}))
    return pd.concat(parts, ignore_index=True) if parts else tidy({"seconds": []})


def _llmservingsim_attention(path: Path) -> pd.DataFrame:
    """Steps that only prefill or only decode; mixed ones are no single operator."""
    from llmlab.simulator.model.description import load_model

    t = _read(path, ("gpu", "model", "tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
    parts = []
    for (gpu, name, tp_text), group in t.groupby(["gpu", "model", "tp"]):
        c, tp = load_model(re.sub("-Instruct-2507$", "", str(name))).config, int(str(tp_text).removeprefix("tp"))
        for decode, some in ((True, group[group.prefill_chunk == 0]), (False, group[group.n_decode == 0])):
            parts.append(
                tidy(
                    {
                        "kind": "attention_decode" if decode else "attention_prefill",
                        "dtype": "bfloat16",
                        "kv_dtype": "bfloat16",
                        "batch": some.n_decode if decode else 1,
                        "new_tokens": 1 if decode else some.prefill_chunk,
                        "context_tokens": some.kv_decode + 1 if decode else some.kv_prefill,
                        "heads": c.num_attention_heads / tp,
                        "kv_heads": max(c.num_key_value_heads / tp, 1),
                        "head_width": c.head_dim,
                        "window": 0,
                        "seconds": some.time_us * 1e-6,
                        "source": str(gpu),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


# --- InferSim: microseconds, one file of H20 and H800 -------------------------------------------------------------------


def _infersim(path: Path) -> pd.DataFrame:
    """Matrix products (8-bit blocks, for their utilization is of the 8-bit peak) and attention, named by their files."""
    t = _read(path, ("file", "latency_us", "m", "n", "k", "batch_size", "kv_len", "seq_len"))
    kind, phase, gpu, name = (t.file.str.split("/").str[i].fillna("") for i in range(4))
    parts = []
    for device in ("h20", "h800"):
        rows = t[(kind == "gemm") & (phase == device) & t.latency_us.notna()]
        shape = {"m": rows.m, "n": rows.n, "k": rows.k, "seconds": rows.latency_us * 1e-6}
        parts.append(tidy({"kind": "gemm", "dtype": "fp8_block", **shape, "source": device}))
        for step in ("prefill", "decode"):
            rows = t[(kind == "mha") & (phase == step) & (gpu == device) & t.latency_us.notna()]
            if rows.empty:
                continue
            heads, kv_heads, width = (
                name[rows.index].str.removesuffix(".csv").str.split("-").str[i].astype(float) for i in range(3)
            )
            decode = step == "decode"
            parts.append(
                tidy(
                    {
                        "kind": f"attention_{step}",
                        "dtype": "bfloat16",
                        "kv_dtype": rows.kv_dtype.map(dtype_name) if decode else "bfloat16",
                        "batch": rows.batch_size if decode else 1.0,
                        "new_tokens": 1.0 if decode else rows.seq_len,
                        "context_tokens": rows.kv_len if decode else 0.0,
                        "heads": heads,
                        "kv_heads": kv_heads,
                        "head_width": width,
                        "window": 0.0,
                        "seconds": rows.latency_us * 1e-6,
                        "source": device,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


_DEVICES = {
    "a100_sxm": r"^a100_sxm_.*_perf|^mlp_a100_|^attention_a100_|^net_a100_dgx_all_reduce|^net_a100_dgx_send_recv",
    "h100_sxm": r"^h100_sxm_.*_perf|^h100_gemm_blis|^h100_mha_|^mlp_h100_|^net_h100_dgx_all_reduce|^net_h100_dgx_send_recv",
    "h200_sxm": r"^h200_sxm_.*_perf",
    "rtx_4090": r"^llmservingsim_profile_(dense|attention|per_sequence)\.",
    "rtx_pro_6000": r"^llmservingsim_profile_(dense|attention|per_sequence)\.",
    "a30": r"^fork_(mlp|attention)_a30_",
    "h20_sxm": r"^infersim_",
    "h800_sxm": r"^infersim_",
}
"""Which files describe which shipped profile; of the last three none is shipped, they check what others predict."""

_GPU_COLUMN = {"rtx_4090": "RTX4090", "rtx_pro_6000": "RTXPRO6000", "h20_sxm": "h20", "h800_sxm": "h800"}

_READERS: tuple[tuple[str, Callable[[Path], pd.DataFrame]], ...] = (
    (r"_gemm_perf\.csv", _aiconfigurator_gemm),
    (r"_(context|generation)_attention_perf\.csv", _aiconfigurator_attention),
    (r"_(context|generation)_mla_perf\.csv|_mla_(context|generation)_module_perf\.csv", _aiconfigurator_mla),
    (r"_moe_perf\.csv", _aiconfigurator_moe),
    (r"_custom_allreduce_perf\.csv", _aiconfigurator_custom_all_reduce),
    (r"_nccl_perf\.csv", _aiconfigurator_nccl),
    (r"^(fork_)?mlp_", _vidur_layers),
    (r"^(fork_)?attention_|^fork_attention_", _vidur_attention),
    (r"^net_.*(all_reduce|send_recv)\.csv", _vidur_network),
    (r"^infersim_", _infersim),
    (r"^h100_gemm_blis", _blis_gemm),
    (r"^h100_mha_", _blis_attention),
    (r"^llmservingsim_profile_(dense|per_sequence)", _llmservingsim_dense),
    (r"^llmservingsim_profile_attention", _llmservingsim_attention),
)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read one operator table; the file's name says its format.

    Raises:
        InputError: a name of no known format, a file that cannot be read, a missing column, or a time that cannot be.
    """
    path = Path(path)
    for pattern, reader in _READERS:
        if re.search(pattern, path.name):
            frame = reader(path)
            source = re.sub(r"\.csv(\.gz)?$", "", path.name)
            frame["source"] = [f"{source} {given}".strip() for given in frame["source"]]
            return check(frame, path)
    raise InputError(path, "name", path.name, "no known table format (aiconfigurator, vidur, inference-sim, llmservingsim)")


def tables_of(folder: str | Path, device_profile: str) -> list[Path]:
    """The files in a folder that time this device, in the formats `read_table` knows.

    Raises:
        InputError: no such folder, a device without tables, or none of its files there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "tables", str(folder), "no such folder")
    if device_profile not in _DEVICES:
        raise InputError(folder, "device", device_profile, f"no tables known; have {', '.join(_DEVICES)}")
    found = [
        path
        for path in sorted(folder.glob("*.csv*"))
        if re.search(_DEVICES[device_profile], path.name) and any(re.search(pattern, path.name) for pattern, _ in _READERS)
    ]
    if not found:
        raise InputError(folder, "tables", str(folder), f"holds no table of {device_profile}")
    return found


def read_tables(folder: str | Path, device_profile: str) -> pd.DataFrame:
    """Every table of one device as one tidy frame.

    Raises:
        InputError: what `tables_of` and `read_table` raise.
    """
    whole = pd.concat([read_table(path) for path in tables_of(folder, device_profile)], ignore_index=True)
    if device_profile in _GPU_COLUMN:
        whole = whole[whole["source"].str.endswith(f" {_GPU_COLUMN[device_profile]}")].reset_index(drop=True)
    return whole
