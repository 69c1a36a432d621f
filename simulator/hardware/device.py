"""Accelerators, links and nodes as data: what the vendor states. What a device reaches in practice is in `profile.py`.

Units: bytes, seconds, FLOP/s, watts, US dollars; they are part of every name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from llmlab.reference.errors import InputError

FOLDER = Path(__file__).resolve().parent

DTYPE_BYTES: Mapping[str, float] = {
    "float64": 8.0,
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int4": 0.5,
    "fp4": 0.5,
}
"""Bytes of one element, by the dtype names used everywhere in the simulator."""

_DTYPE_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "float8": "fp8",
    "float8_e4m3": "fp8",
    "float8_e4m3fn": "fp8",
    "fp8_e4m3": "fp8",
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}


def dtype_name(dtype: str) -> str:
    """Return the one name a dtype has here.

    Raises:
        InputError: the dtype is not known.

    >>> dtype_name("bf16"), dtype_name("FP8")
    ('bfloat16', 'fp8')
    """
    name = dtype.strip().lower().removeprefix("torch.")
    name = _DTYPE_ALIASES.get(name, name)
    if name not in DTYPE_BYTES:
        raise InputError("dtype", "dtype", dtype, f"not one of {', '.join(DTYPE_BYTES)}")
    return name


@dataclass(frozen=True)
class Device:
    """One accelerator, or one machine's processor, as its vendor (or a peak measurement) states it.

    Attributes:
        hbm_bytes_per_s: peak bandwidth of the main memory.
        flops_per_s: peak by dtype; `bfloat16` is the tensor-core rate where there is one.
        cores: multiprocessors (or processor cores): tiles are dealt to them in waves.
        link_bytes_per_s: to devices of the same node, one direction.
        link_devices: devices the link joins; those of a node where 0.
        bridge_bytes_per_s: to the other devices of a bridged group of `bridge_devices`, where only some are joined directly.
        memory_share: part of the memory's peak that the curves' fractions are of (below 1 where error correction takes a part).
        sustained_share: part of the arithmetic peak that the power limit leaves under load, beyond what the curves show.
        profile: name of the fitted curves in `profiles/`, and `fitted` says whether they were fitted on this very device.
    """

    name: str
    generation: str
    hbm_bytes: int
    hbm_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    cores: int
    last_level_cache_bytes: int
    aliases: tuple[str, ...] = ()
    link: str = "none"
    link_bytes_per_s: float = 32e9
    link_devices: int = 0
    bridge_bytes_per_s: float = 0.0
    bridge_devices: int = 1
    memory_share: float = 1.0
    sustained_share: float = 1.0
    host_link_bytes_per_s: float = 32e9
    devices_per_node: int = 1
    node_link_bytes_per_s: float = 12.5e9
    power_w: float = 0.0
    idle_power_w: float = 0.0
    price_usd_per_hour: float = 0.0
    price_source: str = ""
    profile: str = ""
    fitted: bool = False
    source: str = ""

    def peak_flops_per_s(self, dtype: str) -> float:
        """Peak rate for operands of this dtype; a dtype the device lacks runs at the widest 16- or 32-bit rate it has.

        >>> load_device_sheet("a100").peak_flops_per_s("fp8") == load_device_sheet("a100").peak_flops_per_s("bfloat16")
        True
        """
        dtype = {"fp8_block": "fp8"}.get(dtype, dtype)
        for candidate in (dtype, "bfloat16", "float16", "float32", "float64"):
            if candidate in self.flops_per_s:
                return float(self.flops_per_s[candidate])
        raise InputError(self.name, "flops_per_s", dict(self.flops_per_s), "names no dtype")

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of every field."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["flops_per_s"] = dict(self.flops_per_s)
        plain["aliases"] = list(self.aliases)
        return plain


@dataclass(frozen=True)
class Link:
    """A connection between devices or nodes: one direction."""

    name: str
    bytes_per_s: float
    latency_s: float
    source: str = ""


@dataclass(frozen=True)
class Node:
    """Devices behind one host."""

    name: str
    device: str
    devices: int
    link: str
    network: str
    host_power_w: float = 0.0
    source: str = ""


T = TypeVar("T")

_POSITIVE = {
    "hbm_bytes",
    "hbm_bytes_per_s",
    "cores",
    "last_level_cache_bytes",
    "link_bytes_per_s",
    "bridge_devices",
    "memory_share",
    "sustained_share",
    "host_link_bytes_per_s",
    "devices_per_node",
    "node_link_bytes_per_s",
    "bytes_per_s",
    "devices",
}


def parse_record(kind: type[T], record: Any, where: object) -> T:
    """Check one mapping against a dataclass above, field by field.

    Raises:
        InputError: an unknown or missing key, a wrong type, or a number that must be positive and is not.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(record, Mapping):
        raise InputError(where, "", record, "expected a mapping of fields")
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    for key in record:
        if key not in known:
            raise InputError(where, str(key), record[key], f"unknown key; known: {', '.join(sorted(known))}")
    try:
        parsed = TypeAdapter(kind).validate_python(dict(record))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(where, ".".join(map(str, first["loc"])), first.get("input"), first["msg"]) from None
    numbers = {key: value for key in _POSITIVE & known if isinstance(value := getattr(parsed, key), int | float)}
    numbers |= {f"flops_per_s.{key}": value for key, value in getattr(parsed, "flops_per_s", {}).items()}
    for key, value in numbers.items():
        if not 0 < value < float("inf"):
            raise InputError(where, key, value, "must be a positive finite number")
    return parsed


