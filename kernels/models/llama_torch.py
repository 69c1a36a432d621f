"""Llama-family transformer over torch: one fused q-k-v product and one fused gate-up product per layer, paged keys and values.

A step takes a packed ragged batch: the new tokens of all requests one after the other, prefill chunks and decode tokens
mixed. Keys and values live in pools of blocks that requests address through block tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.models._decode_numba import decode_attention
from llmlab.kernels.twin import twin
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._rotary import LENGTH_DEPENDENT, rotary_frequencies
from llmlab.reference.models._weights import check_weights
from llmlab.reference.models.llama import LLAMA

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Dense families whose files hold the same matrices under the same names."""

Cache = list[tuple[Tensor, Tensor]]
"""Per layer: a pool of keys and one of values, each [blocks, tokens of a block, K, H]."""


@twin(LLAMA, backend="torch")
def llama(config: ModelConfig, weights: Mapping[str, Any], ids_BT: Any) -> Tensor:
    """Score every next token of whole sequences, in the weights' dtype and on their device; return logits_BTV."""
    table_VD = torch.as_tensor(weights["model.embed_tokens.weight"])
    model = LlamaTorch(config, weights, device=table_VD.device, dtype=table_VD.dtype)
    return model.logits(torch.as_tensor(ids_BT))


class _Layer:
    """The weights of one layer, the matrices that see the same input stacked."""

    def __init__(self, config: ModelConfig, layer: int, get: Any) -> None:
        prefix = f"model.layers.{layer}."

        def stacked(*names: str) -> Tensor | None:
            parts = [get(prefix + name) for name in names]
            return None if parts[0] is None else torch.cat(parts)

        self.window = config.window_of(layer)
        self.norm_D = get(prefix + "input_layernorm.weight")
        self.mlp_norm_D = get(prefix + "post_attention_layernorm.weight")
        self.qkv = stacked(*(f"self_attn.{x}_proj.weight" for x in "qkv"))
        self.qkv_bias = stacked(*(f"self_attn.{x}_proj.bias" for x in "qkv"))
        self.out, self.out_bias = get(prefix + "self_attn.o_proj.weight"), get(prefix + "self_attn.o_proj.bias")
        self.q_norm_H, self.k_norm_H = get(prefix + "self_attn.q_norm.weight"), get(prefix + "self_attn.k_norm.weight")
        self.gate_up = stacked("mlp.gate_proj.weight", "mlp.up_proj.weight")
        self.gate_up_bias = stacked("mlp.gate_proj.bias", "mlp.up_proj.bias")
        self.down, self.down_bias = get(prefix + "mlp.down_proj.weight"), get(prefix + "mlp.down_proj.bias")


