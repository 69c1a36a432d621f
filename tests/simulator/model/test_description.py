"""What a model holds and runs, against published totals and the laws of splitting."""

import json
import math

import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._presets import PUBLISHED_PARAMETERS, preset_names
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import Attention, Experts, Gemm, kv_capacity_tokens, load_model


@pytest.mark.parametrize(("name", "published"), PUBLISHED_PARAMETERS.items())
def test_parameters_are_within_two_percent_of_the_published_total(name, published):
    assert load_model(name).parameters == pytest.approx(published, rel=0.02)


def test_active_parameters_are_those_the_names_state():
    for name, billions in (
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("meta-llama/Llama-4-Maverick-17B-128E", 17),
    ):
        assert load_model(name).config.num_active_parameters == pytest.approx(1e9 * billions, rel=0.03)
    assert load_model("deepseek-ai/DeepSeek-V3").config.num_active_parameters == pytest.approx(37e9, rel=0.03)


NO_PRODUCT = ("shared_expert_gate", "conv", "decay", "embed_positions", "_bias")
"""Weights of two axes that are multiplied elementwise, looked up, or a gate of one row."""


@pytest.mark.parametrize("name", preset_names())
def test_matrices_of_the_operators_are_the_models_parameters(name):
    model = load_model(name)
    c = model.config
    matrices = sum(op.n * op.k * op.count for op in model.operators() if isinstance(op, Gemm))
    matrices += sum(3 * op.hidden * op.inter * op.experts * op.count for op in model.operators() if isinstance(op, Experts))
    looked_up = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size
    expected = sum(
        math.prod(shape)
        for name, shape in c.parameter_shapes().items()
        if len(shape) > 1 and not any(part in name for part in NO_PRODUCT)
    )
    assert matrices + looked_up == expected


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("deepseek-ai/DeepSeek-V3", 61 * 576 * 2),  # arXiv:2412.19437: 70 kB
        ("Qwen/Qwen3.5-9B", 8 * 2 * 4 * 256 * 2),  # a quarter of 32 layers caches
        ("tiiuae/falcon-180B", 80 * 2 * 8 * 64 * 2),
        ("EleutherAI/gpt-j-6b", 28 * 2 * 16 * 256 * 2),
    ],
)
def test_bytes_of_cache_per_token(name, bytes_per_token):
    assert load_model(name).kv_bytes_per_token() == bytes_per_token


def test_latents_are_held_by_every_device_and_attending_apart_costs_weights():
    model = load_model("deepseek-ai/DeepSeek-V3")
    assert model.kv_bytes_per_token(8) == model.kv_bytes_per_token(1)
    assert model.weight_bytes(8, "fp8_block", attention_data_parallel=8) > 1.1 * model.weight_bytes(8, "fp8_block")
    assert model.weight_bytes(8, "fp8_block", expert_parallel=8) == pytest.approx(model.weight_bytes(8, "fp8_block"), rel=1e-9)
    assert model.weight_bytes(1, "fp8_block") == pytest.approx(671e9, rel=0.02)


def test_windows_shorten_what_a_long_request_keeps():
    model = load_model("openai/gpt-oss-120b")
    assert model.kv_bytes_per_token(context_tokens=12800) == pytest.approx(0.505 * model.kv_bytes_per_token(), rel=1e-6)
    assert model.kv_bytes_per_token(context_tokens=100) == model.kv_bytes_per_token()


def test_gpt_oss_quantizes_its_experts_alone():
    model = load_model("openai/gpt-oss-120b")
    assert model.weight_bytes(1, "mxfp4") == pytest.approx(63e9, rel=0.05)  # the checkpoint is 60.8 GiB
    assert model.part_dtype("experts", "fp8") == "fp4"


def test_degrees_that_do_not_divide_are_named():
    model = load_model("deepseek-ai/DeepSeek-V3")
    for field, degrees in (
        ("expert_parallel", {"expert_parallel": 3}),
        ("attention_data_parallel", {"attention_data_parallel": 5}),
    ):
        with pytest.raises(InputError, match=field):
            model.operators(8, **degrees)
    with pytest.raises(InputError, match="no experts"):
        load_model("Meta-Llama-3-8B").operators(8, expert_parallel=8)


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "Qwen/Qwen3.5-9B", "openai/gpt-oss-20b", "tiiuae/falcon-40b"])
@pytest.mark.parametrize("tp", [2, 8])
def test_tensor_parallelism_splits_every_matrix_but_latents_and_router(name, tp):
    model = load_model(name)

    def work(degree):
        return sum(op.n * op.k * op.count for op in model.operators(degree) if isinstance(op, Gemm))

    whole = sum(
        op.n * op.k * op.count
        for op in model.operators()
        if isinstance(op, Gemm) and op.name in ("qkv_a", "router", "index_key")
    )
    copied = tp / 4 if name == "Qwen/Qwen3.5-9B" and tp > 4 else 1  # four key heads
    keys = sum(
        2 * c.key_value_width * c.hidden_size * (model.layers - sum(c.linear_layers)) for c in [model.config] if copied > 1
    )
    assert work(tp) == pytest.approx((work(1) - whole + keys * (copied - 1)) / tp + whole, rel=2e-3)


