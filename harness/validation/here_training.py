"""`llmlab validate here --training`: predict training steps of two processes on this machine, then run them and compare.

In blocks, so that a slow change of the machine hits both sides alike: time the pieces, predict every plan from them, run every
plan. No prediction knows of a run. There are two:

- replay: the pieces of a step are timed one by one with both processes computing (`harness/calibration/ranks.py`) and put
  together: actions replayed in the order of the schedule, collectives and updates from measured curves. It tests how a step is
  composed.
- price: the simulator's own `predict_step`, from an efficiency curve of matrix products, measured collectives, and three
  constants fitted on models of other sizes. It tests what the simulator would say of a model that was never run.

Bytes of weights, gradients and optimizer are the simulator's count; so are activations, which it counts for fused kernels: this
trainer keeps a norm's divided rows beside its scaled ones and keys once per query head, about a sixth more.

The interval of a replayed figure is the range over the rounds of the calibration; that of a price is the range of the residuals
of its fit, widened by the rounds' range; bytes are counted and have none. Units: seconds, bytes; milliseconds and megabytes
where a metric's name says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.calibration.fit import fit
from llmlab.harness.calibration.ranks import COLLECTIVES, KINDS, Curve, Piece, Round, calibrate_ranks
from llmlab.harness.calibration.tables import tidy
from llmlab.harness.machine import describe
from llmlab.harness.runtime.trainer import Trained, schedule_of, train
from llmlab.harness.timing.measure import NOISY_OTHERS, family_seconds, watch
from llmlab.harness.validation.summary import error_figures, grouped
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.hardware.device import Device, Peaks
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.memory import rank_memory
from llmlab.simulator.training.network import Network
from llmlab.simulator.training.operators import ends_cost, joined, layer_cost
from llmlab.simulator.training.plan import Framework, ParallelPlan, framework
from llmlab.simulator.training.step import predict_step

Say = Callable[[str, int, int], None]
NAMES = {"F": "forward_ms", "B": "backward_ms", "I": "input_ms", "W": "weight_ms"}
ITEM = 4
"""Bytes of an element: runs here are in float32."""

MODEL = ModelConfig("llama-4m", "llama", 256, 704, 6, 8, 4, 32, vocab_size=256)
OTHERS = (
    (ModelConfig("narrow", "llama", 128, 384, 4, 4, 2, 32, vocab_size=256), 2, 96),
    (ModelConfig("middle", "llama", 192, 512, 3, 6, 3, 32, vocab_size=256), 3, 64),
    (ModelConfig("wide", "llama", 384, 1024, 2, 12, 6, 32, vocab_size=256), 4, 48),
)
"""Models, microbatches and lengths that the constants of a price are fitted on; none of them is run."""

SIZES: Mapping[str, Any] = {"precision": "float32", "microbatch": 4, "sequence": 64, "global_batch": 16, "framework": "ddp"}
PLANS: Mapping[str, ParallelPlan] = {
    "dp2": ParallelPlan(dp=2, **SIZES),
    "zero1": ParallelPlan(dp=2, zero_stage=1, **SIZES),
    "zero2": ParallelPlan(dp=2, zero_stage=2, **SIZES),
    "zero3": ParallelPlan(dp=2, zero_stage=3, **SIZES),
    "tp2": ParallelPlan(tp=2, **SIZES),
    "tp2-sp": ParallelPlan(tp=2, sequence_parallel=True, **SIZES),
    "pp2-1f1b": ParallelPlan(pp=2, **SIZES),
    "pp2-zb-h1": ParallelPlan(pp=2, schedule="zb-h1", **SIZES),
}
PRODUCTS = tuple(
    (m, n, k)
    for m in (64, 192, 384)
    for n, k in ((128, 128), (256, 192), (512, 192), (128, 384), (384, 384), (1024, 384), (384, 1024), (700, 96))
)
"""Shapes whose times the matrix curve is fitted on, half of them held out."""


@dataclass(frozen=True)
class Effort:
    """Blocks, rounds of calibration in each, seconds per piece in each of those, and steps per plan in a block that count."""

    blocks: int
    rounds: int
    piece_s: float
    steps: int


FULL = Effort(3, 2, 0.5, 6)
QUICK = Effort(2, 2, 0.2, 4)


@dataclass(frozen=True)
class HereTraining:
    """What is printed, and per pipeline plan the predicted timeline with the measured one of its median step."""

    result: dict[str, Any]
    timelines: list[Any] = field(default_factory=list)


def validate_here_training(
    *,
    quick: bool = False,
    seed: int = 0,
    effort: Effort | None = None,
    plans: Mapping[str, ParallelPlan] = PLANS,
    progress: Say = lambda name, done, total: None,
) -> HereTraining:
    """Calibrate with two processes, predict every plan, run every plan, compare.

    `others` of a row is the part of the processors that other programs used during its runs: what no prediction knows.

    Args:
        quick: fewer rounds and steps.
        seed: of weights and text.
        effort: overrides `quick`.
        plans: by name; each of two ranks.
        progress: told (what, done, total).

    Raises:
        InputError: a plan of another number of ranks.
    """
    effort = effort or (QUICK if quick else FULL)
    for name, plan in plans.items():
        if plan.gpus != 2:
            raise InputError("validate here", "plan", name, f"has {plan.gpus} ranks; two processes are calibrated")
    warm_up(plans, seed)
    composed: dict[str, list[Composed]] = {name: [] for name in plans}
    prices: list[Price] = []
    runs: dict[str, list[Trained]] = {name: [] for name in plans}
    others: dict[str, list[float]] = {name: [] for name in (*plans, "calibrating")}
    pieces, turn, total = pieces_of(plans), 0, effort.blocks * (effort.rounds + len(plans))
    for _ in range(effort.blocks):
        rounds = []
        with watch(own=family_seconds) as calibrating:
            for _ in range(effort.rounds):
                progress("timing the pieces of a step", turn, total)
                rounds.append(calibrate_ranks(pieces, PRODUCTS, piece_s=effort.piece_s, seed=seed))
                turn += 1
        others["calibrating"].append(calibrating[0].others)
        prices.append(Price(rounds, plans))
        for name, plan in plans.items():
            composed[name].append(Composed(plan, rounds))
        for name, plan in plans.items():
            progress(f"running {name}", turn, total)
            with watch(own=family_seconds) as running:
                runs[name].append(train(MODEL, plan, steps=effort.steps + 1, seed=seed, keep=False))
            others[name].append(running[0].others)
            turn += 1
    progress("counting bytes", turn, total)
    counted = {name: train(MODEL, plan, seed=seed, count_activations=True, keep=False) for name, plan in plans.items()}
    used = {name: float(np.mean(shares)) for name, shares in others.items()}
    rows: list[dict[str, Any]] = []
    for name in plans:
        measured = measured_figures(plans[name], runs[name], counted[name])
        priced = [price.of[name] for price in prices]
        rows += [{**row, "others": used[name]} for row in rows_of(name, composed[name], priced, measured)]
    timelines = [one for name, plan in plans.items() if plan.pp > 1 for one in pair(composed[name][0], runs[name][0])]
    return HereTraining({"rows": rows, "excluded": [], "summary": summarize(rows, prices[-1], used["calibrating"])}, timelines)


def warm_up(plans: Mapping[str, ParallelPlan], seed: int) -> None:
    """Start the processes and run one step, so that nothing of that is timed."""
    train(MODEL, next(iter(plans.values())), seed=seed, keep=False)


def pieces_of(plans: Mapping[str, ParallelPlan]) -> list[Piece]:
    """What has to be timed for these plans, and for the fit of a price."""
    found = {piece_name(plan): Piece(piece_name(plan), MODEL, plan, plan.pp) for plan in plans.values()}
    for config, microbatch, sequence in OTHERS:
        plan = ParallelPlan(**{**SIZES, "microbatch": microbatch, "sequence": sequence, "global_batch": microbatch})
        found[config.name] = Piece(config.name, config, plan)
    return list(found.values())


def piece_name(plan: ParallelPlan) -> str:
    """Which piece a plan's ranks compute."""
    if plan.pp > 1:
        return "stage"
    if plan.tp > 1:
        return "cut, rows split" if plan.sequence_parallel else "cut"
    return "whole"


