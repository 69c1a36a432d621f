"""The real trainer gives what one process gives: to the last bit where sums keep their order, else within rounding."""

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: the trainer runs on it")

from llmlab.harness.runtime import trainer, trainer_shards  # noqa: E402
from llmlab.harness.runtime.trainer import Trained, is_exact, order_of_sums, train, train_alone  # noqa: E402
from llmlab.harness.runtime.training_check import assert_same  # noqa: E402
from llmlab.kernels.parallel import _world  # noqa: E402
from llmlab.reference.errors import InputError  # noqa: E402
from llmlab.reference.models._config import ModelConfig  # noqa: E402
from llmlab.reference.parallel._orders import SCHEDULES  # noqa: E402
from llmlab.simulator.training.plan import ParallelPlan, gpt  # noqa: E402

SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sparse_layers": (True,) * 4}
MODELS = {
    "llama": ModelConfig("llama", "llama", 16, 48, 4, 4, 2, 8, vocab_size=64),
    "experts": ModelConfig("experts", "mixtral", 16, 48, 4, 4, 2, 8, vocab_size=64, **SPARSE),
    "gpt": gpt(4, 16, 4, 64, 16, name="gpt").config,
}
ITEM = 8
"""Bytes of an element: everything here is float64."""


def plan_of(**given: Any) -> ParallelPlan:
    settings = {"precision": "float64", "microbatch": 2, "global_batch": 8, "sequence": 12, "schedule": "1f1b"}
    return ParallelPlan(**{**settings, **given})


@cache
def alone(model: str, plan: ParallelPlan, order: str, steps: int) -> Trained:
    """One process; plans that differ in layout only share it."""
    return train_alone(MODELS[model], plan, steps=steps, order=json.loads(order))


def one_process(model: str, plan: ParallelPlan, steps: int = 2, order: Any = None) -> Trained:
    batch = plan_of(global_batch=plan.global_batch, optimizer=plan.optimizer, schedule=plan.schedule)
    if plan.schedule == "pipedream":
        batch = plan
    else:
        batch = replace(batch, schedule="gpipe")
    return alone(model, batch, json.dumps(order), steps)


def assert_like_one_process(model: str, plan: ParallelPlan, steps: int = 2) -> None:
    config = MODELS[model]
    exact = is_exact(config, plan)
    run = train(config, plan, steps=steps)
    assert_same(config, plan, run, one_process(model, plan, steps, order_of_sums(plan) if exact else None), exact=exact)
    assert np.isfinite(run.losses).all()
    if exact:  # and within rounding of the plain order
        assert_same(config, plan, run, one_process(model, plan, steps), exact=plan.schedule == "pipedream")


LOOPED = {"interleaved": 2, "looped_bfs": 2}
TWO = [plan_of(pp=2, schedule=name, virtual_stages=LOOPED.get(name, 1)) for name in SCHEDULES]
TWO += [plan_of(dp=2, zero_stage=stage) for stage in range(4)]
FOUR = [
    plan_of(pp=4, schedule="1f1b"),
    plan_of(pp=4, schedule="zb-h1"),
    plan_of(pp=4, schedule="zb-h2"),
    plan_of(pp=4, schedule="pipedream"),
    plan_of(pp=4, schedule="chimera"),
    plan_of(pp=4, schedule="dualpipe", global_batch=16),
    *[plan_of(dp=2, pp=2, zero_stage=stage) for stage in range(4)],
    plan_of(dp=2, pp=2, zero_stage=2, schedule="zb_v"),
    plan_of(dp=2, pp=2, zero_stage=3, schedule="chimera"),
    plan_of(dp=2, pp=2, zero_stage=1, schedule="interleaved", virtual_stages=2),
]


def name_of(plan: ParallelPlan) -> str:
    degrees = [f"{name}{getattr(plan, name)}" for name in ("dp", "tp", "pp", "cp", "ep") if getattr(plan, name) > 1]
    degrees += [f"zero{plan.zero_stage}"] * (plan.zero_stage > 0) + ["sp"] * plan.sequence_parallel
    return "-".join([*degrees, plan.schedule] if plan.pp > 1 else degrees)


