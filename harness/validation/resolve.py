"""From the names a published table uses to the models, devices, dtypes and engines known here.

What cannot be resolved is an `Unsimulated` with its reason, which validation counts and prints; it is never an error of the
file and never silently dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset, preset_names
from llmlab.simulator.hardware.device import Device, load_device_sheet

if TYPE_CHECKING:
    from llmlab.simulator.serving.presets import Preset


class Unsimulated(Exception):  # noqa: N818 - an outcome with a reason, not a failure
    """This row is out of the simulator's reach; the message says why."""


# What people hang on a model's name without changing its shape: tuning, release dates, storage, quantization, packaging.
_DRESSING = re.compile(
    r"[-_.:](?:instruct|chat|it|hf|base|online|dynamic|thinking|preview|exp|terminus|speciale|turbo|tput|reasoning|python|sft|dpo"
    r"|(?:m|mx|nv)?fp[468](?:[-_]?(?:dynamic|block|kv|tput|v\d))?|awq|gptq|gguf|exl2|marlin|bnb|(?:int|w)[48](?:a(?:4|8|16))?(?:fp8)?"
    r"|[48]-?bit|q\d_[a-z0-9_]+|bf16|fp16|float8|quantized(?:[-_.]w\d+a\d+)?|kv[-_]?fp8|mlx|2[45]\d\d|0[1-9][0-3]\d|20\d{6})"
    r"(?=$|[-_.:])",
    re.IGNORECASE,
)
_SPELLINGS = (
    (r"^(?:meta-?)?llama-?2-(\d+)b$", "meta-llama/Llama-2-{0}b"),
    (r"^(?:meta-?)?llama-?3(?:\.0)?-(8|70)b$", "meta-llama/Meta-Llama-3-{0}B"),
    (r"^(?:meta-?)?llama-?3[.p_-]?([123])-(\d+)b$", "meta-llama/Llama-3.{0}-{1}B"),
    (r"^(?:meta-?)?llama-?4-(scout|maverick).*$", "meta-llama/Llama-4-{0}"),
    (r"^code-?llama-(\d+)b$", "codellama/CodeLlama-{0}b"),
    (r"^mistral-7b$", "mistralai/Mistral-7B-v0.1"),
    (r"^mistral-large(?:-2)?(?:-123b)?$", "mistralai/Mistral-Large-2407"),
    (r"^mixtral-8x(7|22)b$", "mistralai/Mixtral-8x{0}B-v0.1"),
    (r"^(?:acemath|qwen-?2[.]?5(?:-math|-coder)?)-([\d.]+)b$", "Qwen/Qwen2.5-{0}B"),
    (r"^qwq-32b$", "Qwen/Qwen2.5-32B"),
    (r"^qwen-?3-([\d.]+b(?:-a[\d.]+b)?)$", "Qwen/Qwen3-{0}"),
    (r"^deepseek-r1-distill-llama-8b$", "meta-llama/Llama-3.1-8B"),
    (r"^deepseek-r1-distill-llama-70b$", "meta-llama/Llama-3.3-70B"),
    (r"^deepseek-r1-distill-qwen-([\d.]+)b$", "Qwen/Qwen2.5-{0}B"),
    (r"^deepseek-(?:v3(?:\.1)?|r1|v3/r1)$", "deepseek-ai/DeepSeek-V3"),
    (r"^deepseek-v3\.2$", "deepseek-ai/DeepSeek-V3.2"),
    (r"^kimi-k2(?:\.\d)?$", "moonshotai/Kimi-K2-Instruct"),
    (r"^minimax-m2(?:\.\d)?$", "MiniMaxAI/MiniMax-M2"),
    (r"^glm-4\.[5-7](-air)?$", "zai-org/GLM-4.5{0}"),
    (r"^gpt-?oss-(20|120)b$", "openai/gpt-oss-{0}b"),
    (r"^gpt-?j(?:-?6b)?$", "EleutherAI/gpt-j-6b"),
    (r"^gpt-?3(?:-(6\.7|13|175)b)?$", "openai/gpt3-{0}b"),
    (r"^(?:vicuna|alpaca|lmsys-vicuna|wizardlm|orca-2)-(7|13)b(?:-v[\d.]+)?$", "meta-llama/Llama-2-{0}b"),
    (r"^(?:zephyr|openhermes|openchat)-?.*7b.*$", "mistralai/Mistral-7B-v0.1"),
)
_WITHIN = (
    (r"llama-?3[.p_-]?([123])-(\d+)b", "meta-llama/Llama-3.{0}-{1}B"),
    (r"llama-?3-(8|70)b", "meta-llama/Meta-Llama-3-{0}B"),
    (r"llama-?2-(\d+)b", "meta-llama/Llama-2-{0}b"),
    (r"qwen-?2\.?5-([\d.]+)b", "Qwen/Qwen2.5-{0}B"),
    (r"mixtral-8x(7|22)b", "mistralai/Mixtral-8x{0}B-v0.1"),
)
"""Tuned descendants carry their parent's name somewhere within theirs ("Hermes-3-Llama-3.1-8B")."""