class Costs:
    """Seconds of everything in one round (or in the middle of all): actions per rank, curves by size."""

    def __init__(self, ranks: Sequence[Sequence[Round]]) -> None:
        self.ranks = ranks  # per round, per rank

    def action(self, piece: str, kind: str, rank: int) -> float:
        """Seconds of an action of a piece on a rank."""
        return float(np.median([one[rank].pieces[piece][kind] for one in self.ranks]))

    def curve(self, what: str) -> Curve:
        """Seconds by bytes of a collective, of a hand-over, or by elements of an update."""
        tables: list[Mapping[int, float]] = []
        for one in (rank for round_ in self.ranks for rank in round_):
            if what in COLLECTIVES:
                tables.append({size: seconds for (name, size), seconds in one.collectives.items() if name == what})
            else:
                tables.append(getattr(one, what))
        return Curve({size: float(np.median([table[size] for table in tables])) for size in tables[0]})


class Composed:
    """A plan's step put together from timed pieces: in the middle of all rounds, and in each round."""

    def __init__(self, plan: ParallelPlan, rounds: Sequence[Sequence[Round]]) -> None:
        self.plan = plan
        self.figures, self.timeline = self._compose(Costs(rounds))
        self.each = [self._compose(Costs([one]))[0] for one in rounds]

    def _compose(self, costs: Costs) -> tuple[dict[str, float], Any]:
        from llmlab.simulator.training.replay import Durations, replay

        plan, piece = self.plan, piece_name(self.plan)
        schedule = schedule_of(plan)
        ranks = schedule.rank_of if plan.pp > 1 else (0, 1)  # without a pipeline the slower rank is waited for
        action_s = np.array([[costs.action(piece, kind, at) for at in ranks] for kind in ("F", "B", "I", "W")])
        if plan.pp == 1:
            action_s = action_s.max(axis=1, keepdims=True)
        hidden = plan.microbatch * plan.sequence * MODEL.hidden_size * ITEM
        inside = self._inside(costs, hidden)
        action_s[0] += inside[0]
        action_s[1] += inside[1]
        across = np.full((2, schedule.num_stages), round(costs.curve("hand_over")(hidden) * 1e9), dtype=np.int64)
        timeline = replay(schedule, Durations(np.rint(action_s * 1e9).astype(np.int64), across))
        kinds = {action.kind for actions in schedule.actions for action in actions}
        figures = {NAMES[kind]: 1e3 * float(action_s["FBIW".index(kind)].mean()) for kind in KINDS if kind in kinds}
        if plan.pp > 1:
            figures["bubble_fraction"] = timeline.bubble_fraction
        figures["step_s"] = timeline.makespan_ns / 1e9 + self._after(costs)
        return figures, timeline

    def _inside(self, costs: Costs, hidden: float) -> tuple[float, float]:
        """Seconds of collectives within a forward and within a backward."""
        plan, layers = self.plan, MODEL.num_hidden_layers
        rows = plan.microbatch * plan.sequence
        if plan.tp > 1:
            loss = costs.curve("all_gather")(rows * ITEM) + costs.curve("all_reduce")(2 * rows * ITEM)
            if plan.sequence_parallel:
                there, back = costs.curve("all_gather")(hidden / 2), costs.curve("reduce_scatter")(hidden)
                either = (2 * layers + 1) * (there + back)
                return either + loss, either
            sums = (2 * layers + 1) * costs.curve("all_reduce")(hidden)
            return sums + loss, sums
        if plan.zero_stage < 2:
            return 0.0, 0.0
        sizes = bucket_elements()
        scattered = sum(costs.curve("reduce_scatter")(size * ITEM) for size in sizes.values())
        if plan.zero_stage == 2:
            return 0.0, scattered
        gathered = {name: costs.curve("all_gather")(size * ITEM / 2) for name, size in sizes.items()}
        whole = sum(gathered.values())
        return whole, whole - gathered["embedding"] + scattered

    def _after(self, costs: Costs) -> float:
        """Seconds after the last action: sums of gradients and the update, on the rank that has more of it."""
        plan, update = self.plan, costs.curve("updates")
        sizes = bucket_elements()
        if plan.pp > 1:
            layers = MODEL.num_hidden_layers // 2 * update(sizes["layer 0"])
            return layers + max(update(sizes["embedding"]), update(sizes["output"]))
        if plan.tp > 1:
            return sum(update(size / 2) for size in sizes.values())
        if plan.zero_stage == 0:
            return sum(costs.curve("all_reduce")(size * ITEM) + update(size) for size in sizes.values())
        updated = sum(update(size / 2) for size in sizes.values())
        gathered = sum(costs.curve("all_gather")(size * ITEM / 2) for size in sizes.values())
        scattered = sum(costs.curve("reduce_scatter")(size * ITEM) for size in sizes.values())
        return updated + {1: gathered + scattered, 2: gathered, 3: 0.0}[plan.zero_stage]


