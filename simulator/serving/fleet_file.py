"""A fleet as a YAML file. Every key is one of `Fleet`, `Pool`, `Deployment` and what they hold; anything else is refused.

model: meta-llama/Llama-3.1-8B      # keys of a deployment here hold for every pool
router: kv_aware
pools:
  - {name: prefill, role: prefill, device: h100, replicas: 2}
  - {name: decode, role: decode, device: h200, tensor_parallel: 2, replicas: 1,
     scaling: {policy: reactive, least: 1, target: 32}}
transfer: {link: infiniband-ndr, layerwise: true}
failures: {gpu: {mtbf_s: 3.6e5, mttr_s: 600}}
retries: {limit: 3, backoff_s: 0.1}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from llmlab.reference.errors import InputError
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.failures import Failures, Retries
from llmlab.simulator.serving.network import Transfer
from llmlab.simulator.serving.pools import Fleet, Pool, PrefixPool, Scaling

NAMED = {"model": str, "device": str, "engine": str}
"""Keys that hold an object in Python and its name in a file."""


def _inner(kind: type, name: str) -> type | None:
    """The dataclass a field holds, where it does."""
    hint = get_type_hints(kind)[name]
    if kind is Deployment and name in NAMED:
        return None
    return next((each for each in (hint, *get_args(hint)) if is_dataclass(each) and isinstance(each, type)), None)


@cache
def _schema(kind: type) -> type[BaseModel]:
    """A strict model with a dataclass's own fields, types and defaults."""
    hints = get_type_hints(kind)
    entries: dict[str, Any] = {}
    for item in fields(kind):
        annotation = NAMED.get(item.name, hints[item.name]) if kind is Deployment else hints[item.name]
        if (inner := _inner(kind, item.name)) is not None:
            annotation = _schema(inner) | None
        needed = item.default is MISSING and item.default_factory is MISSING
        entries[item.name] = (annotation, ... if needed else None)
    return create_model(
        kind.__name__, __config__=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True), **entries
    )


def _numbers(content: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; it is a number here."""
    if isinstance(content, dict):
        return {key: _numbers(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    if isinstance(content, str) and "e" in content.lower() and content[:1].isdigit():
        try:
            return float(content)
        except ValueError:
            return content
    return content


def _make(kind: type, content: Any, path: Path, where: str) -> Any:
    """Check one mapping and make the dataclass of it."""
    if not isinstance(content, Mapping):
        raise InputError(path, where, content, "must be a mapping of keys")
    for key in content:
        known = [item.name for item in fields(kind)]
        if key not in known:
            raise InputError(path, f"{where}.{key}".lstrip("."), content[key], f"unknown key; known: {', '.join(known)}")
    try:
        checked = _schema(kind).model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        raise InputError(path, place, first.get("input"), first["msg"]) from None
    values = {name: getattr(checked, name) for name in checked.model_fields_set}
    for name, value in values.items():
        if isinstance(value, BaseModel) and (inner := _inner(kind, name)) is not None:
            values[name] = _make(inner, content[name], path, f"{where}.{name}".lstrip("."))
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(path, f"{where}.{error.field}".lstrip("."), error.value, error.why) from None


def read_fleet(path: str | Path) -> Fleet:
    """Read and check a fleet.

    Raises:
        InputError: unreadable, not YAML, an unknown or missing key, a value out of range.
    """
    path = Path(path)
    try:
        content = _numbers(yaml.safe_load(path.read_bytes().decode()))
    except OSError as error:
        raise InputError(path, "file", path.name, error.strerror or "cannot be read") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(path, "file", path.name, f"is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(path, "file", path.name, "must hold keys such as model and pools")
    own = {item.name for item in fields(Fleet)}
    shared = {item.name for item in fields(Deployment)} - {"router"}
    for key in content:
        if key not in own | shared:
            raise InputError(path, str(key), content[key], f"unknown key; known: {', '.join(sorted(own | shared))}")
    if not isinstance(content.get("pools"), list) or not content["pools"]:
        raise InputError(path, "pools", content.get("pools"), "must be a list of at least one pool")
    common = {key: value for key, value in content.items() if key in shared}
    pools = []
    for number, entry in enumerate(content["pools"]):
        where = f"pools.{number}"
        if not isinstance(entry, dict):
            raise InputError(path, where, entry, "must be a mapping of keys")
        if "router" in entry:
            raise InputError(path, f"{where}.router", entry["router"], "belongs to the whole fleet")
        deployed = _make(
            Deployment, common | {k: v for k, v in entry.items() if k not in ("role", "scaling", "name")}, path, where
        )
        scaling = _make(Scaling, entry["scaling"], path, f"{where}.scaling") if entry.get("scaling") is not None else None
        for name in ("role", "name"):
            if not isinstance(entry.get(name, ""), str):
                raise InputError(path, f"{where}.{name}", entry[name], "must be text")
        try:
            pools.append(Pool(deployed, entry.get("role", "both"), scaling, entry.get("name", "")))
        except InputError as error:
            raise InputError(path, f"{where}.{error.field}", error.value, error.why) from None
    kinds = {"failures": Failures, "retries": Retries, "transfer": Transfer, "prefix_pool": PrefixPool}
    parts: dict[str, Any] = {
        name: _make(kind, content[name], path, name) for name, kind in kinds.items() if content.get(name) is not None
    }
    for name, types in (("router", (str,)), ("staleness_s", (int, float))):
        if content.get(name) is not None:
            if not isinstance(content[name], types) or isinstance(content[name], bool):
                raise InputError(path, name, content[name], "has the wrong type")
            parts[name] = content[name]
    try:
        return Fleet(tuple(pools), **parts)
    except InputError as error:
        raise InputError(path, error.field, error.value, error.why) from None