@pytest.mark.parametrize("plan", TWO + FOUR, ids=name_of)
def test_a_plan_that_keeps_the_order_of_sums_gives_the_same_bits(plan: ParallelPlan) -> None:
    assert is_exact(MODELS["llama"], plan)
    assert_like_one_process("llama", plan)


SGD = {"optimizer": "sgd"}  # what rounding leaves of a gradient near zero, Adam would blow up to a whole step
ROUNDED = [
    ("llama", plan_of(tp=2, **SGD)),
    ("llama", plan_of(tp=2, sequence_parallel=True, **SGD)),
    ("llama", plan_of(cp=2, **SGD)),
    ("experts", plan_of(dp=2, ep=2, **SGD)),
    ("experts", plan_of(dp=2, ep=2, zero_stage=1, **SGD)),
    ("experts", plan_of(tp=2, sequence_parallel=True, **SGD)),
    ("gpt", plan_of(tp=2, sequence_parallel=True, **SGD)),
    ("gpt", plan_of(dp=2, zero_stage=3, **SGD)),
    ("gpt", plan_of(pp=2, schedule="dualpipe_v", **SGD)),
    ("gpt", plan_of(pp=2, schedule="chimera", **SGD)),
    ("llama", plan_of(dp=4, zero_stage=3, **SGD)),
    ("llama", plan_of(tp=2, pp=2, **SGD)),
    ("llama", plan_of(tp=2, pp=2, schedule="zb_v", sequence_parallel=True, **SGD)),
    ("llama", plan_of(tp=2, dp=2, zero_stage=2, **SGD)),
    ("llama", plan_of(tp=2, dp=2, zero_stage=3, sequence_parallel=True, **SGD)),
    ("llama", plan_of(tp=2, cp=2, sequence_parallel=True, **SGD)),
    ("llama", plan_of(cp=2, pp=2, schedule="dualpipe_v", **SGD)),
    ("experts", plan_of(dp=4, ep=2, zero_stage=2, **SGD)),
    ("experts", plan_of(dp=4, ep=4, zero_stage=3, **SGD)),
    ("experts", plan_of(dp=2, pp=2, ep=2, schedule="zb_h1", **SGD)),
    ("experts", plan_of(dp=2, tp=2, ep=2, sequence_parallel=True, **SGD)),
    ("gpt", plan_of(dp=2, pp=2, zero_stage=3, schedule="v_half", **SGD)),
]


@pytest.mark.parametrize(("model", "plan"), ROUNDED, ids=[f"{model}-{name_of(plan)}" for model, plan in ROUNDED])
def test_a_plan_that_sums_in_another_order_differs_by_rounding_alone(model: str, plan: ParallelPlan) -> None:
    assert not is_exact(MODELS[model], plan)
    assert_like_one_process(model, plan)


def every_combination() -> list[ParallelPlan]:
    """Every degree, ZeRO stage and split of rows that four processes can take, experts dealt out in every way."""
    found = []
    for dp, tp, pp, cp, ep in product((1, 2, 4), (1, 2), (1, 2, 4), (1, 2), (1, 2, 4)):
        if dp * tp * pp * cp == 4 and (dp * cp) % ep == 0:
            for stage, split in product(range(4) if dp > 1 else (0,), (False, True) if tp > 1 else (False,)):
                schedule = "zb-h1" if stage % 2 else "1f1b"
                degrees = {"dp": dp, "tp": tp, "pp": pp, "cp": cp, "ep": ep, "zero_stage": stage, "sequence_parallel": split}
                found.append(plan_of(**degrees, schedule=schedule, **SGD))
    return found


