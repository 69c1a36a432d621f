"""What an engine's host side adds to the device's time: few physical constants, refined by fitting on published runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmlab.reference.errors import InputError


@dataclass(frozen=True)
class EngineModel:
    """Host constants of a serving engine.

    Attributes:
        host_step_s: per step, not hidden behind the device: scheduling, preparing inputs, reading sampled tokens.
        host_request_step_s: per running request and step: detokenizing, bookkeeping.
        host_request_s: per request, once: HTTP, tokenizing, first scheduling; part of the time to first token only.
        cuda_graph: decode-only steps are replayed as one launch; others pay `launch_s` for each kernel.
        launch_s: host time to launch one kernel; the device waits when its work is shorter.
        graph_tokens: largest step that is replayed.
        graph_launch_s: host time to replay a captured step.
        kernel_gap_s: the device idles this long between two dependent kernels of a step; operators timed alone do not show it.
        collective_gap_s: what a collective of the step takes beyond one timed alone: the ranks arrive apart.
        decode_key_core_s: multiprocessor-seconds that decode attention spends per key/value head and key (of width 128) where
            query heads share it, for engines with a decode kernel of their own; 0 where the device's curves say all.
        decode_group: query heads per key/value head which that kernel takes, 0 being any; other groups fall back to a kernel
            without matrix units that treats each query head by itself.
        decode_query_core_s: multiprocessor-seconds the fallback spends per query head and key (of width 128).
        decode_bandwidth: fraction of the memory's bandwidth these kernels reach.
        static_scales: 8-bit operands are quantized with known scales by whatever produced them, so that 8-bit products are the
            16-bit kernels at the 8-bit peak; else they take what the device's 8-bit curve says, conversion included.
        sustained_compute: matrix units' speed where one large kernel follows the other, against that of one timed alone: the
            power limit lowers the clock.
        prefill_from_cache: attention of a prompt reads keys and values in the cache's dtype; else as just computed, 16 bits.
        gemm_share: time to stream a matrix's weights in parts of what the curves say of a product with one row, for engines
            whose kernels are tuned to the shape, start before the kernel in front has ended and take operands that the operator
            before has quantized; a product of many rows is shorter by as many seconds.
        one_shot_rows: steps of at most this many tokens sum over the ranks in one exchange, every rank reading all the others'
            values, fused with the norm that follows; 0 where the curves choose.
        captured_kernel_s: start of each kernel in a captured step, for operators of several kernels (latent attention, experts,
            products with block scales), whose tables were timed with every kernel launched by itself; 0 where the curves say
            all.
        elementwise_share: part of the time of norms, rotations and activations that fusing them into their neighbours leaves.
        scheduling_lag_steps: steps between a request being ready and the step that first computes it (asynchronous scheduling).
        max_num_seqs, max_num_batched_tokens: the engine's own defaults.
    """

    name: str = "generic"
    host_step_s: float = 1.0e-3
    host_request_step_s: float = 5.0e-6
    host_request_s: float = 3.0e-3
    cuda_graph: bool = True
    launch_s: float = 4.0e-6
    graph_tokens: int = 512
    graph_launch_s: float = 1.0e-4
    kernel_gap_s: float = 0.0
    collective_gap_s: float = 0.0
    decode_key_core_s: float = 0.0
    decode_group: int = 0
    decode_query_core_s: float = 0.0
    decode_bandwidth: float = 0.85
    static_scales: bool = False
    sustained_compute: float = 1.0
    prefill_from_cache: bool = True
    gemm_share: float = 1.0
    one_shot_rows: int = 0
    captured_kernel_s: float = 0.0
    elementwise_share: float = 1.0
    scheduling_lag_steps: float = 0.0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def __post_init__(self) -> None:
        for key in (
            "host_step_s",
            "host_request_step_s",
            "host_request_s",
            "launch_s",
            "graph_launch_s",
            "kernel_gap_s",
            "collective_gap_s",
            "decode_key_core_s",
            "decode_query_core_s",
            "captured_kernel_s",
            "elementwise_share",
            "scheduling_lag_steps",
        ):
            value = getattr(self, key)
            if not 0 <= value < float("inf"):
                raise InputError(self.name, key, value, "must be a finite number, at least 0")

    def with_constants(self, **changes: float) -> EngineModel:
        """The same engine with some constants replaced (what a fit varies)."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "")


def read_engines(path: str | Path) -> dict[str, tuple[EngineModel, tuple[str, ...], Mapping[str, Any]]]:
    """Read a YAML list of engines: name -> (constants, aliases, what they were fitted on).

    Raises:
        InputError: the file is not such a list, or a field is unknown, missing or not a number.
    """
    import yaml

    path = Path(path)
    try:
        records = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(path, "", type(records).__name__, "expected a list of engines")
    kinds: dict[str, Any] = {item.name: type(item.default) for item in fields(EngineModel)}
    found = {}
    for record in records:
        aliases, fit = record.pop("aliases", []), record.pop("fit", {})
        if "name" not in record:
            raise InputError(path, "name", None, "missing")
        for field, value in record.items():
            if field not in kinds:
                raise InputError(path, field, value, f"unknown key of {record['name']}; known: {', '.join(kinds)}")
            try:
                record[field] = kinds[field](value)  # YAML 1.1 reads 1e-3 as text
            except (TypeError, ValueError):
                raise InputError(path, field, value, f"of {record['name']}: expected {kinds[field].__name__}") from None
        found[str(record["name"])] = (EngineModel(**record), tuple(aliases), fit)
    return found


_SHIPPED = read_engines(Path(__file__).resolve().parent / "engines.yaml")
_NAMES = {_key(known): name for name, (_, aliases, _) in _SHIPPED.items() for known in (name, *aliases)}

ENGINES: Mapping[str, EngineModel] = MappingProxyType({name: engine for name, (engine, _, _) in _SHIPPED.items()})
"""Every shipped engine by name."""


def load_engine(name: str) -> EngineModel:
    """An engine's constants by name or alias.

    Raises:
        InputError: unknown; the message lists the known names.
    """
    if (known := _NAMES.get(_key(name))) is None:
        raise InputError("engine", "name", name, f"unknown; known: {', '.join(ENGINES)}")
    return ENGINES[known]


def fit_of(name: str) -> Mapping[str, Any]:
    """On what an engine's constants were fitted; empty where they are estimates."""
    load_engine(name)
    return _SHIPPED[_NAMES[_key(name)]][2]
