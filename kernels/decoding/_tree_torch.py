"""A tree of tokens over the torch model: one pass scores all new nodes under a tree mask; the cache rolls back.

The text that all live nodes share comes first in the cache and is seen by everyone; live nodes follow, and each sees those
it descends from. Forgetting moves what is kept together. Axes: S cached token, N new node, M live node below the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.models.llama_torch import LlamaTorch, _rms_norm
from llmlab.reference.decoding._tree import Scored
from llmlab.reference.decoding.greedy import LlamaStep

GROWTH = 256
"""The cache grows by so many tokens at least."""


class TorchTree:
    """`llmlab.reference.decoding._tree.TokenTree` over a model's weights; `calls` counts passes through them.

    What it returns is NumPy, in float64 where the model computes in it and in float32 elsewhere.
    """

    def __init__(self, model: LlamaTorch) -> None:
        self.model = model
        self.size = self.calls = 0
        self._pools: list[tuple[Tensor, Tensor]] = []
        self._forget_all()

    @classmethod
    def of(cls, step: LlamaStep) -> TorchTree:
        """The same model as a reference step, in float64."""
        return cls(LlamaTorch(step.config, step.weights, dtype=torch.float64))

    def begin(self, prompt: Sequence[int]) -> Scored:
        """Take the prompt.

        Raises:
            ValueError: an empty prompt.
        """
        if not len(prompt):
            raise ValueError("prompt=[]: needs at least one token")
        self._forget_all()
        T = len(prompt)
        hidden_TD = self._run(prompt, range(T), torch.ones(T, T, dtype=torch.bool).tril())
        self._text, self.size = T, 1
        return self._scored(hidden_TD[-1:], hidden_TD)

    def score(self, tokens_N: Sequence[int], parents_N: Sequence[int]) -> Scored:
        """Score all nodes in one pass."""
        N, M = len(tokens_N), len(self._nodes)
        below_NM = np.zeros((N, M + N), dtype=bool)
        place = {node: m for m, node in enumerate(self._nodes)}
        depths = []
        for n, parent in enumerate(map(int, parents_N)):
            node = self.size + n
            depth = 0
            if parent in place:
                m = place[parent]
                below_NM[n] = below_NM[m - M] if m >= M else np.pad(self._below_MM[m], (0, N))
                depth = self._depths[m] + 1 if m < M else depths[m - M] + 1
            elif parent != self._trunk_node:
                raise ValueError(f"parent={parent} is not a live node")
            below_NM[n, M + n] = True
            depths.append(depth)
            place[node] = M + n
        seen_NS = np.concatenate([np.ones((N, self._text), dtype=bool), below_NM], axis=1)
        hidden_ND = self._run(tokens_N, [self._text + depth for depth in depths], torch.from_numpy(seen_NS))
        grown_MM = np.zeros((M + N, M + N), dtype=bool)
        grown_MM[:M, :M], grown_MM[M:] = self._below_MM, below_NM
        self._below_MM = grown_MM
        self._nodes += range(self.size, self.size + N)
        self._depths += depths
        self.size += N
        return self._scored(hidden_ND, hidden_ND)

    @torch.inference_mode()
    def keep(self, nodes: Sequence[int]) -> None:
        """Forget all other branches; what all kept nodes descend from becomes text."""
        place = {node: m for m, node in enumerate(self._nodes)}
        wanted = [place[node] for node in nodes if node != self._trunk_node]
        kept_M = self._below_MM[wanted].any(axis=0) if wanted else np.zeros(len(self._nodes), dtype=bool)
        shared_M = self._below_MM[wanted].all(axis=0) if len(wanted) == len(nodes) and wanted else np.zeros_like(kept_M)
        text = np.flatnonzero(shared_M)  # ancestors come before descendants, so these are in order
        rest = np.flatnonzero(kept_M & ~shared_M)
        order = np.concatenate([text, rest])
        if (order != np.arange(len(order))).any():
            source = torch.from_numpy(self._text + order).to(self.model.device)
            for pools in self._pools:
                for pool in pools:
                    pool[self._text : self._text + len(order)] = pool[source]
        if len(text):
            self._trunk_node = self._nodes[int(text[-1])]
        self._text += len(text)
        self._below_MM = self._below_MM[np.ix_(rest, rest)]
        self._depths = [self._depths[m] - len(text) for m in rest]
        self._nodes = [self._nodes[m] for m in rest]

    def _forget_all(self) -> None:
        self._text, self._trunk_node = 0, 0
        self._nodes: list[int] = []
        self._depths: list[int] = []
        self._below_MM = np.zeros((0, 0), dtype=bool)

    @torch.inference_mode()
    def _run(self, tokens_N: Sequence[int], positions_N: Sequence[int], seen_NS: Tensor) -> Tensor:
        """Pass new tokens through the layers, their keys and values appended to the cache; return hidden_ND."""
        device = self.model.device
        N, S = seen_NS.shape
        self._reserve(S)
        positions = torch.tensor(list(positions_N), device=device)
        seen_NS = seen_NS.to(device)
        place_S = torch.cat([torch.arange(self._text, device=device), self._positions_below(positions)])[:S]

        def attend(layer: int, q_NQH: Tensor, k_NKH: Tensor, v_NKH: Tensor) -> Tensor:
            k_pool, v_pool = self._pools[layer]
            k_pool[S - N : S], v_pool[S - N : S] = k_NKH, v_NKH
            window = self.model.layers[layer].window
            mask_NS = seen_NS if window is None else seen_NS & (place_S > positions[:, None] - window)
            return F.scaled_dot_product_attention(
                q_NQH.transpose(0, 1)[None],
                k_pool[:S].transpose(0, 1)[None],
                v_pool[:S].transpose(0, 1)[None],
                attn_mask=mask_NS,
                enable_gqa=True,
            )[0].transpose(0, 1)

        self.calls += 1
        x_ND = self.model._body(torch.tensor(list(map(int, tokens_N)), device=device), positions, attend)
        return _rms_norm(x_ND, self.model.norm_D, self.model.config.rms_norm_eps)

    def _scored(self, rows_ND: Tensor, hidden_ND: Tensor) -> Scored:
        return Scored(_numpy(F.linear(rows_ND, self.model.head_VD)), _numpy(hidden_ND))

    def _positions_below(self, positions_N: Tensor) -> Tensor:
        known = torch.tensor([self._text + depth for depth in self._depths], dtype=positions_N.dtype, device=positions_N.device)
        return torch.cat([known, positions_N])

    def _reserve(self, tokens: int) -> None:
        have = self._pools[0][0].shape[0] if self._pools else 0
        if tokens <= have:
            return
        config = self.model.config
        shape = (max(tokens + GROWTH, 2 * have), config.num_key_value_heads, config.head_dim)
        grown = []
        for layer in range(len(self.model.layers)):
            pair: list[Tensor] = []
            for index in range(2):
                pool = torch.zeros(shape, device=self.model.device, dtype=self.model.dtype)
                if have:
                    pool[:have] = self._pools[layer][index]
                pair.append(pool)
            grown.append((pair[0], pair[1]))
        self._pools = grown


def _numpy(values: Tensor) -> Any:
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()
