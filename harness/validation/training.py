"""`llmlab validate training`: predict every row of a table of published training runs and say how far off it was.

A row names a model, a device, degrees of parallelism and batch sizes, and one or more of: seconds per step, tokens or samples
per second, FLOP/s, memory. What it leaves open (a microbatch, interleaved chunks) is taken as the quickest that fits, as
people who publish a run do. A row out of reach is excluded with its reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from llmlab.harness.validation.summary import error_figures, grouped
from llmlab.reference.errors import InputError

SIZES = (
    "params_b",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "vocab",
    "gpus",
    "tp",
    "pp",
    "cp",
    "ep",
    "dp",
    "mbs",
    "gbs",
    "seq",
)
MEASURED = ("iter_time_s", "tokens_per_s_per_gpu", "samples_per_s_per_gpu", "tflops_per_gpu", "mfu_pct", "hfu_pct", "mem_gib")
NUMBERS = SIZES + MEASURED
METRICS = ("iter_time_s", "tokens_per_s_per_gpu", "samples_per_s_per_gpu", "tflops_per_gpu", "mem_gib")
SPEEDS = METRICS[:-1]
TEXT = ("id", "set", "model", "arch", "hardware", "vpp", "sharding", "schedule", "dtype", "recompute", "framework", "note")
REQUIRED = ("model", "hardware")
MICROBATCHES = (1, 2, 4, 8)
WIDEST = {"speed": 0.15, "memory": 0.15}
"""Half widths of an interval, as fractions, where a framework has no fitted one."""

Progress = Callable[[str, int, int], None]


class OutOfReachError(ValueError):
    """Why a row is not predicted."""


@dataclass(frozen=True)
class TrainingRow:
    """One published training run, cells that are empty left out."""

    where: str
    text: Mapping[str, str]
    stated: Mapping[str, float]

    @property
    def row_id(self) -> str:
        """Its `id` (or `row_id`) cell, or the line."""
        return self.text.get("id", self.where)

    def count(self, name: str, default: int | None = None) -> int | None:
        """A whole number, or the default where the cell is empty.

        Raises:
            OutOfReachError: it is not whole and positive.
        """
        if name not in self.stated:
            return default
        value = self.stated[name]
        if value != int(value) or value < 1:
            raise OutOfReachError(f"{name}={value:g} is not a whole number of at least 1")
        return int(value)


def read_rows(path: str | Path) -> list[TrainingRow]:
    """Read a CSV (or `.csv.gz`) of training runs.

    Raises:
        InputError: the file cannot be read, lacks a column, repeats an id, or a cell that should be a number is none.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    header = [name.strip() for name in reader.fieldnames or ()]
    for needed in REQUIRED:
        if needed not in header:
            raise InputError(path, needed, None, f"missing column; found {', '.join(header[:8]) or 'none'}")
    rows: list[TrainingRow] = []
    seen: set[str] = set()
    for line, record in enumerate(reader, start=2):
        where = f"{path.name}:{line}"
        cells = {
            str(key).strip(): (value or "").strip()
            for key, value in record.items()
            if key is not None and not isinstance(value, list)
        }
        stated: dict[str, float] = {}
        for name in NUMBERS:
            if value := cells.get(name, ""):
                try:
                    number = float(value)
                except ValueError:
                    raise InputError(where, name, value, "expected a number") from None
                if not math.isfinite(number) or number < 0:
                    raise InputError(where, name, value, "must be finite and not negative")
                stated[name] = number
        words = {name: cells[name] for name in TEXT if cells.get(name)}
        if cells.get("row_id"):
            words["id"] = cells["row_id"]
        row = TrainingRow(where, words, stated)
        if row.row_id in seen:
            raise InputError(where, "id", row.row_id, "appears twice")
        seen.add(row.row_id)
        rows.append(row)
    if not rows:
        raise InputError(path, "", path.name, "holds no rows")
    return rows


