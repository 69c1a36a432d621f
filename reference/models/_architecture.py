"""A family of models, defined in one file each: how its `config.json` is read and what its files call and pack its weights.

The blocks go by the Llama family's names (`_shapes.py`); an `Architecture` maps them to those of transformers. Families
are found by looking for `ARCHITECTURE` in every file of this folder, so a new one is a new file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._shapes import layer_buffers, layer_shapes, shapes_after, shapes_before

EXPERTS = {
    "mlp.experts.gate_up_proj": ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.{}.down_proj.weight",),
}
"""Experts as most families' files hold them, one by one."""

TINY: Mapping[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "vocab_size": 37,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Sizes of the small examples: not round, two layers."""


def tiny(model_type: str, variants: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, dict[str, Any]]:
    """A small `config.json` of every variant; what a variant says comes before what all have in common."""
    return {name: {"model_type": model_type, **TINY, **common, **more} for name, more in variants.items()}


@dataclass(frozen=True, eq=False)
class Architecture:
    """One family.

    Attributes:
        model_types: the `model_type`s of its files.
        read: makes a `ModelConfig` of a `config.json`.
        tiny: small `config.json`s, one of every variant, by name; tests and oracles build them.
        names: a module's name here to its name in the files; several with one name are packed along their rows, in this
            order. `model.layers` is what comes before the number of a layer.
        grouped: packed queries, keys and values lie by key/value head: its G queries, its key, its value (Falcon; with one
            query each GPT-NeoX and BLOOM).
        transposed: matrices of layers are [in, out] in the files (GPT-2's Conv1D).
        names_of: further names, where they differ between variants.
        stored: the end of a name in memory to the ends of those in published files, `{}` standing for the number of an expert.
    """

    model_types: tuple[str, ...]
    read: Callable[[Fields], ModelConfig]
    tiny: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str] = field(default_factory=dict)
    grouped: bool = False
    transposed: bool = False
    names_of: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: EXPERTS)

    def tiny_config(self, name: str) -> ModelConfig:
        """The architecture of that name in `tiny`."""
        return ModelConfig.from_dict(self.tiny[name], name)

    def file_name(self, config: ModelConfig, name: str) -> str:
        """What the files call a parameter."""
        names = {**self.names, **self.names_of(config)}
        if not name.startswith("model.layers."):
            return _renamed(names, name)
        number, _, inner = name.removeprefix("model.layers.").partition(".")
        return f"{names.get('model.layers', 'model.layers')}.{number}.{_renamed(names, inner)}"


def _renamed(names: Mapping[str, str], name: str) -> str:
    """Exchange the longest run of words from the front that has another name.

    >>> _renamed({"mlp": "ff", "mlp.up_proj": "ff.c_fc"}, "mlp.up_proj.weight")
    'ff.c_fc.weight'
    """
    module, rest = name, ""
    while module and module not in names:
        module, _, last = module.rpartition(".")
        rest = f".{last}{rest}"
    return names[module] + rest if module else name


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every family that can be run, by `model_type`."""
    found: dict[str, Architecture] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if "ARCHITECTURE = " not in path.read_text(encoding="utf-8"):
            continue  # models that are no decoders; some read configurations while they are imported
        module = importlib.import_module(f"llmlab.reference.models.{path.stem}")
        found |= dict.fromkeys(module.ARCHITECTURE.model_types, module.ARCHITECTURE)
    return found


def architecture_of(model_type: str) -> Architecture:
    """The family of a `model_type`.

    Raises:
        ValueError: no family here has it.
    """
    if model_type not in architectures():
        raise ValueError(f"model_type={model_type!r} is none of {', '.join(architectures())}")
    return architectures()[model_type]


def read_config(f: Fields) -> ModelConfig:
    """Read a `config.json` of any family, whether it can be run or only priced.

    Raises:
        InputError: an unknown family, or a field that is wrong.
    """
    from llmlab.reference.models._families import PRICED_TYPES, read_priced

    model_type = f.text("model_type")
    if model_type in architectures():
        return architectures()[model_type].read(f)
    if model_type in PRICED_TYPES:
        return read_priced(f, model_type)
    raise InputError(f.where, "model_type", model_type, f"is none of {', '.join((*architectures(), *PRICED_TYPES))}")


Layout = dict[str, list[tuple[str, tuple[int, ...]]]]
"""Name in the files -> the parameters packed in it, in order, with their shapes."""


@lru_cache(maxsize=64)
def _layouts(config: ModelConfig) -> tuple[Layout, ...]:
    """What comes before the layers, each layer, and what comes after."""
    family = architecture_of(config.model_type)

    def layout(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> Layout:
        packed: Layout = {}
        for name, shape in shapes.items():
            packed.setdefault(family.file_name(config, prefix + name), []).append((name, shape))
        return packed

    layers = (
        layout(layer_shapes(config, layer) | layer_buffers(config, layer), f"model.layers.{layer}.")
        for layer in range(config.num_hidden_layers)
    )
    return layout(shapes_before(config)), *layers, layout(shapes_after(config))


def file_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the files by their name there."""
    transposed = architecture_of(config.model_type).transposed
    before, *layers, after = _layouts(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for layout in (before, *layers, after):
        turned = transposed and layout is not before and layout is not after
        for name, parts in layout.items():
            shape = (sum(rows for _, (rows, *_) in parts), *parts[0][1][1:])
            shapes[name] = shape[::-1] if turned else shape
    return shapes


def norm_weights(config: ModelConfig) -> set[str]:
    """Names in the files of the weights that norms scale with."""
    return {
        name
        for layout in _layouts(config)
        for name, parts in layout.items()
        if "norm" in parts[0][0] and parts[0][0].endswith(".weight")
    }


def unpack(config: ModelConfig, weights: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Views of a file's tensors by the blocks' names: (those outside the layers, those of each layer).

    Arrays of any library that slices, reshapes and transposes will do.
    """
    family = architecture_of(config.model_type)
    before, *layers, after = _layouts(config)

    def split(layout: Layout, transposed: bool) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for name, parts in layout.items():
            array = weights[name].T if transposed and weights[name].ndim > 1 else weights[name]
            if len(parts) == 1:
                own[parts[0][0]] = array
                continue
            if len(parts) == 3 and family.grouped:
                own |= dict(zip((part for part, _ in parts), _by_group(config, array)))
                continue
            rows = [0]
            for _, shape in parts:
                rows.append(rows[-1] + shape[0])
            own |= {part: array[start:end] for (part, _), (start, end) in zip(parts, pairwise(rows))}
        return own

    outside = split(before, False) | split(after, False)
    return outside, [split(layout, family.transposed) for layout in layers]


def _by_group(config: ModelConfig, array: Any) -> tuple[Any, Any, Any]:
    """Rows of queries, keys and values out of [K, G + 2, H] rows."""
    K, G, H = config.num_key_value_heads, config.group_size, config.head_dim
    inner = array.shape[1:]
    groups = array.reshape(K, G + 2, H, *inner)
    q, k, v = groups[:, :G], groups[:, G], groups[:, G + 1]
    return q.reshape(K * G * H, *inner), k.reshape(K * H, *inner), v.reshape(K * H, *inner)