def bucket_elements() -> dict[str, int]:
    """Elements of each unit of the model: embedding, layers, output."""
    table = MODEL.vocab_size * MODEL.hidden_size
    layer = sum(int(np.prod(shape)) for shape in MODEL.layer_shapes(0).values())
    layers = {f"layer {number}": layer for number in range(MODEL.num_hidden_layers)}
    return {"embedding": table, **layers, "output": table + MODEL.hidden_size}


@dataclass(frozen=True)
class MeasuredNetwork(Network):
    """Two processes' collectives as they were timed."""

    curves: Mapping[str, Curve] = field(default_factory=dict)

    def reduce_scatter_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """The mean of scattering and gathering `size` bytes in all: the simulator asks for either by this name."""
        if ranks <= 1 or size <= 0:
            return 0.0
        return (self.curves["reduce_scatter"](size) + self.curves["all_gather"](size / 2)) / 2

    def all_reduce_s(self, size: float, ranks: int, stride: int = 1) -> float:
        """As timed."""
        return self.curves["all_reduce"](size) if ranks > 1 else 0.0

    def send_s(self, size: float, stride: int) -> float:
        """As timed."""
        return self.curves["hand_over"](size)


@dataclass(frozen=True)
class Priced:
    """Seconds of a step with their interval, and bytes the fullest rank holds by the simulator's count."""

    seconds: float
    low: float
    high: float
    held_mb: Mapping[str, float]


