"""Mixtures of experts inside a model: which experts a token visits, with which weights, and what they return.

Axes: B batch, T position, D model width, E experts, Q groups of experts, A experts visited, M width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.reference.layers._activation import sigmoid
from llmlab.reference.layers.glu import glu
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.models._config import ModelConfig


def mixture(config: ModelConfig, own: Mapping[str, np.ndarray], h_BTD: np.ndarray) -> np.ndarray:
    """Sum of the visited experts' outputs, weighted, and of the shared one's where there is one; return out_BTD."""
    chosen_BTA, weight_BTA = routed(config, own, h_BTD)
    out_BTD = np.zeros_like(h_BTD)
    for expert in range(config.num_experts):
        weight_BT = np.sum(np.where(chosen_BTA == expert, weight_BTA, 0), axis=-1)
        visiting = np.any(chosen_BTA == expert, axis=-1)
        gate_up, down = own["mlp.experts.gate_up_proj"][expert], own["mlp.experts.down_proj"][expert]
        gate_XM, up_XM = np.split(h_BTD[visiting] @ gate_up.T, 2, axis=-1)  # X: the tokens that visit this expert
        out_BTD[visiting] += weight_BT[visiting][:, None] * (glu(gate_XM, up_XM, kind=config.hidden_act) @ down.T)
    if config.shared_expert_intermediate_size:
        out_BTD = out_BTD + shared_expert(config, own, h_BTD)
    return out_BTD


def routed(config: ModelConfig, own: Mapping[str, np.ndarray], h_BTD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose experts; return (chosen_BTA, weight_BTA).

        weight = scale * score / sum of chosen scores,   score = softmax(router h) or sigmoid(router h)

    Chosen are the highest scores, each plus its correction where there is one (DeepSeek-V3, arXiv:2412.19437, eq. 16), within
    the groups kept. The sum is left out where `norm_topk_prob` is false.
    """
    how, A = config.routing, config.num_experts_per_tok
    logits_BTE = h_BTD @ own["mlp.gate.weight"].T
    score_BTE = sigmoid(logits_BTE) if how.score == "sigmoid" else softmax(logits_BTE)
    rank_BTE = score_BTE + own["mlp.gate.e_score_correction_bias"] if how.correction else score_BTE
    if how.groups > 1:
        rank_BTE = within_best_groups(rank_BTE, how.groups, how.groups_kept)
    chosen_BTA = np.argsort(-rank_BTE, axis=-1, kind="stable")[..., :A]
    weight_BTA = np.take_along_axis(score_BTE, chosen_BTA, axis=-1)
    if config.norm_topk_prob:
        weight_BTA = weight_BTA / np.sum(weight_BTA, axis=-1, keepdims=True)
    return chosen_BTA, weight_BTA * how.scale


def within_best_groups(rank_BTE: np.ndarray, groups: int, kept: int) -> np.ndarray:
    """Minus infinity outside the `kept` groups whose two best experts rank highest in sum."""
    B, T, E = rank_BTE.shape
    rank_BTQX = rank_BTE.reshape(B, T, groups, E // groups)
    best_BTQ = np.sort(rank_BTQX, axis=-1)[..., -2:].sum(axis=-1)
    order_BTQ = np.argsort(-best_BTQ, axis=-1, kind="stable")
    left_BTQ = np.zeros((B, T, groups), dtype=bool)
    np.put_along_axis(left_BTQ, order_BTQ[..., :kept], True, axis=-1)
    return np.where(left_BTQ[..., None], rank_BTQX, -np.inf).reshape(B, T, E)


def shared_expert(config: ModelConfig, own: Mapping[str, np.ndarray], h_BTD: np.ndarray) -> np.ndarray:
    """The expert every token visits, scaled by a sigmoid gate of its own in Qwen2-MoE; return out_BTD."""
    gate_MD, up_MD, down_DM = (own[f"mlp.shared_expert.{x}_proj.weight"] for x in ("gate", "up", "down"))
    out_BTD = glu(h_BTD @ gate_MD.T, h_BTD @ up_MD.T, kind=config.hidden_act) @ down_DM.T
    if config.shared_expert_gate:
        out_BTD = out_BTD * sigmoid(h_BTD @ own["mlp.shared_expert_gate.weight"].T)
    return out_BTD
