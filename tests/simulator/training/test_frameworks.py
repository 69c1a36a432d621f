"""Each preset is priced for what makes it what it is; each has an example that runs, and a plan it refuses in one line."""

from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._summa import linear_arguments
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_2_5d import tensor_2_5d
from llmlab.reference.parallel.tensor_2d import tensor_2d
from llmlab.reference.parallel.tensor_3d import tensor_3d
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.memory import rank_memory
from llmlab.simulator.training.network import Network
from llmlab.simulator.training.plan import ParallelPlan, framework, gpt, plan_of
from llmlab.simulator.training.step import all_to_all_seconds, grid_traffic, predict_step

MODEL = gpt(24, 2048, 16, 51200, 2048)
EXPERTS = load_model("Qwen/Qwen3-30B-A3B")
SIZES = {"dp": 2, "tp": 2, "pp": 2, "global_batch": 32, "sequence": 2048}
GRID = {"dp": 2, "pp": 2, "microbatch": 4, "global_batch": 32, "sequence": 2048}
EXAMPLES = {
    "ddp": {"dp": 8, "global_batch": 32, "sequence": 2048},
    "fsdp": {"dp": 8, "global_batch": 32, "sequence": 2048},
    "torchtitan": {**SIZES, "dp": 4},
    "deepspeed-zero1": SIZES,
    "deepspeed-zero2": {"dp": 8, "global_batch": 32, "sequence": 2048},
    "deepspeed-zero3": {"dp": 8, "global_batch": 32, "sequence": 2048},
    "megatron": SIZES,
    "megatron-deepspeed": SIZES,
    "colossalai-2d": {**GRID, "tp": 4},
    "colossalai-2.5d": {**GRID, "tp": 8, "tensor_depth": 2},
    "colossalai-3d": {**GRID, "tp": 8},
    "gpipe": SIZES,
    "pipedream": SIZES,
    "gspmd": SIZES,
    "hetumoe": {"dp": 16, "ep": 16, "global_batch": 32, "sequence": 2048},
    "deepspeed-moe": {"dp": 16, "ep": 16, "global_batch": 32, "sequence": 2048},
}


