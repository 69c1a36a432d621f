"""A decoder that can be cut: by layers into pipeline stages, by heads and columns over tensor-parallel ranks, by experts.

One code runs every cut; on one process all groups have one rank and their collectives do nothing. Llama style (RMSNorm, rotary
positions, grouped queries, SwiGLU), the same with routed experts in place of the feed-forward, or GPT style (LayerNorm and
biases, learned positions, GELU, tied output matrix), as the `ModelConfig` says. Experts take every token that chose them.

Gradients of weights are not computed when autograd passes by: each product leaves a note on a `Tape`, and playing the tape is
the action W of a pipeline schedule (arXiv:2401.10241, section 3). What is left for I is the way back to the input.

Axes: P rows (tokens of a microbatch on this rank; with sequence parallelism its share of them), B sequence, T token, S token
attended to, D model width, F feed-forward width, N query head, K key/value head, H head width, R = H/2 rotated pair,
V vocabulary, E expert, I input and O output width of any matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Copied, Exchanged, Gathered, Peers, Scattered, Summed
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._rotary import rotary_frequencies


@dataclass(frozen=True)
class Groups:
    """Who this rank talks to.

    Attributes:
        tp: ranks that hold other columns and rows of the same matrices.
        cp: ranks that hold other tokens of the same sequences.
        ep: ranks that hold other experts.
        data: ranks that hold the same weights but for experts: dp and cp together.
        expert_data: ranks that hold the same experts.
        split_rows: rows between the matrices are split over `tp` too (sequence parallelism, arXiv:2205.05198).
    """

    tp: Peers
    cp: Peers
    ep: Peers
    data: Peers
    expert_data: Peers
    split_rows: bool = False


@dataclass(frozen=True)
class Cut:
    """How a weight is dealt out: `axis` over tp, each of its `blocks` by itself; of `expert` weights the first axis over ep."""

    axis: int | None = None
    blocks: int = 1
    expert: bool = False

    def part(self, whole: np.ndarray, tp: tuple[int, int], ep: tuple[int, int]) -> np.ndarray:
        """What the rank at (place, size) of tp and of ep holds."""
        if self.expert:
            whole = np.split(whole, ep[1])[ep[0]]
        if self.axis is None:
            return whole
        pieces = [np.split(block, tp[1], self.axis)[tp[0]] for block in np.split(whole, self.blocks, self.axis)]
        return np.concatenate(pieces, self.axis)

    def join(self, parts: Mapping[tuple[int, int], np.ndarray], tp: int, ep: int) -> np.ndarray:
        """The whole again, from the parts at (place in tp, place in ep)."""
        if not self.expert:
            ep = 1
        if self.axis is None:
            return np.concatenate([parts[0, e] for e in range(ep)]) if self.expert else parts[0, 0]
        experts = []
        for e in range(ep):
            blocks = [np.split(parts[t, e], self.blocks, self.axis) for t in range(tp)]
            experts.append(np.concatenate([blocks[t][b] for b in range(self.blocks) for t in range(tp)], self.axis))
        return np.concatenate(experts) if self.expert else experts[0]


_ROWS, _COLUMNS, _WHOLE = Cut(0), Cut(1), Cut()
_CUTS = {
    "embed_tokens.weight": _ROWS,
    "lm_head.weight": _ROWS,
    "o_proj.weight": _COLUMNS,
    "o_proj.bias": _WHOLE,
    "down_proj.weight": _COLUMNS,
    "down_proj.bias": _WHOLE,
    "mlp.experts.gate_up_proj": Cut(1, blocks=2, expert=True),
    "mlp.experts.down_proj": Cut(2, expert=True),
    **{f"{name}_proj.{kind}": _ROWS for name in ("q", "k", "v", "gate", "up") for kind in ("weight", "bias")},
}


def cut_of(name: str) -> Cut:
    """How the weight of this name is dealt out.

    >>> cut_of("model.layers.3.self_attn.o_proj.weight").axis, cut_of("model.norm.weight").axis
    (1, None)
    """
    return next((cut for ending, cut in _CUTS.items() if name.endswith(ending)), _WHOLE)


class Weight:
    """This rank's part of a weight: its value while it is here, and the gradient that was gathered so far."""

    def __init__(self, name: str, value: Tensor, groups: Groups) -> None:
        self.name, self.cut, self.shape, self.dtype = name, cut_of(name), value.shape, value.dtype
        self.value: Any = value  # None while it is sharded
        self.grad: Tensor | None = None
        of_heads = name.endswith(("q_norm.weight", "k_norm.weight"))
        whole = self.cut.axis is None and not self.cut.expert
        # A weight that all tensor-parallel ranks hold, but which each of them uses on its own rows, heads or columns only.
        self.partial = groups.tp.size > 1 and whole and (groups.split_rows or of_heads or name.endswith("mlp.gate.weight"))

    def add(self, grad: Tensor) -> None:
        """Gather a gradient."""
        self.grad = grad if self.grad is None else self.grad.add_(grad)

    def add_at(self, expert: int, grad: Tensor) -> None:
        """Gather the gradient of one expert."""
        if self.grad is None:
            self.grad = torch.zeros(self.shape, dtype=self.dtype)
        self.grad[expert] += grad


