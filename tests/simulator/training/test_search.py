"""The search returns the quickest plan that fits, and says why."""

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.plan import gpt
from llmlab.simulator.training.search import candidates, divisors, explain, launch_flags, search, tables
from llmlab.simulator.training.step import predict_step

MODEL = gpt(24, 2048, 16, 51200, 2048)


def test_divisors_multiply_back():
    for number in range(1, 200):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_every_candidate_runs_on_all_devices():
    plans = list(candidates(MODEL, load_device_sheet("a100"), 16, 32, 2048))
    assert len(plans) == len(set(plans)) > 100
    for plan in plans:
        plan.check(MODEL)
        assert plan.gpus == 16


def test_the_winner_is_the_quickest_of_all_that_fit():
    device = load_device_sheet("a100")
    result = search(MODEL, device, 16, 32, 2048, keep=3)
    fitting = []
    for plan in candidates(MODEL, device, 16, 32, 2048):
        try:
            fitting.append(predict_step(MODEL, plan, device).seconds)
        except InputError:
            continue
    assert [step.seconds for step in result.best] == sorted(fitting)[:3]
    assert result.considered - result.too_big == len(fitting)


def test_the_explanation_names_the_winner_and_prices_the_others():
    result = search(MODEL, "h100", 64, 128, 2048, keep=4)
    lines = explain(result.best)
    assert lines[0].startswith(f"dp {result.best[0].plan.dp}, ")
    assert len(lines) == 3 + 3
    shown = result.to_json()
    assert len(shown["plans"]) == 4
    assert [title for title, _ in tables(result)][1] == "Why"


def test_flags_carry_every_degree():
    plan = search(MODEL, "h100", 64, 128, 2048, keep=1).best[0].plan
    flags = launch_flags(plan)
    assert f"--tensor-model-parallel-size {plan.tp} --pipeline-model-parallel-size {plan.pp}" in flags["megatron-lm"]
    assert f"--parallelism.tensor_parallel_degree {plan.tp}" in flags["torchtitan"]
    assert f'"train_batch_size": {plan.global_batch}' in flags["deepspeed"]


def test_what_cannot_fit_says_how_much_is_missing():
    with pytest.raises(InputError, match=r"does not fit: the leanest of \d+ plans .* needs \d+ GB of 85 GB"):
        search(load_model("openai/gpt3-175b"), "a100", 4, 4, 2048)


def test_sizes_that_never_divide_are_refused():
    with pytest.raises(InputError, match="gpus=7"):
        search(load_model("openai/gpt3-175b"), "a100", 7, 4, 2048)
    with pytest.raises(InputError, match="global_batch"):
        search(MODEL, "a100", 7, 0, 2048)
