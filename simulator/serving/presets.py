"""Engine presets: scheduler, block size and limits that an engine has by default, as data (`presets.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.serving.schedulers import SCHEDULERS


@dataclass(frozen=True)
class Preset:
    """Defaults of an engine.

    Attributes:
        name, aliases: what it is called.
        scheduler: a key of `SCHEDULERS`.
        block_tokens: tokens of a KV block.
        prefix_caching: on by default.
        source: where this is written.
        host: engine whose host constants it borrows; its own where empty.
        max_num_seqs, max_num_batched_tokens: limits; those of the host constants where 0.
        since, until: versions it describes, where behaviour changed.
    """

    name: str
    scheduler: str
    block_tokens: int
    prefix_caching: bool
    source: str
    aliases: tuple[str, ...] = ()
    host: str = ""
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    since: str = ""
    until: str = ""


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(".", "")


def read_presets(path: str | Path) -> dict[str, Preset]:
    """Read a YAML list of presets, by name.

    Raises:
        InputError: the file is not such a list, a key is unknown or missing, or a scheduler is unknown.
    """
    import yaml

    path = Path(path)
    try:
        records = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(path, "", type(records).__name__, "expected a list of presets")
    known = {item.name: item.type for item in fields(Preset)}
    found: dict[str, Preset] = {}
    for record in records:
        for field in record:
            if field not in known:
                raise InputError(path, field, record[field], f"unknown key; known: {', '.join(known)}")
        try:
            preset = Preset(**{**record, "aliases": tuple(record.get("aliases", ()))})
        except TypeError as error:
            raise InputError(path, "", record.get("name"), str(error).rpartition("() ")[2]) from None
        if preset.scheduler not in SCHEDULERS:
            raise InputError(path, "scheduler", preset.scheduler, f"is none of {', '.join(SCHEDULERS)}")
        found[preset.name] = preset
    return found


PRESETS: Mapping[str, Preset] = MappingProxyType(read_presets(Path(__file__).resolve().parent / "presets.yaml"))
"""Every shipped preset by name."""

_NAMES = {_key(called): preset for preset in PRESETS.values() for called in (preset.name, *preset.aliases)}


def preset_of(engine: str) -> Preset:
    """The preset of an engine; the generic one where none is written down.

    >>> preset_of("llama.cpp").max_num_seqs, preset_of("lmdeploy").block_tokens, preset_of("my own").scheduler
    (4, 64, 'chunked_prefill')
    """
    return _NAMES.get(_key(engine), PRESETS["generic"])


def engine_of(name: str) -> EngineModel:
    """Host constants by name, with the preset's own limits; borrowed ones keep the engine's name.

    Raises:
        InputError: an unknown engine; the message lists the known names.
    """
    preset = _NAMES.get(_key(name))
    if preset is None:
        return load_engine(name)
    engine = load_engine(preset.host or name)
    limits = {key: getattr(preset, key) for key in ("max_num_seqs", "max_num_batched_tokens") if getattr(preset, key)}
    return replace(engine, name=preset.name if preset.host else engine.name, **limits)
