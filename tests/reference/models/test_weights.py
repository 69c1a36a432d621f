"""Weights out of files: safetensors in one or several parts, under published names, and GGUF."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import architectures
from llmlab.reference.models._blocks import decoder, drawn, forward
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._gguf import _tensor, load_gguf
from llmlab.reference.models._weights import load_checkpoint, load_safetensors, random_weights

IDS = np.arange(6)[None]
SAVED = (
    "gpt2",
    "opt-350m",
    "gpt-neox",
    "bloom",
    "falcon-40b",
    "phi-3",
    "glm-4",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "deepseek-v3",
)
VARIANTS = {name: one for one in architectures().values() for name in one.tiny}


def saved(name: str, folder: Path, **options: Any) -> Any:
    """transformers' model of that name, drawn and written as transformers writes it."""
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.AutoConfig.for_model(**VARIANTS[name].tiny[name])
    config.eos_token_id = config.bos_token_id = None
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(folder, **options)
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


@pytest.mark.parametrize("name", SAVED)
def test_what_transformers_saves_gives_its_logits(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path, max_shard_size="15KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    config, weights = load_checkpoint(tmp_path)
    ours = forward(config, weights, IDS)
    assert error_of(ours, theirs) <= 16 * np.finfo(np.float32).eps * np.abs(theirs).max()


def test_a_part_that_is_gone_or_holds_less_is_named(tmp_path: Path) -> None:
    saved("gpt2", tmp_path, max_shard_size="15KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(places.items()))
    other = next(one for one in places.values() if one != file)
    index.write_text(json.dumps({"weight_map": {**places, name: other}}))
    with pytest.raises(InputError, match="does not hold the tensor"):
        load_safetensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, name: "../away.safetensors"}}))
    with pytest.raises(InputError, match="beside the index"):
        load_safetensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(InputError, match="weight_map"):
        load_safetensors(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=file):
        load_safetensors(tmp_path)


def test_a_weight_that_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    for change, words in (({"n_layer": 3}, r"transformer\.h\.2\..*missing"), ({"vocab_size": 38}, r"transformer\.wte.*38")):
        (tmp_path / "config.json").write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match=words):
            load_checkpoint(tmp_path)


def write(config: ModelConfig, weights: dict[str, np.ndarray], path: Path, kind: str = "F32") -> None:
    """Write a model by the library's own writer, named and permuted as llama.cpp's converter does."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_token_list(["a", "b"])
    names = gguf.TensorNameMap(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for key, array in weights.items():
        stored = array.astype(np.float32)
        if family == "llama" and (".q_proj." in key or ".k_proj." in key):
            stored = stored.reshape(-1, 2, config.head_dim // 2, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)
        if stored.ndim > 1 and kind != "F32":
            quantized = gguf.GGMLQuantizationType[kind]
            if kind.endswith("_K"):  # the library unpacks these and does not pack them: any bytes with finite scales will do
                block, block_bytes = gguf.GGML_QUANT_SIZES[quantized]
                width = stored.shape[1] // block * block_bytes
                stored = np.random.default_rng(len(key)).integers(0, 60, (len(stored), width), dtype=np.uint8)
            else:
                stored = gguf.quants.quantize(stored, quantized)
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), stored, raw_dtype=quantized)
        else:
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama-2", "tied", "qwen2", "qwen3"])
def test_gguf_gives_back_the_model_it_was_written_from(name: str, tmp_path: Path) -> None:
    given, weights = drawn(VARIANTS[name], name)
    write(given, weights, tmp_path / "tiny.gguf")
    config, read = load_checkpoint(tmp_path / "tiny.gguf")
    assert config.weight_shapes() == given.weight_shapes() == {key: array.shape for key, array in read.items()}
    for key, array in weights.items():
        np.testing.assert_array_equal(read[key], array.astype(np.float32))
    assert (
        error_of(forward(config, read, IDS), forward(given, {k: v.astype(np.float32) for k, v in weights.items()}, IDS)) < 1e-5
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q4_K", "Q6_K"])
def test_gguf_formats_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    config = replace(VARIANTS["qwen2"].tiny_config("qwen2"), hidden_size=256, intermediate_size=512, head_dim=64)
    write(config, random_weights(config, np.random.default_rng(0), 0.2), tmp_path / "tiny.gguf", kind)
    _, read = load_gguf(tmp_path / "tiny.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = [array for array in read.values() if array.shape == theirs.shape and np.array_equal(array, theirs)]
        assert ours, tensor.name


def test_an_unknown_gguf_format_and_a_row_cut_short_are_one_clear_line() -> None:
    with pytest.raises(InputError, match="no tensor format"):
        _tensor(Path("x.gguf"), "blk.0.attn_q.weight", (999, (4, 256), 0), np.zeros(4096, np.uint8))
    with pytest.raises(InputError, match="Q4_K"):
        _tensor(Path("x.gguf"), "blk.0.attn_q.weight", (12, (4, 256), 4000), np.zeros(4096, np.uint8))


@pytest.mark.parametrize("cut", [0, 3, 20, 200, -40])
def test_a_broken_gguf_is_one_clear_line(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(*drawn(VARIANTS["qwen2"], "qwen2"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(InputError) as caught:
        load_gguf(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole.replace(b"qwen2", b"quail"))
    with pytest.raises(InputError, match="quail"):
        load_gguf(path)
    with pytest.raises(InputError, match="absent"):
        load_gguf(tmp_path / "absent.gguf")


def test_a_cache_of_a_loaded_model_continues_it(tmp_path: Path) -> None:
    saved("phi-3", tmp_path)
    config, weights = load_checkpoint(tmp_path)
    _, past = decoder(config, weights, IDS[:, :4])
    logits, _ = decoder(config, weights, IDS[:, 4:], past)
    assert error_of(logits, forward(config, weights, IDS)[:, 4:]) < 1e-12
