"""What a model holds and runs, against published totals and the laws of splitting."""

import json

import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._presets import preset_names
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import Attention, Experts, Gemm, kv_capacity_tokens, load_model

PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B": 8.03e9,
    "meta-llama/Llama-3.1-70B": 70.6e9,
    "meta-llama/Llama-2-7b": 6.74e9,
    "meta-llama/Llama-2-70b": 69.0e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mixtral-8x7B-v0.1": 46.7e9,
    "Qwen/Qwen3-30B-A3B": 30.5e9,
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_parameters_equal_the_published_total(name, published):
    assert load_model(name).parameters == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize("name", preset_names())
def test_matrices_of_the_operators_are_the_models_parameters(name):
    model = load_model(name)
    c = model.config
    matrices = sum(op.n * op.k * op.count for op in model.operators() if isinstance(op, Gemm))
    matrices += sum(3 * op.hidden * op.inter * op.experts * op.count for op in model.operators() if isinstance(op, Experts))
    other = model.parameters - matrices - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)
    biases_and_norms = model.parameters - sum(
        rows * columns * rest
        for shape in c.weight_shapes().values()
        if len(shape) > 1
        for rows, columns, rest in [(shape[0], shape[1], shape[2] if len(shape) > 2 else 1)]
    )
    assert other == biases_and_norms


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
