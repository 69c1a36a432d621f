"""How a training step is laid out over devices, checked; and what frameworks are called after it.

Ranks are numbered as Megatron-LM numbers them (arXiv:2104.04473, section 3): tensor-parallel ranks next to each other, then
context, then data (experts are dealt to data-parallel ranks), then pipeline. Sizes are counts; lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.pipeline_time import BOTH_WAYS, FOLDED, PAIRED

Recompute = Literal["none", "selective", "full"]

SCHEDULES = (
    "naive",
    "gpipe",
    "1f1b",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "zb-1p",
    "zb-2p",
    "zb-v",
    "v-half",
    "v-min",
    "dualpipe",
    "dualpipe-v",
    "chimera",
    "pipedream",
)
PRECISIONS = ("float16", "bfloat16", "fp8", "nvfp4", "float32")
PRECISION_ALIASES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp4": "nvfp4"}
OPTIMIZERS: Mapping[str, float] = {
    "adam": 8.0,
    "adam-8bit": 2.0 + 8.0 / 2048,
    "adafactor": 0.0,
    "muon": 4.0,
    "sgd-momentum": 4.0,
    "sgd": 0.0,
}
"""Bytes of state per weight of a matrix beside the master copy. 8-bit Adam has a float32 scale per 2048 of each moment
(arXiv:2110.02861, section 2.1); Adafactor's row and column sums (arXiv:1804.04235) and Muon's Adam for what is no hidden matrix
depend on the model: `memory.optimizer_bytes`."""
TENSOR_MODES = ("1d", "2d", "2.5d", "3d")
"""Tensor parallelism of Megatron-LM; on SUMMA grids (arXiv:2104.05343); on grids that share weights (arXiv:2105.14500); on
cubes (arXiv:2105.14450)."""
PRESETS = Path(__file__).resolve().parent / "frameworks.yaml"
CONSTANTS = Path(__file__).resolve().parent / "framework_constants.yaml"
"""What was fitted for each framework; written by `harness/validation/fit_training.py`."""


@dataclass(frozen=True)
class ParallelPlan:
    """Degrees of every parallelism, batch sizes and what is kept.

    Attributes:
        dp, tp, pp, cp, ep: data, tensor, pipeline, context and expert parallel degrees; `ep` deals experts to ranks of `dp`.
        virtual_stages: chunks of layers per pipeline rank (1 unless the schedule interleaves).
        sequence_parallel: norms and dropouts are split over the tensor-parallel ranks too (arXiv:2205.05198, section 4.2.2).
        zero_stage: what data-parallel ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too (FSDP).
        shard_over: ranks a ZeRO-3 shard group spans; all of `dp` where 0 (hybrid sharding otherwise).
        microbatch: sequences of one forward pass on one data-parallel rank.
        global_batch: sequences of one optimizer step.
        sequence: tokens of one sequence.
        recompute: activations that are computed again in the backward pass: none, selective (attention core), full (layers).
        precision: of matrix products: float16, bfloat16, fp8, nvfp4 or float32.
        offload: optimizer state and master weights live in host memory (ZeRO-Offload, arXiv:2101.06840).
        framework: preset whose habits and fitted constants apply.
        offload_weights: weights live there too and come layer by layer (ZeRO-Infinity, arXiv:2104.07857); needs ZeRO-3.
        tensor: how `tp` ranks share a matrix: 1d, 2d (a grid), 2.5d (`tensor_depth` grids) or 3d (a cube).
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    virtual_stages: int = 1
    sequence_parallel: bool = False
    zero_stage: int = 0
    shard_over: int = 0
    microbatch: int = 1
    global_batch: int = 1
    sequence: int = 2048
    recompute: Recompute = "none"
    precision: str = "bfloat16"
    optimizer: str = "adam"
    schedule: str = "1f1b"
    offload: bool = False
    framework: str = "megatron"
    offload_weights: bool = False
    tensor: str = "1d"
    tensor_depth: int = 1

    @property
    def gpus(self) -> int:
        """Devices of the whole plan."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def microbatches(self) -> int:
        """Forward passes of one data-parallel rank in one step.

        >>> ParallelPlan(dp=2, microbatch=4, global_batch=64).microbatches
        8
        """
        return self.global_batch // (self.dp * self.microbatch)

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch * self.sequence

    @property
    def chunks(self) -> int:
        """Pieces of the model a pipeline rank runs one after the other."""
        return 2 if self.schedule in FOLDED else self.virtual_stages

    @property
    def tensor_side(self) -> int:
        """Ranks along an edge of the grid or cube that shares a matrix; `tp` where there is none.

        >>> ParallelPlan(tp=8, tensor="3d").tensor_side, ParallelPlan(tp=8, tensor="2.5d", tensor_depth=2).tensor_side
        (2, 2)
        """
        if self.tensor == "1d":
            return self.tp
        return round((self.tp / self.tensor_depth) ** (1 / 3 if self.tensor == "3d" else 1 / 2))

    def check(self, model: ModelDescription, where: str = "plan") -> None:
        """Refuse a plan that cannot run, with the first reason.

        Raises:
            InputError: a degree below 1, sizes that do not divide, more stages than layers, or an unknown name.
        """
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(where, name, value, "must be a whole number of at least 1")
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise InputError(where, name, getattr(self, name), f"not one of {', '.join(map(str, known))}")
        if self.framework not in _shipped():
            raise InputError(where, "framework", self.framework, f"not one of {', '.join(framework_names())}")
        self._check_batch(where)
        self._check_stages(model, where)
        self._check_tensor(model, where)

    def _check_batch(self, where: str) -> None:
        if self.global_batch % (self.dp * self.microbatch):
            raise InputError(
                where,
                "global_batch",
                self.global_batch,
                f"must be a multiple of dp x microbatch = {self.dp} x {self.microbatch}",
            )
        if self.shard_over and (self.shard_over < 0 or self.dp % self.shard_over):
            raise InputError(where, "shard_over", self.shard_over, f"must divide dp={self.dp}")
        if self.offload_weights and self.zero_stage < 3:
            raise InputError(
                where, "offload_weights", True, f"weights are fetched layer by layer only under ZeRO-3, not {self.zero_stage}"
            )
        if reason := microbatches_refused(self.schedule, self.pp, self.microbatches):
            raise InputError(where, "schedule", self.schedule, reason)

    def _check_stages(self, model: ModelDescription, where: str) -> None:
        stages = self.pp * self.chunks
        if self.virtual_stages > 1 and self.schedule != "interleaved":
            raise InputError(
                where, "virtual_stages", self.virtual_stages, f"schedule {self.schedule} does not take virtual stages"
            )
        # embedding and output matrix as layers of their own
        ends = 2 if self.chunks > 1 and model.layers % stages else 0
        if stages > model.layers + ends:
            raise InputError(where, "pp", self.pp, f"{stages} stages are more than the {model.layers} layers of {model.name}")
        if self.chunks > 1 and model.layers % stages and (model.layers + 2) % stages:
            named = "virtual_stages" if self.virtual_stages > 1 else "pp"
            raise InputError(where, named, getattr(self, named), f"{stages} chunks must divide {model.layers} layers")
        if self.virtual_stages > 1 and self.microbatches % self.pp:
            raise InputError(
                where, "global_batch", self.global_batch, f"{self.microbatches} microbatches must divide by pp={self.pp}"
            )

    def _check_tensor(self, model: ModelDescription, where: str) -> None:
        c = model.config
        if self.tensor == "1d":
            if c.num_attention_heads % self.tp:
                raise InputError(where, "tp", self.tp, f"must divide {c.num_attention_heads} query heads of {model.name}")
            if not c.latent and c.num_key_value_heads % self.tp and self.tp % c.num_key_value_heads:
                raise InputError(where, "tp", self.tp, f"must divide {c.num_key_value_heads} key/value heads, or they it")
        else:
            self._check_grid(model, where)
        if self.sequence % (self.cp * (self.tp if self.sequence_parallel else 1)):
            raise InputError(where, "sequence", self.sequence, f"must be a multiple of cp={self.cp} (and tp where it is split)")
        if self.ep > 1 and not c.is_moe:
            raise InputError(where, "ep", self.ep, f"{model.name} has no experts")
        if self.ep > 1 and (c.num_experts % self.ep or (self.dp * self.tp * self.cp) % self.ep):
            raise InputError(
                where, "ep", self.ep, f"must divide {c.num_experts} experts and {self.dp * self.tp * self.cp} ranks"
            )

    def _check_grid(self, model: ModelDescription, where: str) -> None:
        """Grids and cubes cut sequences, heads and widths by their side."""
        c, side = model.config, self.tensor_side
        rows = {"2d": side, "2.5d": side * self.tensor_depth, "3d": side * side}[self.tensor]
        if self.tensor != "2.5d" and self.tensor_depth != 1:
            raise InputError(
                where, "tensor_depth", self.tensor_depth, f"only 2.5d tensor parallelism has a depth, not {self.tensor}"
            )
        if side ** (3 if self.tensor == "3d" else 2) * self.tensor_depth != self.tp:
            shape = {"2d": "a square", "2.5d": f"{self.tensor_depth} squares", "3d": "a cube"}[self.tensor]
            raise InputError(where, "tp", self.tp, f"ranks of {self.tensor} tensor parallelism must form {shape}")
        if c.num_attention_heads % side or c.num_key_value_heads % side or c.hidden_size % side:
            sizes = f"{c.num_attention_heads} query heads, {c.num_key_value_heads} key/value heads and width {c.hidden_size}"
            raise InputError(where, "tp", self.tp, f"a side of {side} must divide {sizes}")
        if self.microbatch % rows:
            raise InputError(where, "microbatch", self.microbatch, f"{self.tensor} tensor parallelism cuts it into {rows}")
        for name, unset in (("sequence_parallel", False), ("cp", 1), ("ep", 1)):
            if getattr(self, name) != unset:
                raise InputError(where, name, getattr(self, name), f"not combined with {self.tensor} tensor parallelism")
        if c.is_moe or c.latent or any(c.linear_layers):
            raise InputError(where, "tensor", self.tensor, f"only dense layers with plain attention, not {model.name}")

    def layers_of_stages(self, layers: int) -> list[int]:
        """Layers of each pipeline rank; the first ones take the remainder.

        Where embedding and output matrix, counted as a layer each, make the division come out, first and last rank have one
        layer fewer.

        >>> ParallelPlan(pp=4).layers_of_stages(29), ParallelPlan(pp=4).layers_of_stages(30)
        ([8, 7, 7, 7], [7, 8, 8, 7])
        >>> ParallelPlan(pp=4, schedule="zb-v").layers_of_stages(30)
        [6, 8, 8, 8]
        """
        whole, rest = divmod(layers, self.pp)
        if self.schedule in FOLDED and rest:  # both ends are on the first rank
            return [whole + 1 - 2 * (stage == 0) for stage in range(self.pp)]
        if rest and self.pp > 1 and (layers + 2) % self.pp == 0 and layers + 2 >= 2 * self.pp:
            even = (layers + 2) // self.pp
            return [even - (stage == 0) - (stage == self.pp - 1) for stage in range(self.pp)]
        return [whole + (stage < rest) for stage in range(self.pp)]


_COUNTS = ("dp", "tp", "pp", "cp", "ep", "virtual_stages", "microbatch", "global_batch", "sequence", "tensor_depth")
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "optimizer": tuple(OPTIMIZERS),
    "recompute": ("none", "selective", "full"),
    "zero_stage": (0, 1, 2, 3),
    "tensor": TENSOR_MODES,
}


def microbatches_refused(schedule: str, pp: int, microbatches: int) -> str:
    """Why a schedule does not take so many stages or microbatches; empty where it does.

    >>> microbatches_refused("dualpipe", 4, 6), microbatches_refused("1f1b", 4, 1)
    ('needs at least 2 pp = 8 microbatches, not 6', '')
    """
    if schedule in FOLDED + BOTH_WAYS and pp < 2:
        return "needs at least 2 pipeline stages"
    if schedule in BOTH_WAYS and pp % 2:
        return f"needs an even number of pipeline stages, not {pp}"
    if schedule in PAIRED and microbatches < 2 * pp:
        return f"needs at least 2 pp = {2 * pp} microbatches, not {microbatches}"
    if schedule == "dualpipe" and microbatches % 2:
        return f"needs an even number of microbatches, not {microbatches}"
    if schedule == "chimera" and microbatches % pp:
        return f"needs microbatches that are a multiple of pp={pp}, not {microbatches}"
    return ""


@dataclass(frozen=True)
class Framework:
    """Habits of a training framework and the few constants fitted for it (see `frameworks.yaml` for where they come from).

    Attributes:
        zero_stage, schedule, recompute, sequence_parallel: what a plan gets where it does not say.
        fused_attention: attention never writes its scores (FlashAttention, arXiv:2205.14135).
        gradient_bytes: per weight, of the buffer gradients are summed in.
        reduce_bytes: per weight, on the wire of the gradients' sum.
        matrix_efficiency: by device generation: part of the curves' matrix speed that is reached in long training runs.
        fp8_efficiency: 8-bit products' speed over that of the curves, which are of inference kernels that convert as they go.
        attention_efficiency: part of the peak that fused attention reaches forward with heads 128 wide.
        memory_efficiency: part of the memory bandwidth that norms, activations and dropouts reach.
        launch_s: seconds the host needs per kernel, at device generations as old as Ampere.
        collective_launch_s: the same per tensor-parallel collective.
        iteration_s: seconds per step beside all of the above (data, logging, scaler, clipping).
        handover_s: seconds a rank spends per chunk of a microbatch handed over between pipeline stages, beside the transfer.
        dp_overlap: part of data-parallel traffic that hides behind the backward pass.
        tp_overlap: part of tensor-parallel traffic that hides behind matrix products.
        overlap_share: by device generation: part of its speed that computing loses while a collective runs beside it, which
            takes multiprocessors and memory bandwidth.
        network_efficiency: part of a network link's peak that collectives reach.
        expert_efficiency: speed of grouped products of experts over that of one product with as many rows.
        expert_overlap: part of the experts' exchange that hides behind computing.
        once_per_node: a token goes to a node once, however many of its experts live there (DeepEP; arXiv:2412.19437).
        causal_flops: published FLOP/s count only scores in sight.
        memory_margin: allocated bytes over counted ones.
        selective_by_operator: selective recomputation keeps every second matrix product and attention's output, nothing else.
        memory_constant_bytes: context, libraries and communicators.
        tensor: how tensor-parallel ranks share a matrix where a plan does not say.
        hierarchical_all_to_all: tokens go to experts in two levels, inside nodes first (HetuMoE, arXiv:2203.14685).
        einsum_dispatch: tokens are put in order for experts by products with one-hot matrices (GShard, arXiv:2006.16668).
        capacity_factor: rows experts compute and receive, padding included, over the tokens routed to them.
        message_s: seconds per message that a rank sends to another node in an all-to-all.
    """

    name: str
    zero_stage: int = 0
    schedule: str = "1f1b"
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    fused_attention: bool = False
    gradient_bytes: float = 4.0
    reduce_bytes: float = 4.0
    matrix_efficiency: Mapping[str, float] | None = None
    fp8_efficiency: float = 1.0
    memory_efficiency: float = 0.85
    attention_efficiency: float = 0.45
    launch_s: float = 1.0e-5
    collective_launch_s: float = 2.0e-5
    iteration_s: float = 0.05
    handover_s: float = 1.0e-4
    dp_overlap: float = 0.0
    tp_overlap: float = 0.0
    overlap_share: Mapping[str, float] | None = None
    network_efficiency: float = 0.8
    expert_efficiency: float = 1.0
    expert_overlap: float = 0.0
    once_per_node: bool = False
    causal_flops: bool = False
    memory_margin: float = 1.05
    memory_constant_bytes: float = 1.5e9
    selective_by_operator: bool = False
    tensor: str = "1d"
    hierarchical_all_to_all: bool = False
    einsum_dispatch: bool = False
    capacity_factor: float = 1.0
    message_s: float = 0.0
    source: str = ""

    def efficiency(self, generation: str) -> float:
        """Matrix efficiency on devices of this generation.

        >>> Framework("x", matrix_efficiency={"ampere": 0.9}).efficiency("ampere")
        0.9
        """
        known = self.matrix_efficiency or {}
        return float(known.get(generation, known.get("other", 0.85)))

    def slowed_by(self, generation: str) -> float:
        """Part of its speed computing loses beside a collective on devices of this generation.

        >>> Framework("x", overlap_share={"other": 0.1}).slowed_by("hopper"), Framework("x").slowed_by("hopper")
        (0.1, 0.0)
        """
        known = self.overlap_share or {}
        return float(known.get(generation, known.get("other", 0.0)))


@cache
def _shipped() -> Mapping[str, Framework]:
    return read_frameworks(PRESETS, _mapping(CONSTANTS) if CONSTANTS.is_file() else {})


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(path, "", type(content).__name__, "expected a mapping of frameworks")
    return content


def read_frameworks(path: str | Path, constants: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Framework]:
    """Read a YAML mapping of frameworks; `like` copies another one first, with its fitted constants.

    Raises:
        InputError: the file cannot be read, or a key is unknown.
    """
    path = Path(path)
    content = _mapping(path)
    known = {item.name for item in fields(Framework)}
    found: dict[str, Framework] = {}
    for name, habits in content.items():
        fitted = dict((constants or {}).get(name, {}))
        record = {**(habits or {}), **fitted}
        base = record.pop("like", None)
        if base is not None and base not in found:
            raise InputError(path, f"{name}.like", base, "not a framework defined above it")
        for key in record:
            if key not in known:
                raise InputError(path, f"{name}.{key}", record[key], f"unknown key; known: {', '.join(sorted(known))}")
        for field in ("matrix_efficiency", "overlap_share"):  # by generation: what is not said is as in the base
            inherited = (getattr(found[base], field) or {}) if base else {}
            record[field] = {**inherited, **(habits or {}).get(field, {}), **fitted.get(field, {})}
        found[name] = replace(found[base], **record, name=name) if base else Framework(name=name, **record)
    return found


def framework_names() -> list[str]:
    """Names of the shipped presets."""
    return list(_shipped())


def framework(name: str) -> Framework:
    """A shipped preset by name.

    Raises:
        InputError: no such preset.

    >>> framework("fsdp").zero_stage
    3
    """
    if name not in _shipped():
        raise InputError("framework", "name", name, f"unknown; known: {', '.join(_shipped())}")
    return _shipped()[name]


def plan_of(name: str, **given: Any) -> ParallelPlan:
    """A plan with a framework's habits wherever `given` says nothing.

    >>> plan_of("deepspeed-zero1", dp=8, global_batch=8).zero_stage
    1
    """
    habits = framework(name)
    settings = {key: getattr(habits, key) for key in ("zero_stage", "schedule", "recompute", "sequence_parallel", "tensor")}
    settings |= {key: value for key, value in given.items() if value is not None}
    if "precision" in settings:
        settings["precision"] = PRECISION_ALIASES.get(settings["precision"], settings["precision"])
    return ParallelPlan(framework=name, **settings)


def dp_of(gpus: int, tp: int, pp: int, cp: int) -> int:
    """Data-parallel degree that fills the devices.

    Raises:
        InputError: the other degrees do not divide them.

    >>> dp_of(64, 8, 4, 1)
    2
    """
    if gpus % (tp * pp * cp):
        raise InputError("plan", "gpus", gpus, f"must be a multiple of tp x pp x cp = {tp} x {pp} x {cp}")
    return gpus // (tp * pp * cp)


def gpt(
    layers: int, hidden: int, heads: int, vocab: int, sequence: int, name: str = "", feed_forward: int = 0
) -> ModelDescription:
    """A GPT of these sizes: LayerNorm with bias, two feed-forward matrices, learned positions, tied output matrix.

    >>> round(gpt(96, 12288, 96, 51200, 2048).parameters / 1e9, 1)
    174.6
    """
    if hidden % heads:
        raise InputError(name or "gpt", "heads", heads, f"must divide hidden size {hidden}")
    return ModelDescription(
        ModelConfig(
            name=name or f"gpt-{layers}x{hidden}",
            model_type="opt",
            hidden_size=hidden,
            intermediate_size=feed_forward or 4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            vocab_size=vocab,
            max_position_embeddings=sequence,
            tie_word_embeddings=True,
            attention_bias=True,
            attention_output_bias=True,
            mlp_bias=True,
            gated_mlp=False,
            norm_bias=True,
            learned_positions=sequence,
            runnable=False,
        )
    )
