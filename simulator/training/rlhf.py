"""A step of reinforcement learning on a language model: write responses, score them, train. Units: seconds, bytes, tokens.

Responses come from the serving simulator, lengths drawn anew every step; reference and reward models run forward; the policy is
trained by a training plan. Where they run:

- `colocated`: one pool does all, one after another; weights change from the layout of training to that of serving and optimizer
  state may wait in host memory meanwhile (HybridFlow, arXiv:2409.19256, section 5). A step is the sum of its phases.
- `separate`: a pool each for writing and for training. With `staleness` 0 responses are written by the newest weights, so the
  pools wait for each other; with k the writer may be k steps ahead (one-step-off: k = 1; AReaL, arXiv:2505.24298), so that in
  the long run a step takes as long as the slower pool.

New weights reach the writers as bf16 over the slowest link on their way, each device fetching what it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simpy

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.training.memory import RankMemory
from llmlab.simulator.training.plan import ParallelPlan, framework
from llmlab.simulator.training.step import StepPrediction, network_of, predict_step
from llmlab.simulator.workload.synthetic import at_once, cyclic_prompts, fixed, lognormal
from llmlab.simulator.workload.workload import Workload

PLACEMENTS = ("colocated", "separate")
WEIGHT_BYTES = 2.0
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Rlhf:
    """One way to run it.

    Attributes:
        prompts: of a step.
        samples: responses to each.
        prompt_tokens: of every prompt.
        response_tokens: mean length of a response.
        response_spread: coefficient of variation of lengths (log-normal).
        max_response_tokens: where writing stops.
        placement: `colocated` or `separate`.
        writer_gpus: of the pool that writes; ignored where colocated.
        writer_tp: devices of one serving replica.
        staleness: steps the writer may be ahead (separate pools).
        offload: optimizer state and gradients wait in host memory while responses are written (colocated).
        updates: optimizer steps a batch is split into.
        epochs: times the batch is gone over.
        reference, reward, critic: models of the policy's size that score; the critic is trained too.
        engine: serving preset.
    """

    prompts: int = 128
    samples: int = 8
    prompt_tokens: int = 512
    response_tokens: float = 1024.0
    response_spread: float = 0.5
    max_response_tokens: int = 8192
    placement: str = "colocated"
    writer_gpus: int = 0
    writer_tp: int = 1
    staleness: int = 0
    offload: bool = True
    updates: int = 1
    epochs: int = 1
    reference: bool = True
    reward: bool = True
    critic: bool = False
    engine: str = "vllm"

    def check(self, gpus: int) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: a count below 1, an unknown placement, or pools that do not fit together.
        """
        counts = ("prompts", "samples", "prompt_tokens", "max_response_tokens", "writer_tp", "updates", "epochs")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError("rlhf", name, getattr(self, name), "must be at least 1")
        for name in ("response_tokens", "response_spread"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("rlhf", name, getattr(self, name), "must be positive and finite")
        if self.placement not in PLACEMENTS:
            raise InputError("rlhf", "placement", self.placement, f"is neither {' nor '.join(PLACEMENTS)}")
        if self.staleness < 0:
            raise InputError("rlhf", "staleness", self.staleness, "must not be negative")
        if self.staleness and self.placement == "colocated":
            raise InputError("rlhf", "staleness", self.staleness, "one pool cannot write ahead of itself; take separate pools")
        if self.placement == "separate" and self.writer_gpus < 1:
            raise InputError("rlhf", "writer_gpus", self.writer_gpus, "a separate pool needs devices")
        writers = gpus if self.placement == "colocated" else self.writer_gpus
        if writers % self.writer_tp:
            raise InputError("rlhf", "writer_tp", self.writer_tp, f"must divide {writers} devices that write")

    @property
    def responses(self) -> int:
        """Of a step."""
        return self.prompts * self.samples


@dataclass(frozen=True)
class Span:
    """A phase of a step on a pool."""

    pool: str
    phase: str
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class RlhfRun:
    """Several steps of it.

    Attributes:
        phase_s: mean seconds of each phase.
        step_s: seconds from the end of one training to the next, the first few steps left out.
        spans: the timeline.
        memory: per phase, bytes of each part on the fullest device.
    """

    setting: Rlhf
    plan: ParallelPlan
    gpus: int
    phase_s: dict[str, float]
    step_s: float
    tokens: float
    spans: tuple[Span, ...]
    memory: dict[str, dict[str, float]]
    reshard_bytes: float
    steps: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        busy = sum(self.phase_s.values())
        return {
            "placement": self.setting.placement,
            "staleness": self.setting.staleness,
            "gpus": self.gpus,
            "responses": self.setting.responses,
            "steps": self.steps,
            "step_s": self.step_s,
            "tokens_per_s": self.tokens / self.step_s,
            "phase_s": self.phase_s,
            "phase_share": {name: seconds / busy for name, seconds in self.phase_s.items()},
            "pool_busy": self.pool_busy(),
            "reshard_bytes_per_device": self.reshard_bytes,
            "memory_bytes": self.memory,
        }

    def pool_busy(self) -> dict[str, float]:
        """Part of the whole run that each pool works."""
        end = max(span.end_s for span in self.spans)
        pools = dict.fromkeys(span.pool for span in self.spans)
        return {pool: sum(s.end_s - s.start_s for s in self.spans if s.pool == pool) / end for pool in pools}

    def trace_events(self) -> list[dict[str, Any]]:
        """Chrome trace events: a track per pool."""
        pools = list(dict.fromkeys(span.pool for span in self.spans))
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": pool}}
            for number, pool in enumerate(pools)
        ]
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "name": f"{span.phase} {span.step}",
                    "cat": span.phase,
                    "pid": pools.index(span.pool),
                    "tid": 0,
                    "ts": round(1e6 * span.start_s, 3),
                    "dur": round(1e6 * (span.end_s - span.start_s), 3),
                    "args": {"step": span.step},
                }
            )
        return events


