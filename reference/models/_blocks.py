"""The blocks every decoder-only transformer here is put together from.

Which of them an architecture uses is said by its `ModelConfig`: nothing below asks for a family by name. Axes: B batch, T new
position, S position, D model width, F feed-forward width, V vocabulary, K key/value head, G query heads per key/value head,
N = K * G query heads, H head width, R rotated pairs, C latent width, E experts, M width of an expert. Matrices are [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmlab.reference.attention._masked import causal_pairs
from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.sliding_window import sliding_window
from llmlab.reference.layers.activations import activations
from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.glu import glu
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.layers.rms_norm import rms_norm
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.models._architecture import Architecture, unpack
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._experts import mixture
from llmlab.reference.models._rotary import latent_scale, rotary_frequencies
from llmlab.reference.models._weights import Weights, check_weights, random_weights
from llmlab.reference.op import Cost, Dims
from llmlab.reference.positions.alibi import alibi
from llmlab.reference.positions.rope import rope

Own = Mapping[str, np.ndarray]
"""One layer's weights by the blocks' names."""

Seen = tuple[np.ndarray, np.ndarray]
"""What a layer keeps of the tokens seen: keys (rotated) and values, each [B, S, K, H]; or latents [B, S, C] and rotated keys
that all heads share, [B, S, 2R]."""

Cache = Sequence[Seen]
"""What every layer keeps."""


def forward(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV in the weights' dtype.

    Raises:
        ValueError: a weight that is missing or misshapen, a token id outside the vocabulary.
    """
    check_weights(config, weights)
    return decoder(config, weights, ids_BT)[0]


def decoder(
    config: ModelConfig, weights: Weights, ids_BT: np.ndarray, past: Cache | None = None
) -> tuple[np.ndarray, list[Seen]]:
    """Continue sequences by T tokens; return (logits_BTV, present), `present` being the next call's `past`.

    Prefill is the first call, decode a call with T = 1; cutting a text anywhere gives the same logits.

    Raises:
        ValueError: an architecture that can only be priced, a token id outside the vocabulary, a position past a table's end.
    """
    outside, layers = _unpacked(config, weights)
    x_BTD, present = hidden_states(config, outside, layers, ids_BT, past)
    return head(config, outside, x_BTD), present


def _unpacked(config: ModelConfig, weights: Weights) -> tuple[Own, list[dict[str, np.ndarray]]]:
    if not config.runnable:
        raise ValueError(f"{config.name}: model_type={config.model_type!r} can be priced, not run")
    return unpack(config, weights)


def hidden_states(
    config: ModelConfig, outside: Own, layers: Sequence[Own], ids_BT: np.ndarray, past: Cache | None = None
) -> tuple[np.ndarray, list[Seen]]:
    """Run the stack over new tokens, up to the final norm, which is not yet applied; return (x_BTD, present)."""
    x_BTD = embedded(config, outside, ids_BT, past[0][0].shape[1] if past else 0)
    return run_layers(config, layers, x_BTD, past)


def run_layers(
    config: ModelConfig, layers: Sequence[Own], x_BTD: np.ndarray, past: Cache | None = None
) -> tuple[np.ndarray, list[Seen]]:
    """Run the stack over vectors, wherever they come from (tokens, pictures); return (x_BTD, present)."""
    present = []
    for layer, own in enumerate(layers):
        x_BTD, seen = block(config, own, x_BTD, past[layer] if past else None, layer=layer)
        present.append(seen)
    return x_BTD, present


def embedded(config: ModelConfig, outside: Own, ids_BT: np.ndarray, start: int) -> np.ndarray:
    """Rows of the table, projected, placed and normed where the architecture does so; the first token is at `start`."""
    x_BTD = embedding(ids_BT, outside["model.embed_tokens.weight"])
    if config.embedding_width:
        x_BTD = linear(outside, "model.project_in", x_BTD)
    if config.learned_positions:
        first = config.learned_positions - config.max_position_embeddings
        T = ids_BT.shape[1]
        if start + T > config.max_position_embeddings:
            raise ValueError(f"{config.name}: {start + T} tokens, but positions for {config.max_position_embeddings}")
        x_BTD = x_BTD + outside["model.embed_positions.weight"][first + start : first + start + T]
    return norm(config, outside, "model.embed_norm", x_BTD) if config.embedding_norm else x_BTD


