"""Measure this machine's operators over the shapes that small models use, and fit its efficiency profile.

Operators are timed as the real engine calls them (`kernels/models/llama_torch.py`), each on its own: matrix products over
the row counts of decode and prefill steps, attention over pages, norms with their residual, rotation, gate, look-up, choice
of tokens. Weights and caches are visited in turn, copy after copy, since a model's next layer is never in the cache either.
Every shape is timed in two passes far apart, and the quicker one counts: a neighbour can only slow a call down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.harness.arrays import device_of
from llmlab.harness.calibration.fit import fit
from llmlab.harness.calibration.tables import tidy
from llmlab.harness.machine import Machine, describe
from llmlab.harness.roofline import Peaks as MeasuredPeaks
from llmlab.harness.runtime.engine import Engine, Job, quiet_python
from llmlab.harness.runtime.sampling import greedy
from llmlab.harness.timing import results
from llmlab.harness.timing.measure import give_back_pages, measure, wait_until_quiet, warm_allocator
from llmlab.harness.timing.peaks import peaks
from llmlab.kernels.models import llama_torch
from llmlab.kernels.models.llama_torch import LlamaTorch
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset
from llmlab.reference.models._weights import random_weights
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.simulator.cost.engine import EngineModel
from llmlab.simulator.hardware.device import Peaks
from llmlab.simulator.hardware.profile import DeviceProfile

Progress = Callable[[str, int, int], None]

BLOCK_TOKENS = 16
COPIES_BYTES = 192 << 20
"""Copies of an operand are made until they take this much together, or as much as a small model."""


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        models: presets whose matrices, heads and vocabularies are taken.
        rows: row counts of matrix products, and of the operators of one row each.
        emitted: row counts of the output matrix and of the choice of tokens.
        prompts: (new tokens, tokens cached before them).
        batches: decoding requests.
        contexts: tokens each of them attends to.
        call_s: measured seconds per shape and pass.
        passes: passes over everything.
        limit_s: no further pass begins or goes on after this long (a busy machine); the first is always whole.
    """

    models: tuple[str, ...]
    rows: tuple[int, ...]
    emitted: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    call_s: float
    passes: int
    limit_s: float


FULL = Grid(
    models=("llmlab/llama-50m", "llmlab/llama-100m", "HuggingFaceTB/SmolLM-135M", "llmlab/llama-150m"),
    rows=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    emitted=(1, 2, 4, 8, 16, 32, 64),
    prompts=(*product((4, 16, 64, 128, 256, 512), (0, 128, 512)), (1024, 0), (32, 1024), (256, 1024)),
    batches=(1, 2, 4, 8, 16, 32),
    contexts=(32, 96, 256, 640, 1536),
    call_s=0.012,
    passes=2,
    limit_s=65.0,
)
QUICK = Grid(
    models=("llmlab/llama-100m",),
    rows=(1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512),
    emitted=(1, 4, 16, 64),
    prompts=((16, 0), (64, 0), (256, 0), (512, 0), (16, 256), (64, 512), (128, 128), (256, 512)),
    batches=(1, 4, 8, 16, 32),
    contexts=(64, 256, 1024),
    call_s=0.008,
    passes=2,
    limit_s=18.0,
)

Sample = tuple[dict[str, Any], Callable[[], Any]]
"""The row's columns but for the time, and one call."""


def calibrate_here(
    *,
    out: str | Path | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    grid: Grid | None = None,
    path: str | Path | None = None,
) -> DeviceProfile:
    """Measure and fit this machine; write the profile where `out` says, and return it with its held-out errors.

    Takes under 90 s, `quick` under 30 s. The result, or the file, is what `--gpu machine.json` of the simulator takes.

    Args:
        out: JSON file to write.
        quick: one model's shapes and fewer of them.
        progress: called with (what, done, total).
        grid: shapes to measure; chosen by `quick` when not given.
        path: results file that keeps the machine's peaks; the default one when not given.
    """
    say = progress or (lambda name, done, total: None)
    machine, device, started = describe(), device_of("torch"), time.perf_counter()
    say("waiting for a quiet machine", 0, 1)
    quiet = wait_until_quiet(3.0)
    limits = peaks(device, path=path or results.default_path(), quick=quick, say=lambda what: say(f"peaks: {what}", 0, 1))
    samples = measure_here(grid or (QUICK if quick else FULL), device=device, progress=say)
    measured_s = time.perf_counter() - started
    provenance = {
        "what": "measured on this machine by llmlab calibrate",
        "date": results.now(),
        "machine": machine.as_dict() | {"digest": machine.digest},
        "quick": quick,
        "samples": len(samples),
        "measured_s": round(measured_s, 1),
        "noisy": quiet.noisy or bool(samples["noisy"].mean() > 0.25),
    }
    say("fitting", 0, 1)
    profile = fit(samples.drop(columns="noisy"), simulator_peaks(machine, limits), provenance=provenance)
    if out is not None:
        profile.save(out)
    return profile