def reshard_bytes(model: ModelDescription, plan: ParallelPlan, writer_tp: int, *, colocated: bool) -> float:
    """Bytes of weights a writing device must fetch: its part of the model, less what it holds already where colocated.

    A device of training holds 1 / (tp pp) of the weights (1 / dp of that under ZeRO-3); at best all of it is in its new part.

    >>> from llmlab.simulator.training.plan import gpt
    >>> model = gpt(2, 64, 2, 128, 32)
    >>> need = WEIGHT_BYTES * model.parameters / 2
    >>> reshard_bytes(model, ParallelPlan(tp=4), 2, colocated=True) == need / 2
    True
    """
    whole = WEIGHT_BYTES * model.parameters
    need = whole / writer_tp
    held = whole / (plan.tp * plan.pp) / (plan.dp if plan.zero_stage == 3 else 1)
    return need - min(held, need) if colocated else need


def scoring_seconds(step: StepPrediction, sequences: int) -> float:
    """A forward pass over so many sequences by the plan's ranks: the slowest stage's microbatches and the others once."""
    forward = [stage.forward_s for stage in step.stages]
    microbatches = math.ceil(sequences / (step.plan.dp * step.plan.microbatch))
    return (microbatches - 1) * max(forward) + sum(forward) + (len(forward) - 1) * step.handover_s


@dataclass(frozen=True)
class _Costs:
    write_s: list[float]
    score_s: float
    train_s: float
    sync_s: float
    swap_s: float
    tokens: float


def _resident(memory: RankMemory, *, offload: bool) -> float:
    """Bytes of training that stay on a device while it writes: weights in their training layout, and its state."""
    state = memory.gradients_bytes + memory.optimizer_bytes
    return memory.weights_bytes + (0.0 if offload else state)