_FRAMEWORKS = (
    (r"megascale", ""),
    (r"zero-bubble", "zero-bubble"),
    (r"bridge", "nemo"),
    (r"nemo|mxnet|ngc|nvidia", "nemo-2024"),
    (r"megatron-core moe", "megatron-core-moe"),
    (r"megatron-core|megatron-lm 0\.1", "megatron-core"),
    (r"megatron-deepspeed|megatron/megatron", "megatron-deepspeed"),
    (r"deepspeed zero-?3|deepspeed.*zero3", "deepspeed-zero3"),
    (r"deepspeed", "deepspeed-zero1"),
    (r"megatron-lm [0-9a-f]{6,}|megatron-lm 2?0?2[34]", "megatron-2023"),
    (r"megatron", "megatron-sc21"),
    (r"foundry|composer", "llm-foundry"),
    (r"torchtitan", "torchtitan"),
    (r"metaseq|fsdp", "fsdp"),
)


def framework_of(row: TrainingRow) -> str:
    """The preset whose constants a row takes.

    Raises:
        OutOfReachError: no preset knows this framework, or it changes the algorithm.
    """
    words = row.text.get("framework", "").lower()
    for pattern, name in _FRAMEWORKS:
        if re.search(pattern, words):
            if not name:
                raise OutOfReachError("MegaScale: its model is changed (parallel block, sliding windows)")
            return _release(name, words, row.text.get("note", "").lower(), row.text["hardware"].lower())
    sharded = row.text.get("sharding", "").lower()
    if "fsdp" in sharded or "full_shard" in sharded:
        return "fsdp"
    raise OutOfReachError(f"framework {row.text.get('framework', 'not stated')!r} is not known")


def _release(name: str, words: str, note: str, hardware: str) -> str:
    """The preset of a release, or of an option the note names, among those of a framework."""
    if name == "megatron-deepspeed" and "jean zay" in hardware:  # from here on BLOOM's trials ran in bfloat16
        late = (found := re.search(r"notes: (\d\d)-(\d\d)", note)) is not None and (found[1], found[2]) >= ("02", "28")
        return "megatron-deepspeed-opa-bf16" if late or "rebalancing" in note else "megatron-deepspeed-opa"
    if name == "nemo-2024" and (re.search(r"\b23\.\d\d", words) or "mlperf v3" in note):
        return "nemo-2023"
    return "megatron-core-deepep" if name == "megatron-core-moe" and "deepep" in note else name


def device_of(row: TrainingRow) -> tuple[str, float, int]:
    """Name of a device sheet, bytes per second of all ports of a node (0 for the usual), devices of a node (0 for the usual).

    Raises:
        OutOfReachError: no sheet has this device.
    """
    words = row.text["hardware"]
    low = words.lower().replace("_", "-")
    if "tpu" in low or "trillium" in low:
        raise OutOfReachError("TPU: no device sheet")
    found = next(
        (
            name
            for pattern, name in (
                (r"gb200", "GB200-186GB"),
                (r"b300", "B300-SXM-288GB"),
                (r"b200|blackwell", "B200-SXM-180GB"),
                (r"h200", "H200-SXM-141GB"),
                (r"h100.*pcie", "H100-PCIe-80GB"),
                (r"h100", "H100-SXM-80GB"),
                (r"h800", "H800-SXM-80GB"),
                (r"h20\b", "H20-SXM-96GB"),
                (r"a100.*40", "A100-SXM-40GB"),
                (r"a100|ampere", "A100-SXM-80GB"),
                (r"v100", "V100-SXM-32GB"),
                (r"a10g", "A10G"),
                (r"a30\b", "A30"),
                (r"l40s", "L40S"),
                (r"4090", "RTX-4090"),
                (r"mi300x", "MI300X-192GB"),
            )
            if re.search(pattern, low)
        ),
        None,
    )
    if found is None:
        raise OutOfReachError(f"hardware {words!r} has no device sheet")
    node = 0.0
    note = row.text.get("note", "")
    if stated := re.search(r"([\d.]+)\s*gb/s per node", low) or re.search(r"([\d.]+)\s*gbps node-node", note.lower()):
        node = float(stated[1]) * 1e9 / 8
    elif "omni-path" in low or "jean zay" in low:
        node = 4 * 12.5e9  # four ports of Omni-Path 100 per node
    devices = int(size[1]) if (size := re.search(r"(\d)\s*/\s*node", low)) else 0
    return found, node, devices


