"""Every family of decoders over torch, from the blocks' names: `LlamaTorch`'s paged steps around layers of any kind.

Axes: T new tokens of all requests one after the other, D model width, N and K heads, H head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.models.llama_torch import LLAMA_LIKE, LlamaTorch
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._rotary import LENGTH_DEPENDENT, latent_scale, rotary_frequencies
from llmlab.reference.models._weights import check_weights
from llmlab.reference.positions.alibi import alibi_slopes

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def decoder_logits(config: ModelConfig, weights: Mapping[str, Any], ids_BT: Any) -> Tensor:
    """Score every next token of whole sequences, in the weights' dtype and on their device; return logits_BTV."""
    first = torch.as_tensor(next(iter(weights.values())))
    model = DecoderTorch(config, weights, device=first.device, dtype=first.dtype)
    return model.logits(torch.as_tensor(ids_BT))


def model_torch(config: ModelConfig, weights: Mapping[str, Any], **where: Any) -> LlamaTorch:
    """The model that runs an architecture's paged steps: fused products for the Llama family, plain layers for the others.

    Raises:
        ValueError: latent attention, linear biases or a rotation that follows the text's length; or weights that do not fit.
    """
    if config.model_type in LLAMA_LIKE:
        return LlamaTorch(config, weights, **where)
    if config.latent or config.positions == "alibi" or config.rope.kind in LENGTH_DEPENDENT:
        raise ValueError(f"{config.name}: model_type={config.model_type!r} has no paged steps here, only whole sequences")
    return DecoderTorch(config, weights, **where)


class _Own(dict[str, Tensor]):
    """One layer's weights, and its window."""

    window: int | None = None


