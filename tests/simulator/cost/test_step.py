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


PIPELINE = ("meta-llama/Llama-3.1-70B", "h100")


def test_stages_share_the_requests_of_a_step_and_hand_over_their_states():
    model, profile = load_model(PIPELINE[0]), load_device(PIPELINE[1])
    one, four = (StepCost(model, profile, tensor_parallel=2, pipeline_parallel=pp, engine=SILENT) for pp in (1, 4))
    hops = four.breakdown(decode(64, 1000))["communication"] - one.breakdown(decode(16, 1000))["communication"]
    assert 0 < hops < 1e-3
    assert four.seconds(decode(64, 1000)) == pytest.approx(one.seconds(decode(16, 1000)) + hops, rel=1e-9)
    assert four.seconds(decode(1, 1000)) > one.seconds(decode(1, 1000))  # a lone request passes all stages
    lone = BatchShape(((4096, 0),), 0, 0, 1)
    assert four.seconds(lone) > one.seconds(lone)
    assert four.seconds(BatchShape(((4096, 0),) * 4, 0, 0, 4)) == pytest.approx(four.seconds(lone), rel=1e-9)
    parts = four.breakdown(BatchShape(((2048, 0), (100, 50)), 30, 30000, 32))
    assert sum(parts.values()) == pytest.approx(four.seconds(BatchShape(((2048, 0), (100, 50)), 30, 30000, 32)), rel=1e-9)
    with pytest.raises(InputError, match="pipeline_parallel"):
        StepCost(model, profile, pipeline_parallel=81)


def test_pipelined_steps_compile():
    from llmlab.simulator.cost.compiled import compile_cost, step_ns, sums_of

    cost = StepCost(load_model(PIPELINE[0]), load_device(PIPELINE[1]), tensor_parallel=2, pipeline_parallel=3)
    compiled = compile_cost(cost, 40)
    for shape in (decode(40, 900), decode(2, 10), BatchShape(((700, 30), (12, 0)), 17, 4000, 19)):
        assert int(step_ns(compiled, *sums_of(shape))) == cost.step_ns(shape)


WIDER = [
    ("deepseek-ai/DeepSeek-V3", "h200", 8, "fp8_block", {"expert_parallel": 8, "attention_data_parallel": 8}),
    ("deepseek-ai/DeepSeek-V3.2", "h200", 8, "fp8_block", {}),
    ("openai/gpt-oss-120b", "h200", 2, "mxfp4", {}),
    ("Qwen/Qwen3.5-9B", "h100", 1, "bfloat16", {}),
    ("meta-llama/Llama-4-Maverick-17B-128E", "b200", 8, "fp8", {"expert_parallel": 8}),
    ("tiiuae/falcon-180B", "a100", 8, "float16", {}),
]


@pytest.mark.parametrize(("name", "device", "tp", "dtype", "degrees"), WIDER)
def test_wider_families_are_priced_and_compile(name, device, tp, dtype, degrees):
    from llmlab.simulator.cost.compiled import compile_cost

    cost = StepCost(load_model(name), load_device(device), tensor_parallel=tp, weight_dtype=dtype, **degrees)
    previous = 0.0
    for requests in (1, 8, 64, 256):
        seconds = cost.seconds(decode(requests, 2000))
        assert seconds >= previous
        previous = seconds
    assert 1e-3 < cost.seconds(decode(1, 2000)) < 0.1
    assert cost.seconds(decode(8, 60000)) > cost.seconds(decode(8, 2000))
    compile_cost(cost, 8)


def test_latents_are_read_once_for_all_heads_and_attending_apart_reads_a_part():
    model, profile = load_model("deepseek-ai/DeepSeek-V3"), load_device("h200")
    common = {"tensor_parallel": 8, "weight_dtype": "fp8_block", "engine": SILENT}
    whole = StepCost(model, profile, **common)
    apart = StepCost(model, profile, attention_data_parallel=8, expert_parallel=8, **common)
    long = decode(64, 60000)
    assert apart.breakdown(long)["attention_decode"] < 0.6 * whole.breakdown(long)["attention_decode"]
    assert apart.breakdown(decode(1, 10))["gemm"] > whole.breakdown(decode(1, 10))["gemm"]


def test_a_sparse_attention_stops_growing_where_a_full_one_goes_on():
    profile = load_device("h200")
    full, sparse = (
        StepCost(load_model(f"deepseek-ai/DeepSeek-V3{version}"), profile, tensor_parallel=8, weight_dtype="fp8", engine=SILENT)
        for version in ("", ".2")
    )
    grown = [cost.seconds(decode(64, 64000)) - cost.seconds(decode(64, 4000)) for cost in (full, sparse)]
    assert 0 < grown[1] < 0.5 * grown[0]


def test_widening_four_bit_experts_costs_hopper_its_fast_products_and_ampere_nothing() -> None:
    prompts = BatchShape(((2048, 0),) * 4, 0, 0, 4)
    ratio = {}
    for device in ("h100", "a100"):
        four, sixteen = (
            StepCost.cached("openai/gpt-oss-20b", device, weight_dtype=dtype).breakdown(prompts)["moe"]
            for dtype in ("mxfp4", "bfloat16")
        )
        ratio[device] = four / sixteen
    assert ratio["h100"] > 1.5
    assert 0.5 < ratio["a100"] < 1.1
