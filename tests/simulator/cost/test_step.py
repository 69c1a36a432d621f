"""Laws of the price of a step, whatever the curves."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.engine import ENGINES, EngineModel, load_engine
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model

SILENT = EngineModel("silent", 0.0, 0.0, 0.0, launch_s=0.0, graph_launch_s=0.0)


def decode(requests, context):
    return BatchShape((), requests, requests * context, requests)


@pytest.fixture(scope="module", params=["a100", "h100", "h200", "rtx-4090"])
def cost(request):
    return StepCost(load_model("Meta-Llama-3-8B"), load_device(request.param), engine=ENGINES["vllm"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 20000), st.integers(1, 200), st.integers(0, 5000))
def test_more_requests_or_longer_contexts_never_take_less(requests, context, more, longer):
    cost = StepCost.cached("Meta-Llama-3-8B", "h100")
    base = cost.step_ns(decode(requests, context))
    assert base <= cost.step_ns(decode(requests + more, context))
    assert base <= cost.step_ns(decode(requests, context + longer))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9000), st.integers(0, 20000), st.integers(1, 500), st.integers(0, 5000))
def test_more_prompt_or_more_cache_never_takes_less(new, cached, more, longer):
    cost = StepCost.cached("Meta-Llama-3-8B", "h100")
    base = cost.step_ns(BatchShape(((new, cached),), 0, 0, 1))
    assert base <= cost.step_ns(BatchShape(((new + more, cached),), 0, 0, 1))
    assert base <= cost.step_ns(BatchShape(((new, cached + longer),), 0, 0, 1))


@pytest.mark.parametrize(
    "shape",
    [decode(1, 100), decode(64, 1000), BatchShape(((2048, 0),), 0, 0, 1), BatchShape(((500, 100), (20, 7)), 30, 30000, 32)],
)
def test_the_breakdown_adds_up_and_everything_is_bound_by_something(cost, shape):
    parts = cost.breakdown(shape)
    assert sum(parts.values()) == pytest.approx(cost.seconds(shape), rel=1e-9)
    assert all(seconds > -1e-9 for seconds in parts.values())
    assert cost.binding(shape) in ("compute", "HBM bandwidth", "network", "host")
    low, high = cost.interval(shape)
    assert 0 < low < 1 < high


def test_doubling_the_bandwidth_never_slows():
    profile = load_device("h100")
    faster = replace(profile, device=replace(profile.device, hbm_bytes_per_s=2 * profile.device.hbm_bytes_per_s))
    model = load_model("Meta-Llama-3-8B")
    slow, fast = (StepCost(model, p, engine=SILENT) for p in (profile, faster))
    for shape in (decode(1, 10), decode(64, 2000), BatchShape(((4096, 0),), 0, 0, 1), BatchShape(((64, 900),), 10, 5000, 11)):
        assert fast.step_ns(shape) <= slow.step_ns(shape)
    assert fast.seconds(decode(8, 1000)) < 0.7 * slow.seconds(decode(8, 1000))


def test_decode_is_bound_by_bandwidth_and_prefill_by_compute():
    cost = StepCost.cached("meta-llama/Llama-3.1-70B", "h100", tensor_parallel=4)
    assert cost.binding(decode(8, 500)) == "HBM bandwidth"
    assert cost.binding(BatchShape(((8192, 0),), 0, 0, 1)) == "compute"
    assert StepCost(load_model("llmlab/llama-50m"), load_device("h100")).binding(decode(1, 10)) == "host"


def test_tensor_parallelism_speeds_up_and_communicates():
    model, profile = load_model("meta-llama/Llama-3.1-70B"), load_device("h200")
    one, four = (StepCost(model, profile, tensor_parallel=tp, engine=SILENT) for tp in (1, 4))
    assert four.seconds(decode(32, 1000)) < 0.5 * one.seconds(decode(32, 1000))
    assert four.seconds(decode(32, 1000)) > 0.25 * one.seconds(decode(32, 1000))
    assert "communication" in four.breakdown(decode(32, 1000))
    assert "communication" not in one.breakdown(decode(32, 1000))


def test_an_empty_step_takes_nothing_and_any_other_at_least_the_host():
    cost = StepCost.cached("Meta-Llama-3-8B", "h100")
    assert cost.step_ns(BatchShape((), 0, 0, 0)) == 0
    assert cost.breakdown(BatchShape((), 0, 0, 0)) == {}
    assert cost.seconds(decode(1, 1)) > cost.engine.host_step_s


def test_tables_agree_with_the_formula_beyond_their_end():
    cost = StepCost.cached("Meta-Llama-3-8B", "h100")
    for new in (4095, 4096, 4097, 10_000, 100_000, 5_000_000):
        shape = BatchShape(((new, 0),), 0, 0, 1)
        exact = sum(seconds for kind, seconds in cost.breakdown(shape).items() if kind != "table")
        assert cost.seconds(shape) == pytest.approx(exact, rel=0.04)


def test_lower_precision_is_faster_where_weights_bind():
    model, profile = load_model("meta-llama/Llama-3.1-70B"), load_device("h100")
    sixteen = StepCost(model, profile, tensor_parallel=4, engine=SILENT)
    eight = StepCost(model, profile, tensor_parallel=4, weight_dtype="fp8", engine=SILENT)
    assert eight.seconds(decode(8, 100)) < sixteen.seconds(decode(8, 100))


def test_unknown_engine_and_dtype_are_named():
    with pytest.raises(InputError, match="known: generic, vllm"):
        load_engine("llamafile")
    with pytest.raises(InputError, match="dtype='float7'"):
        StepCost(load_model("Meta-Llama-3-8B"), load_device("h100"), weight_dtype="float7")
    with pytest.raises(InputError, match="host_step_s"):
        EngineModel(host_step_s=float("nan"))