class LlamaTorch:
    """A dense model of the families in `LLAMA_LIKE` with its weights on one device.

    Args:
        config: the architecture.
        weights: arrays or tensors by Hugging Face name.
        device: where to keep them.
        dtype: what to compute in.

    Raises:
        ValueError: another family, a mixture of experts, an unknown rotary scaling, or a weight that is missing or misshapen.
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
        if config.model_type not in LLAMA_LIKE and not config.is_moe:
            raise ValueError(f"{config.name}: model_type={config.model_type!r} is none of {', '.join(LLAMA_LIKE)}")
        if config.is_moe:
            raise ValueError(f"{config.name}: model_type={config.model_type!r} has experts; this model is dense")
        check_weights(config, weights)

        def get(name: str) -> Tensor | None:
            if name not in weights:
                return None
            value = weights[name]
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            return tensor.to(device=device, dtype=dtype)

        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.embedding_VD = get("model.embed_tokens.weight")
        self.layers = [_Layer(config, layer, get) for layer in range(config.num_hidden_layers)]
        self.norm_D = get("model.norm.weight")
        self.head_VD = self.embedding_VD if config.tie_word_embeddings else get("lm_head.weight")
        if config.rope.kind in LENGTH_DEPENDENT:
            raise ValueError(f"{config.name}: rope kind {config.rope.kind!r} follows the text's length; this does not")
        frequencies_R, self.rotary_factor = rotary_frequencies(config)
        self.frequencies_R = torch.from_numpy(frequencies_R).to(self.device)

    def new_cache(self, num_blocks: int, block_tokens: int) -> Cache:
        """Empty pools for `num_blocks` blocks of `block_tokens` tokens in every layer."""
        shape = (num_blocks, block_tokens, self.config.num_key_value_heads, self.config.head_dim)
        return [
            (torch.zeros(shape, device=self.device, dtype=self.dtype), torch.zeros(shape, device=self.device, dtype=self.dtype))
            for _ in self.layers
        ]

    @torch.inference_mode()
    def forward(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        cache: Cache,
        query_starts_R1: Sequence[int] | Tensor,
        block_tables_RM: Tensor,
        context_lengths_R: Sequence[int] | Tensor,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute one step; write the new keys and values into the pools and return the last token's logits_RV.

        Args:
            ids_T: new tokens of all requests, request after request; each request has at least one.
            positions_T: their positions in their own request.
            cache: pools from `new_cache`; written in place.
            query_starts_R1: where each request's tokens begin in `ids_T`, and one more entry, T. A list avoids a device wait.
            block_tables_RM: ids of each request's blocks in token order; entries past its length are not read.
            context_lengths_R: tokens of each request in the cache after this step, its new tokens being the last of them.
            rows: places in `ids_T` whose logits are wanted instead of each request's last, as guesses to be verified are.
        """
        ids_T, positions_T = ids_T.to(self.device), positions_T.to(self.device)
        starts, contexts = _numbers(query_starts_R1), _numbers(context_lengths_R)
        paged = _Paged(self, positions_T, cache, starts, block_tables_RM.to(self.device), contexts)
        x_TD = self._body(ids_T, positions_T, paged.attend)
        wanted = [end - 1 for end in starts[1:]] if rows is None else rows
        return self._logits(x_TD[torch.tensor(wanted, device=self.device)])

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Every position's logits_BTV of whole sequences, without a cache; differentiable."""
        B, T = ids_BT.shape
        positions_T = torch.arange(T, device=self.device).repeat(B)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q_BTNH, k_BTKH, v_BTKH = (x.unflatten(0, (B, T)) for x in (q, k, v))
            return _attention(q_BTNH, k_BTKH, v_BTKH, self.layers[layer].window).flatten(0, 1)

        return self._logits(self._body(ids_BT.to(self.device).flatten(), positions_T, attend)).unflatten(0, (B, T))

    def _body(self, ids_T: Tensor, positions_T: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        config, eps = self.config, self.config.rms_norm_eps
        N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        angle_T1R = (positions_T[:, None] * self.frequencies_R)[:, None]
        cos_T1R, sin_T1R = ((self.rotary_factor * turn).to(self.dtype) for turn in (angle_T1R.cos(), angle_T1R.sin()))
        x_TD = F.embedding(ids_T, self.embedding_VD)
        for number, layer in enumerate(self.layers):
            h_TD = _rms_norm(x_TD, layer.norm_D, eps)
            heads_TNH = F.linear(h_TD, layer.qkv, layer.qkv_bias).unflatten(-1, (N + 2 * K, H))
            qk_TNH, v_TKH = heads_TNH[:, : N + K], heads_TNH[:, N + K :]
            if layer.q_norm_H is not None:
                q_TNH, k_TKH = qk_TNH.split((N, K), dim=1)
                qk_TNH = torch.cat([_rms_norm(q_TNH, layer.q_norm_H, eps), _rms_norm(k_TKH, layer.k_norm_H, eps)], dim=1)
            q_TNH, k_TKH = _rotate(qk_TNH, cos_T1R, sin_T1R).split((N, K), dim=1)
            mixed_TNH = attend(number, q_TNH, k_TKH, v_TKH)
            x_TD = x_TD + F.linear(mixed_TNH.flatten(1), layer.out, layer.out_bias)
            h_TD = _rms_norm(x_TD, layer.mlp_norm_D, eps)
            gate_TF, up_TF = F.linear(h_TD, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x_TD = x_TD + F.linear(F.silu(gate_TF) * up_TF, layer.down, layer.down_bias)
        return x_TD

    def _logits(self, x_TD: Tensor) -> Tensor:
        return F.linear(_rms_norm(x_TD, self.norm_D, self.config.rms_norm_eps), self.head_VD)


class _Paged:
    """Attention of one step: writes new keys and values, then attends prefill chunks one by one and decode tokens together."""

    def __init__(
        self, model: LlamaTorch, positions_T: Tensor, cache: Cache, starts: list[int], tables_RM: Tensor, contexts: list[int]
    ) -> None:
        self.model, self.cache, self.tables_RM, self.contexts = model, cache, tables_RM, contexts
        self.block_tokens = cache[0][0].shape[1]
        device = positions_T.device
        tokens = [end - start for start, end in pairwise(starts)]
        request_T = torch.repeat_interleave(torch.tensor(tokens, device=device))
        block_T = tables_RM[request_T, positions_T // self.block_tokens].long()
        self.slots_T = block_T * self.block_tokens + positions_T % self.block_tokens
        self.prefills = [(r, starts[r], starts[r + 1]) for r, count in enumerate(tokens) if count > 1]
        decodes = [r for r, count in enumerate(tokens) if count == 1]
        self.decode_T = torch.tensor([starts[r] for r in decodes], device=device)
        self.only_decodes = not self.prefills
        if decodes:
            longest = max(contexts[r] for r in decodes)
            chosen = torch.tensor(decodes, device=device)
            self.decode_tables_RM = tables_RM[chosen, : -(-longest // self.block_tokens)].long()
            self.decode_contexts_R1 = torch.tensor([[contexts[r]] for r in decodes], device=device)
        self.in_place = device.type == "cpu" and model.dtype in (torch.float32, torch.float64)

    def attend(self, number: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        k_pool, v_pool = self.cache[number]
        window = self.model.layers[number].window
        k_pool.flatten(0, 1).index_copy_(0, self.slots_T, k_TKH)
        v_pool.flatten(0, 1).index_copy_(0, self.slots_T, v_TKH)
        if self.only_decodes:
            return self._decode(q_TNH, k_pool, v_pool, window)
        out_TNH = torch.empty_like(q_TNH)
        for r, start, end in self.prefills:
            k_SKH, v_SKH = k_TKH[start:end], v_TKH[start:end]
            if self.contexts[r] > end - start:
                blocks = self.tables_RM[r, : -(-self.contexts[r] // self.block_tokens)].long()
                k_SKH, v_SKH = (pool[blocks].flatten(0, 1)[: self.contexts[r]] for pool in (k_pool, v_pool))
            out_TNH[start:end] = _attention(q_TNH[None, start:end], k_SKH[None], v_SKH[None], window)[0]
        if len(self.decode_T):
            out_TNH[self.decode_T] = self._decode(q_TNH[self.decode_T], k_pool, v_pool, window)
        return out_TNH

    def _decode(self, q_RNH: Tensor, k_pool: Tensor, v_pool: Tensor, window: int | None) -> Tensor:
        if self.in_place:  # on a processor, gathering pages and padding to the longest context cost more than attending
            out_RNH = torch.empty_like(q_RNH, memory_format=torch.contiguous_format)
            q_RKGH, out_RKGH = (x.unflatten(1, (k_pool.shape[2], -1)).numpy() for x in (q_RNH.contiguous(), out_RNH))
            tables_RM, contexts_R = self.decode_tables_RM.numpy(), self.decode_contexts_R1[:, 0].numpy()
            decode_attention(q_RKGH, k_pool.numpy(), v_pool.numpy(), tables_RM, contexts_R, window or 0, out_RKGH)
            return out_RNH
        k_RSKH, v_RSKH = (pool[self.decode_tables_RM].flatten(1, 2) for pool in (k_pool, v_pool))
        place_S = torch.arange(k_RSKH.shape[1], device=q_RNH.device)
        seen_RS = place_S < self.decode_contexts_R1
        if window is not None:
            seen_RS &= place_S >= self.decode_contexts_R1 - window
        out_RN1H = F.scaled_dot_product_attention(
            q_RNH[:, :, None],
            k_RSKH.transpose(1, 2),
            v_RSKH.transpose(1, 2),
            attn_mask=seen_RS[:, None, None],
            enable_gqa=True,
        )
        return out_RN1H.squeeze(2)


def _attention(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, window: int | None) -> Tensor:
    """Causal attention of the last T of S positions, over the last `window` keys where there is one; return out_BTNH."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    mask_TS = None
    if S > T or (window is not None and window < S):
        mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTNH.device).tril(S - T)
        if window is not None:
            mask_TS = mask_TS.triu(S - T - window + 1)
    q_BNTH, k_BKSH, v_BKSH = (x.transpose(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    out_BNTH = F.scaled_dot_product_attention(
        q_BNTH, k_BKSH, v_BKSH, attn_mask=mask_TS, is_causal=mask_TS is None, enable_gqa=True
    )
    return out_BNTH.transpose(1, 2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def _rotate(x_TNH: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    a_TNR, b_TNR = x_TNH.chunk(2, dim=-1)
    return torch.cat([a_TNR * cos_T1R - b_TNR * sin_T1R, b_TNR * cos_T1R + a_TNR * sin_T1R], dim=-1)


def _numbers(values: Sequence[int] | Tensor) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)
