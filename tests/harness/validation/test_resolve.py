"""Published names find the right architecture, device, dtype and engine; the rest says why not."""

from __future__ import annotations

import pytest

from llmlab.harness.validation.resolve import (
    Unsimulated,
    resolve_device,
    resolve_engine,
    resolve_kv_dtype,
    resolve_model,
    resolve_weight_dtype,
)
from llmlab.simulator.serving.presets import preset_of


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [
        ("meta-llama3-8b-instruct", 32, 4096),
        ("meta-llama3-70b-instruct", 80, 8192),
        ("meta-llama/Llama-2-7b", 32, 4096),
        ("meta-llama/Llama-2-70b-chat", 80, 8192),
        ("codellama/CodeLlama-34b-Instruct-hf", 48, 8192),
        ("nvidia/Llama-3.3-70B-Instruct-FP8", 80, 8192),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", 126, 16384),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", 32, 4096),
        ("mistralai/Mistral-7B", 32, 4096),
        ("Qwen/Qwen3-14B-AWQ", 40, 5120),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 32, 4096),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", 61, 7168),
        ("nvidia/Qwen3-235B-A22B-Thinking-2507-NVFP4", 94, 4096),
        ("unsloth/gpt-oss-20b-BF16", 24, 2880),
        ("MiniMaxAI/MiniMax-M2.5", 62, 3072),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", 80, 8192),
        ("NousResearch/Hermes-3-Llama-3.1-8B", 32, 4096),
        ("mistralai/Mistral-Large-Instruct-2411", 88, 12288),
        ("llama2-70b-chat-99", 80, 8192),
    ],
)
def test_a_published_name_finds_its_architecture(name: str, layers: int, width: int) -> None:
    found = resolve_model(name)
    assert (found.num_hidden_layers, found.hidden_size) == (layers, width)


@pytest.mark.parametrize("name", ["somebody/falcon-9000B", "openai/gpt-oss-7b", "meta-llama/Llama-9-70B", ""])
def test_an_unknown_model_says_so(name: str) -> None:
    with pytest.raises(Unsimulated, match="no description of model"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("A100-80GB", "A100-SXM-80GB"),
        ("8x NVIDIA H200 141GB HBM3e", "H200-SXM-141GB"),
        ("RTX4090-24GB", "RTX-4090"),
        ("H100-PCIe-80GB", "H100-PCIe-80GB"),
        ("NVIDIA GB200 NVL72", "GB200-186GB"),
    ],
)
def test_a_published_device_finds_its_data_sheet(name: str, device: str) -> None:
    assert resolve_device(name).name == device


def test_a_loosely_named_device_counts_as_not_measured() -> None:
    loose = resolve_device("H100 (form factor not stated)")
    assert loose.name == "H100-SXM-80GB"
    assert not loose.fitted
    assert resolve_device("H100-80GB").fitted


def test_an_unknown_device_says_so() -> None:
    with pytest.raises(Unsimulated, match="no description of device abacus"):
        resolve_device("abacus")


@pytest.mark.parametrize(
    ("stated", "model", "dtype"),
    [
        ("fp16 (source says Mixed)", "x", "float16"),
        ("fp16/bf16", "x", "bfloat16"),
        ("fp8 (config.json)", "x", "fp8"),
        ("fp8_block", "x", "fp8_block"),
        ("", "nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"),
        ("", "Qwen/Qwen3-14B-AWQ", "int4"),
        ("", "meta-llama/Llama-2-7b", "bfloat16"),
        ("nvfp4", "x", "fp4"),
        ("bf16", "deepseek-ai/DeepSeek-R1-0528", "fp8_block"),
        ("fp8", "MiniMaxAI/MiniMax-M2.5", "fp8_block"),
        ("nvfp4", "deepseek-ai/DeepSeek-R1", "fp4"),
        ("", "nvidia/DeepSeek-R1-NVFP4", "fp4"),
        ("bf16", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "bfloat16"),
    ],
)
def test_weight_dtypes(stated: str, model: str, dtype: str) -> None:
    assert resolve_weight_dtype(stated, model) == dtype


def test_an_unknown_dtype_is_excluded() -> None:
    with pytest.raises(Unsimulated, match="ternary"):
        resolve_weight_dtype("ternary", "x")


def test_the_cache_follows_the_engine_where_it_is_not_stated() -> None:
    assert resolve_kv_dtype("", "fp8", "trtllm") == "fp8"
    assert resolve_kv_dtype("auto", "fp8", "vllm-v1") == "bfloat16"
    assert resolve_kv_dtype("bf16", "fp8", "trtllm") == "bfloat16"
    assert resolve_kv_dtype("", "fp8", "vllm-v1", scaled_cache=True) == "fp8"
    assert resolve_kv_dtype("", "fp8_block", "vllm-v1", scaled_cache=True) == "bfloat16"
    assert resolve_kv_dtype("", "float16", "trtllm") == "float16"


@pytest.mark.parametrize(
    ("engine", "version", "key"),
    [
        ("vllm", "0.15.1", "vllm-v1"),
        ("vllm", "0.6.3.post2.dev308+gb489fc3c", "vllm-v0"),
        ("vllm", "main 2024-10", "vllm-v0"),
        ("vllm", "", "vllm-v1"),
        ("vllm (2023, Splitwise fork)", "", "vllm-2023"),
        ("trtllm", "0.9.0", "trtllm"),
        ("trtllm", "1.0.0rc3", "trtllm-1.0"),
        ("trtllm", "1.2.0rc6.post2", "trtllm-v1"),
        ("trtllm", "", "trtllm-v1"),
        ("nim-trtllm", "NIM 1.0-era", "nim-trtllm"),
    ],
)
def test_engines_are_told_apart_by_generation(engine: str, version: str, key: str) -> None:
    assert resolve_engine(engine, version).key == key


@pytest.mark.parametrize(
    ("engine", "key"),
    [("Hugging Face TGI", "tgi"), ("DeepSpeed-FastGen (MII)", "fastgen"), ("LightLLM", "lightllm"), ("llama.cpp", "llamacpp")],
)
def test_other_engines_take_what_their_preset_says(engine: str, key: str) -> None:
    preset, facts = preset_of(key), resolve_engine(engine, "")
    assert facts.key == (preset.host or preset.name)
    assert facts.chunked == (preset.scheduler == "chunked_prefill")


def test_an_unknown_engine_is_excluded() -> None:
    with pytest.raises(Unsimulated, match="engine"):
        resolve_engine("somebody's own", "1")
