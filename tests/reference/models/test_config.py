"""What holds of a description of an architecture, whichever file it came from."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import architectures
from llmlab.reference.models._config import ModelConfig, Rope
from llmlab.reference.models._families import PRICED_TYPES
from llmlab.reference.models._presets import preset, preset_names

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
LLAMA = {"model_type": "llama", **SIZES}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 8, "moe_intermediate_size": 16, "mlp_only_layers": [1], "head_dim": 16}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    prefix, more = ARCHITECTURES[name]
    theirs = getattr(transformers, f"{prefix}Config")(**SIZES, **more)
    model = getattr(transformers, f"{prefix}ForCausalLM")(theirs)
    ours = ModelConfig.from_dict(theirs.to_dict(), name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if ours.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert ours.weight_shapes() == shapes
    assert ours.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    windows = [ours.window_of(layer) for layer in range(ours.num_hidden_layers)]
    kinds = getattr(theirs, "layer_types", None)
    if kinds:
        assert windows == [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    elif prefix == "Mistral":
        assert windows == [8, 8, 8]


def test_a_file_of_transformers_4_means_the_same_as_one_of_transformers_5() -> None:
    scaling = {**LLAMA3, "original_max_position_embeddings": 8192}
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float16"}
    new = LLAMA | {"rope_parameters": {**scaling, "rope_theta": 5e5}, "dtype": "float16"}
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(new)
    assert ModelConfig.from_dict(new).rope == Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    older = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}}
    assert ModelConfig.from_dict(older).rope.kind == "linear"


def test_absent_key_value_heads_mean_one_per_query_head() -> None:
    without = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert ModelConfig.from_dict(without).group_size == 1
    assert ModelConfig.from_dict(LLAMA | {"num_key_value_heads": None}).group_size == 1


def test_null_is_the_same_as_absent() -> None:
    nulls = {"head_dim": None, "rope_scaling": None, "sliding_window": None, "eos_token_id": None, "rms_norm_eps": None}
    assert ModelConfig.from_dict(LLAMA | nulls) == ModelConfig.from_dict(LLAMA)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"hidden_size": None}, "hidden_size"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "zero": ({"vocab_size": 0}, "vocab_size"),
    "text for a number": ({"hidden_size": "4096"}, "hidden_size"),
    "true for a number": ({"hidden_size": True}, "hidden_size"),
    "fraction": ({"hidden_size": 4096.5}, "hidden_size"),
    "list": ({"intermediate_size": [1]}, "intermediate_size"),
    "enormous": ({"hidden_size": 10**30}, "hidden_size"),
    "too many layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "infinite": ({"rope_theta": float("inf")}, "rope_theta"),
    "heads do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "width does not divide": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads"),
    "odd head": ({"head_dim": 7}, "head_dim"),
    "unknown type": ({"model_type": "parrot"}, "model_type"),
    "no type": ({"model_type": None}, "model_type"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "token id": ({"eos_token_id": 100}, "eos_token_id"),
    "rope is a list": ({"rope_scaling": []}, "rope_scaling"),
    "rope kind": ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type"),
    "rope factor": ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    "rope edges": (
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
        "low_freq_factor",
    ),
    "rope context": ({"rope_scaling": dict(LLAMA3)}, "original_max_position_embeddings"),
    "partial rotation": ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
    "no experts": ({"model_type": "qwen3_moe"}, "num_experts"),
    "layer kinds": ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["sliding_attention"]}, "layer_types"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_field_is_named_with_its_file_and_value(case: str) -> None:
    change, field = BAD[case]
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict(LLAMA | change, "model/config.json")
    assert caught.value.field == field
    assert str(caught.value).startswith("model/config.json")
    assert "\n" not in str(caught.value)


FIELDS = sorted({field for change, _ in BAD.values() for field in change} | set(SIZES) | {"bos_token_id", "sliding_window"})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "x"]), inner),
    max_leaves=4,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(architectures())), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=3))
def test_whatever_a_field_holds_the_complaint_is_an_input_error(model_type: str, change: dict[str, Any]) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 2, "topk_group": 1}
    widths = {"q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    try:
        config = ModelConfig.from_dict(LLAMA | experts | widths | {"model_type": model_type} | change)
    except InputError:
        return
    assert config.num_parameters > 0
    assert sum(math.prod(shape) for shape in config.parameter_shapes().values()) == config.num_parameters


FILES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_text(json.dumps(LLAMA)[:40]),
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1]"),
    "absent": lambda path: None,
    "nested": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    FILES[case](path)
    with pytest.raises(InputError) as caught:
        ModelConfig.from_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert ModelConfig.from_json(tmp_path).num_parameters == ModelConfig.from_dict(LLAMA).num_parameters


# Sizes as the model cards and papers print them, in millions.
PRINTED = {
    "Llama-2-7b": 6738,
    "Llama-2-70b": 68977,
    "Llama-3.1-8B": 8030,
    "Llama-3.1-70B": 70554,
    "Llama-3.1-405B": 405853,
    "Mistral-7B-v0.1": 7242,
    "Mixtral-8x7B": 46703,
    "Mixtral-8x22B": 140621,
    "Qwen2.5-7B": 7616,
    "Qwen3-30B-A3B": 30532,
    "SmolLM-135M": 135,
}


@pytest.mark.parametrize("name", PRINTED)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    config = preset(name)
    assert config is not None
    assert round(config.num_parameters / 1e6) == PRINTED[name]


def test_every_preset_is_found_by_any_spelling() -> None:
    for name in preset_names():
        config = preset(name)
        assert config is not None
        assert config.runnable == (config.model_type in architectures())
        assert config.runnable or config.model_type in PRICED_TYPES
        assert preset(name.partition("/")[2].upper()) == config.renamed(name.partition("/")[2].upper())
    base = preset("meta-llama/Llama-2-70b")
    assert base is not None
    assert preset("meta-llama/Llama-2-70b-chat-hf") == base.renamed("meta-llama/Llama-2-70b-chat-hf")
    assert preset("nobody/nothing") is None


def test_active_parameters_leave_out_the_experts_not_visited() -> None:
    config = preset("Mixtral-8x7B")
    assert config is not None
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    assert config.num_parameters - config.num_active_parameters == 32 * 6 * expert


def test_own_small_models_lie_between_50_and_150_million() -> None:
    for name in ("llama-50m", "llama-100m", "llama-150m", "SmolLM-135M"):
        config = preset(name)
        assert config is not None
        assert 45e6 < config.num_parameters < 155e6


WIDER: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": ("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8}),
    "deepseek v2": (
        "DeepseekV2",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "glm": (
        "Glm4Moe",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "head_dim": 8,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    "llama 4": (
        "Llama4",
        {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1, "head_dim": 8},
    ),
    "qwen3-next": (
        "Qwen3Next",
        {
            "num_hidden_layers": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "head_dim": 16,
        },
    ),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}),
    "gemma2": ("Gemma2", {"head_dim": 8}),
    "gemma3": ("Gemma3Text", {"head_dim": 8}),
    "nemotron": ("Nemotron", {}),
    "cohere": ("Cohere", {}),
}


FOURFOLD = ("GPTJ",)
"""Families whose files know neither `intermediate_size` nor `num_key_value_heads`."""


@pytest.mark.parametrize("name", WIDER)
def test_families_that_are_only_priced_have_as_many_weights_as_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    prefix, more = WIDER[name]
    kind = {"Llama4": "Llama4TextConfig", "Gemma3Text": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    model = {"Gemma3Text": "Gemma3ForCausalLM"}.get(prefix, f"{prefix}ForCausalLM")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    unknown = ("intermediate_size", "num_key_value_heads") if prefix in FOURFOLD else ()
    sizes = {key: value for key, value in SIZES.items() if key not in unknown}
    theirs = getattr(transformers, kind)(**(sizes | ids | more))
    network = getattr(transformers, model)(theirs)
    ours = ModelConfig.from_dict(theirs.to_dict(), name)
    assert not ours.runnable
    assert ours.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert ours.num_parameters == sum(math.prod(shape) for shape in ours.weight_shapes().values())


def test_the_decoder_of_a_model_that_sees_is_read_and_refused_when_run() -> None:
    import numpy as np

    from llmlab.reference.models._blocks import decoder

    seen = ModelConfig.from_dict({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **SIZES}}, "eyes")
    assert seen.sliding_window == 1024
    with pytest.raises(ValueError, match="can be priced, not run"):
        decoder(seen, {}, np.zeros((1, 1), dtype=int))
