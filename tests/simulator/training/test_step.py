"""Laws of a predicted step: sums, monotonicity, closed forms of pipelines, collectives and memory."""

from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.failures import goodput, simulate_goodput, young_daly_s
from llmlab.simulator.training.memory import check_memory, fullest_rank, rank_memory, stage_weights
from llmlab.simulator.training.network import Network
from llmlab.simulator.training.operators import joined, layer_cost, training_flops
from llmlab.simulator.training.pipeline_time import StageTime, replayed_seconds
from llmlab.simulator.training.plan import ParallelPlan, dp_of, gpt, plan_of
from llmlab.simulator.training.step import predict_step, tables

MODEL = gpt(24, 2048, 16, 51200, 2048)
PLAN = plan_of("megatron", dp=2, tp=4, pp=2, global_batch=64, sequence=2048)


def seconds(**changes):
    return predict_step(MODEL, replace(PLAN, **changes), "a100", fit_memory=False).seconds


def test_breakdown_and_figures_add_up():
    step = predict_step(MODEL, PLAN, "a100")
    shown = step.to_json()
    assert sum(shown["breakdown_s"].values()) == pytest.approx(step.seconds)
    assert min(shown["breakdown_s"].values()) >= 0
    assert shown["tokens_per_s"] * step.seconds == pytest.approx(64 * 2048)
    assert sum(v for k, v in shown["memory_bytes"].items() if k != "total") == pytest.approx(shown["memory_bytes"]["total"])
    assert 0 < step.mfu < 1
    assert tables(step)[0][0].startswith("One step on 16")


def test_more_work_takes_longer():
    assert seconds(global_batch=128) > seconds()
    assert seconds(sequence=4096) > 1.5 * seconds()
    assert seconds(recompute="full") > seconds(recompute="none")
    large = {"pp": 4, "microbatch": 4}  # with little work per chunk, handing over costs more than the bubble
    assert seconds(**large) > seconds(**large, virtual_stages=3, schedule="interleaved")


def test_more_devices_are_quicker_but_never_more_than_linearly():
    one, four = seconds(dp=1), seconds(dp=4)
    assert one / 4 < four < one


def test_faster_devices_are_faster():
    assert predict_step(MODEL, PLAN, "h100").seconds < predict_step(MODEL, PLAN, "a100").seconds
    assert predict_step(MODEL, PLAN, "a100").seconds < predict_step(MODEL, PLAN, "v100", fit_memory=False).seconds


def test_slower_network_is_never_quicker():
    slow, fast = Network(8, 1e11, 1e9), Network(8, 1e11, 2e10)
    plan = replace(PLAN, dp=8)
    assert predict_step(MODEL, plan, "a100", network=slow).seconds > predict_step(MODEL, plan, "a100", network=fast).seconds


def test_flops_are_six_per_weight_and_token_where_sequences_are_short():
    model = load_model("openai/gpt3-175b")
    assert training_flops(model, 8, 16) / (6 * model.parameters * 8 * 16) == pytest.approx(1.0, rel=0.01)


def test_operators_sum_to_those_flops():
    plan = plan_of("megatron-sc21", microbatch=2, global_batch=2, sequence=2048)
    layers = MODEL.layers * layer_cost(MODEL, "A100-SXM-80GB", plan).flops
    head = 6 * 2 * 2048 * 51200 * 2048
    assert (layers + head) / training_flops(MODEL, 2, 2048) == pytest.approx(1.0, rel=0.005)


def test_a_host_or_a_device_alone_decides():
    assert joined(3.0, 3.0) > 3.0
    assert joined(3.0, 0.01) == pytest.approx(3.0, rel=1e-6)


def test_sixteen_bytes_per_weight_and_what_zero_leaves_of_them():
    model = gpt(12, 768, 12, 51200, 1024)

    def state(stage):
        memory = rank_memory(model, plan_of("ddp", dp=8, zero_stage=stage, global_batch=8, sequence=1024))
        return (memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes) / model.parameters

    assert state(0) == pytest.approx(16)
    assert state(1) == pytest.approx(4 + 12 / 8)  # arXiv:1910.02054, figure 1
    assert state(2) == pytest.approx(2 + 14 / 8)
    assert state(3) == pytest.approx(16 / 8)


def test_stages_hold_every_weight_and_a_tied_matrix_twice():
    plan = ParallelPlan(pp=4, tp=2)
    held = 2 * sum(sum(stage_weights(MODEL, plan, stage)) for stage in range(4))
    assert held == pytest.approx(MODEL.parameters + 51200 * 2048, rel=1e-4)