def engine_here(profile: DeviceProfile) -> EngineModel:
    """The real engine's host constants as the simulator takes them, from the profile's `host` curve.

    Requests enter by a function call, so there is no cost per request; operators were timed launch included.
    """
    host = profile.curve("host").parameters
    return EngineModel(
        "here",
        host_step_s=host["step_s"],
        host_request_step_s=host["request_s"],
        host_request_s=0.0,
        cuda_graph=False,
        launch_s=0.0,
        graph_launch_s=0.0,
    )


def simulator_peaks(machine: Machine, measured: MeasuredPeaks) -> Peaks:
    """Measured peaks as the simulator's description of a device."""
    gpu = machine.accelerators[0] if measured.device == "cuda" else None
    levels = [one.total_bytes for one in machine.caches] or [1 << 25]
    return Peaks(
        name=machine.device_name(measured.device),
        memory_bytes=gpu.memory_bytes if gpu else machine.memory_gib << 30,
        memory_bytes_per_s=measured.memory_bandwidth,
        flops_per_s=dict(measured.flops),
        cores=gpu.multiprocessors if gpu else machine.threads,
        last_level_cache_bytes=50 << 20 if gpu else max(levels),
        source=f"measured, machine {machine.digest}",
    )


def measure_here(grid: Grid, *, device: str = "cpu", progress: Progress = lambda name, done, total: None) -> pd.DataFrame:
    """Time every operator of the grid; return the tidy frame of `tables.py` with one more column, `noisy`."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    makers = (_products, _rows_of_model, _prefill, _decode, _host)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    total, deadline = grid.passes * len(makers), time.perf_counter() + grid.limit_s
    with torch.inference_mode(), warm_allocator(), quiet_python():
        for number, (again, maker) in enumerate(product(range(grid.passes), makers)):
            progress(maker.__name__.strip("_").replace("_", " "), number, total)
            for columns, seconds, noisy in _timed(maker(grid, device, dtype), device, grid.call_s):
                key = tuple(columns.values())
                if key not in rows or seconds < rows[key]["seconds"]:
                    rows[key] = {**columns, "seconds": seconds, "noisy": noisy}
                if again and time.perf_counter() > deadline:
                    break
            give_back_pages()
    progress("", total, total)
    found = pd.DataFrame(list(rows.values()))
    frame = tidy({str(name): found[name] for name in found if name != "noisy"} | {"source": "here"})
    for name in ("operator", "dtype", "kv_dtype"):
        frame[name] = frame[name].fillna("")
    frame["noisy"] = found["noisy"].astype(bool)
    return frame


def _timed(
    samples: Iterator[Sample | tuple[dict[str, Any], float]], device: str, call_s: float
) -> Iterator[tuple[dict[str, Any], float, bool]]:
    """Time each call (first quartile of its rounds: neighbours disturb many, not most); what was timed passes through."""
    for columns, call in samples:
        if isinstance(call, float):
            yield columns, call, False
            continue
        timing = measure(call, device=device, budget_s=call_s, min_rounds=3, max_rounds=30)
        yield columns, timing.lower_s, timing.noisy


def _configs(grid: Grid) -> list[ModelConfig]:
    found = [preset(name) for name in grid.models]
    return [config for config in found if config is not None]


def _in_turn(operand: Tensor) -> Callable[[], Tensor]:
    """Copies of an operand, and what gives the next one at each call."""
    size = operand.numel() * operand.element_size()
    copies = [operand.clone() for _ in range(max(1, min(64, COPIES_BYTES // size)))]
    turn = count()
    return lambda: copies[next(turn) % len(copies)]


def _normal(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def _products(grid: Grid, device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Matrix products of a layer over all row counts, the output matrix over the emitted ones."""
    name = str(dtype).removeprefix("torch.")
    shapes: dict[tuple[int, int], tuple[int, ...]] = {}
    for c in _configs(grid):
        body = (
            (c.query_width + 2 * c.key_value_width, c.hidden_size),
            (c.hidden_size, c.query_width),
            (2 * c.intermediate_size, c.hidden_size),
            (c.hidden_size, c.intermediate_size),
        )
        shapes |= dict.fromkeys(body, grid.rows) | {(c.vocab_size, c.hidden_size): grid.emitted}
    for (n, k), rows in shapes.items():
        weight = _in_turn(_normal(n, k, device=device, dtype=dtype))
        for m in rows:
            x = _normal(m, k, device=device, dtype=dtype)
            columns = {"kind": "gemm", "operator": "", "dtype": name, "kv_dtype": "", "m": m, "n": n, "k": k}
            yield columns, partial(_linear, x, weight)