class Price:
    """The simulator's price of each plan's step, with constants fitted on other models."""

    def __init__(self, rounds: Sequence[Sequence[Round]], plans: Mapping[str, ParallelPlan]) -> None:
        costs = Costs(rounds)
        self.costs = costs
        self.network = MeasuredNetwork(2, 1.0, 1.0, curves={what: costs.curve(what) for what in (*COLLECTIVES, "hand_over")})
        self.update = costs.curve("updates")
        everyone = [rank for one in rounds for rank in one]
        products = {shape: float(np.median([rank.products[shape] for rank in everyone])) for shape in PRODUCTS}
        best = max(2.0 * m * n * k / seconds for (m, n, k), seconds in products.items())
        elements = max(everyone[0].updates)
        bandwidth = 40.0 * elements / self.update(elements)  # ten float32 passes, as an update that is not fused makes at least
        machine = describe()
        peaks = Peaks(
            name="two processes here",
            memory_bytes=machine.memory_gib << 30,
            memory_bytes_per_s=bandwidth,
            flops_per_s={"float32": best},
            cores=1,
            last_level_cache_bytes=max([one.total_bytes for one in machine.caches] or [1 << 25]),
        )
        m, n, k = (np.array([shape[axis] for shape in PRODUCTS], dtype=float) for axis in range(3))
        columns = {"kind": "gemm", "dtype": "float32", "m": m, "n": n, "k": k, "seconds": np.array(list(products.values()))}
        with tempfile.TemporaryDirectory() as folder:  # the simulator knows devices by name or by file
            path = fit(tidy(columns | {"source": "here"}), peaks).save(Path(folder) / "two-processes.json")
            self.device: Device = replace(load_device(path).device, name=str(path))
            self.habits, self.residuals = self._constants()
            self.spread = self._spread(rounds)
            self.of = {name: self._of(plan) for name, plan in plans.items()}

    def _of(self, plan: ParallelPlan) -> Priced:
        model = ModelDescription(MODEL)
        step = predict_step(model, plan, self.device, habits=self.habits, network=self.network, fit_memory=False)
        elements = sum(bucket_elements().values()) / (plan.tp * plan.pp * (plan.dp if plan.zero_stage else 1))
        seconds = step.seconds - step.breakdown.optimizer_s + self.update(elements)
        memories = [rank_memory(model, plan, stage, self.habits) for stage in range(plan.pp)]
        fullest = max(memories, key=lambda one: one.total_bytes)
        state = fullest.weights_bytes + fullest.gradients_bytes + fullest.optimizer_bytes
        held = {"state_mb": state / 1e6, "activations_mb": (fullest.activations_bytes + fullest.logits_bytes) / 1e6}
        low, high = ((ratio - 1.0) * step.breakdown.compute_s for ratio in self.residuals)
        return Priced(seconds, (seconds + low) * self.spread[0], (seconds + high) * self.spread[1], held)

    def _spread(self, rounds: Sequence[Sequence[Round]]) -> tuple[float, float]:
        """How much quicker and slower than the middle the other models were in single rounds."""
        names = [config.name for config, _, _ in OTHERS]
        sums = [
            sum(one.action(name, kind, rank) for name in names for kind in KINDS for rank in range(2))
            for one in (self.costs, *(Costs([single]) for single in rounds))
        ]
        return min(1.0, min(sums[1:]) / sums[0]), max(1.0, max(sums[1:]) / sums[0])

    def _constants(self) -> tuple[Framework, tuple[float, float]]:
        """Fit matrix and memory efficiency and the cost of a call on models of other sizes."""
        from scipy.optimize import least_squares

        measured = {
            (config.name, kinds): sum(max(self.costs.action(config.name, kind, rank) for rank in range(2)) for kind in kinds)
            for config, _, _ in OTHERS
            for kinds in ("F", "IW")
        }

        def habits_of(free: np.ndarray) -> Framework:
            matrix, memory, call = np.exp(free)
            return replace(
                framework("ddp"),
                fused_attention=True,
                gradient_bytes=float(ITEM),
                reduce_bytes=float(ITEM),
                matrix_efficiency={"other": float(matrix)},
                memory_efficiency=float(memory),
                attention_efficiency=0.3 * float(matrix),
                launch_s=float(call),
                collective_launch_s=0.0,
                iteration_s=0.0,
                handover_s=0.0,
                dp_overlap=0.0,
                tp_overlap=0.0,
                memory_margin=1.0,
                memory_constant_bytes=0.0,
            )

        def ratios(free: np.ndarray) -> np.ndarray:
            habits, found = habits_of(free), []
            for config, microbatch, sequence in OTHERS:
                plan = ParallelPlan(**{**SIZES, "microbatch": microbatch, "sequence": sequence, "global_batch": microbatch})
                forward, backward = self._passes(ModelDescription(config), plan, habits)
                found += [np.log(forward / measured[config.name, "F"]), np.log(backward / measured[config.name, "IW"])]
            return np.array(found)

        bounds = np.log([(0.05, 1.2), (0.01, 2.0), (1e-7, 1e-3)]).T  # what a constant may mean, however odd the timings
        start = np.log([0.8, 0.5, 1e-5])
        fitted = least_squares(ratios, start, bounds=tuple(bounds), loss="soft_l1", f_scale=0.1, diff_step=1e-3, max_nfev=60)
        left = np.exp(-ratios(fitted.x))  # measured / predicted
        return habits_of(fitted.x), (min(1.0, float(left.min())), max(1.0, float(left.max())))

    def _passes(self, model: ModelDescription, plan: ParallelPlan, habits: Framework) -> tuple[float, float]:
        """Seconds of a forward and of a backward of a whole model."""
        parts = [(layer_cost(model, self.device.name, plan, habits), model.layers)]
        parts += [(one, 1) for one in ends_cost(model, self.device.name, plan, habits)]
        forward = sum(count * joined(one.forward_s, one.forward_kernels * habits.launch_s) for one, count in parts)
        both = [(one.backward_input_s + one.backward_weight_s, one.backward_kernels, count) for one, count in parts]
        return forward, sum(count * joined(seconds, kernels * habits.launch_s) for seconds, kernels, count in both)


