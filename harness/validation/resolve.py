"""From the names a published table uses to the models, devices, dtypes and engines known here.

What cannot be resolved is an `Unsimulated` with its reason, which validation counts and prints; it is never an error of the
file and never silently dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset
from llmlab.simulator.hardware.device import Device, load_device_sheet


class Unsimulated(Exception):  # noqa: N818 - an outcome with a reason, not a failure
    """This row is out of the simulator's reach; the message says why."""


# What people hang on a model's name without changing its shape.
_DRESSING = re.compile(
    r"[-_](instruct|chat|it|hf|base|online|dynamic|fp8|fp8-dynamic|nvfp4|fp4|awq|gptq|int4|int8|w4a16|w8a8|bf16|fp16|quantized)"
    r"(?=$|[-_.])",
    re.IGNORECASE,
)
_SPELLINGS = (
    (r"^(?:meta-?)?llama-?2-(\d+)b$", "meta-llama/Llama-2-{0}b"),
    (r"^(?:meta-?)?llama-?3(?:\.0)?-(8|70)b$", "meta-llama/Meta-Llama-3-{0}B"),
    (r"^(?:meta-?)?llama-?3[.p_-]([123])-(\d+)b$", "meta-llama/Llama-3.{0}-{1}B"),
    (r"^code-?llama-(\d+)b(?:-python)?$", "codellama/CodeLlama-{0}b"),
    (r"^mistral-7b$", "mistralai/Mistral-7B-v0.1"),
    (r"^mixtral-8x(7|22)b$", "mistralai/Mixtral-8x{0}B-v0.1"),
    (r"^(?:acemath|qwen-?2[.]?5(?:-math|-coder)?)-([\d.]+)b$", "Qwen/Qwen2.5-{0}B"),
    (r"^qwen-?3-([\d.]+)b$", "Qwen/Qwen3-{0}B"),
    (r"^deepseek-r1-distill-llama-8b$", "meta-llama/Llama-3.1-8B"),
    (r"^deepseek-r1-distill-llama-70b$", "meta-llama/Llama-3.3-70B"),
    (r"^deepseek-r1-distill-qwen-([\d.]+)b$", "Qwen/Qwen2.5-{0}B"),
)


def resolve_model(name: str) -> ModelConfig:
    """The architecture behind a published name, whatever was hung on it.

    Raises:
        Unsimulated: no description of it.

    >>> resolve_model("meta-llama3-70b-instruct").num_hidden_layers, resolve_model("nvidia/Llama-3.1-8B-Instruct-FP8").name
    (80, 'meta-llama/Llama-3.1-8B')
    """
    if found := preset(name):
        return found
    short = name.rpartition("/")[2].lower()
    while (plain := _DRESSING.sub("", short)) != short:
        short = plain
    for pattern, spelled in _SPELLINGS:
        if (match := re.match(pattern, short)) and (found := preset(spelled.format(*match.groups()))):
            return found
    if found := preset(short):
        return found
    raise Unsimulated(f"no description of model {name}")


def resolve_device(name: str) -> Device:
    """The data sheet behind a published GPU name.

    Raises:
        Unsimulated: unknown, or described too loosely to price ("H100 (form factor not stated)").
    """
    try:
        return load_device_sheet(name)
    except InputError:
        raise Unsimulated(f"no description of device {name}") from None


_DTYPES = (
    (r"nvfp4|mxfp4|\bfp4", "fp4"),
    (r"fp8[_ -]?block|block[_ -]?fp8", "fp8_block"),
    (r"fp8|e4m3|float8", "fp8"),
    (r"int4|awq|gptq|w4a16|\bq4", "int4"),
    (r"int8|w8a8|w8a16", "int8"),
    (r"bf16|bfloat16", "bfloat16"),
    (r"fp16|float16|half", "float16"),
    (r"fp32|float32", "float32"),
)


def _dtype_in(text: str) -> str | None:
    return next((dtype for pattern, dtype in _DTYPES if re.search(pattern, text, re.IGNORECASE)), None)


