"""How much of its datasheet a device reaches: fitted curves per operator and dtype, with residuals and provenance.

A profile is a small JSON file: `device` (a shipped device's name, or every field of a measured one), `curves` and
`provenance`. Curves hold fractions of peaks and latencies, so those of one device are a prior for another of its kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.files import write_atomic
from llmlab.simulator.cost.curves import FORMS, Curve, Limits
from llmlab.simulator.hardware.device import FOLDER, Device, load_device_sheet, parse_record

PROFILES = FOLDER / "profiles"

PRIOR_WIDENING = 2.0
"""Residuals of a borrowed curve of a kind nobody could compare are stretched by this factor."""


def kind_of(form_name: str) -> str:
    """Kind of operator a formula prices.

    >>> kind_of("gemm_tiles"), kind_of("attention_decode_waves"), kind_of("all_reduce_custom")
    ('gemm', 'attention_decode', 'collective')
    """
    for kind in ("gemm", "attention_prefill", "attention_decode", "moe", "memory", "host"):
        if form_name.startswith(kind):
            return kind
    return "collective"


@cache
def transfers() -> Mapping[tuple[str, str], Mapping[str, float]]:
    """(relation, kind) -> quantiles of measured / predicted under another device's curves, from `transfer.yaml`."""
    import yaml

    path = FOLDER / "transfer.yaml"
    records = yaml.safe_load(path.read_text()) if path.is_file() else []
    return {(record["relation"], record["kind"]): record for record in records}