def head(config: ModelConfig, outside: Own, x_BTD: np.ndarray) -> np.ndarray:
    """Norm the last hidden states and score the vocabulary; return logits_BTV."""
    if config.final_norm:
        x_BTD = norm(config, outside, "model.norm", x_BTD)
    if config.embedding_width:
        x_BTD = linear(outside, "model.project_out", x_BTD)
    head_VD = outside["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    if config.normalized_head:
        head_VD = head_VD / np.sqrt(np.sum(head_VD * head_VD, axis=1, keepdims=True))
    logits_BTV = x_BTD @ head_VD.T
    return logits_BTV + outside["lm_head.bias"] if config.head_bias else logits_BTV


def block(config: ModelConfig, own: Own, x_BTD: np.ndarray, past: Seen | None, *, layer: int) -> tuple[np.ndarray, Seen]:
    """One layer; return (x_BTD, seen).

    pre-norm   x <- x + attention(norm x);  x <- x + feed_forward(norm x)
    post-norm  x <- norm(x + attention(x));  x <- norm(x + feed_forward(x))
    sandwich   x <- x + norm(attention(norm x));  x <- x + norm(feed_forward(norm x))
    parallel   x <- x + attention(norm x) + feed_forward(norm x), with one norm or one for each
    """
    before, after = "input_layernorm", "post_attention_layernorm"
    sandwich, pre = config.norms_per_layer == 4, not config.post_norm
    h_BTD = norm(config, own, before, x_BTD) if pre else x_BTD
    mixed_BTD, seen = (latent_attention if config.latent else attention)(config, own, h_BTD, past, layer=layer)
    if config.parallel_block:
        h_BTD = norm(config, own, after, x_BTD) if config.norms_per_layer == 2 else h_BTD
        return x_BTD + mixed_BTD + feed_forward(config, own, h_BTD, layer=layer), seen
    if sandwich:
        mixed_BTD = norm(config, own, "post_self_attn_layernorm", mixed_BTD)
    x_BTD = x_BTD + mixed_BTD
    if not pre:
        x_BTD = norm(config, own, before, x_BTD)
    h_BTD = norm(config, own, after, x_BTD) if pre else x_BTD
    out_BTD = feed_forward(config, own, h_BTD, layer=layer)
    if sandwich:
        out_BTD = norm(config, own, "post_mlp_layernorm", out_BTD)
    x_BTD = x_BTD + out_BTD
    return (x_BTD if pre else norm(config, own, after, x_BTD)), seen


def norm(config: ModelConfig, own: Own, name: str, x_BTD: np.ndarray) -> np.ndarray:
    """LayerNorm where there is a bias, RMSNorm where there is none."""
    if f"{name}.bias" in own:
        return layer_norm(x_BTD, own[f"{name}.weight"], own[f"{name}.bias"], eps=config.rms_norm_eps)
    return rms_norm(x_BTD, own[f"{name}.weight"], eps=config.rms_norm_eps)


def attention(config: ModelConfig, own: Own, h_BTD: np.ndarray, past: Seen | None, *, layer: int) -> tuple[np.ndarray, Seen]:
    """Attend new tokens to the past and themselves; return (out_BTD, (k_BSKH, v_BSKH)) with the past in front."""
    B, T, _ = h_BTD.shape
    K, G, H = config.num_key_value_heads, config.group_size, config.head_dim
    q_BTNH, k_BTKH, v_BTKH = (
        linear(own, f"self_attn.{x}_proj", h_BTD).reshape(B, T, heads, H) for x, heads in (("q", K * G), ("k", K), ("v", K))
    )
    if config.qk_norm:
        q_BTNH, k_BTKH = norm(config, own, "self_attn.q_norm", q_BTNH), norm(config, own, "self_attn.k_norm", k_BTKH)
    start = past[0].shape[1] if past else 0
    if config.positions == "rotary":
        q_BTNH, k_BTKH = rotated(config, q_BTNH, start), rotated(config, k_BTKH, start)
    k_BSKH, v_BSKH = k_BTKH, v_BTKH
    if past:
        k_BSKH, v_BSKH = np.concatenate([past[0], k_BTKH], axis=1), np.concatenate([past[1], v_BTKH], axis=1)
    q_BTKGH = q_BTNH.reshape(B, T, K, G, H)
    window = config.window_of(layer)
    if config.positions == "alibi":
        out_BTKGH = biased_attention(q_BTKGH, k_BSKH, v_BSKH, scaled=config.scaled_alibi)
    elif window is not None:
        out_BTKGH = sliding_window(q_BTKGH, k_BSKH, v_BSKH, window=window)
    else:
        out_BTKGH = gqa(q_BTKGH, k_BSKH, v_BSKH)
    return linear(own, "self_attn.o_proj", out_BTKGH.reshape(B, T, K * G * H)), (k_BSKH, v_BSKH)


def rotated(config: ModelConfig, x_BTNH: np.ndarray, start: int) -> np.ndarray:
    """Rotate the part of each head that the architecture rotates, its first coordinates; the first token is at `start`."""
    B, T, _, H = x_BTNH.shape
    positions_BT = np.broadcast_to(start + np.arange(T), (B, T))
    frequencies_R, factor = rotary_frequencies(config, length=start + T)
    width = 2 * frequencies_R.size
    turned = rope(x_BTNH[..., :width], positions_BT, frequencies=frequencies_R, interleaved=config.rotary_interleaved)
    if factor != 1.0:
        turned = turned * factor
    return turned if width == H else np.concatenate([turned, x_BTNH[..., width:]], axis=-1)


def biased_attention(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, scaled: bool = False) -> np.ndarray:
    """Attend with linear biases (ALiBi); return out_BTKGH.

    out = softmax(q k' / sqrt(H) + slope (s - t)) v,   or with `scaled`   softmax((q k' + slope (s - t)) / sqrt(H)) v
    """
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    scores_BKGTS = np.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH)
    scores_BNTS = scores_BKGTS.reshape(B, K * G, T, S)
    scores_BNTS = alibi(scores_BNTS) * H**-0.5 if scaled else alibi(scores_BNTS * H**-0.5)
    seen_TS = np.arange(S) <= S - T + np.arange(T)[:, None]
    weights_BNTS = softmax(np.where(seen_TS, scores_BNTS, -np.inf))
    return np.einsum("bkgts,bskh->btkgh", weights_BNTS.reshape(B, K, G, T, S), v_BSKH)