@cache
def _squeezed() -> dict[str, str]:
    """Presets by their names without dressing, version of the first release, hyphens and case."""
    found: dict[str, str] = {}
    for name in preset_names():
        short = name.rpartition("/")[2]
        for one in (short, _undressed(short), re.sub(r"-v0\.1$", "", _undressed(short))):
            found.setdefault(_bare(one), name)
    return found


def _bare(name: str) -> str:
    return re.sub(r"[-_ .:]", "", name.lower())


def _undressed(short: str) -> str:
    while (plain := _DRESSING.sub("", short)) != short:
        short = plain
    return short


def _spelled(text: str, spellings: Sequence[tuple[str, str]], whole: bool) -> ModelConfig | None:
    for pattern, spelled in spellings:
        if match := (re.match if whole else re.search)(pattern, text):
            name = spelled.format(*(group or "" for group in match.groups()))
            found = preset(name) or preset(_squeezed().get(_bare(name.rpartition("/")[2]), ""))
            if found:
                return found
            near = [known for bare, known in _squeezed().items() if bare.startswith(_bare(name.rpartition("/")[2]))]
            if len(near) == 1:
                return preset(near[0])
    return None


def resolve_model(name: str) -> ModelConfig:
    """The architecture behind a published name, whatever was hung on it.

    Raises:
        Unsimulated: no description of it.

    >>> resolve_model("meta-llama3-70b-instruct").num_hidden_layers, resolve_model("nvidia/Llama-3.1-8B-Instruct-FP8").name
    (80, 'meta-llama/Llama-3.1-8B')
    """
    if found := preset(name):
        return found
    short = re.sub(r"\s*\(.*?\)", "", name.strip().lower()).replace(" ", "-")
    for one in (short.partition("/")[2] or short, short.rpartition("/")[2]):
        plain = _undressed(one)
        for text in (one, plain, plain.replace("_", "-")):
            if text and (found := _spelled(text, _SPELLINGS, True) or preset(text) or preset(_squeezed().get(_bare(text), ""))):
                return found
    if found := _spelled(short, _WITHIN, False):
        return found
    raise Unsimulated(f"no description of model {name}")


_LOOSE = r"form factor not stated|power-capped|log does not print it|assumed|not stated"


def resolve_device(name: str) -> Device:
    """The data sheet behind a published GPU name.

    A name that leaves something open ("H100 (form factor not stated)") is taken as the usual device of that name, as one whose
    curves are not its own: its intervals are wider.

    Raises:
        Unsimulated: unknown.

    >>> resolve_device("8x NVIDIA H200 SXM").name, resolve_device("H100 (form factor not stated)").fitted
    ('H200-SXM-141GB', False)
    """
    text = re.sub(r"^\s*\d+\s*[x\u00d7*]\s*", "", name.strip().lower())
    loose = bool(re.search(_LOOSE, text))
    text = re.sub(r"\s*\(.*?\)", "", text).strip()
    text = re.sub(r"^nvidia[\s_-]+", "", text)
    text = re.sub(r"[\s_]+", "-", text)
    tries = [text, re.sub(r"^(?:tesla|geforce|amd-instinct|amd)-", "", text)]
    tries += [re.sub(r"-?(\d+)g(?:i?b)?(?=-|$)", "", one) for one in tuple(tries)]  # the memory's size, wherever it stands
    tries += [re.sub(r"^rtx-?", "rtx-", one) for one in tuple(tries)]
    tries += [
        re.sub(r"-(?:sxm\d?|hbm\d?e?|tensor-core|gpu|hgx|dgx|blackwell|nvl72|nvl36|instinct)(?=-|$)", "", one)
        for one in tuple(tries)
    ]
    tries += [re.sub(r"-", "", one) for one in tuple(tries)]
    for one in dict.fromkeys(tries):
        try:
            found = load_device_sheet(one)
        except InputError:
            continue
        return replace(found, fitted=False) if loose else found
    raise Unsimulated(f"no description of device {name}")


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


_BORN_IN_8_BITS = r"deepseek-(?:v3|r1)(?!-distill)(?!.*bf16)|kimi-k2|minimax-m2"
"""Models published in 8 bits with scales per block: that is what runs where a table says 16 bits or just 8."""


def _dtype_in(text: str) -> str | None:
    return next((dtype for pattern, dtype in _DTYPES if re.search(pattern, text, re.IGNORECASE)), None)


def resolve_weight_dtype(stated: str, model: str) -> str:
    """The dtype of the weights: what the row states, else what the model's name says, else bfloat16.

    >>> resolve_weight_dtype("fp16 (source says Mixed)", ""), resolve_weight_dtype("", "Qwen/Qwen3-14B-AWQ")
    ('float16', 'int4')
    """
    short = model.rpartition("/")[2].lower()
    if re.match(_BORN_IN_8_BITS, short) and (not stated or _dtype_in(stated) in ("bfloat16", "fp8")):
        found = _dtype_in(short)
        return "fp8_block" if found in (None, "fp8") else found
    if stated and (found := _dtype_in(stated)):
        return found
    if stated:
        raise Unsimulated(f"unknown weight dtype {stated}")
    return _dtype_in(model.rpartition("/")[2]) or "bfloat16"