_NAMES = {
    "llama3.1-405b": "meta-llama/Llama-3.1-405B",
    "llama3-405b": "meta-llama/Llama-3.1-405B",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "deepseekv2": "deepseek-ai/DeepSeek-V2",
    "deepseekv3": "deepseek-ai/DeepSeek-V3",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
}
_MPT = {
    "mpt-125m": (12, 768, 12),
    "mpt-350m": (24, 1024, 16),
    "mpt-760m": (24, 1536, 12),
    "mpt-1b": (24, 2048, 16),
    "mpt-3b": (32, 2560, 20),
    "mpt-7b": (32, 4096, 32),
    "mpt-13b": (40, 5120, 40),
    "mpt-30b": (48, 7168, 56),
    "mpt-70b": (80, 8192, 64),
}
"""Layers, width and heads of MosaicML's configurations (llm-foundry, scripts/train/yamls/pretrain); vocabulary 50368."""


@cache
def model_of(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, vocab: int, sequence: int, feed_forward: int
) -> Any:
    """The description of a row's model: a known name, or a GPT of the stated sizes.

    Raises:
        OutOfReachError: neither.
    """
    from llmlab.reference.models._presets import preset, preset_names
    from llmlab.simulator.model.description import ModelDescription
    from llmlab.simulator.training.plan import gpt

    key = re.sub(r"\s*\(.*\)$", "", name).strip().lower().replace("_", "-").replace(" ", "-")
    if key in _MPT:
        depth, width, many = _MPT[key]
        return gpt(depth, width, many, 50368, sequence, name=name)
    full = _NAMES.get(key) or next(
        (known for known in preset_names() if key in (known.lower(), known.split("/")[-1].lower())), None
    )
    if full is not None and (config := preset(full)) is not None:
        if layers and layers != config.num_hidden_layers:
            cut = {name: getattr(config, name)[-layers:] for name in ("windowed_layers", "sparse_layers", "linear_layers")}
            if config.is_moe and not config.is_sparse(0):  # of the dense layers in front a model cut short keeps one
                cut["sparse_layers"] = (False, *cut["sparse_layers"][1:])
            config = replace(config, num_hidden_layers=layers, **cut)
        return ModelDescription(config)
    if not (layers and hidden):
        raise OutOfReachError("layers and hidden size are not stated, and the model has no preset")
    if not heads:
        heads = next((n for n in (round(hidden / 128), hidden // 64) if n and hidden % n == 0), 0)
        if not heads:
            raise OutOfReachError("heads are not stated")
    if hidden % heads:
        raise OutOfReachError(f"{heads} heads do not divide hidden size {hidden}")
    return gpt(layers, hidden, heads, vocab or 51200, sequence, name=name, feed_forward=feed_forward)


VOCABULARIES = (51200, 128256, 151936, 250880)
"""GPT-2, Llama 3, Qwen and BLOOM, padded."""


def _sizes_by_parameters(row: TrainingRow) -> tuple[int, int]:
    """Layers and vocabulary of a row; what it leaves open, or says is only the nearest line's, follows from its parameters."""
    layers, hidden, vocab = row.count("layers", 0) or 0, row.count("hidden", 0) or 0, row.count("vocab", 0) or 0
    stated = row.stated.get("params_b", 0.0) * 1e9
    if not (layers and hidden and stated) or vocab or row.text.get("arch") == "moe":
        return layers, vocab
    of_layer = 12.0 * hidden**2 + 13.0 * hidden
    vocab = min(VOCABULARIES, key=lambda size: abs(layers * of_layer + size * hidden - stated))
    if abs(layers * of_layer + vocab * hidden - stated) > 0.02 * stated:
        if "nearest preceding" not in row.text.get("note", ""):
            return layers, 0
        vocab = VOCABULARIES[-1]
        layers = round((stated - vocab * hidden) / of_layer)
    return layers, vocab


_SCHEDULES = {"zb-2p": "zb-2p", "zb-1p": "zb-1p", "zb-h1": "zb-h1", "zb-h2": "zb-h2", "gpipe": "gpipe"}


@dataclass(frozen=True)
class Setting:
    """A row made into something to predict; `plans` are the alternatives where the row leaves something open."""

    row: TrainingRow
    framework: str
    device: str
    node_bytes_per_s: float
    node_devices: int
    model: Any
    plans: tuple[Any, ...]
    assumed: tuple[str, ...] = field(default=())


def setting_of(row: TrainingRow) -> Setting:
    """Read a row's model, device and plan.

    Raises:
        OutOfReachError: something is missing, or not modelled.
    """
    from llmlab.simulator.training.plan import framework, plan_of

    name = framework_of(row)
    device, node, node_devices = device_of(row)
    words = row.text
    everything = " ".join(words.get(name, "") for name in ("model", "framework", "dtype", "note")).lower()
    if "lora" in everything or "bnb" in everything:
        raise OutOfReachError("fine-tuning of adapters: not modelled")
    if "offload" in words.get("note", "").lower():
        raise OutOfReachError("offload to the host with unstated settings")
    sequence, gbs, gpus = row.count("seq"), row.count("gbs"), row.count("gpus")
    tp, cp = row.count("tp", 1), row.count("cp", 1)
    if sequence is None:
        raise OutOfReachError("sequence length is not stated")
    if gpus is None:
        raise OutOfReachError("number of devices is not stated")
    if gbs is None:
        raise OutOfReachError("global batch is not stated")
    assert tp
    assert cp
    if "pp" not in row.stated and "dp" not in row.stated and name not in ("fsdp", "llm-foundry", "torchtitan"):
        raise OutOfReachError("neither pipeline nor data-parallel degree is stated")
    pp = row.count("pp") or max(1, gpus // (tp * cp * (row.count("dp") or 1)))
    ep = row.count("ep", 1) or 1
    dp = row.count("dp") or gpus // (tp * pp * cp)
    if dp * tp * pp * cp != gpus:
        raise OutOfReachError(f"{gpus} devices are not dp {dp} x tp {tp} x pp {pp} x cp {cp}")
    feed_forward = int(found[1]) if (found := re.search(r"ffn (\d+)", words.get("note", ""))) else 0
    if "geglu" in words.get("note", "").lower():
        feed_forward = feed_forward * 3 // 2  # three matrices of that width
    layers, vocab = _sizes_by_parameters(row)
    model = model_of(
        words["model"],
        layers,
        row.count("hidden", 0) or 0,
        row.count("heads", 0) or 0,
        row.count("kv_heads", 0) or 0,
        vocab,
        sequence,
        feed_forward,
    )
    if words.get("arch") == "moe" and not model.config.is_moe:
        raise OutOfReachError("mixture of experts of unknown sizes")
    habits = framework(name)
    recompute, schedule = _recompute(words.get("recompute"), habits), _schedule(words.get("schedule", ""))
    given = {
        "dp": dp,
        "tp": tp,
        "pp": pp,
        "cp": cp,
        "ep": ep if model.config.is_moe else 1,
        "global_batch": gbs,
        "sequence": sequence,
        "recompute": recompute,
        "precision": "fp8" if re.search("fp8|float8", words.get("dtype", "").lower()) else "bfloat16",
        # MegaScale scatters gradients once per step: what it calls ZeRO-2 keeps them whole
        "zero_stage": min(_zero_stage(words.get("sharding", ""), habits.zero_stage), 1 if name == "megatron-2023" else 3),
    }
    if tp == 1:
        given["sequence_parallel"] = False
    stated = row.count("mbs")
    assumed: list[str] = []
    if stated is None:
        assumed.append("microbatch: the quickest that fits")
    chunks, open_chunks = _chunks(row, model.layers, pp, schedule, name.startswith(("megatron-core", "nemo")))
    if open_chunks:
        assumed.append("virtual stages: the quickest")
    plans = []
    first: InputError | None = None
    for microbatch in (stated,) if stated else MICROBATCHES:
        for virtual in chunks:
            shape = {"virtual_stages": virtual, "schedule": "interleaved" if virtual > 1 else schedule or "1f1b"}
            plan = plan_of(name, microbatch=microbatch, **given, **shape)
            try:
                plan.check(model)
            except InputError as error:
                first = first or error
                continue
            plans.append(plan)
    if not plans:
        raise OutOfReachError(str(first))
    return Setting(row, name, device, node, node_devices, model, tuple(plans), tuple(assumed))


def _recompute(words: str | None, habits: Any) -> str:
    if not words:
        return str(habits.recompute)
    low = words.lower()
    return "full" if "full" in low else "none" if low in ("none", "no", "false") else "selective"


def _schedule(words: str) -> str:
    low = words.lower()
    return next((name for key, name in _SCHEDULES.items() if key in low), "")


def _zero_stage(words: str, default: int) -> int:
    low = words.lower()
    if found := re.search(r"zero-?\s?(\d)", low):
        return min(3, int(found[1]))
    return 3 if "fsdp" in low or "full_shard" in low else 0 if low in ("none", "ddp") else default


def _chunks(row: TrainingRow, layers: int, pp: int, schedule: str, interleaves: bool) -> tuple[list[int], bool]:
    """Virtual stages to try, and whether the row left them open; some frameworks interleave unless told otherwise."""
    words, kind = row.text.get("vpp", ""), row.text.get("schedule", "").lower() or ("interleaved" if interleaves else "")
    if pp == 1 or schedule.startswith("zb"):
        return [1], False
    try:
        return [int(float(words))] if words else _open_chunks(kind, layers, pp), not words and "interleaved" in kind
    except ValueError:
        if "layers per stage" in words.lower():  # every layer, embedding and output matrix among them, is a chunk
            return [(layers + 2) // pp if (layers + 2) % pp == 0 else layers // pp], False
        return [1], False


def _open_chunks(kind: str, layers: int, pp: int) -> list[int]:
    return [v for v in range(1, layers // pp + 1) if layers % (pp * v) == 0] if "interleaved" in kind else [1]


def predict(setting: Setting, habits: Any = None) -> Any:
    """The step of a row; of several plans the quickest that fits (the leanest where none does)."""
    from llmlab.simulator.hardware.device import load_device_sheet
    from llmlab.simulator.training.plan import framework
    from llmlab.simulator.training.step import network_of, predict_step

    device, habits = load_device_sheet(setting.device), habits or framework(setting.framework)
    network = network_of(device, habits, setting.node_bytes_per_s, setting.node_devices)
    steps = [
        predict_step(setting.model, plan, device, habits=habits, network=network, fit_memory=False) for plan in setting.plans
    ]
    fitting = [step for step in steps if step.memory.total_bytes <= 1.05 * device.hbm_bytes]
    return min(fitting, key=lambda step: step.seconds) if fitting else min(steps, key=lambda step: step.memory.total_bytes)


def figures_of(setting: Setting, step: Any) -> dict[str, float]:
    """Predicted values under the names of the measured columns.

    FLOP/s follow the convention of whoever published them: Megatron-LM and its relatives count recomputation as work.
    """
    from llmlab.simulator.training.operators import training_flops
    from llmlab.simulator.training.plan import framework

    counted = step.hardware_flops_per_s if setting.framework in COUNT_RECOMPUTATION else step.flops_per_s
    if framework(setting.framework).causal_flops:
        work = training_flops(setting.model, step.plan.global_batch, step.plan.sequence, causal=True)
        counted = work / step.seconds / step.plan.gpus
    return {
        "iter_time_s": step.seconds,
        "tokens_per_s_per_gpu": step.tokens_per_s / step.plan.gpus,
        "samples_per_s_per_gpu": step.plan.global_batch / step.seconds / step.plan.gpus,
        "tflops_per_gpu": counted / 1e12,
        "mem_gib": step.memory.total_gib,
    }


COUNT_RECOMPUTATION = {
    "megatron-sc21",
    "megatron-deepspeed",
    "megatron-deepspeed-opa",
    "megatron-deepspeed-opa-bf16",
    "deepspeed-zero3",
    "deepspeed-zero1",
}


def measured_metrics(row: TrainingRow) -> Iterator[str]:
    """Columns of a row to be compared: one speed where seconds are known (others are the same number again), and memory."""
    speeds = [name for name in SPEEDS if row.stated.get(name)]
    if speeds:
        yield from (name for name in speeds if name != "tflops_per_gpu" or len(speeds) == 1)
    if row.stated.get("mem_gib"):
        yield "mem_gib"


@cache
def _fit_report() -> Mapping[str, Any]:
    import yaml

    path = Path(__file__).resolve().parent / "training_fit.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _band(framework: str, metric: str) -> float:
    kind = "memory" if metric == "mem_gib" else "speed"
    return float(_fit_report().get("bands", {}).get(framework, {}).get(kind, WIDEST[kind]))


def validate_rows(rows: Iterable[TrainingRow], progress: Progress = lambda name, done, total: None) -> dict[str, Any]:
    """Predict rows; see `validate_training`."""
    rows = list(rows)
    fitted_sets = set(_fit_report().get("fitted_sets", ()))
    found: list[dict[str, Any]] = []
    excluded: list[dict[str, str]] = []
    for number, row in enumerate(rows, start=1):
        progress(row.row_id, number, len(rows))
        try:
            setting = setting_of(row)
            step = predict(setting)
        except (OutOfReachError, InputError) as error:
            excluded.append({"row_id": row.row_id, "set": row.text.get("set", ""), "reason": str(error)})
            continue
        figures = figures_of(setting, step)
        metrics = list(measured_metrics(row)) or list(METRICS)
        for metric in metrics:
            predicted, half = figures[metric], _band(setting.framework, metric)
            measured = row.stated.get(metric)
            found.append(
                {
                    "row_id": row.row_id,
                    "metric": metric,
                    "measured": measured,
                    "predicted": predicted,
                    "low": predicted * math.exp(-half),
                    "high": predicted * math.exp(half),
                    "error": predicted / measured - 1 if measured else None,
                    "in_interval": math.exp(-half) <= measured / predicted <= math.exp(half) if measured else None,
                    "source": row.text.get("set", ""),
                    "hardware": setting.device,
                    "framework": setting.framework,
                    "assumed": "; ".join(setting.assumed),
                    "fitted": row.text.get("set", "") in fitted_sets,
                }
            )
    return {"rows": found, "excluded": excluded, "summary": summarize(found, excluded)}


def summarize(found: Sequence[Mapping[str, Any]], excluded: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Errors over all, per set, hardware, framework, and fitted or not; speed and memory apart."""
    speed = [row for row in found if row["metric"] != "mem_gib"]
    memory = [row for row in found if row["metric"] == "mem_gib"]
    reasons = Counter(re.sub(r"[\d.]+", "N", row["reason"]) for row in excluded)
    return {
        "speed": error_figures(speed),
        "memory": error_figures(memory),
        "speed_by_set": grouped(speed, "source", "metric"),
        "speed_by_hardware": grouped(speed, "hardware"),
        "speed_by_framework": grouped(speed, "framework"),
        "speed_by_fitted": grouped(speed, "fitted"),
        "memory_by_set": grouped(memory, "source"),
        "left_out": _fit_report().get("left_out", {}),
        "excluded": len(excluded),
        "excluded_reasons": dict(reasons.most_common()),
    }


def validate_training(
    paths: Sequence[str | Path], *, limit: int | None = None, progress: Progress = lambda name, done, total: None
) -> dict[str, Any]:
    """Predict the rows of these files.

    Raises:
        InputError: a file is malformed, or an id appears twice.
    """
    if limit is not None and limit < 1:
        raise InputError("validate training", "limit", limit, "must be at least 1")
    rows = [row for path in paths for row in read_rows(path)]
    ids = Counter(row.row_id for row in rows)
    if twice := next((name for name, count in ids.items() if count > 1), None):
        raise InputError("validate training", "id", twice, "is in several files")
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return validate_rows(rows, progress)


def summary_tables(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Tables to print."""
    summary = result["summary"]
    tables = [
        (title, summary[key])
        for title, key in (
            ("Speed by set", "speed_by_set"),
            ("Speed by hardware", "speed_by_hardware"),
            ("Speed by framework", "speed_by_framework"),
            ("Speed, constants fitted on the set or not", "speed_by_fitted"),
            ("Memory by set", "memory_by_set"),
        )
    ]
    left = [{"set left out": name, **figures} for name, figures in summary["left_out"].items()]
    reasons = [{"rows": count, "reason": reason} for reason, count in summary["excluded_reasons"].items()]
    return [*tables, ("Errors with a set left out of the fit", left), (f"{summary['excluded']} rows excluded", reasons)]
