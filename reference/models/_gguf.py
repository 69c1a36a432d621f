"""GGUF, the file of llama.cpp (ggml-org/ggml, docs/gguf.md): metadata, names and tensors in one.

Read here are the Llama family (Llama, Mistral, Qwen2, Qwen3) in F32, F16, BF16 and Q8_0; every other block format (Q4_0 ..
Q6_K, IQ.., MXFP4) is unpacked by the package gguf, ggml's own, where it is installed. There the rotation of Llama pairs
neighbours (2r, 2r + 1), so the rows of its q and k are permuted to the half-split pairs of Hugging Face's files.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import half_split

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BLOCK = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])  # Q8_0: 32 weights, each scale * code
_FORMATS: dict[int, tuple[str, int, np.dtype[Any]]] = {
    0: ("F32", 1, np.dtype("<f4")),
    1: ("F16", 1, np.dtype("<f2")),
    8: ("Q8_0", 32, _BLOCK),
    30: ("BF16", 1, np.dtype("<u2")),
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def load_gguf(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Return the architecture and its weights by Hugging Face name, float32 where the file has another format than F16.

    Raises:
        InputError: no such file, not GGUF, a family or format that is not read here, or a tensor past the file's end.
    """
    path = Path(path)
    try:
        raw = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {error}") from error
    try:
        facts, places, start = _header(raw.data)
    except (struct.error, UnicodeDecodeError, IndexError, KeyError, MemoryError) as error:
        raise InputError(path, "header", None, f"is not that of a GGUF file: {error!r}") from error
    if "rope_freqs.weight" in places:
        raise InputError(path, "rope_freqs.weight", None, "rotary factors per pair are not read")
    stored = {name: _tensor(path, name, place, raw[start:]) for name, place in places.items()}
    config = _config(path, facts, stored)
    weights = {_name(path, name): array for name, array in stored.items()}
    if facts["general.architecture"] == "llama":
        for name, array in weights.items():
            if ".q_proj." in name or ".k_proj." in name:
                weights[name] = half_split(array, config.head_dim)
    return config, weights


Places = dict[str, tuple[int, tuple[int, ...], int]]
"""Tensor name -> (format, shape, offset)."""


def _header(raw: memoryview) -> tuple[dict[str, Any], Places, int]:
    """Metadata, the tensors' places, and where data begin."""
    place = 0

    def read(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(form, raw, place)
        place += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal place
        length = read("<Q")
        if place + length > len(raw):
            raise IndexError(f"a string of {length} bytes at {place}")
        place += length
        return bytes(raw[place - length : place]).decode()

    def value(kind: int) -> Any:
        if kind == _STRING:
            return text()
        if kind == _ARRAY:
            inner, count = read("<I"), read("<Q")
            if count > len(raw):
                raise IndexError(f"an array of {count} entries at {place}")
            return [value(inner) for _ in range(count)]
        return read(_NUMBERS[kind])

    if bytes(raw[:4]) != b"GGUF":
        raise KeyError(f"it begins with {bytes(raw[:4])!r}")
    place = 4
    if read("<I") not in (2, 3):
        raise KeyError("its version is neither 2 nor 3")
    tensors, entries = read("<Q"), read("<Q")
    facts = _collected(entries, lambda: (text(), value(read("<I"))))
    places = _collected(tensors, lambda: (text(), (tuple(read("<Q") for _ in range(read("<I")))[::-1], read("<I"), read("<Q"))))
    aligned = int(facts.get("general.alignment", 32))
    return (
        facts,
        {name: (kind, shape, offset) for name, (shape, kind, offset) in places.items()},
        -(-place // aligned) * aligned,
    )


def _collected(count: int, one: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    found = {}
    for _ in range(count):
        name, what = one()
        found[name] = what
    return found


def _tensor(path: Path, name: str, place: tuple[int, tuple[int, ...], int], data: np.ndarray) -> np.ndarray:
    kind, shape, offset = place
    if kind not in _FORMATS:
        return _unpacked_by_gguf(path, name, place, data)
    label, block, dtype = _FORMATS[kind]
    size = math.prod(shape) // block * dtype.itemsize
    if math.prod(shape) % block or offset + size > data.size:
        raise InputError(path, name, shape, f"does not lie in the file as {label}")
    array = data[offset : offset + size].view(dtype)
    if label == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if label == "Q8_0":
        array = array["scale"].astype(np.float32)[:, None] * array["codes"]
    return array.reshape(shape)


def _unpacked_by_gguf(path: Path, name: str, place: tuple[int, tuple[int, ...], int], data: np.ndarray) -> np.ndarray:
    kind, shape, offset = place
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise InputError(path, name, kind, "is a block format that needs the package gguf") from None
    try:
        label = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[label]
    except (ValueError, KeyError):
        raise InputError(path, name, kind, "is no tensor format of ggml") from None
    if shape[-1] % block or offset + math.prod(shape) // block * block_bytes > data.size:
        raise InputError(path, name, shape, f"does not lie in the file as {label.name}")
    packed = data[offset : offset + math.prod(shape) // block * block_bytes].reshape(*shape[:-1], -1)
    try:
        return np.asarray(dequantize(packed, label), dtype=np.float32).reshape(shape)
    except NotImplementedError:
        raise InputError(path, name, label.name, "cannot be unpacked by this version of gguf") from None


def _config(path: Path, facts: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> ModelConfig:
    family = facts.get("general.architecture")
    if family not in ("llama", "qwen2", "qwen3"):
        raise InputError(path, "general.architecture", family, "is none of llama, qwen2, qwen3")
    if "token_embd.weight" not in stored:
        raise InputError(path, "token_embd.weight", None, "is missing")
    kind = facts.get(f"{family}.rope.scaling.type", "none")
    if kind != "none":
        raise InputError(path, f"{family}.rope.scaling.type", kind, "must be none")
    of = {name.removeprefix(f"{family}."): value for name, value in facts.items()}
    return ModelConfig.from_dict(
        {
            "model_type": family,
            "hidden_size": of.get("embedding_length"),
            "intermediate_size": of.get("feed_forward_length"),
            "num_hidden_layers": of.get("block_count"),
            "num_attention_heads": of.get("attention.head_count"),
            "num_key_value_heads": of.get("attention.head_count_kv"),
            "head_dim": of.get("attention.key_length", of.get("rope.dimension_count")),
            "vocab_size": len(stored["token_embd.weight"]),
            "max_position_embeddings": of.get("context_length"),
            "rms_norm_eps": of.get("attention.layer_norm_rms_epsilon"),
            "rope_theta": of.get("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in stored,
            "attention_bias": "blk.0.attn_q.bias" in stored,
            "qkv_bias": "blk.0.attn_q.bias" in stored,
            "bos_token_id": of.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": of.get("tokenizer.ggml.eos_token_id"),
        },
        str(path),
    )


def _name(path: Path, name: str) -> str:
    prefix, (module, _, kind) = "", name.rpartition(".")
    if name.startswith("blk."):
        _, layer, module = module.split(".", 2)
        prefix = f"model.layers.{layer}."
    if module not in _NAMES:
        raise InputError(path, name, None, "is no tensor of this family")
    return f"{prefix}{_NAMES[module]}.{kind}"
