"""A pile of equal transformer layers by the names their weights have in a file: what encoders and encoder-decoders are made of.

Decoder-only models with rotary positions and grouped heads are put together in `_blocks.py`; this is everything that encodes,
or decodes while looking at an encoder. Axes: B batch, T position, S position of what is attended to, M position of the
encoder's output, D model width, N head, H head width, F feed-forward width. Matrices are [out, in], as in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.reference.attention._masked import causal_pairs
from llmlab.reference.attention.mha import mha
from llmlab.reference.layers._activation import named, sigmoid
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.layers.rms_norm import rms_norm
from llmlab.reference.models._blocks import linear
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Cost

Seen = tuple[np.ndarray, ...]
"""What one layer keeps between calls: its keys and values [B, S, N, H]; in a decoder also those of the encoder's output."""

MATRICES = ("query", "key", "value", "out", "cross_query", "cross_key", "cross_value", "cross_out", "up", "gate", "down")
NORMS = ("attention_norm", "cross_norm", "feed_forward_norm")


@dataclass(frozen=True)
class Stack:
    """Equal layers of self-attention, perhaps attention to an encoder's output, and a feed-forward block.

    Attributes:
        prefix: of a layer's weights, `{}` standing for its number.
        names: name within the layer of every matrix (`MATRICES`) and norm (`NORMS`) it has; without `cross_query` it sees no
            encoder, without `gate` its feed-forward block is not gated.
        layers, width, heads, head_width, hidden: sizes L, D, N, H, F.
        pre_norm: norms come before a block (Xiong et al. 2020, arXiv:2002.04745); else after its residual sum, as in 2017.
        rms: norms are RMSNorm without a bias; else LayerNorm.
        eps: of the norms.
        activation: as in `layers.activations`, or "quick_gelu".
        unbiased: matrices without a bias.
        scaled: scores are divided by sqrt(H); T5 leaves that to its initial weights.
    """

    prefix: str
    names: Mapping[str, str]
    layers: int
    width: int
    heads: int
    head_width: int
    hidden: int
    pre_norm: bool
    eps: float
    activation: str
    rms: bool = False
    unbiased: frozenset[str] = frozenset()
    scaled: bool = True

    @property
    def sees_encoder(self) -> bool:
        """Whether a layer attends to an encoder's output too."""
        return "cross_query" in self.names

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by name."""
        heads = self.heads * self.head_width
        found: dict[str, tuple[int, ...]] = {}
        for slot, name in self.names.items():
            if slot in NORMS:
                found[f"{name}.weight"] = (self.width,)
                if not self.rms:
                    found[f"{name}.bias"] = (self.width,)
            else:
                rows = self.width if slot.endswith(("out", "down")) else self.hidden if slot in ("up", "gate") else heads
                columns = self.hidden if slot == "down" else heads if slot.endswith("out") else self.width
                found[f"{name}.weight"] = (rows, columns)
                if slot not in self.unbiased:
                    found[f"{name}.bias"] = (rows,)
        return {self.prefix.format(layer) + name: shape for layer in range(self.layers) for name, shape in found.items()}

    def cost(self, B: int, T: int, S: int, *, M: int = 0, causal: bool = False, new_memory: bool = True) -> Cost:
        """Work of T new tokens that see S (themselves included) and M tokens of an encoder.

        Matrix products and attention; every matrix is read once, cached keys and values once, results of the last layer
        written.
        """
        heads, tokens = self.heads * self.head_width, B * T
        own = self.width * (4 * heads + self.hidden * (3 if "gate" in self.names else 2))
        pairs = causal_pairs(T, S) if causal else T * S
        flops = 2 * tokens * own + 4 * B * heads * pairs
        if self.sees_encoder:
            flops += 2 * tokens * 2 * heads * self.width + 4 * B * heads * T * M
            flops += 2 * B * M * 2 * heads * self.width if new_memory else 0
            own += 4 * heads * self.width
        cached = 2 * heads * B * (S - T + (M if self.sees_encoder else 0))
        return Cost(self.layers * flops, self.layers * (own + cached) + tokens * self.width, tokens * self.width)


def run(
    stack: Stack,
    weights: Weights,
    x_BTD: np.ndarray,
    *,
    keep_BS: np.ndarray | None = None,
    bias_NTS: np.ndarray | None = None,
    causal: bool = False,
    memory_BMD: np.ndarray | None = None,
    keep_BM: np.ndarray | None = None,
    past: Sequence[Seen] | None = None,
) -> tuple[np.ndarray, list[Seen]]:
    """Run all layers over new tokens; return (x_BTD, present), `present` being the next call's `past`.

        post-norm: x <- norm(x + block(x));   pre-norm: x <- x + block(norm x)

    The blocks are self-attention, attention to the encoder's output in a decoder, and the feed-forward block.

    `keep` False hides a key. Once `past` is given the encoder's output is not needed again: its keys and values are there.

    Raises:
        ValueError: a stack that sees an encoder is given neither its output nor a past.
    """
    if stack.sees_encoder and memory_BMD is None and past is None:
        raise ValueError(f"{stack.prefix}: needs the encoder's output")
    present = []
    for layer in range(stack.layers):
        prefix = stack.prefix.format(layer)
        own = {slot: prefix + name for slot, name in stack.names.items()}
        before = past[layer] if past else ()
        h_BTD = _into(stack, weights, own["attention_norm"], x_BTD)
        k_BSNH, v_BSNH = (heads_of(stack, weights, own[slot], h_BTD) for slot in ("key", "value"))
        if before:
            k_BSNH, v_BSNH = (np.concatenate([old, new], axis=1) for old, new in zip(before[:2], (k_BSNH, v_BSNH)))
        mixed_BTD = _attend(stack, weights, own, "", h_BTD, k_BSNH, v_BSNH, keep_BS, bias_NTS, causal)
        x_BTD = _out_of(stack, weights, own["attention_norm"], x_BTD, mixed_BTD)
        seen: Seen = (k_BSNH, v_BSNH)
        if stack.sees_encoder:
            h_BTD = _into(stack, weights, own["cross_norm"], x_BTD)
            if before:
                k_BMNH, v_BMNH = before[2:]
            else:
                assert memory_BMD is not None
                k_BMNH, v_BMNH = (heads_of(stack, weights, own[slot], memory_BMD) for slot in ("cross_key", "cross_value"))
            mixed_BTD = _attend(stack, weights, own, "cross_", h_BTD, k_BMNH, v_BMNH, keep_BM, None, False)
            x_BTD = _out_of(stack, weights, own["cross_norm"], x_BTD, mixed_BTD)
            seen = (*seen, k_BMNH, v_BMNH)
        h_BTD = _into(stack, weights, own["feed_forward_norm"], x_BTD)
        x_BTD = _out_of(stack, weights, own["feed_forward_norm"], x_BTD, _feed_forward(stack, weights, own, h_BTD))
        present.append(seen)
    return x_BTD, present


def norm(stack: Stack, weights: Weights, name: str, x_BTD: np.ndarray) -> np.ndarray:
    """The stack's kind of norm with the weights of that name."""
    if stack.rms:
        return rms_norm(x_BTD, weights[f"{name}.weight"], eps=stack.eps)
    return layer_norm(x_BTD, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=stack.eps)


