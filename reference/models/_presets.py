"""Facts about published models, by their Hugging Face name: the fields of their `config.json` that shape the work.

Nothing is measured here. Sources: the models' published configuration files and papers (Llama arXiv:2302.13971, Llama 2
arXiv:2307.09288, Llama 3 arXiv:2407.21783, Code Llama arXiv:2308.12950, Mistral arXiv:2310.06825, Mixtral
arXiv:2401.04088, Qwen2 arXiv:2407.10671, Qwen2.5 arXiv:2412.15115, Qwen3 arXiv:2505.09388, SmolLM2 arXiv:2502.02737).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llmlab.reference.models._config import ModelConfig

_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA32_ROPE = _LLAMA31_ROPE | {"factor": 32.0}


def _sizes(D: int, F: int, layers: int, heads: int, kv_heads: int, V: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": V,
        "torch_dtype": "bfloat16",
        **more,
    }


def _llama2(D: int, F: int, layers: int, heads: int, kv_heads: int, V: int = 32000, **more: Any) -> dict[str, Any]:
    known = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "float16"}
    return _sizes(D, F, layers, heads, kv_heads, V) | known | {"bos_token_id": 1, "eos_token_id": 2} | more


def _code_llama(D: int, F: int, layers: int, heads: int, kv_heads: int, V: int = 32016) -> dict[str, Any]:
    more = {"rope_theta": 1e6, "max_position_embeddings": 16384, "torch_dtype": "bfloat16"}
    return _llama2(D, F, layers, heads, kv_heads, V, **more)


def _llama3(D: int, F: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192}
    return _sizes(D, F, layers, heads, 8, 128256) | known | {"bos_token_id": 128000, "eos_token_id": 128001} | more


def _llama31(D: int, F: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return _llama3(D, F, layers, heads, **({"rope_scaling": _LLAMA31_ROPE, "max_position_embeddings": 131072} | more))


def _mistral(V: int, theta: float, window: int | None, longest: int = 32768) -> dict[str, Any]:
    known = {"model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": theta, "max_position_embeddings": longest}
    return _sizes(4096, 14336, 32, 32, 8, V) | known | {"sliding_window": window, "bos_token_id": 1, "eos_token_id": 2}


def _mixtral(D: int, F: int, layers: int, heads: int, V: int, longest: int) -> dict[str, Any]:
    known = {"model_type": "mixtral", "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": longest}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2}
    return _sizes(D, F, layers, heads, 8, V) | known | experts


def _qwen2(D: int, F: int, layers: int, heads: int, kv_heads: int, V: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 131072}
    return _sizes(D, F, layers, heads, kv_heads, V) | known | {"bos_token_id": 151643, "eos_token_id": 151643} | more


def _qwen3(D: int, F: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960, "head_dim": 128}
    return _sizes(D, F, layers, heads, kv_heads, 151936) | known | {"bos_token_id": 151643, "eos_token_id": 151645} | more


def _qwen3_moe(D: int, F: int, layers: int, heads: int, expert: int) -> dict[str, Any]:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": expert, "norm_topk_prob": True}
    return _qwen3(D, F, layers, heads, 4, model_type="qwen3_moe", **experts)


_SMOL = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}
_OWN = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "torch_dtype": "float32"}

_FACTS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b": _llama2(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b": _llama2(5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b": _llama2(8192, 28672, 80, 64, 8),
    "codellama/CodeLlama-7b": _code_llama(4096, 11008, 32, 32, 32),
    "codellama/CodeLlama-13b": _code_llama(5120, 13824, 40, 40, 40),
    "codellama/CodeLlama-34b": _code_llama(8192, 22016, 48, 64, 8, V=32000),
    "codellama/CodeLlama-70b": _code_llama(8192, 28672, 80, 64, 8),
    "meta-llama/Meta-Llama-3-8B": _llama3(4096, 14336, 32, 32),
    "meta-llama/Meta-Llama-3-70B": _llama3(8192, 28672, 80, 64),
    "meta-llama/Llama-3.1-8B": _llama31(4096, 14336, 32, 32),
    "meta-llama/Llama-3.1-70B": _llama31(8192, 28672, 80, 64),
    "meta-llama/Llama-3.1-405B": _llama31(16384, 53248, 126, 128),
    "meta-llama/Llama-3.2-1B": _llama31(2048, 8192, 16, 32, rope_scaling=_LLAMA32_ROPE, head_dim=64, tie_word_embeddings=True),
    "meta-llama/Llama-3.2-3B": _llama31(3072, 8192, 28, 24, rope_scaling=_LLAMA32_ROPE, head_dim=128, tie_word_embeddings=True),
    "meta-llama/Llama-3.3-70B": _llama31(8192, 28672, 80, 64),
    "mistralai/Mistral-7B-v0.1": _mistral(32000, 10000.0, 4096),
    "mistralai/Mistral-7B-v0.2": _mistral(32000, 1e6, None),
    "mistralai/Mistral-7B-v0.3": _mistral(32768, 1e6, None),
    "mistralai/Mixtral-8x7B-v0.1": _mixtral(4096, 14336, 32, 32, 32000, 32768),
    "mistralai/Mixtral-8x22B-v0.1": _mixtral(6144, 16384, 56, 48, 32000, 65536),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": _mixtral(6144, 16384, 56, 48, 32768, 65536),
    "Qwen/Qwen2-0.5B": _qwen2(896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2-7B": _qwen2(3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2-72B": _qwen2(8192, 29568, 80, 64, 8, 152064),
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, 151936, max_position_embeddings=32768, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 11008, 36, 16, 2, 151936, max_position_embeddings=32768, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2.5-14B": _qwen2(5120, 13824, 48, 40, 8, 152064),
    "Qwen/Qwen2.5-32B": _qwen2(5120, 27648, 64, 40, 8, 152064),
    "Qwen/Qwen2.5-72B": _qwen2(8192, 29568, 80, 64, 8, 152064),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, 8, tie_word_embeddings=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, 8, tie_word_embeddings=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, 8, tie_word_embeddings=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, 8),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, 8),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, 8),
    "Qwen/Qwen3-30B-A3B": _qwen3_moe(2048, 6144, 48, 32, 768),
    "Qwen/Qwen3-235B-A22B": _qwen3_moe(4096, 12288, 94, 64, 1536),
    "HuggingFaceTB/SmolLM-135M": _SMOL | _sizes(576, 1536, 30, 9, 3, 49152, max_position_embeddings=2048),
    "HuggingFaceTB/SmolLM2-135M": _SMOL | _sizes(576, 1536, 30, 9, 3, 49152, rope_theta=100000.0, max_position_embeddings=8192),
    "HuggingFaceTB/SmolLM-360M": _SMOL | _sizes(960, 2560, 32, 15, 5, 49152, max_position_embeddings=2048),
    "karpathy/stories260K": _llama2(64, 172, 5, 8, 4, 512, max_position_embeddings=512, tie_word_embeddings=True),
    # Our own, for runs on a CPU: no trained weights exist, `random_weights` draws them.
    "llmlab/llama-50m": _sizes(512, 1408, 12, 8, 4, 16384, **_OWN),
    "llmlab/llama-100m": _sizes(768, 2048, 12, 12, 4, 16384, **_OWN),
    "llmlab/llama-150m": _sizes(896, 2432, 14, 14, 2, 16384, **_OWN),
}

# The same architecture under other published names.
_ALSO: dict[str, tuple[str, ...]] = {
    "meta-llama/Llama-2-7b": ("Llama-2-7b-hf", "Llama-2-7b-chat", "Llama-2-7b-chat-hf"),
    "meta-llama/Llama-2-13b": ("Llama-2-13b-hf", "Llama-2-13b-chat", "Llama-2-13b-chat-hf"),
    "meta-llama/Llama-2-70b": ("Llama-2-70b-hf", "Llama-2-70b-chat", "Llama-2-70b-chat-hf"),
    "codellama/CodeLlama-7b": ("CodeLlama-7b-hf", "CodeLlama-7b-Instruct-hf"),
    "codellama/CodeLlama-13b": ("CodeLlama-13b-hf", "CodeLlama-13b-Instruct-hf"),
    "codellama/CodeLlama-34b": ("CodeLlama-34b-hf", "CodeLlama-34b-Instruct-hf", "CodeLlama-34b-Python-hf"),
    "codellama/CodeLlama-70b": ("CodeLlama-70b-hf", "CodeLlama-70b-Instruct-hf"),
    "meta-llama/Meta-Llama-3-8B": ("Llama-3-8B", "Llama-3-8B-Instruct", "Meta-Llama-3-8B-Instruct"),
    "meta-llama/Meta-Llama-3-70B": ("Llama-3-70B", "Llama-3-70B-Instruct", "Meta-Llama-3-70B-Instruct"),
    "meta-llama/Llama-3.1-8B": ("Llama-3.1-8B-Instruct", "Meta-Llama-3.1-8B", "Meta-Llama-3.1-8B-Instruct"),
    "meta-llama/Llama-3.1-70B": ("Llama-3.1-70B-Instruct", "Meta-Llama-3.1-70B", "Meta-Llama-3.1-70B-Instruct"),
    "meta-llama/Llama-3.1-405B": ("Llama-3.1-405B-Instruct", "Meta-Llama-3.1-405B", "Meta-Llama-3.1-405B-Instruct"),
    "meta-llama/Llama-3.2-1B": ("Llama-3.2-1B-Instruct",),
    "meta-llama/Llama-3.2-3B": ("Llama-3.2-3B-Instruct",),
    "meta-llama/Llama-3.3-70B": ("Llama-3.3-70B-Instruct",),
    "mistralai/Mistral-7B-v0.1": ("Mistral-7B-Instruct-v0.1",),
    "mistralai/Mistral-7B-v0.2": ("Mistral-7B-Instruct-v0.2",),
    "mistralai/Mistral-7B-v0.3": ("Mistral-7B-Instruct-v0.3",),
    "mistralai/Mixtral-8x7B-v0.1": ("Mixtral-8x7B", "Mixtral-8x7B-Instruct-v0.1"),
    "mistralai/Mixtral-8x22B-v0.1": ("Mixtral-8x22B",),
    "HuggingFaceTB/SmolLM-135M": ("SmolLM-135M-Instruct",),
    "HuggingFaceTB/SmolLM2-135M": ("SmolLM2-135M-Instruct",),
    "HuggingFaceTB/SmolLM-360M": ("SmolLM-360M-Instruct",),
}


@cache
def _by_name() -> dict[str, str]:
    names = {}
    for name in _FACTS:
        instruct = (f"{name}-Instruct",) if name.startswith("Qwen/Qwen2") else ()
        for one in (name, *_ALSO.get(name, ()), *instruct):
            names[one.rpartition("/")[2].lower()] = name
    return names


def preset_names() -> list[str]:
    """Every preset's full name, each architecture once."""
    return list(_FACTS)


def preset(name: str) -> ModelConfig | None:
    """Return the architecture of a published model, or None; case and the part before the slash do not matter.

    >>> preset("llama-3.1-70b-instruct").num_key_value_heads
    8
    >>> preset("meta-llama/Llama-5") is None
    True
    """
    organisation, _, short = name.rpartition("/")
    full = _by_name().get(short.lower())
    if full is None or organisation.count("/"):
        return None
    return ModelConfig.from_dict(_FACTS[full], name)