def test_recomputation_and_sharding_save_memory():
    def total(**changes):
        return fullest_rank(MODEL, replace(PLAN, framework="megatron-sc21", **changes))[1].total_bytes

    assert total(recompute="full") < total(recompute="selective") < total(recompute="none")
    assert total(sequence_parallel=True) < total(sequence_parallel=False)
    assert total(zero_stage=2) < total(zero_stage=1) < total(zero_stage=0)
    assert total(offload=True) < total(offload=False)
    assert total(schedule="gpipe") > total(schedule="1f1b")


def test_what_does_not_fit_names_its_parts():
    model = load_model("openai/gpt3-175b")
    with pytest.raises(InputError, match=r"does not fit A100-SXM-80GB.*weights.*optimizer.*activations") as raised:
        check_memory(model, plan_of("ddp", global_batch=1, sequence=2048), load_device_sheet("a100"))
    assert "\n" not in str(raised.value)


def test_a_trillion_weights_on_64_devices_are_two_replicas_of_four_stages_of_eight_ranks():
    model = gpt(128, 25600, 160, 51200, 2048)
    plan = plan_of("megatron", dp=dp_of(64, 8, 4, 1), tp=8, pp=4, global_batch=64, sequence=2048)
    assert (plan.dp, plan.gpus, plan.layers_of_stages(model.layers)) == (2, 64, [32] * 4)
    held = [rank_memory(model, plan, stage).weights_bytes for stage in range(4)]
    assert 8 * sum(held) == pytest.approx(2 * model.parameters, rel=0.01)
    assert min(held) == pytest.approx(2 * 1e12 / 32, rel=0.02)  # 63 GB: 16-bit weights alone fill a device
    with pytest.raises(InputError, match=r"does not fit H100-SXM-80GB with 85\.0 GB"):
        predict_step(model, plan, "h100")


def test_a_trillion_weights_on_thousands_of_devices():
    model = gpt(128, 25600, 160, 51200, 2048)
    plan = plan_of("megatron", dp=32, tp=8, pp=64, global_batch=3072, sequence=2048)
    step = predict_step(model, plan, "h100")
    assert plan.gpus == 16384
    assert model.parameters > 1e12
    assert 0 < step.mfu < 0.7


def test_collectives_obey_their_lower_bounds():
    net = Network(8, 2e11, 2e10)
    for ranks, stride in ((2, 1), (8, 1), (16, 1), (16, 8), (64, 4)):
        size = 1e9
        assert net.all_reduce_s(size, ranks, stride) >= 2 * (ranks - 1) / ranks * size / 2e11
        assert net.all_reduce_s(size, ranks, stride) > net.reduce_scatter_s(size, ranks, stride)
        assert net.all_to_all_s(size, ranks, stride) >= (ranks - 1) / ranks * size / 2e11 * 0.5
    assert net.all_reduce_s(1e9, 16, 8) > net.all_reduce_s(1e9, 8, 1)
    assert net.all_reduce_s(1e9, 1) == 0
    assert net.send_s(1e6, 8) > net.send_s(1e6, 1)


def test_young_daly_is_the_best_interval_and_a_drawn_run_agrees():
    checkpoint, apart, restart = 30.0, 7200.0, 300.0
    best = young_daly_s(checkpoint, apart)
    expected = goodput(checkpoint, apart, restart)
    for factor in (0.4, 2.5):
        assert goodput(checkpoint, apart, restart, best * factor).useful < expected.useful
    drawn = simulate_goodput(checkpoint, apart, restart, best, 20000, np.random.default_rng(0))
    assert drawn.useful == pytest.approx(expected.useful, rel=0.01)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_failures_need_positive_times(bad):
    with pytest.raises(InputError, match="failures"):
        young_daly_s(bad, 10.0)


def test_a_replayed_step_is_near_the_closed_form():
    one, other = (
        predict_step(MODEL, replace(PLAN, pp=4), "a100", fit_memory=False, replayed=flag).seconds for flag in (True, False)
    )
    assert one == pytest.approx(other, rel=0.03)


def test_sizes_a_schedule_does_not_take_cannot_be_replayed():
    with pytest.raises(InputError, match="pipeline"):
        replayed_seconds("1f1b", [StageTime(1, 1, 1)] * 2, 4, virtual_stages=2)
    with pytest.raises(InputError, match="cannot be replayed"):
        replayed_seconds("other", [StageTime(1, 1, 1)] * 2, 4)