def _into(stack: Stack, weights: Weights, name: str, x_BTD: np.ndarray) -> np.ndarray:
    return norm(stack, weights, name, x_BTD) if stack.pre_norm else x_BTD


def _out_of(stack: Stack, weights: Weights, name: str, x_BTD: np.ndarray, block_BTD: np.ndarray) -> np.ndarray:
    return x_BTD + block_BTD if stack.pre_norm else norm(stack, weights, name, x_BTD + block_BTD)


def heads_of(stack: Stack, weights: Weights, name: str, x_BTD: np.ndarray) -> np.ndarray:
    """Project and cut into heads; return y_BTNH."""
    return linear(weights, name, x_BTD).reshape(*x_BTD.shape[:2], stack.heads, stack.head_width)


def _attend(
    stack: Stack,
    weights: Weights,
    own: Mapping[str, str],
    cross: str,
    h_BTD: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray | None,
    bias_NTS: np.ndarray | None,
    causal: bool,
) -> np.ndarray:
    q_BTNH = heads_of(stack, weights, own[f"{cross}query"], h_BTD)
    if not stack.scaled:
        q_BTNH = q_BTNH * stack.head_width**0.5  # undoes the division inside
    out_BTNH = mha(q_BTNH, k_BSNH, v_BSNH, keep_BS, bias_NTS, causal=causal)
    return linear(weights, own[f"{cross}out"], out_BTNH.reshape(*h_BTD.shape[:2], -1))


def _feed_forward(stack: Stack, weights: Weights, own: Mapping[str, str], h_BTD: np.ndarray) -> np.ndarray:
    up_BTF = linear(weights, own["up"], h_BTD)
    if "gate" in own:
        up_BTF = activated(stack.activation, linear(weights, own["gate"], h_BTD)) * up_BTF
    else:
        up_BTF = activated(stack.activation, up_BTF)
    return linear(weights, own["down"], up_BTF)


def activated(kind: str, x: np.ndarray) -> np.ndarray:
    """The activation of that name; "quick_gelu" is CLIP's x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return x * sigmoid(1.702 * x) if kind == "quick_gelu" else named(kind)[0](x)


ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"} | {
    "quick_gelu": "quick_gelu"
}
"""Names of a `config.json` -> names of `layers.activations`."""


def drawn(expected: Mapping[str, tuple[int, ...]], rng: np.random.Generator, std: float = 0.2) -> dict[str, np.ndarray]:
    """Normal float64 weights of these shapes, those of norms around 1."""
    return {
        name: std * rng.standard_normal(shape) + float("norm" in name.lower() and name.endswith("weight"))
        for name, shape in expected.items()
    }


def single(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights in float32, as they are when something is timed."""
    return {name: array.astype(np.float32) for name, array in weights.items()}


def padded(rng: np.random.Generator, B: int, T: int) -> np.ndarray:
    """A padding mask keep_BT: every sequence keeps at least one token in front."""
    return np.arange(T) < rng.integers(1, T + 1, (B, 1))
