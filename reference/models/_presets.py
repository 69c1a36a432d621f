"""Facts about published models, by their Hugging Face name: the fields of their `config.json` that shape the work.

Nothing is measured here. Sources: the models' published configuration files and papers (Llama arXiv:2302.13971, Llama 2
arXiv:2307.09288, Llama 3 arXiv:2407.21783, Code Llama arXiv:2308.12950, Mistral arXiv:2310.06825, Mixtral
arXiv:2401.04088, Qwen2 arXiv:2407.10671, Qwen2.5 arXiv:2412.15115, Qwen3 arXiv:2505.09388, SmolLM2 arXiv:2502.02737,
DeepSeek-V2 arXiv:2405.04434, DeepSeek-V3 arXiv:2412.19437, DeepSeek-R1 arXiv:2501.12948, Kimi K2 arXiv:2507.20534, gpt-oss
arXiv:2508.10925, GLM-4.5 arXiv:2508.06471, Falcon arXiv:2311.16867, GPT-3 arXiv:2005.14165 table 2.1, OPT arXiv:2205.01068
table 1, BLOOM arXiv:2211.05100, Gemma 2 arXiv:2408.00118, Gemma 3 arXiv:2503.19786, Phi-3 arXiv:2404.14219, Phi-4
arXiv:2412.08905, Yi arXiv:2403.04652, InternLM2 arXiv:2403.17297, Nemotron-4 arXiv:2406.11704, GPT-NeoX arXiv:2204.06745,
StarCoder arXiv:2305.06161, Megatron-Turing NLG arXiv:2201.11990, Pythia arXiv:2304.01373, Phi-1.5 arXiv:2309.05463, Baichuan 2
arXiv:2309.10305, GLM-4 arXiv:2406.12793, GPT-2 by Radford et al. 2019, Phi-2 by its card; Llama 4, MiniMax-M2, DBRX, Command R,
GPT-J, Qwen3-Next and Qwen3.5: the models' cards and configuration files). `PUBLISHED_PARAMETERS` holds the sizes the same
sources state.
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


def _deepseek(D: int, F: int, layers: int, heads: int, V: int, **more: Any) -> dict[str, Any]:
    latent = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return _sizes(D, F, layers, heads, heads, V, max_position_embeddings=163840, **(latent | more))


def _deepseek_v3(kind: str = "deepseek_v3", **more: Any) -> dict[str, Any]:
    experts = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048}
    return _deepseek(7168, 18432, 61, 128, 129280, model_type=kind, first_k_dense_replace=3, **experts) | more


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    known = {"model_type": "gpt_oss", "head_dim": 64, "sliding_window": 128, "max_position_embeddings": 131072}
    windows = {"layer_types": [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]}
    sizes = _sizes(2880, 2880, layers, 64, 8, 201088, num_local_experts=experts, num_experts_per_tok=4)
    return sizes | known | windows


def _llama4(experts: int, step: int, longest: int) -> dict[str, Any]:
    known = {"model_type": "llama4_text", "head_dim": 128, "intermediate_size_mlp": 16384, "max_position_embeddings": longest}
    routed = {"num_local_experts": experts, "num_experts_per_tok": 1, "interleave_moe_layer_step": step}
    return _sizes(5120, 8192, 48, 40, 8, 202048) | known | routed | {"attention_chunk_size": 8192}


def _glm(D: int, F: int, expert: int, layers: int, experts: int, dense: int, longest: int = 131072) -> dict[str, Any]:
    known = {"model_type": "glm4_moe", "head_dim": 128, "attention_bias": True, "max_position_embeddings": longest}
    routed = {"n_routed_experts": experts, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": expert}
    return _sizes(D, F, layers, 96, 8, 151552, use_qk_norm=dense == 3, first_k_dense_replace=dense) | known | routed


def _gpt(kind: str, D: int, layers: int, heads: int, V: int, longest: int = 2048, **more: Any) -> dict[str, Any]:
    return _sizes(D, 4 * D, layers, heads, heads, V) | {"model_type": kind, "max_position_embeddings": longest} | more


def _baichuan(D: int, F: int, layers: int, heads: int, V: int, **more: Any) -> dict[str, Any]:
    return _sizes(D, F, layers, heads, heads, V) | {"model_type": "baichuan", "model_max_length": 4096} | more


def _glm4(kind: str, D: int, F: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": kind, "head_dim": 128, "rms_norm_eps": 1e-5, "attention_bias": True, "partial_rotary_factor": 0.5}
    return _sizes(D, F, layers, heads, kv_heads, 151552, max_position_embeddings=131072) | known | more


def _falcon(D: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    known = {"model_type": "falcon", "new_decoder_architecture": kv_heads > 1, "multi_query": True, "num_kv_heads": kv_heads}
    return _sizes(D, 4 * D, layers, heads, kv_heads, 65024, head_dim=64, max_position_embeddings=2048) | known


def _gemma(kind: str, D: int, F: int, layers: int, heads: int, kv_heads: int, V: int, head: int, **more: Any) -> dict[str, Any]:
    return _sizes(D, F, layers, heads, kv_heads, V, head_dim=head, model_type=kind) | {"max_position_embeddings": 8192} | more


def _like_llama(D: int, F: int, layers: int, heads: int, kv_heads: int, V: int, longest: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": longest}
    return _sizes(D, F, layers, heads, kv_heads, V) | known | more


def _wide_mistral(D: int, F: int, layers: int, heads: int, V: int, longest: int, **more: Any) -> dict[str, Any]:
    known = {"model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": longest}
    return _sizes(D, F, layers, heads, 8, V) | known | {"sliding_window": None} | more


def _qwen_delta(kind: str, D: int, F: int, layers: int, heads: int, kv_heads: int, V: int, **more: Any) -> dict[str, Any]:
    linear = {
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    }
    known = {"model_type": kind, "head_dim": 256, "max_position_embeddings": 262144, "full_attention_interval": 4}
    return _sizes(D, F, layers, heads, kv_heads, V) | known | linear | more


_V2_EXPERTS = {"n_routed_experts": 160, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1536}
_KIMI_EXPERTS = {"n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048}
_INDEX = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}
_G2, _G3 = "gemma2", "gemma3_text"

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
    "meta-llama/Llama-7b": _like_llama(4096, 11008, 32, 32, 32, 32000, 2048),
    "meta-llama/Llama-13b": _like_llama(5120, 13824, 40, 40, 40, 32000, 2048),
    "meta-llama/Llama-30b": _like_llama(6656, 17920, 60, 52, 52, 32000, 2048),
    "meta-llama/Llama-65b": _like_llama(8192, 22016, 80, 64, 64, 32000, 2048),
    "meta-llama/Llama-4-Scout-17B-16E": _llama4(16, 1, 10485760),
    "meta-llama/Llama-4-Maverick-17B-128E": _llama4(128, 2, 1048576),
    "01-ai/Yi-6B": _like_llama(4096, 11008, 32, 32, 4, 64000, 4096),
    "01-ai/Yi-1.5-9B": _like_llama(4096, 11008, 48, 32, 4, 64000, 4096),
    "01-ai/Yi-34B": _like_llama(7168, 20480, 60, 56, 8, 64000, 4096),
    "deepseek-ai/deepseek-llm-67b": _like_llama(8192, 22016, 95, 64, 8, 102400, 4096),
    "deepseek-ai/deepseek-coder-33b": _like_llama(7168, 19200, 62, 56, 8, 32256, 16384),
    "internlm/internlm-7b": _like_llama(4096, 11008, 32, 32, 32, 103168, 2048, model_type="internlm", bias=True),
    "internlm/internlm-20b": _like_llama(5120, 13824, 60, 40, 40, 103168, 4096, model_type="internlm"),
    "internlm/internlm2-7b": _like_llama(4096, 14336, 32, 32, 8, 92544, 32768, model_type="internlm2"),
    "internlm/internlm2-20b": _like_llama(6144, 16384, 48, 48, 8, 92544, 32768, model_type="internlm2"),
    "internlm/internlm3-8b-instruct": _like_llama(4096, 10240, 48, 32, 2, 128512, 32768, model_type="internlm2"),
    "mistralai/Mistral-Nemo-12B": _wide_mistral(5120, 14336, 40, 32, 131072, 131072, head_dim=128),
    "mistralai/Ministral-8B": _wide_mistral(4096, 12288, 36, 32, 131072, 32768, head_dim=128),
    "mistralai/Mistral-Small-2409": _wide_mistral(6144, 16384, 56, 48, 32768, 32768),
    "mistralai/Mistral-Small-24B-2501": _wide_mistral(5120, 32768, 40, 32, 131072, 32768, head_dim=128),
    "mistralai/Mistral-Large-2407": _wide_mistral(12288, 28672, 88, 96, 32768, 131072),
    "Qwen/Qwen1.5-7B": _qwen2(4096, 11008, 32, 32, 32, 151936, max_position_embeddings=32768),
    "Qwen/Qwen1.5-14B": _qwen2(5120, 13696, 40, 40, 40, 152064, max_position_embeddings=32768),
    "Qwen/Qwen1.5-72B": _qwen2(8192, 24576, 80, 64, 64, 152064, max_position_embeddings=32768),
    "Qwen/Qwen2-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2-57B-A14B": _qwen2(
        3584,
        18944,
        28,
        28,
        4,
        151936,
        model_type="qwen2_moe",
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=2560,
        shared_expert_intermediate_size=20480,
    ),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": _qwen3_moe(6144, 8192, 62, 96, 2560)
    | {"num_key_value_heads": 8, "num_experts": 160, "max_position_embeddings": 262144},
    "Qwen/Qwen3-Next-80B-A3B": _qwen_delta(
        "qwen3_next",
        2048,
        5120,
        48,
        16,
        2,
        151936,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
    ),
    "Qwen/Qwen3.5-9B": _qwen_delta("qwen3_5_text", 4096, 12288, 32, 16, 4, 248320),
    "deepseek-ai/DeepSeek-V2-Lite": _deepseek(
        2048, 10944, 27, 16, 102400, model_type="deepseek_v2", first_k_dense_replace=1, q_lora_rank=None
    )
    | _V2_EXPERTS
    | {"n_routed_experts": 64, "moe_intermediate_size": 1408},
    "deepseek-ai/DeepSeek-V2": _deepseek(5120, 12288, 60, 128, 102400, model_type="deepseek_v2", first_k_dense_replace=1)
    | _V2_EXPERTS,
    "deepseek-ai/DeepSeek-V3": _deepseek_v3(),
    "deepseek-ai/DeepSeek-R1": _deepseek_v3(),
    "deepseek-ai/DeepSeek-V3.2": _deepseek_v3("deepseek_v32", **_INDEX),
    "moonshotai/Kimi-K2-Instruct": _deepseek(7168, 18432, 61, 64, 163840, model_type="kimi_k2", first_k_dense_replace=1)
    | _KIMI_EXPERTS
    | {"max_position_embeddings": 131072},
    "openai/gpt-oss-20b": _gpt_oss(24, 32),
    "openai/gpt-oss-120b": _gpt_oss(36, 128),
    "MiniMaxAI/MiniMax-M2": _sizes(3072, 1536, 62, 48, 8, 200064, head_dim=128, num_local_experts=256, num_experts_per_tok=8)
    | {"model_type": "minimax_m2", "max_position_embeddings": 196608},
    "zai-org/GLM-4.5": _glm(5120, 12288, 1536, 92, 160, 3),
    "zai-org/GLM-4.6": _glm(5120, 12288, 1536, 92, 160, 3, 202752),
    "zai-org/GLM-4.5-Air": _glm(4096, 10944, 1408, 46, 128, 1),
    "tiiuae/falcon-7b": _falcon(4544, 32, 71, 1),
    "tiiuae/falcon-40b": _falcon(8192, 60, 128, 8),
    "tiiuae/falcon-180B": _falcon(14848, 80, 232, 8),
    "EleutherAI/gpt-j-6b": _gpt("gptj", 4096, 28, 16, 50400),
    "EleutherAI/gpt-neox-20b": _gpt("gpt_neox", 6144, 44, 64, 50432),
    "EleutherAI/pythia-160m": _gpt("gpt_neox", 768, 12, 12, 50304),
    "openai-community/gpt2": _gpt("gpt2", 768, 12, 12, 50257, 1024),
    "openai-community/gpt2-medium": _gpt("gpt2", 1024, 24, 16, 50257, 1024),
    "openai-community/gpt2-large": _gpt("gpt2", 1280, 36, 20, 50257, 1024),
    "openai-community/gpt2-xl": _gpt("gpt2", 1600, 48, 25, 50257, 1024),
    "openai/gpt3-6.7b": _gpt("gpt3", 4096, 32, 32, 50257),
    "openai/gpt3-13b": _gpt("gpt3", 5120, 40, 40, 50257, head_dim=128),
    "openai/gpt3-175b": _gpt("gpt3", 12288, 96, 96, 50257),
    "nvidia/megatron-turing-530b": _gpt("gpt3", 20480, 105, 128, 51200),
    "facebook/opt-125m": _gpt("opt", 768, 12, 12, 50272),
    "facebook/opt-350m": _gpt("opt", 1024, 24, 16, 50272, do_layer_norm_before=False, word_embed_proj_dim=512),
    "facebook/opt-1.3b": _gpt("opt", 2048, 24, 32, 50272),
    "facebook/opt-2.7b": _gpt("opt", 2560, 32, 32, 50272),
    "facebook/opt-6.7b": _gpt("opt", 4096, 32, 32, 50272),
    "facebook/opt-13b": _gpt("opt", 5120, 40, 40, 50272),
    "facebook/opt-30b": _gpt("opt", 7168, 48, 56, 50272),
    "facebook/opt-66b": _gpt("opt", 9216, 64, 72, 50272),
    "facebook/opt-175b": _gpt("opt", 12288, 96, 96, 50272),
    "bigscience/bloom-560m": _gpt("bloom", 1024, 24, 16, 250880),
    "bigscience/bloom-7b1": _gpt("bloom", 4096, 30, 32, 250880),
    "bigscience/bloom": _gpt("bloom", 14336, 70, 112, 250880),
    "bigcode/starcoder": _gpt("gpt_bigcode", 6144, 40, 48, 49152, 8192),
    "databricks/dbrx-base": _sizes(6144, 10752, 40, 48, 8, 100352, num_local_experts=16, num_experts_per_tok=4)
    | {"model_type": "dbrx", "max_position_embeddings": 32768},
    "CohereForAI/c4ai-command-r-v01": _sizes(8192, 22528, 40, 64, 64, 256000)
    | {"model_type": "cohere", "max_position_embeddings": 131072},
    "CohereForAI/c4ai-command-r-plus": _sizes(12288, 33792, 64, 96, 8, 256000)
    | {"model_type": "cohere", "max_position_embeddings": 131072},
    "google/gemma-2-2b": _gemma(_G2, 2304, 9216, 26, 8, 4, 256000, 256),
    "google/gemma-2-9b": _gemma(_G2, 3584, 14336, 42, 16, 8, 256000, 256),
    "google/gemma-2-27b": _gemma(_G2, 4608, 36864, 46, 32, 16, 256000, 128),
    "google/gemma-3-1b": _gemma(_G3, 1152, 6912, 26, 4, 1, 262144, 256, sliding_window=512, max_position_embeddings=32768),
    "google/gemma-3-4b": _gemma(_G3, 2560, 10240, 34, 8, 4, 262208, 256, max_position_embeddings=131072),
    "google/gemma-3-12b": _gemma(_G3, 3840, 15360, 48, 16, 8, 262208, 256, max_position_embeddings=131072),
    "google/gemma-3-27b": _gemma(_G3, 5376, 21504, 62, 32, 16, 262208, 128, max_position_embeddings=131072),
    "microsoft/phi-1_5": _gpt("phi", 2048, 24, 32, 51200),
    "microsoft/phi-2": _gpt("phi", 2560, 32, 32, 51200, partial_rotary_factor=0.4),
    "baichuan-inc/Baichuan-7B": _baichuan(4096, 11008, 32, 32, 64000, max_position_embeddings=4096),
    "baichuan-inc/Baichuan-13B-Base": _baichuan(5120, 13696, 40, 40, 64000),
    "baichuan-inc/Baichuan2-7B-Base": _baichuan(4096, 11008, 32, 32, 125696, max_position_embeddings=4096),
    "baichuan-inc/Baichuan2-13B-Base": _baichuan(5120, 13696, 40, 40, 125696),
    "zai-org/glm-4-9b": _glm4("glm", 4096, 13696, 40, 32, 2),
    "zai-org/GLM-4-9B-0414": _glm4("glm4", 4096, 13696, 40, 32, 2, max_position_embeddings=32768),
    "zai-org/GLM-4-32B-0414": _glm4("glm4", 6144, 23040, 61, 48, 2, attention_bias=False, max_position_embeddings=32768),
    "microsoft/Phi-3-mini-4k-instruct": _like_llama(3072, 8192, 32, 32, 32, 32064, 4096, model_type="phi3"),
    "microsoft/Phi-3-medium-4k-instruct": _like_llama(5120, 17920, 40, 40, 10, 32064, 4096, model_type="phi3"),
    "microsoft/phi-4": _like_llama(5120, 17920, 40, 40, 10, 100352, 16384, model_type="phi3"),
    "microsoft/Phi-3.5-MoE-instruct": _mixtral(4096, 6400, 32, 32, 32064, 131072) | {"num_local_experts": 16},
    "nvidia/Nemotron-4-15B": _sizes(6144, 24576, 32, 48, 8, 256000)
    | {"model_type": "nemotron", "max_position_embeddings": 4096},
    "nvidia/Nemotron-4-340B": _sizes(18432, 73728, 96, 96, 8, 256000)
    | {"model_type": "nemotron", "max_position_embeddings": 4096},
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
    "meta-llama/Llama-2-7b": ("Llama-2-7b-hf", "Llama-2-7b-chat", "Llama-2-7b-chat-hf", "vicuna-7b-v1.5"),
    "meta-llama/Llama-2-13b": ("Llama-2-13b-hf", "Llama-2-13b-chat", "Llama-2-13b-chat-hf", "vicuna-13b-v1.5"),
    "meta-llama/Llama-2-70b": ("Llama-2-70b-hf", "Llama-2-70b-chat", "Llama-2-70b-chat-hf"),
    "codellama/CodeLlama-7b": ("CodeLlama-7b-hf", "CodeLlama-7b-Instruct-hf"),
    "codellama/CodeLlama-13b": ("CodeLlama-13b-hf", "CodeLlama-13b-Instruct-hf"),
    "codellama/CodeLlama-34b": ("CodeLlama-34b-hf", "CodeLlama-34b-Instruct-hf", "CodeLlama-34b-Python-hf"),
    "codellama/CodeLlama-70b": ("CodeLlama-70b-hf", "CodeLlama-70b-Instruct-hf"),
    "meta-llama/Meta-Llama-3-8B": ("Llama-3-8B", "Llama-3-8B-Instruct", "Meta-Llama-3-8B-Instruct"),
    "meta-llama/Meta-Llama-3-70B": ("Llama-3-70B", "Llama-3-70B-Instruct", "Meta-Llama-3-70B-Instruct"),
    "meta-llama/Llama-3.1-8B": (
        "Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-8B",
        "Meta-Llama-3.1-8B-Instruct",
        "DeepSeek-R1-Distill-Llama-8B",
    ),
    "meta-llama/Llama-3.1-70B": (
        "Llama-3.1-70B-Instruct",
        "Meta-Llama-3.1-70B",
        "Meta-Llama-3.1-70B-Instruct",
        "Llama-3.1-Nemotron-70B-Instruct",
    ),
    "meta-llama/Llama-3.1-405B": ("Llama-3.1-405B-Instruct", "Meta-Llama-3.1-405B", "Meta-Llama-3.1-405B-Instruct"),
    "meta-llama/Llama-3.2-1B": ("Llama-3.2-1B-Instruct",),
    "meta-llama/Llama-3.2-3B": ("Llama-3.2-3B-Instruct",),
    "meta-llama/Llama-3.3-70B": ("Llama-3.3-70B-Instruct", "DeepSeek-R1-Distill-Llama-70B"),
    "mistralai/Mistral-7B-v0.1": ("Mistral-7B-Instruct-v0.1",),
    "mistralai/Mistral-7B-v0.2": ("Mistral-7B-Instruct-v0.2",),
    "mistralai/Mistral-7B-v0.3": ("Mistral-7B-Instruct-v0.3",),
    "mistralai/Mixtral-8x7B-v0.1": ("Mixtral-8x7B", "Mixtral-8x7B-Instruct-v0.1"),
    "mistralai/Mixtral-8x22B-v0.1": ("Mixtral-8x22B",),
    "meta-llama/Llama-7b": ("Llama-1-7b", "llama-7b-hf", "vicuna-7b", "alpaca-7b"),
    "meta-llama/Llama-13b": ("Llama-1-13b", "llama-13b-hf", "vicuna-13b"),
    "meta-llama/Llama-30b": ("Llama-1-30b", "llama-30b-hf", "Llama-33b", "vicuna-33b"),
    "meta-llama/Llama-65b": ("Llama-1-65b", "llama-65b-hf"),
    "meta-llama/Llama-4-Scout-17B-16E": ("Llama-4-Scout-17B-16E-Instruct", "Llama-4-Scout"),
    "meta-llama/Llama-4-Maverick-17B-128E": ("Llama-4-Maverick-17B-128E-Instruct", "Llama-4-Maverick"),
    "01-ai/Yi-6B": ("Yi-6B-Chat", "Yi-1.5-6B"),
    "01-ai/Yi-1.5-9B": ("Yi-1.5-9B-Chat",),
    "01-ai/Yi-34B": ("Yi-34B-Chat", "Yi-1.5-34B", "Yi-34B-200K"),
    "internlm/internlm-7b": ("internlm-chat-7b",),
    "internlm/internlm-20b": ("internlm-chat-20b",),
    "internlm/internlm2-7b": ("internlm2_5-7b", "internlm2_5-7b-chat", "internlm2-chat-7b"),
    "internlm/internlm2-20b": ("internlm2_5-20b", "internlm2_5-20b-chat", "internlm2-chat-20b"),
    "mistralai/Mistral-Nemo-12B": ("Mistral-Nemo-Base-2407", "Mistral-Nemo-Instruct-2407", "Mistral-Nemo"),
    "mistralai/Ministral-8B": ("Ministral-8B-Instruct-2410",),
    "mistralai/Mistral-Small-2409": ("Mistral-Small-Instruct-2409", "Codestral-22B-v0.1", "Mistral-Small-22B"),
    "mistralai/Mistral-Small-24B-2501": (
        "Mistral-Small-24B-Base-2501",
        "Mistral-Small-24B-Instruct-2501",
        "Mistral-Small-3.1-24B-Instruct-2503",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "Mistral-Small-24B",
    ),
    "mistralai/Mistral-Large-2407": (
        "Mistral-Large-Instruct-2407",
        "Mistral-Large-Instruct-2411",
        "Mistral-Large-2411",
        "Mistral-Large",
        "Mistral-Large-123B",
    ),
    "Qwen/Qwen1.5-7B": ("Qwen1.5-7B-Chat", "Qwen-7B", "Qwen-7B-Chat"),
    "Qwen/Qwen1.5-14B": ("Qwen1.5-14B-Chat", "Qwen-14B", "Qwen-14B-Chat"),
    "Qwen/Qwen1.5-72B": ("Qwen1.5-72B-Chat", "Qwen-72B", "Qwen-72B-Chat"),
    "Qwen/Qwen2.5-1.5B": ("DeepSeek-R1-Distill-Qwen-1.5B",),
    "Qwen/Qwen2.5-7B": ("DeepSeek-R1-Distill-Qwen-7B",),
    "Qwen/Qwen2.5-14B": ("DeepSeek-R1-Distill-Qwen-14B",),
    "Qwen/Qwen2.5-32B": ("DeepSeek-R1-Distill-Qwen-32B", "QwQ-32B"),
    "Qwen/Qwen3-4B": ("Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507"),
    "Qwen/Qwen3-30B-A3B": (
        "Qwen3-30B-A3B-Instruct-2507",
        "Qwen3-30B-A3B-Thinking-2507",
        "Qwen3-Coder-30B-A3B-Instruct",
    ),
    "Qwen/Qwen3-235B-A22B": ("Qwen3-235B-A22B-Instruct-2507", "Qwen3-235B-A22B-Thinking-2507"),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": ("Qwen3-Coder-480B-A35B",),
    "Qwen/Qwen3-Next-80B-A3B": ("Qwen3-Next-80B-A3B-Instruct", "Qwen3-Next-80B-A3B-Thinking"),
    "deepseek-ai/DeepSeek-V2-Lite": ("DeepSeek-V2-Lite-Chat", "DeepSeek-Coder-V2-Lite-Instruct", "DeepSeek-Coder-V2-Lite-Base"),
    "deepseek-ai/DeepSeek-V2": ("DeepSeek-V2-Chat", "DeepSeek-V2.5", "DeepSeek-Coder-V2-Instruct"),
    "deepseek-ai/DeepSeek-V3": ("DeepSeek-V3-0324", "DeepSeek-V3-Base", "DeepSeek-V3.1", "DeepSeek-V3.1-Terminus"),
    "deepseek-ai/DeepSeek-R1": ("DeepSeek-R1-0528", "DeepSeek-R1-Zero"),
    "deepseek-ai/DeepSeek-V3.2": ("DeepSeek-V3.2-Exp", "DeepSeek-V3.2-Speciale"),
    "moonshotai/Kimi-K2-Instruct": ("Kimi-K2", "Kimi-K2-Base", "Kimi-K2-Instruct-0905", "Kimi-K2-Thinking"),
    "MiniMaxAI/MiniMax-M2": ("MiniMax-M2.1", "MiniMax-M2.5"),
    "openai-community/gpt2": ("gpt-2",),
    "EleutherAI/gpt-j-6b": ("gptj-6b", "gpt-j-6B", "gpt-j"),
    "tiiuae/falcon-7b": ("falcon-7b-instruct",),
    "tiiuae/falcon-40b": ("falcon-40b-instruct",),
    "tiiuae/falcon-180B": ("falcon-180B-chat",),
    "openai/gpt3-175b": ("gpt-3", "gpt-3-175b", "gpt3"),
    "openai/gpt3-13b": ("gpt-3-13b",),
    "openai/gpt3-6.7b": ("gpt-3-6.7b",),
    "bigscience/bloom": ("bloom-176b", "bloomz", "bloom-176B"),
    "CohereForAI/c4ai-command-r-plus": ("command-r-plus", "c4ai-command-r-plus-08-2024"),
    "CohereForAI/c4ai-command-r-v01": ("command-r",),
    "databricks/dbrx-base": ("dbrx", "dbrx-instruct"),
    "microsoft/Phi-3-mini-4k-instruct": ("Phi-3-mini-128k-instruct", "Phi-3.5-mini-instruct", "Phi-3-mini"),
    "microsoft/Phi-3-medium-4k-instruct": ("Phi-3-medium-128k-instruct", "Phi-3-medium"),
    "nvidia/Nemotron-4-340B": ("Nemotron-4-340B-Instruct", "Nemotron-4-340B-Base"),
    **{f"google/gemma-2-{size}": (f"gemma-2-{size}-it",) for size in ("2b", "9b", "27b")},
    **{f"google/gemma-3-{size}": (f"gemma-3-{size}-it",) for size in ("1b", "4b", "12b", "27b")},
    "HuggingFaceTB/SmolLM-135M": ("SmolLM-135M-Instruct",),
    "HuggingFaceTB/SmolLM2-135M": ("SmolLM2-135M-Instruct",),
    "HuggingFaceTB/SmolLM-360M": ("SmolLM-360M-Instruct",),
}

PUBLISHED_PARAMETERS: dict[str, float] = {
    "meta-llama/Llama-7b": 6.7e9,
    "meta-llama/Llama-13b": 13.0e9,
    "meta-llama/Llama-30b": 32.5e9,
    "meta-llama/Llama-65b": 65.2e9,
    "meta-llama/Llama-2-7b": 6.74e9,
    "meta-llama/Llama-2-13b": 13.0e9,
    "meta-llama/Llama-2-70b": 69.0e9,
    "codellama/CodeLlama-34b": 33.7e9,
    "meta-llama/Llama-3.1-8B": 8.03e9,
    "meta-llama/Llama-3.1-70B": 70.6e9,
    "meta-llama/Llama-3.1-405B": 406e9,
    "meta-llama/Llama-3.2-1B": 1.23e9,
    "meta-llama/Llama-3.2-3B": 3.21e9,
    "meta-llama/Llama-4-Scout-17B-16E": 109e9,
    "meta-llama/Llama-4-Maverick-17B-128E": 400e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mixtral-8x7B-v0.1": 46.7e9,
    "mistralai/Mixtral-8x22B-v0.1": 141e9,
    "mistralai/Mistral-Nemo-12B": 12.2e9,
    "mistralai/Ministral-8B": 8.02e9,
    "mistralai/Mistral-Small-2409": 22.2e9,
    "mistralai/Mistral-Small-24B-2501": 23.6e9,
    "mistralai/Mistral-Large-2407": 123e9,
    "Qwen/Qwen1.5-72B": 72.3e9,
    "Qwen/Qwen2-57B-A14B": 57.4e9,
    "Qwen/Qwen2.5-7B": 7.61e9,
    "Qwen/Qwen2.5-14B": 14.7e9,
    "Qwen/Qwen2.5-32B": 32.5e9,
    "Qwen/Qwen2.5-72B": 72.7e9,
    "Qwen/Qwen3-8B": 8.2e9,
    "Qwen/Qwen3-14B": 14.8e9,
    "Qwen/Qwen3-32B": 32.8e9,
    "Qwen/Qwen3-30B-A3B": 30.5e9,
    "Qwen/Qwen3-235B-A22B": 235e9,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480e9,
    "Qwen/Qwen3-Next-80B-A3B": 80e9,
    "Qwen/Qwen3.5-9B": 9.0e9,
    "deepseek-ai/DeepSeek-V2-Lite": 15.7e9,
    "deepseek-ai/DeepSeek-V2": 236e9,
    "deepseek-ai/DeepSeek-V3": 671e9,
    "deepseek-ai/DeepSeek-V3.2": 671e9,
    "deepseek-ai/deepseek-llm-67b": 67.4e9,
    "deepseek-ai/deepseek-coder-33b": 33.3e9,
    "moonshotai/Kimi-K2-Instruct": 1.03e12,
    "openai/gpt-oss-20b": 20.9e9,
    "openai/gpt-oss-120b": 116.8e9,
    "MiniMaxAI/MiniMax-M2": 229e9,
    "zai-org/GLM-4.5": 355e9,
    "zai-org/GLM-4.5-Air": 106e9,
    "tiiuae/falcon-7b": 6.92e9,  # its card says 7.22: the files hold the tied matrix twice
    "tiiuae/falcon-40b": 41.3e9,
    "tiiuae/falcon-180B": 180e9,
    "EleutherAI/gpt-j-6b": 6.05e9,
    "EleutherAI/gpt-neox-20b": 20.6e9,
    "openai/gpt3-175b": 175e9,
    "nvidia/megatron-turing-530b": 530e9,
    "facebook/opt-1.3b": 1.3e9,
    "facebook/opt-6.7b": 6.7e9,
    "facebook/opt-13b": 13.0e9,
    "facebook/opt-30b": 30e9,
    "facebook/opt-66b": 66e9,
    "facebook/opt-175b": 175e9,
    "bigscience/bloom-7b1": 7.07e9,
    "bigscience/bloom": 176e9,
    "bigcode/starcoder": 15.5e9,
    "databricks/dbrx-base": 132e9,
    "CohereForAI/c4ai-command-r-v01": 35e9,
    "CohereForAI/c4ai-command-r-plus": 104e9,
    "google/gemma-2-2b": 2.61e9,
    "google/gemma-2-9b": 9.24e9,
    "google/gemma-2-27b": 27.2e9,
    "google/gemma-3-1b": 1.0e9,
    "google/gemma-3-4b": 3.88e9,
    "google/gemma-3-12b": 11.8e9,
    "google/gemma-3-27b": 27.0e9,
    "openai-community/gpt2": 124e6,
    "openai-community/gpt2-xl": 1.56e9,
    "EleutherAI/pythia-160m": 162e6,
    "facebook/opt-350m": 331e6,
    "bigscience/bloom-560m": 559e6,
    "microsoft/phi-2": 2.78e9,
    "baichuan-inc/Baichuan-7B": 7.0e9,
    "baichuan-inc/Baichuan-13B-Base": 13.3e9,
    "baichuan-inc/Baichuan2-7B-Base": 7.51e9,
    "baichuan-inc/Baichuan2-13B-Base": 13.9e9,
    "zai-org/glm-4-9b": 9.4e9,
    "zai-org/GLM-4-9B-0414": 9.4e9,
    "zai-org/GLM-4-32B-0414": 32.6e9,
    "microsoft/Phi-3-mini-4k-instruct": 3.82e9,
    "microsoft/Phi-3-medium-4k-instruct": 14.0e9,
    "microsoft/phi-4": 14.7e9,
    "microsoft/Phi-3.5-MoE-instruct": 41.9e9,
    "01-ai/Yi-6B": 6.06e9,
    "01-ai/Yi-34B": 34.4e9,
    "internlm/internlm-20b": 20.0e9,
    "internlm/internlm2-7b": 7.74e9,
    "internlm/internlm2-20b": 19.9e9,
    "internlm/internlm3-8b-instruct": 8.8e9,
    "nvidia/Nemotron-4-15B": 15.6e9,
    "nvidia/Nemotron-4-340B": 341e9,
}
"""Sizes as the sources above or the models' cards state them, rounded as there; of models that also see, the decoder alone."""


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
