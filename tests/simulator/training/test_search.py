"""The search returns the quickest plan that fits, and says why."""

import json

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.flags import launch_flags
from llmlab.simulator.training.plan import ParallelPlan, gpt
from llmlab.simulator.training.search import Choices, candidates, divisors, explain, search, tables
from llmlab.simulator.training.step import predict_step

MODEL = gpt(24, 2048, 16, 51200, 2048)
LARGE = gpt(40, 5120, 40, 51200, 2048)


def test_divisors_multiply_back():
    for number in range(1, 200):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


@pytest.mark.parametrize("gpus", [16, 24])
def test_every_candidate_runs_on_all_devices(gpus):
    plans = list(candidates(MODEL, load_device_sheet("a100"), gpus, 96, 2048))
    assert len(plans) == len(set(plans)) > 1000
    for plan in plans:
        plan.check(MODEL)
        assert plan.gpus == gpus
    assert {plan.schedule for plan in plans} >= {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v", "v-half", "dualpipe"}
    assert {plan.zero_stage for plan in plans if plan.pp > 1} == {0, 1, 2, 3}


def test_the_winner_is_the_quickest_of_all_that_fit():
    device, few = load_device_sheet("a100"), Choices(schedules=("1f1b", "zb-v"), offload=("none", "all"))
    result = search(LARGE, device, 8, 16, 2048, keep=3, choices=few)
    fitting = []
    for plan in candidates(LARGE, device, 8, 16, 2048, choices=few):
        try:
            fitting.append(predict_step(LARGE, plan, device).seconds)
        except InputError:
            continue
    assert [step.seconds for step in result.best] == sorted(fitting)[:3]
    assert 0 < result.considered - result.too_big == len(fitting) < result.considered


@pytest.mark.parametrize("name", ["colossalai-2d", "colossalai-2.5d", "colossalai-3d"])
def test_a_framework_of_grids_is_searched_on_grids(name):
    plans = list(candidates(MODEL, load_device_sheet("a100"), 16, 64, 2048, name=name))
    assert len(plans) == len(set(plans)) > 10
    for plan in plans:
        plan.check(MODEL)
        assert f"colossalai-{plan.tensor}" == name
    assert search(MODEL, "a100", 16, 64, 2048, name=name, keep=1).best[0].plan.tensor in name


def test_a_mixture_of_experts_is_spread_over_devices():
    model = load_model("Qwen/Qwen3-30B-A3B")
    plans = list(candidates(model, load_device_sheet("h100"), 16, 32, 4096, choices=Choices(schedules=("1f1b",))))
    assert {plan.ep for plan in plans} >= {1, 2, 8, 16}
    for plan in plans[::7]:
        plan.check(model)


def test_the_explanation_accounts_for_every_second_and_byte():
    result = search(MODEL, "h100", 64, 128, 2048, keep=4)
    lines = explain(result)
    assert lines[0].startswith(f"dp {result.best[0].plan.dp}, ")
    shown = [float(part.rsplit(" ", 2)[-2]) for part in lines[1].removeprefix("seconds: ").split(", ")]
    assert sum(shown) == pytest.approx(result.best[0].seconds, rel=0.02)
    parts = lines[3].split(": ")[1].split(", ")
    held = sum(float(part.split()[-1]) for part in parts)
    assert held == pytest.approx(result.best[0].memory.total_bytes / 1e9, abs=0.06 * len(parts))
    assert sum("binds" in line for line in lines) >= 1
    shown = result.to_json()
    assert len(shown["plans"]) == 4
    assert [title for title, _ in tables(result)][1] == "Why"
    assert [step.seconds for step in result.per_schedule] == sorted(step.seconds for step in result.per_schedule)


def test_a_quicker_plan_that_does_not_fit_is_named():
    result = search(load_model("openai/gpt3-175b"), "a100", 128, 256, 2048, choices=Choices(schedules=("1f1b",)))
    assert result.tempting is not None
    assert result.tempting.seconds < result.best[0].seconds
    assert result.tempting.memory.total_bytes > load_device_sheet("a100").hbm_bytes
    assert any(line.startswith("memory binds too") for line in explain(result))


def test_flags_carry_every_degree_of_a_plan_the_framework_can_run():
    launch = search(MODEL, "h100", 64, 128, 2048, keep=1).launch
    step, flags = launch["megatron-lm"]
    assert f"--tensor-model-parallel-size {step.plan.tp} --pipeline-model-parallel-size {step.plan.pp}" in flags
    step, flags = launch["torchtitan"]
    assert f"--parallelism.tensor_parallel_degree {step.plan.tp}" in flags
    step, flags = launch["deepspeed"]
    assert json.loads(flags)["train_batch_size"] == step.plan.global_batch


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"schedule": "interleaved", "pp": 2, "virtual_stages": 3}, "megatron-lm", "--num-virtual-stages-per-pipeline-rank 3"),
        ({"zero_stage": 3}, "megatron-lm", "--data-parallel-sharding-strategy optim_grads_params"),
        ({"precision": "nvfp4"}, "megatron-lm", "--fp4-format e2m1"),
        ({"offload": True}, "megatron-lm", "--optimizer-cpu-offload"),
        ({"optimizer": "muon"}, "megatron-lm", "--optimizer muon"),
        ({"zero_stage": 3, "shard_over": 2}, "torchtitan", "--parallelism.data_parallel_replicate_degree 2"),
        ({"schedule": "zb-v", "pp": 2}, "torchtitan", "ZBVZeroBubble"),
        ({"precision": "fp8"}, "torchtitan", "Float8LinearConverter"),
        ({"recompute": "full"}, "torchtitan", "activation-checkpoint:full"),
        ({"zero_stage": 3, "shard_over": 2}, "deepspeed", "cannot: shards over all data-parallel ranks"),
        ({"zero_stage": 3, "offload": True, "offload_weights": True}, "deepspeed", "offload_param"),
        ({"schedule": "chimera", "pp": 2}, "megatron-lm", "cannot: has no pipeline schedule chimera"),
        ({"tensor": "2d", "tp": 4}, "torchtitan", "cannot: has no 2d tensor parallelism"),
        ({"zero_stage": 2, "pp": 2}, "deepspeed", "cannot: does not combine ZeRO-2 with a pipeline"),
    ],
)
def test_flags_say_what_a_plan_needs_or_that_there_is_no_switch(changes, where, words):
    plan = ParallelPlan(**{"dp": 4, "microbatch": 1, "global_batch": 32, **changes})
    assert words in launch_flags(plan)[where]