@dataclass(frozen=True)
class DeviceProfile:
    """A device and its curves, keyed `kind.dtype` ("gemm.bfloat16"), `kind.dtype.kv_dtype`, `memory.operator` or `kind`.

    Attributes:
        relation: where the curves were fitted elsewhere, whether on a device of the "same generation" or "another generation":
            residual quantiles are then those measured between devices so related.
        widening: how far residual quantiles are stretched away from 1 where no such measurement is known.
        notes: what a reader of a prediction should be told.
    """

    device: Device
    curves: Mapping[str, Curve]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    widening: float = 1.0
    relation: str = ""
    notes: tuple[str, ...] = ()

    def curve(self, kind: str, *variants: str) -> Curve:
        """The most specific curve there is: `kind.a.b`, then `kind.a`, then the bfloat16 or float32 one, then a prior.

        >>> load_device("h100").curve("gemm", "bfloat16").form.startswith("gemm")
        True
        """
        for length in range(len(variants), 0, -1):
            if found := self.curves.get(".".join((kind, *variants[:length]))):
                return found
        if kind == "moe" and variants[:1] in (("fp8",), ("int8",)) and (found := self.curves.get("moe.fp8_block")):
            return found  # per-tensor scales are no harder than per-block ones
        for key in (kind, f"{kind}.bfloat16", f"{kind}.float16", f"{kind}.float32"):
            if found := self.curves.get(key):
                return found
        if kind == "moe_parallel":
            return self.curve("moe", *variants)
        if kind.endswith("_windowed"):
            return self.curve(kind.removesuffix("_windowed"), *variants)
        base = kind.split(".")[0]
        for name in (kind, base, {"all_reduce": "collective"}.get(base, "collective")):
            if name in FORMS:
                return Curve.prior(name)
        raise InputError(self.device.name, "curve", kind, "no curve and no formula of that name")

    def collective(self, kind: str, ranks: int) -> tuple[Curve, float]:
        """The curve of a collective among `ranks` devices of a node, and the bytes per second of the link it goes over.

        Curves of another device's switched links say nothing about a ring through the host; those of a library's ring do about
        a bridged pair. Among more devices than the link joins, sums and gathers pass their part of the message to the network
        of every device (all of a node at once), while exchanges send nearly all of it there.
        """
        device = self.device
        joined = device.link_devices or device.devices_per_node
        if ranks > joined:
            if kind in ("all_to_all", "send_recv"):
                return self.curve(kind), device.node_link_bytes_per_s
            curve, inside = self.collective(kind, joined)
            return curve, 1.0 / (1.0 / inside + 1.0 / (device.node_link_bytes_per_s * joined))
        if 1 < ranks <= device.bridge_devices:
            return self.curves.get(f"{kind}.nccl") or self.curve(kind), device.bridge_bytes_per_s
        if device.link.startswith("pcie") and not (device.fitted and kind in self.curves):
            return Curve.prior("collective_ring"), device.link_bytes_per_s
        return self.curve(kind), device.link_bytes_per_s

    def limits(self, dtype: str = "bfloat16", kv_dtype: str | None = None) -> Limits:
        """Datasheet limits for this dtype."""
        return Limits.of(self.device, dtype, kv_dtype)

    def quantile(self, curve: Curve, which: str) -> float:
        """Measured / predicted at this residual quantile: the curve's own, or that of curves borrowed from so far."""
        ratio = float(curve.residuals[which])
        if self.relation and (measured := transfers().get((self.relation, kind_of(curve.form)))):
            # between the quantiles that were kept the logarithm of the ratio is taken as normal
            outermost = min(ratio, measured["low"]) if float(which) < 0.5 else max(ratio, measured["high"])
            part = {0.05: 1.0, 0.25: 0.41, 0.5: 0.0, 0.75: 0.41, 0.95: 1.0}.get(round(float(which), 2), 1.0)
            return max(0.05, float(outermost**part))
        return max(0.05, 1.0 + (ratio - 1.0) * self.widening)

    def to_json(self) -> dict[str, Any]:
        """The file's content; a shipped device is named, another written out."""
        try:
            named: Any = load_device_sheet(self.device.name).name
        except InputError:
            named = self.device.to_json()
        return {
            "device": named,
            "provenance": dict(self.provenance),
            "curves": {
                name: {
                    "form": curve.form,
                    "parameters": {key: _short(value) for key, value in curve.parameters.items()},
                    "residuals": {key: _short(value) for key, value in curve.residuals.items()},
                    "rows": curve.rows,
                    "held_out": {key: _short(value) for key, value in curve.held_out.items()},
                    "source": curve.source,
                }
                for name, curve in sorted(self.curves.items())
            },
        }

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON."""
        return write_atomic(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def load_profile(path: str | Path) -> DeviceProfile:
    """Read a profile file.

    Raises:
        InputError: the file is absent, truncated, or a field is missing, unknown or not a number.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(path, "", path.name, f"not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise InputError(path, "", type(content).__name__, "expected an object with device and curves")
    for key in ("device", "curves"):
        if key not in content:
            raise InputError(path, key, None, "missing")
    named = content["device"]
    device = load_device_sheet(named) if isinstance(named, str) else parse_record(Device, named, path)
    if not isinstance(content["curves"], dict):
        raise InputError(path, "curves", content["curves"], "expected an object of curves by name")
    curves = {name: parse_record(Curve, record, f"{path}: {name}") for name, record in content["curves"].items()}
    return DeviceProfile(device, curves, content.get("provenance", {}))


@cache
def _shipped(name: str) -> DeviceProfile:
    return load_profile(PROFILES / f"{name}.json")


def load_device(name_or_path: str | Path) -> DeviceProfile:
    """A shipped device by name or alias, or a profile file (`machine.json`).

    Raises:
        InputError: no such device or file; the message lists the known names.
    """
    text = str(name_or_path)
    if text.endswith(".json"):
        return load_profile(text)
    sheet = load_device_sheet(text)
    if not (PROFILES / f"{sheet.profile}.json").is_file():
        return DeviceProfile(sheet, {}, {}, notes=(f"{sheet.name}: no measured curves; datasheet and rules of thumb",))
    fitted = _shipped(sheet.profile)
    if sheet.fitted:
        return replace(fitted, device=sheet)
    relation = "same generation" if fitted.device.generation == sheet.generation else "another generation"
    note = f"{sheet.name}: curves are those of {fitted.device.name} ({relation}), intervals those of such predictions"
    return replace(fitted, device=sheet, widening=PRIOR_WIDENING, relation=relation, notes=(note,))
