"""Flamingo's two blocks (Alayrac et al. 2022, arXiv:2204.14198): a Perceiver resampler and gated cross-attention.

The resampler turns any number of picture features into R latents; the gated block lets a frozen language model look at them, at
first not at all. Axes: B batch, M picture feature, R latent, T token, S key, D width, N head, H head width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.reference.attention.mha import mha
from llmlab.reference.layers._activation import named
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.models._blocks import linear
from llmlab.reference.models._stack import drawn, padded, single
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Procedure

Weights = Mapping[str, np.ndarray]


def _heads(weights: Weights, name: str, x_BTD: np.ndarray, heads: int) -> np.ndarray:
    return linear(weights, name, x_BTD).reshape(*x_BTD.shape[:2], heads, -1)


def _norm(weights: Weights, name: str, x_BTD: np.ndarray) -> np.ndarray:
    return layer_norm(x_BTD, weights[f"{name}.weight"], weights[f"{name}.bias"])


def resampled(weights: Weights, features_BMD: np.ndarray, *, heads: int) -> np.ndarray:
    """Return latents_BRD: R learned queries that looked at the features and at each other, layer by layer.

        x <- x + attention(q = x, kv = [features, x]);   x <- x + W2 act(W1 norm x)      (figure 5 and appendix A.1.1)

    Features and latents are normed apart before they are joined; the activation is IDEFICS' ReLU (the paper's squared ReLU is
    `layers.activations` "relu2"). Layers are as many as there are weights for.
    """
    latents_RD = weights["latents"]
    x_BRD = np.broadcast_to(latents_RD, (len(features_BMD), *latents_RD.shape))
    layer = 0
    while f"blocks.{layer}.0.q_proj.weight" in weights:
        attend, feed = f"blocks.{layer}.0.", f"blocks.{layer}.1."
        seen_BMD = _norm(weights, f"{attend}context_layer_norm", features_BMD)
        own_BRD = _norm(weights, f"{attend}latents_layer_norm", x_BRD)
        both_BSD = np.concatenate([seen_BMD, own_BRD], axis=1)
        q_BRNH = _heads(weights, f"{attend}q_proj", own_BRD, heads)
        k_BSNH, v_BSNH = (_heads(weights, f"{attend}{x}_proj", both_BSD, heads) for x in "kv")
        out_BRNH = mha(q_BRNH, k_BSNH, v_BSNH)
        x_BRD = x_BRD + linear(weights, f"{attend}output_proj", out_BRNH.reshape(*x_BRD.shape[:2], -1))
        hidden_BRF = named("relu")[0](linear(weights, f"{feed}fc", _norm(weights, f"{feed}ln", x_BRD)))
        x_BRD = x_BRD + linear(weights, f"{feed}c_proj", hidden_BRF)
        layer += 1
    return _norm(weights, "layer_norm", x_BRD)


def gated_cross_attention(
    weights: Weights, x_BTD: np.ndarray, latents_BRD: np.ndarray, keep_BR: np.ndarray, *, heads: int
) -> np.ndarray:
    """Return x_BTD after one gated look at the latents (figure 4 and appendix A.1.2).

        x <- x + tanh(a) attention(q = norm x, kv = latents);   x <- x + tanh(b) feed_forward(norm x)

    With a = b = 0, their first values, nothing changes. Norms are LayerNorm, the activation GELU; a text without pictures
    (`keep` all False) gets no attention.
    """
    h_BTD = _norm(weights, "attention_norm", x_BTD)
    q_BTNH = _heads(weights, "q_proj", h_BTD, heads)
    k_BRNH, v_BRNH = (_heads(weights, f"{x}_proj", latents_BRD, heads) for x in "kv")
    out_BTNH = mha(q_BTNH, k_BRNH, v_BRNH, keep_BR)
    x_BTD = x_BTD + np.tanh(weights["attention_gate"]) * linear(weights, "o_proj", out_BTNH.reshape(*h_BTD.shape[:2], -1))
    hidden_BTF = named("gelu")[0](linear(weights, "up_proj", _norm(weights, "feed_forward_norm", x_BTD)))
    return x_BTD + np.tanh(weights["feed_forward_gate"]) * linear(weights, "down_proj", hidden_BTF)


def flamingo(
    resampler: Weights,
    gated: Weights,
    features_BMD: np.ndarray,
    x_BTD: np.ndarray,
    keep_B: np.ndarray,
    *,
    heads: int,
) -> dict[str, np.ndarray]:
    """Resample picture features and let tokens look at them; return {"latents": latents_BRD, "tokens": x_BTD}.

    `keep_B` False is a text without a picture.

    Raises:
        ValueError: heads that do not divide a projection.

    >>> resampler, gated = tiny_weights(np.random.default_rng(0), layers=1)
    >>> found = flamingo(resampler, gated, np.ones((1, 5, 6)), np.ones((1, 2, 6)), np.array([True]), heads=2)
    >>> found["latents"].shape, found["tokens"].shape
    ((1, 3, 6), (1, 2, 6))
    """
    for name, array in (("resampler", resampler["blocks.0.0.q_proj.weight"]), ("gated", gated["q_proj.weight"])):
        if len(array) % heads:
            raise ValueError(f"heads={heads}: must divide the {len(array)} rows of the {name}'s projection")
    latents_BRD = resampled(resampler, features_BMD, heads=heads)
    keep_BR = np.broadcast_to(keep_B[:, None], latents_BRD.shape[:2])
    return {"latents": latents_BRD, "tokens": gated_cross_attention(gated, x_BTD, latents_BRD, keep_BR, heads=heads)}


def tiny_weights(
    rng: np.random.Generator, *, layers: int, width: int = 6, hidden: int = 11, latents: int = 3, heads: int = 8
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights of a resampler and a gated block of width D, hidden width F, R latents and N H = `heads` columns."""
    D, F, R = width, hidden, latents
    one = {"weight": (D,), "bias": (D,)}
    shapes: dict[str, tuple[int, ...]] = {"latents": (R, D)} | {f"layer_norm.{kind}": s for kind, s in one.items()}
    for layer in range(layers):
        b = f"blocks.{layer}."
        norms = ("0.context_layer_norm", "0.latents_layer_norm", "1.ln")
        shapes |= {f"{b}{name}.{kind}": s for name in norms for kind, s in one.items()}
        shapes |= {f"{b}0.{x}_proj.weight": (heads, D) for x in "qkv"}
        shapes |= {f"{b}0.output_proj.weight": (D, heads), f"{b}1.fc.weight": (F, D), f"{b}1.c_proj.weight": (D, F)}
    gated: dict[str, tuple[int, ...]] = {f"{x}_proj.weight": (heads, D) for x in "qkv"}
    gated |= {"o_proj.weight": (D, heads), "up_proj.weight": (F, D), "down_proj.weight": (D, F)}
    gated |= {f"{name}.{kind}": s for name in ("attention_norm", "feed_forward_norm") for kind, s in one.items()}
    gates: dict[str, tuple[int, ...]] = {"attention_gate": (), "feed_forward_gate": ()}
    return drawn(shapes, rng), drawn(gated | gates, rng)


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    resampler, gated = tiny_weights(rng, layers=int(rng.integers(1, 4)))
    B, M, T = int(rng.integers(1, 4)), int(rng.integers(1, 7)), int(rng.integers(1, 5))
    return {
        "resampler": resampler,
        "gated": gated,
        "features_BMD": rng.standard_normal((B, M, 6)),
        "x_BTD": rng.standard_normal((B, T, 6)),
        "keep_B": padded(rng, 1, B)[0],
        "heads": int(rng.choice([1, 2, 4])),
    }


def _same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> bool:
    return expected.keys() == actual.keys() and all(same_logits(expected[name], actual[name]) for name in expected)


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    resampler, gated = tiny_weights(rng, layers=2, width=768, hidden=3072, latents=64, heads=768)
    features_BMD, x_BTD = (rng.standard_normal((1, n, 768), dtype=np.float32) for n in (256, 64))
    own = {"resampler": single(resampler), "gated": single(gated), "features_BMD": features_BMD, "x_BTD": x_BTD}
    return {**own, "keep_B": np.array([True]), "heads": 12}


FLAMINGO = Procedure(
    reference=flamingo,
    examples=_examples,
    paper="arXiv:2204.14198",
    same=_same,
    shapes={"2 layers of 768, 256 features to 64 latents, 64 tokens": _timed},
)