def _rows_of_model(grid: Grid, device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Everything that costs per row: norm with its residual, rotation, gate, look-up, choice of tokens."""
    for c in _configs(grid):
        D, heads, R = c.hidden_size, c.num_attention_heads + c.num_key_value_heads, c.head_dim // 2
        norm_D = _normal(D, device=device, dtype=dtype)
        table_VD = _normal(c.vocab_size, D, device=device, dtype=dtype)
        for rows in grid.rows:
            x, y = (_normal(rows, D, device=device, dtype=dtype) for _ in range(2))
            yield _moved("norm", 4.0 * D * rows, dtype), partial(_norm, x, y, norm_D)
            qk = _normal(rows, heads, c.head_dim, device=device, dtype=dtype)
            cos, sin = (_normal(rows, 1, R, device=device, dtype=dtype) for _ in range(2))
            moved = (2.0 * heads + 2.0 * c.num_key_value_heads) * c.head_dim * rows
            yield _moved("rope", moved, dtype), partial(llama_torch._rotate, qk, cos, sin)
            both = _normal(rows, 2 * c.intermediate_size, device=device, dtype=dtype)
            yield _moved("activation", 3.0 * c.intermediate_size * rows, dtype), partial(_gate, both)
            ids = torch.randint(0, c.vocab_size, (rows,), device=device)
            yield _moved("embedding", 2.0 * D * rows, dtype), partial(F.embedding, ids, table_VD)
        for rows in grid.emitted:
            logits = _normal(rows, c.vocab_size, device=device, dtype=dtype)
            steps = [(i, 0) for i in range(rows)]
            moved_bytes = 3.0 * c.vocab_size * rows * 4.0
            columns = _moved("sampling", 0.0, dtype) | {"moved_bytes": moved_bytes}
            yield columns, partial(greedy, logits, steps)


def _moved(operator: str, elements: float, dtype: torch.dtype) -> dict[str, Any]:
    return {"kind": "memory", "operator": operator, "dtype": "", "kv_dtype": "", "moved_bytes": elements * dtype.itemsize}


def _linear(x: Tensor, next_weight: Callable[[], Tensor]) -> Tensor:
    return F.linear(x, next_weight())


def _norm(x: Tensor, y: Tensor, weight_D: Tensor) -> Tensor:
    return llama_torch._rms_norm(x + y, weight_D, 1e-5)


def _gate(gate_up_TF: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF


def _heads_only(config: ModelConfig, layers: int) -> ModelConfig:
    """The same attention, and next to nothing around it."""
    return ModelConfig(
        config.name,
        "llama",
        8,
        8,
        layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        vocab_size=8,
    )


class _Pages:
    """Layers of pages for one shape of attention, visited in turn."""

    def __init__(self, config: ModelConfig, contexts: Sequence[int], device: str, dtype: torch.dtype) -> None:
        blocks = [-(-context // BLOCK_TOKENS) for context in contexts]
        size = 2 * sum(blocks) * BLOCK_TOKENS * config.key_value_width * dtype.itemsize
        layers = max(1, min(16, COPIES_BYTES // (4 * size)))
        self.config = _heads_only(config, layers)
        weights = random_weights(self.config, np.random.default_rng(0))
        self.model = LlamaTorch(self.config, weights, device=device, dtype=dtype)
        self.cache = self.model.new_cache(sum(blocks), BLOCK_TOKENS)
        for keys, values in self.cache:
            keys.copy_(torch.randn(keys[0].shape).to(keys))  # one block's values, repeated
            values.copy_(keys)
        self.tables_RM = torch.zeros(len(contexts), max(blocks), dtype=torch.int64)
        order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(0)).split(blocks)
        for row_M, ids in zip(self.tables_RM, order):
            row_M[: len(ids)] = ids
        self.contexts = list(contexts)
        self.turn = count()

    def attending(self, new_tokens: int) -> Callable[[], Tensor]:
        """A call that attends this many new tokens of every request in the next layer."""
        c, device, dtype = self.config, self.model.device, self.model.dtype
        starts = [i * new_tokens for i in range(len(self.contexts) + 1)]
        positions = torch.cat([torch.arange(context - new_tokens, context) for context in self.contexts]).to(device)
        batch = llama_torch._Paged(self.model, positions, self.cache, starts, self.tables_RM.to(device), self.contexts)
        q = _normal(starts[-1], c.num_attention_heads, c.head_dim, device=str(device), dtype=dtype)
        k, v = (_normal(starts[-1], c.num_key_value_heads, c.head_dim, device=str(device), dtype=dtype) for _ in range(2))
        return lambda: batch.attend(next(self.turn) % c.num_hidden_layers, q, k, v)


def _attention_shapes(grid: Grid) -> list[ModelConfig]:
    """One model per shape of heads."""
    return list({(c.num_attention_heads, c.num_key_value_heads, c.head_dim): c for c in _configs(grid)}.values())


def _attention_columns(kind: str, c: ModelConfig, dtype: torch.dtype, batch: int, context: int) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    heads = {"heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "head_width": c.head_dim, "window": 0.0}
    return {"kind": kind, "operator": "", "dtype": name, "kv_dtype": name, "batch": batch, "context_tokens": context, **heads}


def _prefill(grid: Grid, device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Attention of one prompt's new tokens to its pages and to themselves."""
    for c in _attention_shapes(grid):
        for new, cached in grid.prompts:
            pages = _Pages(c, [new + cached], device, dtype)
            columns = _attention_columns("attention_prefill", c, dtype, 1, cached) | {"new_tokens": new}
            yield columns, pages.attending(new)


def _decode(grid: Grid, device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Attention of one new token per request to its pages."""
    for c in _attention_shapes(grid):
        for batch, context in product(grid.batches, grid.contexts):
            pages = _Pages(c, [context] * batch, device, dtype)
            yield _attention_columns("attention_decode", c, dtype, batch, context), pages.attending(1)


def _host(grid: Grid, device: str, dtype: torch.dtype) -> Iterator[tuple[dict[str, Any], float]]:
    """Seconds of an engine step that no operator explains: steps of a tiny model, extrapolated to none of its layers."""
    few, many = 1, 4
    for batch in grid.batches:
        times = {layers: _tiny_step_s(layers, batch, device, dtype) for layers in (few, many)}
        layer_s = max(0.0, times[many] - times[few]) / (many - few)
        columns = {"kind": "host", "operator": "", "dtype": "", "kv_dtype": "", "batch": batch}
        yield columns, max(1e-6, times[few] - few * layer_s)


def _tiny_step_s(layers: int, batch: int, device: str, dtype: torch.dtype, steps: int = 40) -> float:
    """Median seconds of a decode step of a model in which arithmetic costs next to nothing."""
    config = ModelConfig("tiny", "llama", 16, 16, layers, 2, 1, 8, vocab_size=64)
    model = LlamaTorch(config, random_weights(config, np.random.default_rng(0)), device=device, dtype=dtype)
    blocks = KVBlocks(batch * (2 + steps // BLOCK_TOKENS), BLOCK_TOKENS)
    engine = Engine(model, ContinuousBatching(blocks, max_num_seqs=batch, max_num_batched_tokens=max(64, 8 * batch)))
    for _ in range(batch):
        engine.submit(Job([1, 2, 3], steps))
    while engine.step() is not None:
        pass
    decoding = [step.duration_s for step in engine.steps if not step.shape.prefill]
    return float(np.median(decoding[len(decoding) // 4 :]))