def latent_attention(
    config: ModelConfig, own: Own, h_BTD: np.ndarray, past: Seen | None, *, layer: int
) -> tuple[np.ndarray, Seen]:
    """Multi-head latent attention; return (out_BTD, (latent_BSC, key_BSR)) with the past in front.

        q = up(norm(down h)),  c = norm(down h),  k = up c,  v = up c     (DeepSeek-V2, arXiv:2405.04434, eq. 9 to 13)
        q_t = [q; rotated q],  k_s = [k; rotated key of all heads]        (eq. 14 to 18)

    Keys and values are expanded from every latent seen; engines multiply the expansion into queries and outputs instead.
    """
    assert config.latent is not None
    m, N = config.latent, config.num_attention_heads
    B, T, _ = h_BTD.shape
    start = past[0].shape[1] if past else 0
    if m.query_rank:
        c_BTC = norm(config, own, "self_attn.q_a_norm", linear(own, "self_attn.q_a_proj", h_BTD))
        q_BTNH = linear(own, "self_attn.q_b_proj", c_BTC)
    else:
        q_BTNH = linear(own, "self_attn.q_proj", h_BTD)
    q_BTNH = q_BTNH.reshape(B, T, N, m.nope_width + m.rope_width)
    down_BTC = linear(own, "self_attn.kv_a_proj", h_BTD)
    latent_BSC = norm(config, own, "self_attn.kv_a_norm", down_BTC[..., : m.kv_rank])
    key_BSR = rotated(config, down_BTC[..., None, m.kv_rank :], start)[:, :, 0]
    if past:
        latent_BSC, key_BSR = (np.concatenate([old, new], axis=1) for old, new in zip(past, (latent_BSC, key_BSR)))
    S = latent_BSC.shape[1]
    kv_BSNH = linear(own, "self_attn.kv_b_proj", latent_BSC).reshape(B, S, N, m.nope_width + m.value_width)
    shared_BSNR = np.broadcast_to(key_BSR[:, :, None], (B, S, N, m.rope_width))
    k_BSNH = np.concatenate([kv_BSNH[..., : m.nope_width], shared_BSNR], axis=-1)
    turned_BTNR = rotated(config, q_BTNH[..., m.nope_width :], start)
    q_BTNH = np.concatenate([q_BTNH[..., : m.nope_width], turned_BTNR], axis=-1) * latent_scale(config)
    out_BTN1H = gqa(q_BTNH[:, :, :, None], k_BSNH, kv_BSNH[..., m.nope_width :])
    return linear(own, "self_attn.o_proj", out_BTN1H.reshape(B, T, N * m.value_width)), (latent_BSC, key_BSR)