def every_schedule() -> list[ParallelPlan]:
    """Every schedule beside data parallelism of some ZeRO stage, and beside tensor parallelism."""
    found = []
    for number, name in enumerate(name for name in SCHEDULES if name != "pipedream"):
        size = 16 if name.startswith("dualpipe") else 8
        given = {"pp": 2, "schedule": name, "virtual_stages": LOOPED.get(name, 1), "global_batch": size, **SGD}
        found.append(plan_of(dp=2, zero_stage=number % 4, **given))
        found.append(plan_of(tp=2, sequence_parallel=number % 2 > 0, **given))
    return found


@pytest.mark.parametrize("plan", every_combination(), ids=name_of)
def test_every_combination_that_fits_is_the_run_of_one_process(plan: ParallelPlan) -> None:
    assert_like_one_process("experts", plan, steps=1)


@pytest.mark.parametrize("plan", every_schedule(), ids=name_of)
def test_every_schedule_beside_another_axis_is_the_run_of_one_process(plan: ParallelPlan) -> None:
    assert_like_one_process("llama", plan, steps=1)


@pytest.mark.parametrize("plan", [plan_of(dp=2), plan_of(pp=2, schedule="zb_h1")], ids=name_of)
def test_experts_on_their_own_rank_keep_the_order_of_sums(plan: ParallelPlan) -> None:
    assert is_exact(MODELS["experts"], plan)
    assert_like_one_process("experts", plan)


def test_pipedream_is_not_the_run_of_one_process() -> None:
    plan = plan_of(pp=2, schedule="pipedream", optimizer="sgd")
    stale = train(MODELS["llama"], plan, steps=1)
    fresh = train_alone(MODELS["llama"], replace(plan, schedule="gpipe"))
    assert np.array_equal(stale.losses[0, :1], fresh.losses[0, :1])
    assert not np.array_equal(stale.losses[0, 1:], fresh.losses[0, 1:])


def test_the_order_of_microbatches_is_seen_in_the_last_bits() -> None:
    plan = plan_of(pp=2, schedule="looped_bfs", virtual_stages=2)
    assert order_of_sums(plan) == [3, 2, 1, 0]
    run = train(MODELS["llama"], plan, steps=2)
    with pytest.raises(AssertionError, match="differ by"):
        assert_same(MODELS["llama"], plan, run, one_process("llama", plan), exact=True)


def with_a_fault(fault: str, **settings: Any) -> Any:
    """One rank that does something wrong."""
    import torch.distributed as dist

    if dist.get_rank() == 1:
        whole = {"all_reduce": trainer_shards.CountedPeers.all_reduce, "step": trainer_shards.step}
        try:
            if fault == "skips its sum":
                trainer_shards.CountedPeers.all_reduce = lambda peers, part: (whole["all_reduce"](peers, part), part.clone())[1]  # type: ignore[method-assign]
            if fault == "is off by a thousandth":
                trainer_shards.CountedPeers.all_reduce = lambda peers, part: whole["all_reduce"](peers, part * 1.001)  # type: ignore[method-assign]
            return trainer.train_rank(**settings)
        finally:
            trainer_shards.CountedPeers.all_reduce = whole["all_reduce"]  # type: ignore[method-assign]
    return trainer.train_rank(**settings)


@pytest.mark.parametrize(
    ("fault", "plan", "seen"),
    [
        ("skips its sum", plan_of(dp=2, optimizer="sgd"), "ranks that hold the same part disagree"),
        ("is off by a thousandth", plan_of(dp=2, optimizer="sgd"), "differ by"),
        ("is off by a thousandth", plan_of(tp=2, optimizer="sgd"), "differ by"),
        ("is off by a thousandth", plan_of(tp=2, optimizer="sgd", global_batch=2), "differ by"),
    ],
)
def test_a_rank_that_sums_wrongly_is_refused(fault: str, plan: ParallelPlan, seen: str) -> None:
    config = MODELS["llama"]
    settings = {"config": config, "plan": plan, "steps": 1, "seed": 0, "rate": 1e-3, "count_activations": False, "keep": True}
    ranks = _world.run(with_a_fault, [{"fault": fault, **settings}] * 2)
    right = one_process("llama", plan, steps=1)

    def check() -> None:
        assert_same(config, plan, trainer.collected(config, plan, ranks), right, exact=False)

    with pytest.raises((AssertionError, RuntimeError), match=seen):
        check()