def test_a_trillion_weights_find_a_plan_on_16384_devices():
    few = Choices(schedules=("1f1b",), offload=("none",), sequence_parallel=(True,))
    result = search(gpt(128, 25600, 160, 51200, 2048), "h100", 16384, 2048, 2048, choices=few, keep=2)
    assert result.best[0].plan.gpus == 16384
    assert 0.2 < result.best[0].mfu < 0.8


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Choices(schedules=("fastest",)), "schedule='fastest'"),
        (Choices(precisions=("nvfp4",)), "no 4-bit matrix units"),
        (Choices(offload=("disk",)), "offload='disk'"),
    ],
)
def test_choices_that_are_none_are_refused_in_one_line(choices, words):
    with pytest.raises(InputError) as raised:
        search(MODEL, "h100", 8, 8, 2048, choices=choices)
    assert words in str(raised.value)


def test_what_cannot_fit_says_how_much_is_missing():
    with pytest.raises(InputError, match=r"does not fit: the leanest of \d+ plans .* needs \d+ GB of 85 GB"):
        search(load_model("openai/gpt3-175b"), "a100", 4, 4, 2048)


def test_sizes_that_never_divide_are_refused():
    with pytest.raises(InputError, match="gpus=7"):
        search(load_model("openai/gpt3-175b"), "a100", 7, 4, 2048)
    with pytest.raises(InputError, match="global_batch"):
        search(MODEL, "a100", 7, 0, 2048)