def measured_figures(plan: ParallelPlan, runs: Sequence[Trained], counted: Trained) -> dict[str, float]:
    """Per block the median over its steps but the first, of those the mean; and bytes of the run that counted them."""
    blocks = [_block_figures(plan, run) for run in runs]
    figures = {name: float(np.mean([block[name] for block in blocks])) for name in blocks[0]}
    memory = [rank.memory_bytes for rank in counted.ranks]
    fullest = max(memory, key=lambda one: sum(one.values()))
    figures["state_mb"] = (fullest["weights"] + fullest["gradients"] + fullest["optimizer"]) / 1e6
    figures["activations_mb"] = fullest["activations"] / 1e6
    return figures


def _block_figures(plan: ParallelPlan, run: Trained) -> dict[str, float]:
    found: dict[str, list[float]] = {"step_s": run.step_s[1:], "bubble_fraction": []}
    for step in range(1, len(run.step_s)):
        if plan.pp > 1:
            found["bubble_fraction"].append(run.timeline(step).bubble_fraction)
        for kind in {action.kind for action in run.ranks[0].actions[step]}:
            per_rank = [[one.end_ns - one.start_ns for one in rank.actions[step] if one.kind == kind] for rank in run.ranks]
            found.setdefault(NAMES[kind], []).append(float(np.mean([np.median(times) for times in per_rank])) / 1e6)
    return {name: float(np.median(values)) for name, values in found.items() if values}