def _costs(
    model: ModelDescription, plan: ParallelPlan, device: Device, setting: Rlhf, steps: int, seed: int
) -> tuple[_Costs, dict[str, dict[str, float]], float]:
    colocated = setting.placement == "colocated"
    batch = setting.responses
    if batch % (setting.updates * plan.dp * plan.microbatch):
        why = f"must be a multiple of updates x dp x microbatch = {setting.updates * plan.dp * plan.microbatch}"
        raise InputError("rlhf", "prompts", setting.prompts, f"{batch} responses {why}")
    sequence = setting.prompt_tokens + min(setting.response_tokens, setting.max_response_tokens)
    unit = plan.cp * (plan.tp if plan.sequence_parallel else 1)
    length = max(unit, unit * round(sequence / unit))
    trained = predict_step(model, replace(plan, global_batch=batch // setting.updates, sequence=length), device)
    resident = _resident(trained.memory, offload=setting.offload) if colocated else 0.0
    room = 0.9 - resident / device.hbm_bytes
    weights = WEIGHT_BYTES * model.parameters / setting.writer_tp
    if room * device.hbm_bytes <= weights:
        left = (room * device.hbm_bytes) / 1e9
        why = f"writers have {left:.1f} GB beside training, weights need {weights / 1e9:.1f} GB; offload, or raise writer_tp"
        raise InputError("rlhf", "writer_tp", setting.writer_tp, why)
    writers = plan.gpus if colocated else setting.writer_gpus
    site = resolve(
        Deployment(
            model,
            device.name,
            tensor_parallel=setting.writer_tp,
            replicas=writers // setting.writer_tp,
            gpu_memory_utilization=room,
            engine=setting.engine,
            prefix_caching=True,
            block_tokens=BLOCK_TOKENS,
        )
    )
    prompts = fixed(batch, setting.prompt_tokens)
    hashes = cyclic_prompts(prompts, setting.prompts, 1, 0, BLOCK_TOKENS)
    write_s = []
    for number in range(steps):
        rng = np.random.default_rng([seed, number])
        lengths = lognormal(
            batch, setting.response_tokens, setting.response_spread, rng, low=1, high=setting.max_response_tokens
        )
        load = Workload(at_once(batch), prompts, lengths, hashes, BLOCK_TOKENS, name="rollout")
        done = simulate(site, load, seed=seed)
        ends = done.requests["e2e_s"]
        if not np.isfinite(ends).all():
            raise InputError(
                "rlhf", "max_response_tokens", setting.max_response_tokens, "a response does not fit the writers' cache"
            )
        write_s.append(float(ends.max()))
    network = network_of(device, framework(plan.framework))
    moved = reshard_bytes(model, plan, setting.writer_tp, colocated=colocated)
    near = colocated and plan.tp * plan.pp <= network.node_devices and plan.zero_stage != 3
    sync_s = moved / (network.inside_bytes_per_s if near else network.outside_bytes_per_s)
    state = trained.memory.gradients_bytes + trained.memory.optimizer_bytes
    swap_s = 2.0 * state / device.host_link_bytes_per_s if colocated and setting.offload else 0.0
    scorers = setting.reference + setting.reward + setting.critic + 1  # and the policy's own probabilities before the update
    train_s = setting.epochs * setting.updates * trained.seconds * (2 if setting.critic else 1)
    costs = _Costs(write_s, scorers * scoring_seconds(trained, batch), train_s, sync_s, swap_s, batch * sequence)
    cache = room * device.hbm_bytes - weights
    held = trained.memory.weights_bytes
    memory = {
        "score": {"weights of each scoring model": held, "training": resident if colocated else held},
        "write": {"weights": weights, "kv_cache": cache, "training": resident},
        "train": {name.removesuffix("_bytes"): getattr(trained.memory, name) for name in trained.memory.__dataclass_fields__},
    }
    return costs, memory, moved


def simulate_rlhf(
    model: ModelDescription, plan: ParallelPlan, device: Device | str, setting: Rlhf, *, steps: int = 6, seed: int = 0
) -> RlhfRun:
    """Run several steps.

    Raises:
        InputError: a setting that cannot be, a plan that cannot run, or a phase that does not fit into memory.
    """
    device = load_device_sheet(device) if isinstance(device, str) else device
    setting.check(plan.gpus)
    if steps < 1:
        raise InputError("rlhf", "steps", steps, "must be at least 1")
    costs, memory, moved = _costs(model, plan, device, setting, steps, seed)
    spans = _colocated(costs, steps) if setting.placement == "colocated" else _separate(costs, setting.staleness, steps)
    ends = [span.end_s for span in spans if span.phase == "train"]
    settled = min(setting.staleness + 1, steps - 1)
    step_s = (ends[-1] - ends[settled - 1]) / (steps - settled) if settled else ends[-1]
    phases = dict.fromkeys(span.phase for span in spans)
    phase_s = {name: sum(s.end_s - s.start_s for s in spans if s.phase == name) / steps for name in phases}
    gpus = plan.gpus + (setting.writer_gpus if setting.placement == "separate" else 0)
    return RlhfRun(setting, plan, gpus, phase_s, step_s, costs.tokens, tuple(spans), memory, moved, steps)


def _colocated(costs: _Costs, steps: int) -> list[Span]:
    spans, now = [], 0.0
    for step in range(steps):
        phases = (
            ("reshard", costs.sync_s + costs.swap_s / 2),
            ("write", costs.write_s[step]),
            ("load state", costs.swap_s / 2),
            ("score", costs.score_s),
            ("train", costs.train_s),
        )
        for phase, seconds in phases:
            if seconds:
                spans.append(Span("all devices", phase, step, now, now + seconds))
                now += seconds
    return spans


def _separate(costs: _Costs, staleness: int, steps: int) -> list[Span]:
    """Writers and trainers as two processes: weights of step n are there once training n is done, batches once written."""
    env = simpy.Environment()
    spans: list[Span] = []
    trained = [env.event() for _ in range(steps)]
    written = [env.event() for _ in range(steps)]

    def phase(pool: str, name: str, step: int, seconds: float) -> Generator[Any, Any, None]:
        start = int(env.now)
        yield env.timeout(round(seconds * 1e9))
        if seconds:
            spans.append(Span(pool, name, step, start / 1e9, int(env.now) / 1e9))

    def writers() -> Generator[Any, Any, None]:
        for step in range(steps):
            if step - 1 - staleness >= 0:
                yield trained[step - 1 - staleness]
            yield from phase("writers", "fetch weights", step, costs.sync_s)
            yield from phase("writers", "write", step, costs.write_s[step])
            written[step].succeed()

    def trainers() -> Generator[Any, Any, None]:
        for step in range(steps):
            yield written[step]
            yield from phase("trainers", "score", step, costs.score_s)
            yield from phase("trainers", "train", step, costs.train_s)
            trained[step].succeed()

    env.process(writers())
    env.process(trainers())
    env.run()
    return spans


def tables(found: RlhfRun) -> list[tuple[str, list[dict[str, Any]]]]:
    """The run as titled tables."""
    shown = found.to_json()
    head = ("placement", "staleness", "gpus", "responses", "step_s", "tokens_per_s", "reshard_bytes_per_device")
    phases = [
        {"phase": name, "seconds": seconds, "share": f"{shown['phase_share'][name]:.1%}"}
        for name, seconds in found.phase_s.items()
    ]
    memory: Sequence[dict[str, Any]] = [
        {"phase": phase, "part": part, "gb": size / 1e9}
        for phase, parts in found.memory.items()
        for part, size in parts.items()
    ]
    return [
        (f"One step of {found.setting.prompts} x {found.setting.samples} responses", [{key: shown[key] for key in head}]),
        ("Where the time goes", phases),
        ("Pools", [{"pool": pool, "busy": f"{part:.1%}"} for pool, part in found.pool_busy().items()]),
        ("Memory of the fullest device", list(memory)),
    ]
