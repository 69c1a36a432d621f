"""The blocks every decoder-only transformer of the Llama family is put together from.

Axes: B batch, T new position, S position, D model width, F feed-forward width, V vocabulary, K key/value head, G query heads
per key/value head, N = K * G query heads, H head width, R = H/2 rotated pairs. Matrices are [out, in], as in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmlab.reference.attention._masked import causal_pairs
from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.sliding_window import sliding_window
from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.glu import glu
from llmlab.reference.layers.rms_norm import rms_norm
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Cost, Dims
from llmlab.reference.positions.rope import inverse_frequencies, rope
from llmlab.reference.positions.rope_llama3 import llama3_frequencies

Cache = Sequence[tuple[np.ndarray, np.ndarray]]
"""Per layer the keys and the values seen so far, each [B, S, K, H]; keys are stored rotated."""


def decoder(
    config: ModelConfig,
    weights: Weights,
    ids_BT: np.ndarray,
    past: Cache | None = None,
    *,
    feed_forward: Callable[[ModelConfig, Weights, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Run the pre-norm stack over new tokens; return (logits_BTV, present).

        x <- x + attention(norm x);  x <- x + feed_forward(norm x)      layer by layer, then logits = head norm x

    `past` holds the tokens before these; `present` holds them and these, and is the next call's `past`.

    Raises:
        ValueError: an architecture that can only be priced, or a token id outside the vocabulary.
    """
    if not config.runnable:
        raise ValueError(f"{config.name}: model_type={config.model_type!r} can be priced, not run")
    x_BTD = embedding(ids_BT, weights["model.embed_tokens.weight"])
    present = []
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        h_BTD = rms_norm(x_BTD, own["input_layernorm.weight"], eps=config.rms_norm_eps)
        mixed_BTD, seen = attention(config, own, h_BTD, past[layer] if past else None, window=config.window_of(layer))
        present.append(seen)
        x_BTD = x_BTD + mixed_BTD
        h_BTD = rms_norm(x_BTD, own["post_attention_layernorm.weight"], eps=config.rms_norm_eps)
        x_BTD = x_BTD + feed_forward(config, own, h_BTD)
    x_BTD = rms_norm(x_BTD, weights["model.norm.weight"], eps=config.rms_norm_eps)
    head_VD = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return x_BTD @ head_VD.T, present


def attention(
    config: ModelConfig,
    own: Weights,
    h_BTD: np.ndarray,
    past: tuple[np.ndarray, np.ndarray] | None,
    *,
    window: int | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Attend new tokens to the past and themselves; return (out_BTD, (k_BSKH, v_BSKH)) with the past in front."""
    B, T, _ = h_BTD.shape
    K, G, H = config.num_key_value_heads, config.group_size, config.head_dim
    q_BTNH, k_BTKH, v_BTKH = (
        linear(own, f"self_attn.{x}_proj", h_BTD).reshape(B, T, heads, H) for x, heads in (("q", K * G), ("k", K), ("v", K))
    )
    if config.qk_norm:
        q_BTNH = rms_norm(q_BTNH, own["self_attn.q_norm.weight"], eps=config.rms_norm_eps)
        k_BTKH = rms_norm(k_BTKH, own["self_attn.k_norm.weight"], eps=config.rms_norm_eps)
    start = past[0].shape[1] if past else 0
    positions_BT = np.broadcast_to(start + np.arange(T), (B, T))
    frequencies_R = rotary_frequencies(config)
    q_BTNH = rope(q_BTNH, positions_BT, frequencies=frequencies_R)
    k_BTKH = rope(k_BTKH, positions_BT, frequencies=frequencies_R)
    k_BSKH, v_BSKH = k_BTKH, v_BTKH
    if past:
        k_BSKH, v_BSKH = np.concatenate([past[0], k_BTKH], axis=1), np.concatenate([past[1], v_BTKH], axis=1)
    q_BTKGH = q_BTNH.reshape(B, T, K, G, H)
    if window is None:
        out_BTKGH = gqa(q_BTKGH, k_BSKH, v_BSKH)
    else:
        out_BTKGH = sliding_window(q_BTKGH, k_BSKH, v_BSKH, window=window)
    return linear(own, "self_attn.o_proj", out_BTKGH.reshape(B, T, K * G * H)), (k_BSKH, v_BSKH)


def gated_feed_forward(config: ModelConfig, own: Weights, h_BTD: np.ndarray) -> np.ndarray:
    """Return down(silu(gate h) * up h), the SwiGLU of Shazeer 2020 (arXiv:2002.05202, eq. 6)."""
    gate_BTF, up_BTF = linear(own, "mlp.gate_proj", h_BTD), linear(own, "mlp.up_proj", h_BTD)
    return linear(own, "mlp.down_proj", glu(gate_BTF, up_BTF))


def linear(own: Weights, name: str, x_BTI: np.ndarray) -> np.ndarray:
    """Multiply by the matrix [O, I] of that name, add its bias where there is one; return out_BTO."""
    out_BTO = x_BTI @ own[f"{name}.weight"].T
    return out_BTO + own[f"{name}.bias"] if f"{name}.bias" in own else out_BTO


def dims_of(config: ModelConfig, *, B: int, T: int, S: int) -> dict[str, int]:
    """The sizes the cost of a dense model is a function of: B sequences, T new tokens in each, S tokens seen at the end."""
    return {
        "B": B,
        "T": T,
        "S": S,
        "L": config.num_hidden_layers,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "K": config.num_key_value_heads,
        "G": config.group_size,
        "H": config.head_dim,
        "V": config.vocab_size,
    }


def dense_cost(d: Dims) -> Cost:
    """Work of T new tokens in each of B sequences: every matrix once, attention over the pairs seen, logits of every token.

    Reads each weight once, the cached keys and values of S - T tokens, and the embedding rows of the new tokens; writes
    their keys and values and the logits. Norms, rotations and activations are left out: they are a hundredth of it.
    """
    tokens, width = d["B"] * d["T"], d["K"] * d["G"] * d["H"]
    cached = d["L"] * d["K"] * d["H"] * 2
    matrices = d["L"] * (d["D"] * (2 * width + 2 * d["K"] * d["H"]) + 3 * d["D"] * d["F"]) + d["V"] * d["D"]
    return Cost(
        flops=2 * tokens * matrices + 4 * d["B"] * d["L"] * width * causal_pairs(d["T"], d["S"]),
        elements_read=matrices + (2 * d["L"] + 1) * d["D"] + tokens * d["D"] + cached * d["B"] * (d["S"] - d["T"]),
        elements_written=cached * tokens + tokens * d["V"],
    )


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """Return the R angular speeds of an architecture's rotation, in float64.

    Raises:
        ValueError: a scaling that depends on the length of the text (dynamic, yarn, longrope).
    """
    rope = config.rope
    if rope.kind == "default":
        return inverse_frequencies(config.head_dim, rope.theta)
    if rope.kind == "linear":
        return inverse_frequencies(config.head_dim, rope.theta) / rope.factor
    if rope.kind == "llama3":
        return llama3_frequencies(
            config.head_dim,
            theta=rope.theta,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_context=rope.original_max_position_embeddings,
        )
    raise ValueError(f"{config.name}: rope kind {rope.kind!r} is none of default, linear, llama3")