def feed_forward(config: ModelConfig, own: Own, h_BTD: np.ndarray, *, layer: int) -> np.ndarray:
    """down(act(gate h) * up h), or down(act(up h)) without a gate, or a mixture of such."""
    if config.is_sparse(layer):
        return mixture(config, own, h_BTD)
    up_BTF = linear(own, "mlp.up_proj", h_BTD)
    if config.gated_mlp:
        inner_BTF = glu(linear(own, "mlp.gate_proj", h_BTD), up_BTF, kind=config.hidden_act)
    else:
        inner_BTF = activations(up_BTF, kind=config.hidden_act)
    return linear(own, "mlp.down_proj", inner_BTF)


def linear(own: Own, name: str, x_BTI: np.ndarray) -> np.ndarray:
    """Multiply by the matrix [O, I] of that name, add its bias where there is one; return out_BTO."""
    out_BTO = x_BTI @ own[f"{name}.weight"].T
    return out_BTO + own[f"{name}.bias"] if f"{name}.bias" in own else out_BTO


def dims_of(config: ModelConfig, *, B: int, T: int, S: int) -> dict[str, int]:
    """The sizes the cost of a decoder is a function of: B sequences, T new tokens in each, S tokens seen at the end.

    Beside the letters above: L layers, O of them sparse; U width of gate and up projections together; I width of a value head;
    A experts a token visits, X width of the one all visit, Y outputs of its gate; Q query latent; W width of the embedding
    where it is projected. A size the architecture has not is 0; with a latent, H and R are those of its queries and keys.
    """
    c, m = config, config.latent
    return {
        "B": B, "T": T, "S": S, "L": c.num_hidden_layers, "O": sum(c.sparse_layers),
        "D": c.hidden_size, "V": c.vocab_size, "W": c.embedding_width,
        "F": c.intermediate_size, "U": c.intermediate_size * (1 + c.gated_mlp),
        "K": c.num_key_value_heads, "G": c.group_size,
        "H": m.nope_width + m.rope_width if m else c.head_dim, "I": m.value_width if m else c.head_dim,
        "Q": m.query_rank if m else 0, "C": m.kv_rank if m else 0, "R": m.rope_width if m else 0,
        "E": c.num_experts, "A": c.num_experts_per_tok, "M": c.moe_intermediate_size,
        "X": c.shared_expert_intermediate_size, "Y": int(c.shared_expert_gate and c.shared_expert_intermediate_size > 0),
    }  # fmt: skip