class Tape:
    """Gradients of weights that are still to be computed, in the order in which autograd came by."""

    def __init__(self) -> None:
        self.notes: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def note(self, add: Callable[..., None], *arguments: Any) -> None:
        """Compute this later."""
        free = tuple(one.detach() if isinstance(one, Tensor) else one for one in arguments)  # or the graph would live on
        self.notes.append((add, free))

    @torch.no_grad()
    def play(self) -> None:
        """Compute everything, and forget it."""
        for add, arguments in self.notes:
            add(*arguments)
        self.notes.clear()


class _Linear(torch.autograd.Function):
    """x W' + b."""

    @staticmethod
    def forward(ctx: Any, x_PI: Tensor, weight_OI: Weight, bias_O: Weight | None, tape: Tape) -> Tensor:
        ctx.save_for_backward(x_PI)
        ctx.weight, ctx.bias, ctx.tape = weight_OI, bias_O, tape
        return F.linear(x_PI, weight_OI.value, None if bias_O is None else bias_O.value)

    @staticmethod
    def backward(ctx: Any, dy_PO: Tensor) -> tuple[Tensor, None, None, None]:
        (x_PI,) = ctx.saved_tensors
        ctx.tape.note(_add_product, ctx.weight, dy_PO, x_PI)
        if ctx.bias is not None:
            ctx.tape.note(_add_rows, ctx.bias, dy_PO)
        return dy_PO @ ctx.weight.value, None, None, None


class _ExpertLinear(torch.autograd.Function):
    """x W_e' of one expert."""

    @staticmethod
    def forward(ctx: Any, x_PI: Tensor, weight_EOI: Weight, expert: int, tape: Tape) -> Tensor:
        ctx.save_for_backward(x_PI)
        ctx.weight, ctx.expert, ctx.tape = weight_EOI, expert, tape
        return F.linear(x_PI, weight_EOI.value[expert])

    @staticmethod
    def backward(ctx: Any, dy_PO: Tensor) -> tuple[Tensor, None, None, None]:
        (x_PI,) = ctx.saved_tensors
        ctx.tape.note(_add_expert_product, ctx.weight, ctx.expert, dy_PO, x_PI)
        return dy_PO @ ctx.weight.value[ctx.expert], None, None, None


class _Scaled(torch.autograd.Function):
    """x w + b, element by element: what follows the division in a norm."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_D: Weight, bias_D: Weight | None, tape: Tape) -> Tensor:
        ctx.save_for_backward(x_PD)
        ctx.weight, ctx.bias, ctx.tape = weight_D, bias_D, tape
        y_PD = x_PD * weight_D.value
        return y_PD if bias_D is None else y_PD.add_(bias_D.value)

    @staticmethod
    def backward(ctx: Any, dy_PD: Tensor) -> tuple[Tensor, None, None, None]:
        (x_PD,) = ctx.saved_tensors
        ctx.tape.note(_add_scale, ctx.weight, dy_PD, x_PD)
        if ctx.bias is not None:
            ctx.tape.note(_add_rows, ctx.bias, dy_PD)
        return dy_PD * ctx.weight.value, None, None, None


class _Shifted(torch.autograd.Function):
    """x + b."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, bias_D: Weight, tape: Tape) -> Tensor:
        ctx.bias, ctx.tape = bias_D, tape
        return x_PD + bias_D.value

    @staticmethod
    def backward(ctx: Any, dy_PD: Tensor) -> tuple[Tensor, None, None]:
        ctx.tape.note(_add_rows, ctx.bias, dy_PD)
        return dy_PD, None, None


