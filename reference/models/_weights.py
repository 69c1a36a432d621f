"""Weights: read from safetensors or from llama2.c's own format, or drawn; always a dictionary by Hugging Face name."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import Architecture, architecture_of, norm_weights
from llmlab.reference.models._config import ModelConfig, Rope

Weights = Mapping[str, np.ndarray]

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
}


def random_weights(config: ModelConfig, rng: np.random.Generator, std: float = 0.02) -> dict[str, np.ndarray]:
    """Draw float32 weights: normal with `std`, weights of norms around 1, in the order of `config.weight_shapes()`."""
    ones = norm_weights(config) if config.runnable else {name for name in config.weight_shapes() if "norm" in name}
    return {
        name: (std * rng.standard_normal(shape, dtype=np.float32) + np.float32(name in ones)).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }


def check_weights(config: ModelConfig, weights: Weights) -> None:
    """Compare names and shapes with what the architecture needs.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    check_shapes(config.name, config.weight_shapes(), weights)


def check_shapes(where: str, expected: Mapping[str, tuple[int, ...]], weights: Weights) -> None:
    """Compare names and shapes with what an architecture needs.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(f"{where}: weight {name!r} of shape {shape} is missing")
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{where}: weight {name!r} has shape {tuple(weights[name].shape)}, the config says {shape}")


def load_checkpoint(folder: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Read a folder as Hugging Face publishes it, `config.json` and `*.safetensors`, or a GGUF file; return config and weights.

    Files name some weights otherwise than models in memory do: experts lie one by one, GPT-2 and BLOOM leave the first word
    out, Mixtral and GPT-NeoX have older names. Tensors that the architecture does not ask for are left alone.

    Raises:
        InputError: a file is absent or broken, or a weight is missing or misshapen.
    """
    if Path(folder).suffix == ".gguf":
        from llmlab.reference.models._gguf import load_gguf

        return load_gguf(folder)
    config = ModelConfig.from_json(folder)
    if not config.runnable:
        raise InputError(folder, "model_type", config.model_type, "can be priced, not run")
    stored = load_safetensors(folder)
    expected = config.weight_shapes()
    weights = {name: _found(name, stored, architecture_of(config.model_type), folder) for name in expected}
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise InputError(folder, name, weights[name].shape, f"has another shape than the config says: {shape}")
    return config, weights


def _found(name: str, stored: Weights, family: Architecture, folder: str | Path) -> np.ndarray:
    """A weight under its own name, under the name files give it, or put together from experts stored one by one."""
    if name in stored:
        return stored[name]
    for own, templates in family.stored.items():
        if not name.endswith(own):
            continue
        names = [name.removesuffix(own) + template for template in templates]
        if "{}" in names[0]:
            if names[0].format(0) in stored:
                return _gathered(names, stored, folder)
        elif names[0] in stored:
            return stored[names[0]]
    bare = name.partition(".")[2]
    if bare in stored:
        return stored[bare]
    raise InputError(folder, name, None, "is missing from the weights")


def _gathered(templates: Sequence[str], stored: Weights, folder: str | Path) -> np.ndarray:
    """Stack experts, each the rows of its templates one after the other; return [E, rows, columns]."""
    experts: list[np.ndarray] = []
    while (first := templates[0].format(len(experts))) in stored:
        names = [template.format(len(experts)) for template in templates]
        for lacking in (one for one in names if one not in stored):
            raise InputError(folder, lacking, None, f"is missing beside {first}")
        experts.append(np.concatenate([stored[one] for one in names]))
    return np.stack(experts)