def sent(run: Trained, axis: str, what: str) -> list[float]:
    return [rank.traffic.get((axis, what), {"sent_bytes": 0})["sent_bytes"] for rank in run.ranks]


@pytest.mark.parametrize("stage", range(4))
def test_data_parallel_bytes_are_those_of_the_stage(stage: int) -> None:
    config, plan = MODELS["llama"], plan_of(dp=2, zero_stage=stage)
    run = train(config, plan, keep=False)
    P, table, M = config.num_parameters * ITEM, config.vocab_size * config.hidden_size * ITEM, plan.microbatches
    half = [P / 2] * 2  # what a ring of two sends of everything
    scattered, gathered = {0: (0, 0), 1: (1, 1), 2: (M, 1), 3: (M, 2 * M)}[stage]
    assert sent(run, "dp", "all_reduce") == ([P] * 2 if stage == 0 else [0] * 2)
    assert sent(run, "dp", "reduce_scatter") == [scattered * one for one in half]
    once = M * table / 2 if stage == 3 else 0  # a look-up needs no table on its way back
    assert sent(run, "dp", "all_gather") == [gathered * one - once for one in half]


@pytest.mark.parametrize("split", [False, True])
def test_tensor_parallel_bytes_are_four_sums_a_layer(split: bool) -> None:
    config, plan = MODELS["llama"], plan_of(tp=2, sequence_parallel=split)
    run = train(config, plan, keep=False)
    rows, L, M = plan.microbatch * plan.sequence, config.num_hidden_layers, plan.microbatches
    hidden = rows * config.hidden_size * ITEM
    norms = (2 * L + 1) * config.hidden_size * ITEM  # used on part of the rows: summed at the end
    loss_sums = 2 * rows * ITEM
    sums = M * loss_sums + (norms if split else M * (4 * L + 2) * hidden)
    assert sent(run, "tp", "all_reduce") == [sums] * 2
    once = M * (4 * L + 2) * hidden / 2 if split else 0
    assert sent(run, "tp", "reduce_scatter") == [once] * 2
    assert sent(run, "tp", "all_gather") == [once + M * rows * ITEM] * 2  # and the largest logits


def test_pipeline_bytes_are_two_messages_a_boundary_and_microbatch() -> None:
    config = MODELS["llama"]
    for plan in (plan_of(pp=4), plan_of(pp=4, schedule="zb-h1"), plan_of(pp=4, schedule="chimera")):
        run = train(config, plan, keep=False)
        one = plan.microbatch * plan.sequence * config.hidden_size * ITEM
        assert sum(sent(run, "pp", "send")) == 2 * 3 * plan.microbatches * one
        twice = (
            2 * config.num_parameters * ITEM if plan.schedule == "chimera" else 0
        )  # each copy sends its gradients to the other
        assert sum(sent(run, "pp", "copies")) == twice


def test_expert_bytes_are_four_exchanges_a_layer() -> None:
    config, plan = MODELS["experts"], plan_of(dp=2, ep=2)
    run = train(config, plan, keep=False)
    rows, L, M = plan.microbatch * plan.sequence, config.num_hidden_layers, plan.microbatches
    moved = 4 * rows * config.num_experts_per_tok * config.hidden_size * ITEM
    counts = config.num_experts * 8
    for rank in run.ranks:
        there = rank.traffic["ep", "all_to_all"]
        assert there["calls"] == 5 * L * M
    payload = sum(rank.traffic["ep", "all_to_all"]["payload_bytes"] for rank in run.ranks)
    assert payload == 2 * L * M * (moved + counts)
    assert sent(run, "expert dp", "all_reduce") == [0, 0]