class _Looked(torch.autograd.Function):
    """Rows of a table of which this rank holds those from `first` on; zeros for the others. `anchor` makes autograd come by."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids_P: Tensor, table_VD: Weight, first: int, tape: Tape) -> Tensor:
        own_P = ids_P - first
        outside_P = (own_P < 0) | (own_P >= len(table_VD.value))
        own_P = own_P.masked_fill(outside_P, 0)
        ctx.table, ctx.tape, ctx.own, ctx.outside = table_VD, tape, own_P, outside_P
        return table_VD.value[own_P].masked_fill_(outside_P[:, None], 0)

    @staticmethod
    def backward(ctx: Any, dy_PD: Tensor) -> tuple[None, None, None, None, None]:
        ctx.tape.note(_add_lookups, ctx.table, dy_PD, ctx.own, ctx.outside)
        return None, None, None, None, None


def _add_product(weight_OI: Weight, dy_PO: Tensor, x_PI: Tensor) -> None:
    weight_OI.add(dy_PO.T @ x_PI)


def _add_expert_product(weight_EOI: Weight, expert: int, dy_PO: Tensor, x_PI: Tensor) -> None:
    weight_EOI.add_at(expert, dy_PO.T @ x_PI)


def _add_rows(bias_O: Weight, dy_PO: Tensor) -> None:
    bias_O.add(dy_PO.sum(0))


def _add_scale(weight_D: Weight, dy_PD: Tensor, x_PD: Tensor) -> None:
    weight_D.add((dy_PD * x_PD).flatten(0, -2).sum(0))


def _add_lookups(table_VD: Weight, dy_PD: Tensor, own_P: Tensor, outside_P: Tensor) -> None:
    grad = torch.zeros(table_VD.shape, dtype=dy_PD.dtype)
    table_VD.add(grad.index_add_(0, own_P[~outside_P], dy_PD[~outside_P]))


class _CrossEntropy(torch.autograd.Function):
    """Sum over rows of log(sum exp(logits)) - logit of the target, the vocabulary cut over ranks (arXiv:1909.08053)."""

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, target_P: Tensor, first: int, tp: Peers) -> Tensor:
        own_P = target_P - first
        outside_P = (own_P < 0) | (own_P >= logits_PV.shape[1])
        own_P = own_P.masked_fill(outside_P, 0)
        top_P1 = _largest(logits_PV.amax(1, keepdim=True), tp)
        shifted_PV = logits_PV - top_P1
        wanted_P = shifted_PV.gather(1, own_P[:, None])[:, 0].masked_fill(outside_P, 0)
        weights_PV = shifted_PV.exp_()
        total_P1, wanted_P1 = tp.all_reduce(torch.stack([weights_PV.sum(1), wanted_P]))[:, :, None]
        ctx.save_for_backward(weights_PV.div_(total_P1))
        ctx.own, ctx.outside = own_P, outside_P
        return (total_P1.log() - wanted_P1).sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None, None]:
        (softmax_PV,) = ctx.saved_tensors
        wanted_PV = torch.zeros_like(softmax_PV).scatter_(1, ctx.own[:, None], (~ctx.outside)[:, None].to(softmax_PV.dtype))
        return (softmax_PV - wanted_PV).mul_(dloss), None, None, None


def _largest(own_P1: Tensor, tp: Peers) -> Tensor:
    """The largest over ranks."""
    return own_P1 if tp.size == 1 else tp.all_gather(own_P1, 1).amax(1, keepdim=True)


class Before(torch.autograd.Function):
    """Identity; on the way back it calls `do` before what lies ahead of it in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, do: Callable[[], None]) -> Tensor:
        """Remember what to do."""
        ctx.do = do
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Do it."""
        ctx.do()
        return grad, None


class Layers:
    """One part of the model: some decoder layers, perhaps the embedding before them, perhaps the output matrix behind.

    Attributes:
        weights: by Hugging Face name, this rank's parts.
        units: weights that are used together, in order: embedding, each layer, output. ZeRO-3 gathers them unit by unit.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[int],
        whole: Mapping[str, np.ndarray],
        groups: Groups,
        dtype: torch.dtype,
        sequence: int,
    ) -> None:
        self.config, self.layers, self.groups = config, list(layers), groups
        self.first, self.last = 0 in self.layers, config.num_hidden_layers - 1 in self.layers
        tp, ep = (groups.tp.rank, groups.tp.size), (groups.ep.rank, groups.ep.size)
        self.weights = {
            name: Weight(name, torch.tensor(np.ascontiguousarray(cut_of(name).part(array, tp, ep)), dtype=dtype), groups)
            for name, array in whole.items()
        }
        self.anchor = torch.zeros((), dtype=dtype, requires_grad=True)
        T = sequence // groups.cp.size
        self.position_T = torch.arange(T) + T * groups.cp.rank
        self.angle_T1R = self.position_T[:, None, None] * torch.from_numpy(rotary_frequencies(config)[0])
        self.cos_T1R, self.sin_T1R = self.angle_T1R.cos().to(dtype), self.angle_T1R.sin().to(dtype)
        self.seen_TS = None if groups.cp.size == 1 else torch.arange(sequence) <= self.position_T[:, None]
        self.head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.shared = {"embedding": ("positions",)} if config.learned_positions else {}
        self.shared |= {"output": ("embedding",)} if config.tie_word_embeddings else {}
        self.fetch: Callable[[str], None] = lambda unit: None
        self.release: Callable[[str], None] = lambda unit: None

    @property
    def units(self) -> dict[str, list[Weight]]:
        """Weights used together, by the name of what uses them."""
        found: dict[str, list[Weight]] = {}
        for name, weight in self.weights.items():
            found.setdefault(unit_of(name), []).append(weight)
        return found

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Run this part on ids_BT or on the rows x_PD that the part before made; return rows out_PD."""
        x_PD = self._unit("embedding", lambda ids_BT: self._embed(ids_BT, tape), x) if self.first else x
        for layer in self.layers:
            x_PD = self._unit(f"layer {layer}", partial(self._layer, layer=layer, tape=tape), x_PD)
        return x_PD

    def loss(self, x_PD: Tensor, target_BT: Tensor, tape: Tape) -> Tensor:
        """Return the sum of the losses of this rank's tokens."""
        return self._unit("output", lambda x_PD: self._loss(x_PD, target_BT, tape), x_PD)

    def _unit(self, name: str, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run one unit with its weights here, forward and again backward (a look-up's backward needs none)."""
        used = [name, *self.shared.get(name, ())]
        self._each(self.fetch, used)
        if x.is_floating_point():
            y = run(Before.apply(x, lambda: self._each(self.release, used)))
            y = Before.apply(y, lambda: self._each(self.fetch, used))
        else:
            y = run(x)
        self._each(self.release, used)
        return y

    @staticmethod
    def _each(do: Callable[[str], None], units: Sequence[str]) -> None:
        for unit in units:
            do(unit)

    def _embed(self, ids_BT: Tensor, tape: Tape) -> Tensor:
        table_VD, tp = self.weights["model.embed_tokens.weight"], self.groups.tp
        x_PD = _Looked.apply(self.anchor, ids_BT.flatten(), table_VD, tp.rank * len(table_VD.value), tape)
        x_PD = self._leave(x_PD)
        if self.config.learned_positions:
            position_P = self.position_T.repeat(len(ids_BT))
            if self.groups.split_rows:
                position_P = position_P.chunk(tp.size)[tp.rank]
            x_PD = x_PD + _Looked.apply(self.anchor, position_P, self.weights["model.embed_positions.weight"], 0, tape)
        return x_PD

    def _layer(self, x_PD: Tensor, layer: int, tape: Tape) -> Tensor:
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): weight for name, weight in self.weights.items() if name.startswith(prefix)}
        names = ("input_layernorm", "post_attention_layernorm")
        x_PD = x_PD + self._attention(self._norm(x_PD, own, names[0], tape), own, tape)
        feed_forward = self._experts if "mlp.gate.weight" in own else self._feed_forward
        return x_PD + feed_forward(self._norm(x_PD, own, names[1], tape), own, tape)

    def _loss(self, x_PD: Tensor, target_BT: Tensor, tape: Tape) -> Tensor:
        x_PD = self._enter(self._norm(x_PD, self.weights, "model.norm", tape))
        table_VD = self.weights[self.head]
        logits_PV = _Linear.apply(x_PD, table_VD, None, tape)
        return _CrossEntropy.apply(logits_PV, target_BT.flatten(), self.groups.tp.rank * len(table_VD.value), self.groups.tp)

    def _norm(self, x: Tensor, own: Mapping[str, Weight], name: str, tape: Tape) -> Tensor:
        weight, bias, eps = own[f"{name}.weight"], own.get(f"{name}.bias"), self.config.rms_norm_eps
        divided = F.rms_norm(x, x.shape[-1:], None, eps) if bias is None else F.layer_norm(x, x.shape[-1:], None, None, eps)
        return _Scaled.apply(divided, weight, bias, tape)

    def _attention(self, x_PD: Tensor, own: Mapping[str, Weight], tape: Tape) -> Tensor:
        c, cp = self.config, self.groups.cp
        x_PD = self._enter(x_PD)
        T, H = len(self.position_T), c.head_dim

        def heads(name: str) -> Tensor:
            weight, bias = own[f"self_attn.{name}_proj.weight"], own.get(f"self_attn.{name}_proj.bias")
            return _Linear.apply(x_PD, weight, bias, tape).unflatten(0, (-1, T)).unflatten(2, (-1, H))

        q_BTNH, k_BTKH, v_BTKH = heads("q"), heads("k"), heads("v")
        if c.qk_norm:
            q_BTNH = self._norm(q_BTNH, own, "self_attn.q_norm", tape)
            k_BTKH = self._norm(k_BTKH, own, "self_attn.k_norm", tape)
        if not c.learned_positions:
            q_BTNH, k_BTKH = self._rotate(q_BTNH), self._rotate(k_BTKH)
        if cp.size > 1:
            k_BTKH, v_BTKH = Gathered.apply(k_BTKH, cp, 1), Gathered.apply(v_BTKH, cp, 1)
        k_BTNH, v_BTNH = (one.repeat_interleave(c.group_size, dim=2) for one in (k_BTKH, v_BTKH))
        q_BNTH, k_BNSH, v_BNSH = (one.transpose(1, 2) for one in (q_BTNH, k_BTNH, v_BTNH))
        mixed_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BNSH, v_BNSH, attn_mask=self.seen_TS, is_causal=self.seen_TS is None
        )
        mixed_PQ = mixed_BNTH.transpose(1, 2).flatten(2).flatten(0, 1)
        return self._leave_with_bias(mixed_PQ, own, "self_attn.o_proj", tape)

    def _rotate(self, x_BTNH: Tensor) -> Tensor:
        a_BTNR, b_BTNR = x_BTNH.chunk(2, dim=-1)
        cos, sin = self.cos_T1R, self.sin_T1R
        return torch.cat([a_BTNR * cos - b_BTNR * sin, b_BTNR * cos + a_BTNR * sin], dim=-1)

    def _feed_forward(self, x_PD: Tensor, own: Mapping[str, Weight], tape: Tape) -> Tensor:
        x_PD = self._enter(x_PD)

        def widened(name: str) -> Tensor:
            return _Linear.apply(x_PD, own[f"mlp.{name}_proj.weight"], own.get(f"mlp.{name}_proj.bias"), tape)

        h_PF = F.silu(widened("gate")) * widened("up") if self.config.gated_mlp else F.gelu(widened("up"))
        return self._leave_with_bias(h_PF, own, "mlp.down_proj", tape)

    def _experts(self, x_PD: Tensor, own: Mapping[str, Weight], tape: Tape) -> Tensor:
        """Carry every row to the experts it chose, wherever they live, and add up what comes back."""
        c, ep = self.config, self.groups.ep
        k, num_local = c.num_experts_per_tok, c.num_experts // ep.size
        x_PD = self._enter(x_PD)
        weights_PE = torch.softmax(_Linear.apply(x_PD, own["mlp.gate.weight"], None, tape), dim=-1)
        chosen = torch.topk(weights_PE, k, dim=-1)
        gates_Pk = chosen.values / chosen.values.sum(-1, keepdim=True) if c.norm_topk_prob else chosen.values

        wanted = chosen.indices.flatten()
        order = torch.argsort(wanted, stable=True)  # rows for the same expert stand together
        row = order // k
        count_E = torch.bincount(wanted, minlength=c.num_experts)
        give = count_E.view(ep.size, num_local)
        take = ep.all_to_all(give, [1] * ep.size, [1] * ep.size)
        give_rows, take_rows = give.sum(1).tolist(), take.sum(1).tolist()

        arrived = Exchanged.apply(x_PD.index_select(0, row), ep, give_rows, take_rows)
        expert_of = torch.arange(num_local).repeat(ep.size).repeat_interleave(take.flatten())
        by_expert = torch.argsort(expert_of, stable=True)
        outs = []
        for expert, rows in enumerate(by_expert.split(take.sum(0).tolist())):
            both = _ExpertLinear.apply(arrived.index_select(0, rows), own["mlp.experts.gate_up_proj"], expert, tape)
            gate, up = both.chunk(2, dim=-1)
            outs.append(_ExpertLinear.apply(F.silu(gate) * up, own["mlp.experts.down_proj"], expert, tape))
        done = torch.cat(outs).index_select(0, torch.argsort(by_expert))
        back = Exchanged.apply(done, ep, take_rows, give_rows)
        weighted = gates_Pk.flatten()[order][:, None] * back
        return self._leave(torch.zeros_like(x_PD).index_add(0, row, weighted))

    def _enter(self, x_PD: Tensor) -> Tensor:
        """Rows as the cut matrices want them: all of them, on every tensor-parallel rank."""
        tp = self.groups.tp
        if tp.size == 1:
            return x_PD
        return Gathered.apply(x_PD, tp, 0) if self.groups.split_rows else Copied.apply(x_PD, tp)

    def _leave(self, x_PD: Tensor) -> Tensor:
        """The sum over tensor-parallel ranks: all rows, or with sequence parallelism this rank's."""
        tp = self.groups.tp
        if tp.size == 1:
            return x_PD
        return Scattered.apply(x_PD, tp, 0) if self.groups.split_rows else Summed.apply(x_PD, tp)

    def _leave_with_bias(self, x_PI: Tensor, own: Mapping[str, Weight], name: str, tape: Tape) -> Tensor:
        """Multiply by a matrix whose rows are cut; its bias is added once, to the sum."""
        out_PD = self._leave(_Linear.apply(x_PI, own[f"{name}.weight"], None, tape))
        return _Shifted.apply(out_PD, own[f"{name}.bias"], tape) if f"{name}.bias" in own else out_PD