class DecoderTorch(LlamaTorch):
    """A decoder of any family with its weights on one device.

    Args:
        config: the architecture.
        weights: arrays or tensors by their name in the family's files.
        device: where to keep them.
        dtype: what to compute in.

    Raises:
        ValueError: an architecture that can only be priced, or a weight that is missing or of the wrong shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not config.runnable:
            raise ValueError(f"{config.name}: model_type={config.model_type!r} can be priced, not run")
        check_weights(config, weights)
        given = {
            name: (value if isinstance(value, Tensor) else torch.tensor(value)).to(device=device, dtype=dtype)
            for name, value in weights.items()
        }
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.outside, layers = unpack(config, given)
        self.layers = [_Own(own) for own in layers]
        for number, own in enumerate(self.layers):
            own.window = config.window_of(number)
        self.embedding_VD = self.outside["model.embed_tokens.weight"]
        self.head_VD = self.embedding_VD if config.tie_word_embeddings else self.outside["lm_head.weight"]
        if config.normalized_head:
            self.head_VD = F.normalize(self.head_VD)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Every position's logits_BTV of whole sequences, without a cache; differentiable."""
        B, T = ids_BT.shape
        positions_T = torch.arange(T, device=self.device).repeat(B)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q_BNTH, k_BKTH, v_BKTH = (x.unflatten(0, (B, T)).transpose(1, 2) for x in (q, k, v))
            mask = self._mask(T, self.layers[layer].window, q.shape[-1])
            out_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, attn_mask=mask, enable_gqa=True)
            return out_BNTH.transpose(1, 2).flatten(0, 1)

        return self._logits(self._body(ids_BT.to(self.device).flatten(), positions_T, attend)).unflatten(0, (B, T))

    def _mask(self, T: int, window: int | None, width: int) -> Tensor:
        """What is added to the scores: minus infinity where nothing is seen, linear biases where the architecture has them."""
        place_T = torch.arange(T, device=self.device)
        distance_TS = place_T - place_T[:, None]
        seen_TS = distance_TS <= 0 if window is None else (distance_TS <= 0) & (distance_TS > -window)
        bias = torch.zeros(1, 1, 1, device=self.device, dtype=torch.float64)
        if self.config.positions == "alibi":
            slopes = alibi_slopes(self.config.num_attention_heads) * (width**-0.5 if self.config.scaled_alibi else 1.0)
            bias = torch.from_numpy(slopes).to(self.device)[:, None, None] * distance_TS
        return torch.where(seen_TS, bias, -torch.inf).to(self.dtype)

    def _body(self, ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        config = self.config
        x_TD = F.embedding(ids_T, self.embedding_VD)
        if config.embedding_width:
            x_TD = _linear(self.outside, "model.project_in", x_TD)
        if config.learned_positions:
            rows_T = positions_T + (config.learned_positions - config.max_position_embeddings)
            x_TD = x_TD + self.outside["model.embed_positions.weight"][rows_T]
        if config.embedding_norm:
            x_TD = self._norm(self.outside, "model.embed_norm", x_TD)
        turn = self._turns(positions_T) if config.positions == "rotary" else None
        for number, own in enumerate(self.layers):
            x_TD = self._block(own, x_TD, lambda q, k, v, number=number: attend(number, q, k, v), turn, number)
        return x_TD

    def _block(self, own: _Own, x_TD: Tensor, attend: Callable[..., Tensor], turn: Any, number: int) -> Tensor:
        """One layer; see `block` of the reference for the four ways its norms and sums may lie."""
        config, before, after = self.config, "input_layernorm", "post_attention_layernorm"
        sandwich, pre = config.norms_per_layer == 4, not config.post_norm
        h_TD = self._norm(own, before, x_TD) if pre else x_TD
        mixed_TD = (self._latent_attention if config.latent else self._attention)(own, h_TD, attend, turn)
        if config.parallel_block:
            h_TD = self._norm(own, after, x_TD) if config.norms_per_layer == 2 else h_TD
            return x_TD + mixed_TD + self._feed_forward(own, h_TD, number)
        x_TD = x_TD + (self._norm(own, "post_self_attn_layernorm", mixed_TD) if sandwich else mixed_TD)
        x_TD = x_TD if pre else self._norm(own, before, x_TD)
        out_TD = self._feed_forward(own, self._norm(own, after, x_TD) if pre else x_TD, number)
        x_TD = x_TD + (self._norm(own, "post_mlp_layernorm", out_TD) if sandwich else out_TD)
        return x_TD if pre else self._norm(own, after, x_TD)

    def _attention(self, own: _Own, h_TD: Tensor, attend: Callable[..., Tensor], turn: Any) -> Tensor:
        q_TNH, k_TKH, v_TKH = (
            _linear(own, f"self_attn.{x}_proj", h_TD).unflatten(-1, (-1, self.config.head_dim)) for x in "qkv"
        )
        if self.config.qk_norm:
            q_TNH, k_TKH = self._norm(own, "self_attn.q_norm", q_TNH), self._norm(own, "self_attn.k_norm", k_TKH)
        if turn is not None:
            q_TNH, k_TKH = self._rotated(q_TNH, turn), self._rotated(k_TKH, turn)
        return _linear(own, "self_attn.o_proj", attend(q_TNH, k_TKH, v_TKH).flatten(1))

    def _latent_attention(self, own: _Own, h_TD: Tensor, attend: Callable[..., Tensor], turn: Any) -> Tensor:
        m, N = self.config.latent, self.config.num_attention_heads
        assert m is not None
        c_TC = self._norm(own, "self_attn.q_a_norm", _linear(own, "self_attn.q_a_proj", h_TD)) if m.query_rank else h_TD
        q_TNH = _linear(own, "self_attn.q_b_proj" if m.query_rank else "self_attn.q_proj", c_TC).unflatten(-1, (N, -1))
        latent_TC, key_TR = _linear(own, "self_attn.kv_a_proj", h_TD).split((m.kv_rank, m.rope_width), dim=-1)
        kv_TC = _linear(own, "self_attn.kv_b_proj", self._norm(own, "self_attn.kv_a_norm", latent_TC))
        k_TNH, v_TNH = kv_TC.unflatten(-1, (N, -1)).split((m.nope_width, m.value_width), dim=-1)
        key_TNR = self._rotated(key_TR[:, None], turn).expand(-1, N, -1)
        nope_TNH, rope_TNR = q_TNH.split((m.nope_width, m.rope_width), dim=-1)
        q_TNH = torch.cat([nope_TNH, self._rotated(rope_TNR, turn)], dim=-1) * latent_scale(self.config)
        return _linear(own, "self_attn.o_proj", attend(q_TNH, torch.cat([k_TNH, key_TNR], dim=-1), v_TNH).flatten(1))

    def _turns(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, 1, R], times the architecture's factor."""
        length = int(positions_T.max()) + 1 if positions_T.numel() else 0
        frequencies_R, factor = rotary_frequencies(self.config, length=length)
        angle_T1R = (positions_T[:, None] * torch.from_numpy(frequencies_R).to(self.device))[:, None]
        return (factor * angle_T1R.cos()).to(self.dtype), (factor * angle_T1R.sin()).to(self.dtype)

    def _rotated(self, x_TNH: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        cos_T1R, sin_T1R = turn
        width = 2 * cos_T1R.shape[-1]
        head, rest = x_TNH[..., :width], x_TNH[..., width:]
        if self.config.rotary_interleaved:
            a_TNR, b_TNR = head[..., 0::2], head[..., 1::2]
            turned = torch.stack([a_TNR * cos_T1R - b_TNR * sin_T1R, b_TNR * cos_T1R + a_TNR * sin_T1R], dim=-1).flatten(-2)
        else:
            a_TNR, b_TNR = head.chunk(2, dim=-1)
            turned = torch.cat([a_TNR * cos_T1R - b_TNR * sin_T1R, b_TNR * cos_T1R + a_TNR * sin_T1R], dim=-1)
        return torch.cat([turned, rest], dim=-1)

    def _feed_forward(self, own: _Own, h_TD: Tensor, number: int) -> Tensor:
        act = _ACTIVATIONS[self.config.hidden_act]
        if self.config.is_sparse(number):
            return self._mixture(own, h_TD, act)
        up_TF = _linear(own, "mlp.up_proj", h_TD)
        inner_TF = act(_linear(own, "mlp.gate_proj", h_TD)) * up_TF if self.config.gated_mlp else act(up_TF)
        return _linear(own, "mlp.down_proj", inner_TF)

    def _mixture(self, own: _Own, h_TD: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        config = self.config
        chosen_TA, weight_TA = self._routed(own, h_TD)
        out_TD = torch.zeros_like(h_TD)
        for expert in chosen_TA.unique().tolist():
            rows, places = torch.where(chosen_TA == expert)
            gate, up = F.linear(h_TD[rows], own["mlp.experts.gate_up_proj"][expert]).chunk(2, dim=-1)
            made = F.linear(act(gate) * up, own["mlp.experts.down_proj"][expert])
            out_TD = out_TD.index_add(0, rows, made * weight_TA[rows, places, None])
        if config.shared_expert_intermediate_size:
            gate, up = (_linear(own, f"mlp.shared_expert.{x}_proj", h_TD) for x in ("gate", "up"))
            shared_TD = _linear(own, "mlp.shared_expert.down_proj", act(gate) * up)
            if config.shared_expert_gate:
                shared_TD = shared_TD * _linear(own, "mlp.shared_expert_gate", h_TD).sigmoid()
            out_TD = out_TD + shared_TD
        return out_TD

    def _routed(self, own: _Own, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        how, A = self.config.routing, self.config.num_experts_per_tok
        logits_TE = _linear(own, "mlp.gate", h_TD)
        score_TE = logits_TE.sigmoid() if how.score == "sigmoid" else logits_TE.softmax(-1)
        rank_TE = score_TE + own["mlp.gate.e_score_correction_bias"] if how.correction else score_TE
        if how.groups > 1:
            rank_TQX = rank_TE.unflatten(-1, (how.groups, -1))
            kept_TQ = rank_TQX.topk(min(2, rank_TQX.shape[-1]), dim=-1).values.sum(-1).topk(how.groups_kept, dim=-1).indices
            out_TQ = torch.ones_like(rank_TQX[..., 0], dtype=torch.bool).scatter(-1, kept_TQ, False)
            rank_TE = rank_TQX.masked_fill(out_TQ[..., None], -torch.inf).flatten(-2)
        chosen_TA = rank_TE.topk(A, dim=-1).indices
        weight_TA = score_TE.gather(-1, chosen_TA)
        if self.config.norm_topk_prob:
            weight_TA = weight_TA / weight_TA.sum(-1, keepdim=True)
        return chosen_TA, weight_TA * how.scale

    def _norm(self, own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        weight, bias, eps = own[f"{name}.weight"], own.get(f"{name}.bias"), self.config.rms_norm_eps
        shape = (x.shape[-1],)
        return F.rms_norm(x, shape, weight, eps) if bias is None else F.layer_norm(x, shape, weight, bias, eps)

    def _logits(self, x_TD: Tensor) -> Tensor:
        if self.config.final_norm:
            x_TD = self._norm(self.outside, "model.norm", x_TD)
        if self.config.embedding_width:
            x_TD = _linear(self.outside, "model.project_out", x_TD)
        return F.linear(x_TD, self.head_VD, self.outside.get("lm_head.bias"))


def _linear(own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
