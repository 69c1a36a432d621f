"""What an engine's host side adds to the device's time: few physical constants, refined by fitting on published runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

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
            "scheduling_lag_steps",
        ):
            value = getattr(self, key)
            if not 0 <= value < float("inf"):
                raise InputError(self.name, key, value, "must be a finite number, at least 0")

    def with_constants(self, **changes: float) -> EngineModel:
        """The same engine with some constants replaced (what a fit varies)."""
        return replace(self, **changes)  # type: ignore[arg-type]


ENGINES: Mapping[str, EngineModel] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            EngineModel(),
            EngineModel("vllm", 1.0e-3, 6.0e-6, 4.0e-3, scheduling_lag_steps=1.0),
            EngineModel("sglang", 0.8e-3, 5.0e-6, 4.0e-3, scheduling_lag_steps=1.0),
            EngineModel("trtllm", 0.5e-3, 3.0e-6, 3.0e-3, max_num_seqs=512),
            EngineModel("nim", 0.7e-3, 4.0e-6, 5.0e-3, max_num_seqs=256),
        )
    }
)


def load_engine(name: str) -> EngineModel:
    """An engine's constants by name.

    Raises:
        InputError: unknown; the message lists the known names.
    """
    key = name.strip().lower().replace("-", "").replace("_", "")
    key = {"tensorrtllm": "trtllm", "vllmv1": "vllm", "vllmv0": "vllm"}.get(key, key)
    if key not in ENGINES:
        raise InputError("engine", "name", name, f"unknown; known: {', '.join(ENGINES)}")
    return ENGINES[key]