def _records(path: Path) -> list[Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {error}") from None
    if not isinstance(content, list):
        raise InputError(path, "", type(content).__name__, "expected a list of records")
    return content


def read_devices(path: str | Path) -> dict[str, Device]:
    """Read a YAML list of devices.

    Raises:
        InputError: the file is not such a list, or one field is wrong.
    """
    path = Path(path)
    read = [parse_record(Device, _numeric(record), f"{path.name}[{i}]") for i, record in enumerate(_records(path))]
    return {device.name: device for device in read}


def _numeric(record: Any) -> Any:
    """YAML 1.1 reads 1e12 as text; numbers written so are numbers here."""
    if isinstance(record, dict):
        return {key: _numeric(value) for key, value in record.items()}
    if isinstance(record, str) and record[:1].isdigit() and "e" in record:
        try:
            return float(record)
        except ValueError:
            return record
    return record


@cache
def device_sheets() -> Mapping[str, Device]:
    """Every shipped device by name."""
    return read_devices(FOLDER / "accelerators.yaml")


@cache
def links() -> Mapping[str, Link]:
    """Every shipped link by name."""
    path = FOLDER / "links.yaml"
    return {link.name: link for link in (parse_record(Link, _numeric(record), path.name) for record in _records(path))}


@cache
def nodes() -> Mapping[str, Node]:
    """Every shipped node by name."""
    path = FOLDER / "nodes.yaml"
    return {node.name: node for node in (parse_record(Node, _numeric(record), path.name) for record in _records(path))}


def device_names() -> list[str]:
    """Names of the shipped devices."""
    return list(device_sheets())


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")


def load_device_sheet(name: str) -> Device:
    """Find a shipped device by name or alias, whatever the case.

    Raises:
        InputError: no such device; the message lists the known names.

    >>> load_device_sheet("h100").name, load_device_sheet("H100-80GB-SXM").name
    ('H100-SXM-80GB', 'H100-SXM-80GB')
    """
    wanted = _key(name)
    for device in device_sheets().values():
        if wanted in {_key(known) for known in (device.name, *device.aliases)}:
            return device
    raise InputError("gpu", "name", name, f"unknown; known: {', '.join(device_sheets())}")


@dataclass(frozen=True)
class Peaks:
    """Limits of a machine measured rather than read: what `Device` holds, without the commercial part."""

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    cores: int
    last_level_cache_bytes: int
    source: str = "measured"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def device(self) -> Device:
        """The same limits as a device."""
        return Device(
            name=self.name,
            generation="measured",
            hbm_bytes=self.memory_bytes,
            hbm_bytes_per_s=self.memory_bytes_per_s,
            flops_per_s=dict(self.flops_per_s),
            cores=self.cores,
            last_level_cache_bytes=self.last_level_cache_bytes,
            fitted=True,
            source=self.source,
        )
