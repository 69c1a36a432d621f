"""The compiled step time equals the readable one to the nanosecond, whatever a cost is made of."""

import math

import numpy as np
import pytest

from llmlab.simulator.cost import compiled
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.compiled import UncompilableError, compile_cost, step_ns, sums_of
from llmlab.simulator.cost.curves import FLOATS, FORMS
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.cost.formula import UnrecordableError, record, traced_namespace
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model

CASES = [
    ("meta-llama/Llama-3.1-8B", "h100", 1, "bfloat16", "bfloat16", "vllm"),
    ("meta-llama/Llama-2-70b", "a100", 4, "bfloat16", "bfloat16", "vllm-v0"),
    ("mixtral-8x7b", "h200", 2, "fp8", "fp8", "sglang"),
    ("Meta-Llama-3-8B", "rtx-4090", 1, "int4", "bfloat16", "trtllm"),
    ("deepseek-ai/DeepSeek-V3", "h200", 8, "fp8", "bfloat16", "sglang"),
    ("Meta-Llama-3-8B", "l40s", 2, "bfloat16", "fp8", "generic"),
]
MOST = 300


def cost_of(model, device, ranks, weights, cache, engine):
    return StepCost(
        load_model(model),
        load_device(device),
        tensor_parallel=ranks,
        weight_dtype=weights,
        kv_dtype=cache,
        engine=load_engine(engine),
    )


def draw_shape(rng):
    """Any mix of prompts and decodes, the sizes over orders of magnitude."""
    prompts = tuple(
        (int(2 ** rng.uniform(1, 14)), int(rng.choice([0, 2 ** rng.uniform(0, 17)])))
        for _ in range(rng.choice([0, 0, 1, 2, 7]))
    )
    requests = int(rng.choice([0, 1, rng.integers(1, MOST + 1)]))
    if not prompts and not requests:
        requests = 1
    context = requests + int(requests * 2 ** rng.uniform(0, 17)) if requests else 0
    return BatchShape(prompts, requests, context, int(rng.integers(0, requests + len(prompts) + 1)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_step_takes_the_same_nanoseconds(case):
    cost = cost_of(*case)
    fast, rng = compile_cost(cost, MOST), np.random.default_rng(len(case[0]))
    for _ in range(300):
        shape = draw_shape(rng)
        assert step_ns(fast, *sums_of(shape)) == cost.step_ns(shape), shape


def test_random_engines_agree():
    rng = np.random.default_rng(7)
    model, device = load_model("Meta-Llama-3-8B"), load_device("h100")
    for _ in range(10):
        engine = EngineModel(
            "drawn",
            host_step_s=float(rng.uniform(0, 3e-3)),
            host_request_step_s=float(rng.uniform(0, 1e-4)),
            cuda_graph=bool(rng.random() < 0.5),
            launch_s=float(rng.uniform(0, 3e-5)),
            graph_tokens=int(rng.integers(1, 600)),
            graph_launch_s=float(rng.uniform(0, 1e-3)),
            kernel_gap_s=float(rng.uniform(0, 1e-6)),
            decode_key_core_s=float(rng.choice([0.0, 2e-9])),
        )
        cost = StepCost(model, device, engine=engine)
        fast = compile_cost(cost, MOST)
        for _ in range(40):
            shape = draw_shape(rng)
            assert step_ns(fast, *sums_of(shape)) == cost.step_ns(shape), (engine, shape)


def test_stretch_rounds_up_the_rounded_nanoseconds():
    cost, shape = StepCost.cached("Meta-Llama-3-8B", "h100"), BatchShape(((700, 50),), 9, 9000, 10)
    stretched = compile_cost(cost, MOST, stretch=1.37)
    assert step_ns(stretched, *sums_of(shape)) == math.ceil(1.37 * cost.step_ns(shape))
    assert compile_cost(cost, MOST).stretch == 1.0  # what is kept is not changed


def test_a_cost_that_differs_anywhere_is_refused():
    """The check before use: one table entry, or the price of prompts, off by a part in a thousand."""
    model, device = load_model("Meta-Llama-3-8B"), load_device("h100")
    cost = StepCost(model, device)
    made = compile_cost(cost, 64)
    off = made.parts.decode_s.copy()
    off[64] *= 1.001
    with pytest.raises(UncompilableError, match="differs"):
        compiled._check(cost, made._replace(parts=made.parts._replace(decode_s=off)), 64)
    registers = made.registers * 1.001
    with pytest.raises(UncompilableError, match="differs"):
        compiled._check(cost, made._replace(registers=registers), 64)


def test_a_cost_of_another_kind_is_refused():
    class Slower(StepCost):
        def step_ns(self, shape):
            return 2 * super().step_ns(shape)

    with pytest.raises(UncompilableError, match="Slower"):
        compile_cost(Slower(load_model("Meta-Llama-3-8B"), load_device("h100")), 8)


XP = traced_namespace(FLOATS)


def replay(formula, *inputs):
    code, registers = record(formula, len(inputs))
    registers[: len(inputs)] = inputs
    return compiled.evaluate(code, registers, len(registers) - len(code))


@pytest.mark.parametrize(
    "formula",
    [
        lambda a, b, xp: a + 2 * b - 1.5 / a,
        lambda a, b, xp: xp.maximum(a, 3.0) ** 0.7 + xp.minimum(b, a),
        lambda a, b, xp: xp.where((a > 1) & (b >= 2), xp.log2(1.0 + a), -b),
        lambda a, b, xp: xp.ceil(a / 3) * xp.floor(b) + (a < b) * 2.0 + (a == b),
        lambda a, b, xp: a,
        lambda a, b, xp: 4.0,
        lambda a, b, xp: (a * b) + (a * b) * (2**0.5) ** a,
    ],
)
def test_a_recorded_formula_gives_what_python_gives(formula):
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = float(rng.uniform(0.1, 9)), float(rng.integers(1, 5))
        assert replay(lambda x, y: formula(x, y, XP), a, b) == float(formula(a, b, FLOATS))


def test_a_formula_that_branches_on_its_input_cannot_be_recorded():
    with pytest.raises(UnrecordableError, match="branch"):
        record(lambda a: a if a > 1 else 2 * a, 1)
    with pytest.raises(UnrecordableError, match="outside xp"):
        record(lambda a: math.sqrt(a), 1)


def test_every_form_of_prefill_attention_can_be_recorded():
    """So that no profile is left to the slow path."""
    names = [name for name in FORMS if name.startswith("attention_prefill")]
    assert names
    profile = load_device("h100")
    limits = profile.limits("bfloat16", "bfloat16")
    heads = {"heads": 32, "kv_heads": 8, "head_width": 128, "window": 0, "latent_width": 512, "rope_width": 64}
    for name in names:
        form = FORMS[name]
        guess = {key: first for key, (first, _, _) in form.parameters.items()} | {k: v[-1] for k, v in form.choices.items()}

        def formula(batch, new, cached, xp=XP, guess=guess, form=form):
            return form.seconds(guess, limits, {"batch": batch, "new_tokens": new, "context_tokens": cached, **heads}, xp)

        for inputs in ((1, 700.0, 0.0), (3, 55.5, 1234.0)):
            assert replay(formula, *inputs) == formula(*inputs, xp=FLOATS)