def decoder_cost(d: Dims) -> Cost:
    """Work of T new tokens in each of B sequences: every matrix once, of experts those visited, attention over the pairs seen
    (a window's are counted in full), logits of every token.

    Reads each matrix once, of experts as many as the tokens can visit, the norms' weights, what is kept of S - T tokens, and
    the embedding rows of the new ones; writes what is kept of those, and the logits. Norms, rotations, activations and biases
    are left out otherwise: they are a hundredth of it.
    """
    D, L, N, tokens = d["D"], d["L"], d["K"] * d["G"], d["B"] * d["T"]
    attention = D * (N * d["H"] + d["K"] * (d["H"] + d["I"]) + N * d["I"])
    kept = d["K"] * (d["H"] + d["I"])
    if d["C"]:
        queries = d["Q"] * (D + N * d["H"]) if d["Q"] else D * N * d["H"]
        kept = d["C"] + d["R"]
        attention = queries + D * kept + d["C"] * N * (d["H"] - d["R"] + d["I"]) + N * d["I"] * D
    dense, expert = D * (d["U"] + d["F"]), 3 * D * d["M"]
    every_token = L * attention + (L - d["O"]) * dense + d["O"] * D * (d["E"] + 3 * d["X"] + d["Y"])
    every_token += d["V"] * (d["W"] or D) + 2 * d["W"] * D
    read = every_token + d["O"] * expert * min(d["E"], d["A"] * tokens)
    pairs = d["B"] * L * causal_pairs(d["T"], d["S"])
    return Cost(
        flops=2 * tokens * (every_token + d["O"] * d["A"] * expert) + 2 * N * (d["H"] + d["I"]) * pairs,
        elements_read=read + (2 * L + 1) * D + tokens * (d["W"] or D) + L * kept * d["B"] * (d["S"] - d["T"]),
        elements_written=L * kept * tokens + tokens * d["V"],
    )


def few_layers(name: str, preset_name: str, layers: int, **changes: Any) -> dict[str, Callable[..., dict[str, Any]]]:
    """A benchmark shape for a family's `Procedure`: the first layers of a published model, drawn weights, prefill of 32."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        from llmlab.reference.models._presets import preset

        published = preset(preset_name)
        assert published is not None, preset_name
        cut = {each: getattr(published, each)[:layers] for each in ("sparse_layers", "windowed_layers")}
        config = replace(published, **{"name": name, "num_hidden_layers": layers, **cut, **changes})
        ids_BT = rng.integers(0, config.vocab_size, (1, 32))
        return {"config": config, "weights": random_weights(config, rng), "ids_BT": ids_BT}

    return {f"{name}, prefill 32": make}


def drawn(architecture: Architecture, name: str, seed: int = 0) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """One of a family's tiny configs and weights in float64, large enough that a wrong scale shows in the logits."""
    config = architecture.tiny_config(name)
    weights = random_weights(config, np.random.default_rng(seed), std=0.2)
    return config, {key: array.astype(np.float64) for key, array in weights.items()}


def drawn_from(architecture: Architecture) -> Callable[[np.random.Generator], dict[str, Any]]:
    """Examples for a family's `Procedure`: one of its tiny configs, drawn weights, a few short texts."""

    def examples(rng: np.random.Generator) -> dict[str, Any]:
        config, weights = drawn(architecture, str(rng.choice(list(architecture.tiny))), int(rng.integers(2**31)))
        ids_BT = rng.integers(0, config.vocab_size, (int(rng.integers(1, 4)), int(rng.integers(1, 12))))
        return {"config": config, "weights": weights, "ids_BT": ids_BT}

    return examples


def same_logits(expected: np.ndarray, actual: np.ndarray) -> bool:
    """Computed in float64, equal to the last bits of a float32: 8 of its units at the largest logit.

    What each dtype may err is checked where the dtype is known, against the formula's own error in it.
    """
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape:
        return False
    allowed = 8 * np.finfo(np.float32).eps * np.abs(expected).max(initial=0.0)
    return bool(np.all(np.abs(expected - actual) <= allowed))


def matmul_flops(config: ModelConfig, *, B: int, T: int, S: int) -> float:
    """FLOPs of every matrix product of one step: T new tokens in each of B sequences, S tokens seen at the end.

    Each matrix once per token, of experts those visited; both products of attention over the pairs seen (a window's are
    counted in full); logits of every new token.
    """
    c = config
    width = 2 * c.query_width
    if m := c.latent:
        width = c.num_attention_heads * (m.nope_width + m.rope_width + m.value_width)
    return 2.0 * B * T * (c.active_matrix_elements + c.head_elements) + 2.0 * B * c.num_hidden_layers * width * causal_pairs(
        T, S
    )