def test_sharding_state_gradients_and_weights_halves_their_bytes() -> None:
    config = MODELS["llama"]
    held = [train(config, plan_of(dp=2, zero_stage=stage), keep=False).ranks[0].memory_bytes for stage in range(4)]
    P = config.num_parameters * ITEM
    assert [one["optimizer"] for one in held] == [2 * P, P, P, P]
    assert [one["gradients"] for one in held] == [P, P, P / 2, P / 2]
    assert [one["weights"] for one in held] == [P, P, P, P / 2]


def test_activations_held_are_those_of_the_schedule() -> None:
    config = MODELS["llama"]
    peaks = {}
    for name in ("gpipe", "1f1b"):
        plan = plan_of(pp=4, schedule=name)
        run = train(config, plan, keep=False, count_activations=True)
        peaks[name] = [rank.memory_bytes["activations"] for rank in run.ranks]
        held = run.schedule.peak_activations()
        assert [round(mine / peaks[name][1] * held[1], 6) for mine in peaks[name][1:3]] == held[
            1:3
        ]  # the stages between are alike
    assert peaks["gpipe"][3] == 4 * peaks["1f1b"][3]


def test_a_real_timeline_writes_the_simulators_trace(tmp_path: Path) -> None:
    from llmlab.simulator.training.replay import even, replay

    run = train(MODELS["llama"], plan_of(pp=2, schedule="zb_h1"), keep=False)
    real, simulated = run.timeline(), replay(run.schedule, even(run.schedule, 1000, 1000, 1000))
    traces = [json.loads(one.write_trace(tmp_path / "trace.json").read_text())["traceEvents"] for one in (real, simulated)]
    names = [sorted((e["ph"], e["name"], e["pid"]) for e in trace if e["ph"] != "C") for trace in traces]
    assert names[0] == names[1]
    assert [set(event) for event in traces[0]] == [set(event) for event in traces[1]]
    ends = {action: end for _, action, _, end in real.actions()}
    for _, action, start, _ in real.actions():
        assert all(ends[need] <= start for need in run.schedule.needs(action))


def test_losses_fall() -> None:
    plan = plan_of(dp=2, pp=2, schedule="zb-h1", precision="float32")
    losses = train(MODELS["llama"], plan, steps=8, rate=0.03, keep=False).losses.mean(1)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dp": 3, "tp": 2, "global_batch": 12}, "ranks=6: dp 3 x tp 2"),
        ({"pp": 3}, "4 layers of llama do not divide into 3 stages"),
        ({"pp": 4, "schedule": "zb_v"}, "4 layers of llama do not divide into 8 stages, more than there are"),
        ({"tp": 3}, "must divide the query heads of llama, 4"),
        ({"tp": 4}, "must divide the key/value heads of llama, 2"),
        ({"dp": 3}, "must be a multiple of dp x microbatch = 3 x 2"),
        ({"cp": 4, "sequence": 10}, "must divide the sequence of 10 tokens"),
        ({"dp": 2, "ep": 2}, "llama has no experts"),
        ({"schedule": "fastest"}, "not one of naive, gpipe"),
        ({"pp": 2, "schedule": "dualpipe", "global_batch": 4}, "dualpipe"),
        ({"pp": 2, "dp": 2, "schedule": "pipedream"}, "updates within a step"),
        ({"zero_stage": 4}, "not one of 0, 1, 2, 3"),
        ({"precision": "bfloat16"}, "not one of float32, float64 here"),
        ({"tp": 2, "sequence": 5, "microbatch": 1, "sequence_parallel": True}, "must divide the 5 rows"),
        ({"tp": 2, "tensor": "2d"}, "only 1d is run here"),
        ({"dp": 0}, "must be a whole number of at least 1"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(MODELS["llama"], plan_of(**given))
    assert "\n" not in str(error.value)


def test_experts_must_divide() -> None:
    with pytest.raises(InputError, match="must divide the dp x cp = 2 x 1 ranks"):
        train(MODELS["experts"], plan_of(dp=2, ep=4))