def load_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read one file, or a folder's: those its index names, else every `*.safetensors`.

    Bfloat16 is widened to float32, the rest stay memory-mapped.

    The format is 8 bytes of header length (little-endian), a JSON header with dtype, shape and byte range of each tensor,
    then the bytes (huggingface/safetensors, README, "Format").

    Raises:
        InputError: no such file, or the header does not describe it.
    """
    path = Path(path)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return _read_shards(index)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InputError(path, "", path.name, "holds no .safetensors file")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= _read_safetensors(file)
    return tensors


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Every tensor the index names, out of the file it says."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(index, "weight_map", None, f"is not an index of safetensors files: {error}") from error
    for file in files:
        if Path(file).name != file:
            raise InputError(index, "weight_map", file, "must be a file beside the index")
    shards = {file: _read_safetensors(index.parent / file) for file in files}
    for name, file in places.items():
        if name not in shards[file]:
            raise InputError(index, name, file, "does not hold the tensor the index places there")
    return {name: shards[file][name] for name, file in places.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise InputError(path, "header length", length, f"is more than the file's {size} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(path, "", path.name, f"is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise InputError(path, "", path.name, "is not a safetensors file: its header is no object")
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return {name: _tensor(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _tensor(path: Path, name: str, entry: object, data: np.ndarray) -> np.ndarray:
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        dtype = np.dtype(_DTYPES[kind])
        complete = 0 <= start <= end <= data.size and end - start == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, name, entry, "is not a tensor description") from error
    if not complete:
        raise InputError(path, name, (start, end), f"is not the byte range of {kind} {shape} within {data.size} bytes")
    array = data[start:end].view(dtype).reshape(shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array


def load_llama2c(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Read a model in karpathy/llama2.c's first format (seven 32-bit sizes, then float32 weights); return config and weights.

    There the rotation pairs neighbours (2r, 2r + 1) and each matrix kind is stored for all layers together. The rows of q
    and k are permuted to the half-split pairs (r, r + H/2) used here. A negative vocabulary size means an own output matrix.

    Raises:
        InputError: no such file, sizes that make no model, or a length that does not fit them.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error
    if len(raw) < 28:
        raise InputError(path, "bytes", len(raw), "is shorter than the header of 28")
    D, F, layers, N, K, signed_V, longest = struct.unpack("<7i", raw[:28])
    sizes = {
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "vocab_size": abs(signed_V),
        "max_position_embeddings": longest,
    }
    facts = {"model_type": "llama", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
    config = ModelConfig.from_dict({**sizes, **facts, "tie_word_embeddings": signed_V > 0}, str(path))
    assert config.rope == Rope(10000.0)
    Q, P, H, V = config.query_width, config.key_value_width, config.head_dim, config.vocab_size
    layout: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "input_layernorm": (layers, D),
        "self_attn.q_proj": (layers, Q, D),
        "self_attn.k_proj": (layers, P, D),
        "self_attn.v_proj": (layers, P, D),
        "self_attn.o_proj": (layers, D, Q),
        "post_attention_layernorm": (layers, D),
        "mlp.gate_proj": (layers, F, D),
        "mlp.down_proj": (layers, D, F),
        "mlp.up_proj": (layers, F, D),
        "model.norm.weight": (D,),
        "cosines and sines": (longest, H),
    }
    if not config.tie_word_embeddings:
        layout["lm_head.weight"] = (V, D)
    needed = 28 + 4 * sum(math.prod(shape) for shape in layout.values())
    if len(raw) != needed:
        raise InputError(path, "bytes", len(raw), f"does not fit its header, which says {needed}")

    weights: dict[str, np.ndarray] = {}
    start = 28
    for name, shape in layout.items():
        array = np.frombuffer(raw, "<f4", math.prod(shape), start).reshape(shape)
        start += array.nbytes
        if name.startswith(("self_attn.q", "self_attn.k")):
            array = np.stack([half_split(rows, H) for rows in array])
        if name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            weights[name] = array
        elif name != "cosines and sines":
            weights |= {f"model.layers.{layer}.{name}.weight": array[layer] for layer in range(layers)}
    return config, weights


def half_split(rows_QD: np.ndarray, head_width: int) -> np.ndarray:
    """Move row 2r + i of each head to row i * H/2 + r, of a matrix or a bias."""
    inner = rows_QD.shape[1:]
    return rows_QD.reshape(-1, head_width // 2, 2, *inner).swapaxes(1, 2).reshape(rows_QD.shape)