def has_static_scales(model: str, weight_dtype: str) -> bool:
    """Whether a checkpoint in 8 bits carries one known scale per tensor for weights and operands, as those made by ModelOpt do.

    TensorRT-LLM then lets the operator in front quantize, and runs the 8-bit kernels its own quantized engines always ran;
    checkpoints with scales per block, or weights quantized while loading, take the operands' scales anew for every product.

    >>> has_static_scales("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"), has_static_scales("Qwen/Qwen3-32B", "fp8")
    (True, False)
    """
    return weight_dtype == "fp8" and bool(re.match(r"nvidia/.*-fp8$", model, re.IGNORECASE))


def resolve_kv_dtype(stated: str, weight_dtype: str, engine: str, *, scaled_cache: bool = False) -> str:
    """The dtype of keys and values: as stated; else TensorRT-LLM's FP8 engines keep them in FP8, other engines in 16 bits.

    With a `scaled_cache` checkpoints in FP8 or FP4 that carry scales for an FP8 cache run with one under any engine. InferenceX
    does so with vLLM: 32 requests of 8300 tokens of a 70-billion model run at once beside 70 GB of weights on one H200, which
    16 bits would not allow.

    That FP8 tables of TensorRT-LLM 0.9 use an FP8 cache follows from memory alone: Llama-2-7B with 120 requests of 2176
    tokens needs 137 GB in 16 bits, on a device of 80 GB.
    """
    if found := _dtype_in(stated):
        return found
    if scaled_cache and weight_dtype in ("fp8", "fp4"):
        return "fp8"
    if weight_dtype.startswith("fp") and engine in ("trtllm", "nim-trtllm", "trtllm-v1", "trtllm-1.0"):
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


def on_device(facts: EngineFacts, device: Device) -> EngineFacts:
    """The defaults that an engine chooses by the device: vLLM's server halves and halves again its step on small ones.

    Devices below 70 GiB, and the A100 whatever its memory, get steps of 2048 tokens and 256 requests (vLLM's engine
    arguments, from its first V1 release on).
    """
    small = device.hbm_bytes < 70 * 2**30 or "A100" in device.name.upper()
    if facts.key.startswith("vllm-v1") and small:
        return replace(facts, max_num_seqs=256, max_num_batched_tokens=2048)
    return facts


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
        # Scheduling ahead of the device became the default in 0.14; before that every step waits for its schedule.
        ahead = "0.1x" in version or not _older(version, (0, 14), 2025)
        key = "vllm-v1" if ahead else "vllm-v1-sync"
        return EngineFacts(key, chunked=True, max_num_seqs=1024, max_num_batched_tokens=8192, prefix_caching=True)
    if "sglang" in name:
        return EngineFacts("sglang", chunked=False, max_num_seqs=1024, max_num_batched_tokens=16384, prefix_caching=True)
    if "nim" in name:
        # The prompts of a whole round of clients fit one step: their first tokens come together, and late, at any concurrency.
        return EngineFacts("nim-trtllm", chunked=True, max_num_seqs=256, max_num_batched_tokens=32768, reserves_outputs=True)
    if "trtllm" in name or "tensorrt" in name:
        recent = any(int(year) >= 2025 for year in re.findall(r"20\d\d", date))
        if (_older(version, (0, 20), 2025) and not recent) or "MLPerf v4" in version:
            return EngineFacts("trtllm", chunked=True, max_num_seqs=2048, max_num_batched_tokens=8192, reserves_outputs=True)
        key = "trtllm-1.0" if _older(version, (1, 1), 2025) else "trtllm-v1"  # before its fusions and tuned kernels
        return EngineFacts(key, chunked=True, max_num_seqs=2048, max_num_batched_tokens=8192, reserves_outputs=True)
    if "lmdeploy" in name or "turbomind" in name:
        return EngineFacts("turbomind", chunked=True, max_num_seqs=256, max_num_batched_tokens=32768)
    if (preset := _preset_in(name)) is not None:
        return EngineFacts(
            preset.host or preset.name,
            chunked=preset.scheduler == "chunked_prefill",
            max_num_seqs=preset.max_num_seqs or 256,
            max_num_batched_tokens=preset.max_num_batched_tokens or 8192,
            prefix_caching=preset.prefix_caching,
        )
    raise Unsimulated(f"nothing is known of engine {engine or '(not stated)'}")


def _preset_in(name: str) -> Preset | None:
    """The shipped preset whose name stands in a published engine's ("Hugging Face TGI 2.0", "DeepSpeed-FastGen")."""
    from llmlab.simulator.serving.presets import PRESETS

    bare = _bare(name)
    called = {_bare(one): preset for preset in PRESETS.values() for one in (preset.name, *preset.aliases)}
    fitting = [one for one in called if len(one) > 2 and one in bare and called[one].name != "generic"]
    return called[max(fitting, key=len)] if fitting else None