def resolve_weight_dtype(stated: str, model: str) -> str:
    """The dtype of the weights: what the row states, else what the model's name says, else bfloat16.

    >>> resolve_weight_dtype("fp16 (source says Mixed)", ""), resolve_weight_dtype("", "Qwen/Qwen3-14B-AWQ")
    ('float16', 'int4')
    """
    if stated and (found := _dtype_in(stated)):
        return found
    if stated:
        raise Unsimulated(f"unknown weight dtype {stated}")
    return _dtype_in(model.rpartition("/")[2]) or "bfloat16"


def resolve_kv_dtype(stated: str, weight_dtype: str, engine: str) -> str:
    """The dtype of keys and values: as stated; else TensorRT-LLM's FP8 engines keep them in FP8, other engines in 16 bits.

    That FP8 tables of TensorRT-LLM 0.9 use an FP8 cache follows from memory alone: Llama-2-7B with 120 requests of 2176
    tokens needs 137 GB in 16 bits, on a device of 80 GB.
    """
    if found := _dtype_in(stated):
        return found
    if weight_dtype.startswith("fp") and engine in ("trtllm", "nim-trtllm"):
        return "fp8"
    return weight_dtype if weight_dtype in ("float16", "bfloat16", "float32") else "bfloat16"


@dataclass(frozen=True)
class EngineFacts:
    """How an engine schedules where a row does not say; from its documentation.

    Attributes:
        key: name of its fitted constants.
        chunked: prompts are cut into pieces that share a step with decodes.
        max_num_seqs, max_num_batched_tokens: defaults of its server.
        prefix_caching: on by default.
        reserves_outputs: a request is admitted only when its whole output will fit (TensorRT-LLM's guaranteed-no-evict).
    """

    key: str
    chunked: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool = False
    reserves_outputs: bool = False


def _older(version: str, than: tuple[int, int], year: int) -> bool:
    """Whether a version text names a release before `than`, or, where it is only a date, one before `year`."""
    if match := re.search(r"(?<![\d.])v?(\d+)\.(\d+)(?=\D|$)", version):
        return (int(match.group(1)), int(match.group(2))) < than
    if match := re.search(r"20(\d\d)", version):
        return 2000 + int(match.group(1)) < year
    return False


def resolve_engine(engine: str, version: str, date: str = "") -> EngineFacts:
    """The scheduling facts of a named engine and version; the date decides where the version is that of a wrapper.

    Raises:
        Unsimulated: an engine nothing is known about.
    """
    name = engine.lower()
    if "splitwise" in name:
        return EngineFacts("vllm-2023", chunked=False, max_num_seqs=256, max_num_batched_tokens=2**20)
    if "vllm" in name:
        if _older(version, (0, 8), 2025) and "0.1x" not in version:
            return EngineFacts("vllm-v0", chunked=False, max_num_seqs=256, max_num_batched_tokens=32768)
        return EngineFacts("vllm-v1", chunked=True, max_num_seqs=1024, max_num_batched_tokens=8192, prefix_caching=True)
    if "sglang" in name:
        return EngineFacts("sglang", chunked=False, max_num_seqs=1024, max_num_batched_tokens=16384, prefix_caching=True)
    if "nim" in name:
        # The prompts of a whole round of clients fit one step: their first tokens come together, and late, at any concurrency.
        return EngineFacts("nim-trtllm", chunked=True, max_num_seqs=256, max_num_batched_tokens=32768, reserves_outputs=True)
    if "trtllm" in name or "tensorrt" in name:
        recent = any(int(year) >= 2025 for year in re.findall(r"20\d\d", date))
        if (_older(version, (0, 20), 2025) and not recent) or "MLPerf v4" in version:
            return EngineFacts("trtllm", chunked=True, max_num_seqs=2048, max_num_batched_tokens=8192, reserves_outputs=True)
        return EngineFacts("trtllm-v1", chunked=True, max_num_seqs=2048, max_num_batched_tokens=8192, reserves_outputs=True)
    if "lmdeploy" in name or "turbomind" in name:
        return EngineFacts("turbomind", chunked=True, max_num_seqs=256, max_num_batched_tokens=8192)
    raise Unsimulated(f"nothing is known of engine {engine or '(not stated)'}")