def step(name, **changes):
    model = EXPERTS if name.endswith("moe") else MODEL
    return predict_step(model, plan_of(name, **(EXAMPLES[name] | changes)), "h100", fit_memory=False)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_every_preset_adds_up(name):
    found = step(name)
    shown = found.to_json()
    assert 0 < found.mfu < 0.8
    assert sum(shown["breakdown_s"].values()) == pytest.approx(found.seconds)
    assert min(shown["breakdown_s"].values()) >= 0
    parts = [size for part, size in shown["memory_bytes"].items() if part != "total"]
    assert sum(parts) == pytest.approx(shown["memory_bytes"]["total"])


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("ddp", {"dp": 3}, "global_batch=32: must be a multiple of dp x microbatch = 3 x 1"),
        ("gpipe", {"pp": 25}, "25 stages are more than the 24 layers"),
        ("megatron", {"tp": 3}, "must divide 16 query heads"),
        ("colossalai-2d", {"tp": 8}, "must form a square"),
        ("colossalai-2d", {"microbatch": 1}, "cuts it into 2"),
        ("colossalai-2.5d", {"tensor_depth": 1}, "must form 1 squares"),
        ("colossalai-3d", {"tp": 4}, "must form a cube"),
        ("colossalai-3d", {"tp": 27}, "a side of 3 must divide"),
        ("colossalai-2d", {"cp": 2}, "not combined with 2d tensor parallelism"),
        ("hetumoe", {"ep": 3}, "must divide 128 experts"),
        ("gspmd", {"schedule": "dualpipe", "pp": 3, "dp": 1}, "needs an even number of pipeline stages"),
        ("fsdp", {"shard_over": 3}, "must divide dp=8"),
        ("deepspeed-zero2", {"offload_weights": True}, "fetched layer by layer only under ZeRO-3"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(name, changes, words):
    with pytest.raises(InputError) as raised:
        step(name, **changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("linear", "plan", "sizes"),
    [
        (tensor_2d, ParallelPlan(tp=4, tensor="2d"), {"side": 2}),
        (tensor_2d, ParallelPlan(tp=9, tensor="2d"), {"side": 3}),
        (tensor_2_5d, ParallelPlan(tp=8, tensor="2.5d", tensor_depth=2), {"side": 2, "depth": 2}),
        (tensor_2_5d, ParallelPlan(tp=12, tensor="2.5d", tensor_depth=3), {"side": 2, "depth": 3}),
        (tensor_3d, ParallelPlan(tp=8, tensor="3d"), {"side": 2}),
    ],
)
def test_grids_and_cubes_send_what_the_reference_layer_sends(linear, plan, sizes):
    M, K, N = 72, 36, 24
    traffic = Traffic()
    linear(**linear_arguments(np.random.default_rng(0), M=M, K=K, N=N), **sizes, traffic=traffic)
    moved = [one for way in grid_traffic(plan, float(M), float(K), float(N)) for one in way]
    sent = plan.tp * sum(elements * (ranks - 1) / ranks for elements, ranks, _ in moved)
    assert 8 * sent == traffic.total_bytes


def test_grids_repeat_no_activations_and_depth_repeats_weights():
    def memory(tensor, tp, depth=1):
        plan = ParallelPlan(tp=tp, microbatch=4, global_batch=4, framework="colossalai-2d", tensor=tensor, tensor_depth=depth)
        return rank_memory(MODEL, plan)

    alone = memory("1d", 1)
    for tensor, tp, depth in (("2d", 4, 1), ("2.5d", 8, 2), ("3d", 8, 1)):
        found = memory(tensor, tp, depth)
        assert found.activations_bytes == pytest.approx(alone.activations_bytes / tp)
        assert found.weights_bytes == pytest.approx(alone.weights_bytes * depth / tp)
    assert memory("1d", 4).activations_bytes > memory("2d", 4).activations_bytes


def test_grids_share_out_the_arithmetic():
    one = step("colossalai-2d", tp=1, dp=1, pp=1)
    four = step("colossalai-2d", tp=4, dp=1, pp=1)
    assert one.breakdown.compute_s / 4 == pytest.approx(four.breakdown.compute_s, rel=0.1)


def test_an_exchange_in_two_levels_trades_messages_for_bytes_inside_nodes():
    net, flat = Network(8, 2e11, 2e10), replace(framework("hetumoe"), hierarchical_all_to_all=False)
    small, large = 1e5, 1e9
    assert all_to_all_seconds(net, framework("hetumoe"), small, 64) < all_to_all_seconds(net, flat, small, 64)
    assert all_to_all_seconds(net, framework("hetumoe"), large, 64) > all_to_all_seconds(net, flat, large, 64)
    inside = [all_to_all_seconds(net, habits, large, 8) for habits in (framework("hetumoe"), flat)]
    assert inside[0] == inside[1]


def test_dispatch_by_one_hot_products_costs_arithmetic():
    habits = framework("deepspeed-moe")
    plan = plan_of("deepspeed-moe", **EXAMPLES["deepspeed-moe"])
    copied = predict_step(EXPERTS, plan, "h100", habits=replace(habits, einsum_dispatch=False), fit_memory=False)
    assert step("deepspeed-moe").breakdown.compute_s > copied.breakdown.compute_s
    padded = predict_step(EXPERTS, plan, "h100", habits=replace(habits, capacity_factor=1.25), fit_memory=False)
    assert padded.breakdown.expert_s > step("deepspeed-moe").breakdown.expert_s


def test_pipedream_never_flushes_stashes_weights_and_updates_every_microbatch():
    stashing, flushing = step("pipedream", pp=4, dp=1), step("pipedream", pp=4, dp=1, schedule="1f1b")
    filled = sum(one.total_s for one in flushing.stages) - max(one.total_s for one in flushing.stages)
    assert flushing.breakdown.bubble_s - stashing.breakdown.bubble_s >= filled
    assert stashing.breakdown.optimizer_s == pytest.approx(32 * flushing.breakdown.optimizer_s)
    plans = [
        plan_of("pipedream", **(EXAMPLES["pipedream"] | {"pp": 4, "dp": 1, "schedule": name})) for name in ("pipedream", "1f1b")
    ]
    for rank in range(4):
        versions = rank_memory(MODEL, plans[0], rank).weights_bytes / rank_memory(MODEL, plans[1], rank).weights_bytes
        assert versions == pytest.approx(4 - rank)  # arXiv:1806.03377, section 3.3


def test_gspmd_gathers_sharded_weights_and_splits_activations():
    plan = plan_of("gspmd", **EXAMPLES["gspmd"])
    assert (plan.zero_stage, plan.sequence_parallel, plan.schedule) == (3, True, "gpipe")
    assert step("gspmd").breakdown.data_s > step("gspmd", zero_stage=0).breakdown.data_s
    held = rank_memory(MODEL, plan).weights_bytes
    assert held == pytest.approx(rank_memory(MODEL, replace(plan, zero_stage=0)).weights_bytes / 2)


def test_zero_3_goes_with_a_pipeline():
    stages = [step("torchtitan", zero_stage=stage) for stage in (0, 1, 2, 3)]
    held = [one.memory.weights_bytes + one.memory.gradients_bytes + one.memory.optimizer_bytes for one in stages]
    assert held == sorted(held, reverse=True)
    assert stages[3].breakdown.data_s > stages[1].breakdown.data_s
    slow, fast = (Network(8, 2e11, per_s) for per_s in (5e8, 5e10))
    plan = plan_of("torchtitan", **EXAMPLES["torchtitan"] | {"dp": 8})
    one, other = (predict_step(MODEL, plan, "h100", network=net, fit_memory=False) for net in (slow, fast))
    assert one.breakdown.data_s > other.breakdown.data_s


def test_zero_2_scatters_the_gradients_of_every_microbatch():
    def data(stage, microbatch):
        return step("deepspeed-zero2", zero_stage=stage, microbatch=microbatch).breakdown.data_s

    assert data(2, 4) == pytest.approx(data(1, 4))
    assert data(2, 1) > data(1, 1) == pytest.approx(data(1, 4))


def test_dualpipe_hides_the_exchange_between_experts():
    sizes = {"dp": 16, "pp": 4, "ep": 16, "global_batch": 256, "sequence": 4096}
    plain, paired = (
        predict_step(EXPERTS, plan_of("megatron", **sizes, schedule=name), "h100", fit_memory=False)
        for name in ("zb-h1", "dualpipe")
    )
    assert paired.breakdown.expert_s < plain.breakdown.expert_s
    assert paired.memory.weights_bytes > 1.9 * plain.memory.weights_bytes


def test_four_bit_products_need_a_device_that_has_them():
    plan = plan_of("megatron", **SIZES, precision="nvfp4")
    for name in ("a100", "h100"):
        with pytest.raises(InputError, match=r"precision='nvfp4'.* has no 4-bit matrix units"):
            predict_step(MODEL, plan, name)
    four, sixteen = (
        predict_step(gpt(24, 8192, 64, 51200, 2048), replace(plan, precision=p), "b200") for p in ("nvfp4", "bfloat16")
    )
    assert four.breakdown.compute_s < sixteen.breakdown.compute_s
    assert four.memory.activations_bytes < sixteen.memory.activations_bytes
    assert four.memory.weights_bytes == pytest.approx(sixteen.memory.weights_bytes * 2.5625 / 2)
    assert load_device_sheet("b200").flops_per_s["fp4"] > load_device_sheet("b200").flops_per_s["fp8"]


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_precisions_have_short_names(name):
    plan = plan_of("megatron", **SIZES, precision=name)
    assert plan.precision in ("float16", "bfloat16", "float32")
    plan.check(MODEL)


def test_optimizers_rank_by_the_state_they_keep():
    order = ["sgd", "adafactor", "adam-8bit", "sgd-momentum", "muon", "adam"]
    held = [step("ddp", optimizer=name).memory.optimizer_bytes for name in order]
    assert held == sorted(held)
    assert held[-1] == pytest.approx(12 / 4 * held[0])
    assert step("ddp", optimizer="muon").breakdown.optimizer_s > step("ddp", optimizer="sgd-momentum").breakdown.optimizer_s


def test_what_goes_to_the_host_leaves_the_device_and_costs_time():
    here, states, all_of = (
        step("deepspeed-zero3", offload=state, offload_weights=weights)
        for state, weights in ((False, False), (True, False), (True, True))
    )
    assert here.memory.total_bytes > states.memory.total_bytes > all_of.memory.total_bytes
    assert here.seconds < states.seconds < all_of.seconds
    assert (states.memory.optimizer_bytes, all_of.memory.weights_bytes, all_of.memory.gradients_bytes) == (0, 0, 0)