def unit_of(name: str) -> str:
    """Which unit a weight belongs to; a tied matrix is the embedding's.

    >>> unit_of("model.layers.3.mlp.up_proj.weight")
    'layer 3'
    """
    if name.startswith("model.layers."):
        return f"layer {name.split('.')[2]}"
    return {"model.embed_tokens.weight": "embedding", "model.embed_positions.weight": "positions"}.get(name, "output")


def names_of_part(config: ModelConfig, layers: Sequence[int]) -> list[str]:
    """Names of the weights a part with these layers holds, in the model's order."""
    own = {f"layer {layer}" for layer in layers}
    last = config.num_hidden_layers - 1 in layers
    own |= ({"embedding", "positions"} if 0 in layers else set()) | ({"output"} if last else set())
    tied = "model.embed_tokens.weight" if config.tie_word_embeddings and last else ""
    return [name for name in config.weight_shapes() if unit_of(name) in own or name == tied]


def check_model(config: ModelConfig) -> None:
    """Refuse an architecture that is not trained here.

    Raises:
        InputError: latent or linear attention, windows, shared experts, parallel blocks and the like.
    """
    gpt = config.norm_bias and not config.gated_mlp and config.norms_per_layer == 2 and not config.is_moe
    odd = {
        "latent attention": config.latent is not None,
        "linear attention": any(config.linear_layers),
        "windows": any(config.windowed_layers),
        "shared experts": config.shared_expert_intermediate_size > 0,
        "parallel blocks": config.parallel_block,
        "these positions": config.positions == "alibi" or config.rotary_width > 0 or config.rotary_interleaved,
        "norms in these places": config.post_norm or config.norms_per_layer != 2 or config.embedding_norm,
        "an embedding of its own width": config.embedding_width > 0,
        "weights that files pack or name otherwise": config.weight_shapes() != config.parameter_shapes(),
        "biases of experts or of the output": config.expert_bias or config.head_bias,
        "this family": not config.runnable and not gpt,
        "heads of odd width": config.head_dim % 2 > 0,
    }
    for what, is_so in odd.items():
        if is_so:
            raise InputError(config.name, "model_type", config.model_type, f"{what} cannot be trained here")