def rows_of(
    name: str, composed: Sequence[Composed], priced: Sequence[Priced], measured: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per metric and way of predicting it: the mean of what was predicted before each block."""
    rows: list[dict[str, Any]] = []

    def row(way: str, metric: str, predicted: Sequence[float], bounds: Sequence[float]) -> None:
        rows.append(
            {
                "row_id": f"{name}/{way}",
                "metric": metric,
                "measured": measured[metric],
                "predicted": float(np.mean(predicted)),
                "low": min(*bounds, float(np.mean(predicted))),
                "high": max(*bounds, float(np.mean(predicted))),
                "source": way,
                "fitted": False,
                "plan": name,
            }
        )

    for metric in composed[0].figures:
        spread = [one[metric] for block in composed for one in block.each]
        row("replay", metric, [block.figures[metric] for block in composed], spread)
    row("price", "step_s", [one.seconds for one in priced], [end for one in priced for end in (one.low, one.high)])
    for metric, held in priced[0].held_mb.items():
        row("price", metric, [held], [held])
    return rows


def pair(composed: Composed, run: Trained) -> list[Any]:
    """The predicted timeline above the measured one of the step in the middle."""
    steps = sorted(range(1, len(run.step_s)), key=lambda step: run.step_s[step])
    real = run.timeline(steps[len(steps) // 2])
    name = composed.plan.schedule
    return [
        replace(composed.timeline, schedule=replace(composed.timeline.schedule, name=f"{name} predicted")),
        replace(real, schedule=replace(real.schedule, name=f"{name} measured")),
    ]


def summarize(rows: Sequence[Mapping[str, Any]], price: Price, others: float) -> dict[str, Any]:
    """Error figures by way of predicting and metric, and what the fit found."""
    habits = price.habits
    return {
        "machine": describe().device_name("cpu"),
        "parameters": MODEL.num_parameters,
        "processes": 2,
        "others_while_calibrating": others,
        "by_metric": grouped(list(rows), "source", "metric"),
        "step_s": {
            way: error_figures([row for row in rows if row["source"] == way and row["metric"] == "step_s"])
            for way in ("replay", "price")
        },
        "constants": {
            "matrix_efficiency": habits.efficiency("other"),
            "memory_efficiency": habits.memory_efficiency,
            "call_s": habits.launch_s,
            "residuals": price.residuals,
        },
    }


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What the command prints: every row, then errors by metric."""
    summary = result["summary"]
    shown = []
    for row in result["rows"]:
        inside = row["low"] <= row["measured"] <= row["high"]
        shown.append(
            {
                "plan": row["plan"],
                "by": row["source"],
                "metric": row["metric"],
                "measured": row["measured"],
                "predicted": row["predicted"],
                "error": f"{row['predicted'] / row['measured'] - 1:+.1%}" if row["measured"] else "",
                "interval": f"{row['low']:.4g} .. {row['high']:.4g}",
                "inside": "yes" if inside else "no",
            }
        )
    yield f"{summary['machine']}, two processes, {summary['parameters'] / 1e6:.1f} M parameters", shown
    busiest = max(summary["others_while_calibrating"], *(row["others"] for row in result["rows"]))
    if busiest > NOISY_OTHERS:
        shares = {"calibrating": summary["others_while_calibrating"]}
        shares |= {row["plan"]: row["others"] for row in result["rows"]}
        title = "these figures say little: others used the processors"
        yield title, [{"while": name, "of the processors": f"{share:.0%}"} for name, share in shares.items()]
    yield (
        "errors",
        [
            {
                "by": line["source"],
                "metric": line["metric"],
                "rows": line["n"],
                "median error": f"{line['median_abs_error']:.1%}",
                "bias": f"{line['bias']:+.1%}",
                "in interval": f"{line['coverage']:.0%}",
            }
            for line in summary["by_metric"]
        ],
    )