def test_llama_3_8b_stores_128_kib_per_token():
    assert load_model("Meta-Llama-3-8B").kv_bytes_per_token(kv_dtype="bfloat16") == 131072
    assert load_model("Meta-Llama-3-8B").kv_bytes_per_token(kv_dtype="fp8") == 65536


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_splits_weights_and_cache(tp):
    model = load_model("meta-llama/Llama-3.1-70B")
    assert model.weight_bytes(tp) == pytest.approx(model.weight_bytes(1) / tp, rel=1e-3)
    assert model.kv_bytes_per_token(tp) == model.kv_bytes_per_token(1) / tp


def test_more_devices_than_key_heads_repeat_them():
    model = load_model("Qwen/Qwen2-7B")  # 28 query heads, 4 key/value heads
    assert model.kv_bytes_per_token(4) == model.kv_bytes_per_token(1) / 4
    with pytest.raises(InputError, match="tensor_parallel"):
        model.operators(8)
    wide = load_model("meta-llama/Llama-3.1-70B")  # 64 and 8
    assert wide.kv_bytes_per_token(16) == wide.kv_bytes_per_token(8)
    assert [op.kv_heads for op in wide.operators(16) if isinstance(op, Attention)] == [1]


def test_weight_bytes_at_one_device_are_the_parameters_at_two_bytes():
    model = load_model("meta-llama/Meta-Llama-3-8B")
    assert model.weight_bytes(1, "bfloat16") == 2 * model.parameters
    assert model.parameters < model.weight_bytes(1, "fp8") < 1.2 * model.parameters


def test_a_model_that_does_not_fit_names_what_does_not():
    with pytest.raises(InputError, match="GB of weights per device") as caught:
        kv_capacity_tokens(load_model("meta-llama/Llama-3.1-70B"), load_device_sheet("h100"))
    assert "Llama-3.1-70B on 1 x H100-SXM-80GB" in str(caught.value)
    with pytest.raises(InputError, match="gpu_memory_utilization"):
        kv_capacity_tokens(load_model("Qwen/Qwen2-7B"), load_device_sheet("h100"), gpu_memory_utilization=1.5)
    with pytest.raises(InputError, match="activations"):
        kv_capacity_tokens(load_model("Meta-Llama-3-8B"), load_device_sheet("a10g"), max_num_batched_tokens=65536)


def test_capacity_grows_with_memory_and_with_devices():
    model = load_model("meta-llama/Meta-Llama-3-8B")
    h100, h200 = load_device_sheet("h100"), load_device_sheet("h200")
    assert kv_capacity_tokens(model, h100) < kv_capacity_tokens(model, h200)
    assert kv_capacity_tokens(model, h100) < kv_capacity_tokens(model, h100, 2)
    assert kv_capacity_tokens(model, h100) < kv_capacity_tokens(model, h100, kv_dtype="fp8")
    assert kv_capacity_tokens(model, h100) < kv_capacity_tokens(model, h100, weight_dtype="fp8")


def test_a_folder_or_a_file_is_read_and_a_truncated_one_is_named(tmp_path):
    fields = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert load_model(tmp_path).parameters == load_model(tmp_path / "config.json").parameters
    (tmp_path / "config.json").write_text(json.dumps(fields)[:40])
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="neither a known model"):
        load_model("meta-llama/Llama-9")


def test_linear_attention_caches_a_state_instead_of_tokens():
    hybrid, plain = load_model("Qwen/Qwen3.5-9B"), load_model("Qwen/Qwen3-8B")
    assert hybrid.kv_bytes_per_token() < plain.kv_bytes_per_token() / 4
    assert hybrid.state_bytes_per_request() == pytest.approx(24 * (4 * 32 * 128 * 128 + 2 * 3 * 8192))
    assert plain.state_bytes_per_request() == 0
    assert sum(op.count for op in hybrid.operators() if isinstance(op, Attention)) == 8


def test_stages_share_weights_and_cache():
    model, device = load_model("meta-llama/Llama-3.1-70B"), load_device_sheet("h100")
    assert 3 * kv_capacity_tokens(model, device, 2) < kv_capacity_tokens(model, device, 2, pipeline_parallel=4)
    assert model.layers == 80
    uneven = kv_capacity_tokens(model, device, 2, pipeline_parallel=3)  # the fullest stage holds 27 layers
    assert kv_capacity_tokens(model, device, 2, pipeline_parallel=2) < uneven
