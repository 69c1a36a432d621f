"""Shapes of an architecture's weights by the names the blocks go by, which are the Llama family's; matrices are [out, in].

What a family's files call them, and what they store together, is said by its `Architecture`. Letters: D model width, F
feed-forward width, N query heads, H head width, E experts, M width of an expert, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmlab.reference.models._config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(c: ModelConfig, layer: int) -> Shapes:
    """Parameters of one layer by their name within it."""
    shapes = norm_shapes(c, "input_layernorm") | attention_shapes(c, layer)
    if c.norms_per_layer == 4:
        shapes |= norm_shapes(c, "post_self_attn_layernorm")
    if c.norms_per_layer > 1:
        shapes |= norm_shapes(c, "post_attention_layernorm")
    shapes |= feed_forward_shapes(c, layer)
    if c.norms_per_layer == 4:
        shapes |= norm_shapes(c, "post_mlp_layernorm")
    return shapes


def layer_buffers(c: ModelConfig, layer: int) -> Shapes:
    """What files hold beside a layer's parameters: no gradient reaches it and no count includes it."""
    return {"mlp.gate.e_score_correction_bias": (c.num_experts,)} if c.is_sparse(layer) and c.routing.correction else {}


def shapes_before(c: ModelConfig) -> Shapes:
    """Parameters in front of the layers: tables, and what makes hidden states of their rows."""
    D, width = c.hidden_size, c.embedding_width or c.hidden_size
    shapes: Shapes = {"model.embed_tokens.weight": (c.vocab_size, width)}
    if c.embedding_width:
        shapes["model.project_in.weight"] = (D, width)
    if c.learned_positions:
        shapes["model.embed_positions.weight"] = (c.learned_positions, D)
    return shapes | (norm_shapes(c, "model.embed_norm") if c.embedding_norm else {})


def shapes_after(c: ModelConfig) -> Shapes:
    """Parameters behind the layers; a tied output matrix is not repeated."""
    shapes = norm_shapes(c, "model.norm") if c.final_norm else {}
    width = c.embedding_width or c.hidden_size
    if c.embedding_width:
        shapes["model.project_out.weight"] = (width, c.hidden_size)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, width)
    if c.head_bias:
        shapes["lm_head.bias"] = (c.vocab_size,)
    return shapes


def norm_shapes(c: ModelConfig, name: str) -> Shapes:
    """Weight of a norm over the hidden state, and its bias where the family's norms have one."""
    shapes: Shapes = {f"{name}.weight": (c.hidden_size,)}
    return shapes | ({f"{name}.bias": (c.hidden_size,)} if c.norm_bias else {})


def attention_shapes(c: ModelConfig, layer: int) -> Shapes:
    """Projections and norms of one layer's attention, of whichever kind it is."""
    if c.is_linear(layer):
        return _gated_delta_shapes(c)
    if c.latent:
        return _latent_shapes(c)
    D, N, H = c.hidden_size, c.num_attention_heads, c.head_dim
    shapes: Shapes = {}
    for name, width in (("q", c.query_width * (2 if c.query_gate else 1)), ("k", c.key_value_width), ("v", c.key_value_width)):
        shapes[f"self_attn.{name}_proj.weight"] = (width, D)
        if c.attention_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (width,)
    if c.qk_norm:
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            shapes |= {f"{name}.weight": (H,)} | ({f"{name}.bias": (H,)} if c.norm_bias else {})
    shapes["self_attn.o_proj.weight"] = (D, c.query_width)
    if c.attention_output_bias:
        shapes["self_attn.o_proj.bias"] = (D,)
    if c.model_type == "gpt_oss":
        shapes["self_attn.sinks"] = (N,)
    return shapes


def _latent_shapes(c: ModelConfig) -> Shapes:
    m, D, N = c.latent, c.hidden_size, c.num_attention_heads
    assert m is not None
    wide = m.nope_width + m.rope_width
    shapes: Shapes = (
        {
            "self_attn.q_a_proj.weight": (m.query_rank, D),
            "self_attn.q_a_norm.weight": (m.query_rank,),
            "self_attn.q_b_proj.weight": (N * wide, m.query_rank),
        }
        if m.query_rank
        else {"self_attn.q_proj.weight": (N * wide, D)}
    )
    if m.index_topk:
        shapes |= {
            "self_attn.indexer.q_proj.weight": (m.index_heads * m.index_width, m.query_rank),
            "self_attn.indexer.k_proj.weight": (m.index_width, D),
            "self_attn.indexer.weights_proj.weight": (m.index_heads, D),
        }
    shapes |= {
        "self_attn.kv_a_proj.weight": (m.cached_width, D),
        "self_attn.kv_a_norm.weight": (m.kv_rank,),
        "self_attn.kv_b_proj.weight": (N * (m.nope_width + m.value_width), m.kv_rank),
        "self_attn.o_proj.weight": (D, N * m.value_width),
    }
    if c.attention_bias:
        shapes |= {"self_attn.q_a_proj.bias": (m.query_rank,)} if m.query_rank else {}
        shapes["self_attn.kv_a_proj.bias"] = (m.cached_width,)
    if c.attention_output_bias:
        shapes["self_attn.o_proj.bias"] = (D,)
    return shapes


def _gated_delta_shapes(c: ModelConfig) -> Shapes:
    g, D = c.linear, c.hidden_size
    assert g is not None
    keys, values = g.key_heads * g.key_width, g.value_heads * g.value_width
    return {
        "linear_attn.qkvz_proj.weight": (2 * keys + 2 * values, D),
        "linear_attn.ba_proj.weight": (2 * g.value_heads, D),
        "linear_attn.conv.weight": (2 * keys + values, g.kernel),
        "linear_attn.decay": (2, g.value_heads),
        "linear_attn.norm.weight": (g.value_width,),
        "linear_attn.out_proj.weight": (D, values),
    }


def feed_forward_shapes(c: ModelConfig, layer: int) -> Shapes:
    """Matrices of one layer's feed-forward: dense with or without a gate, or a mixture of experts."""
    D, F = c.hidden_size, c.intermediate_size
    if not c.is_sparse(layer):
        return linear_shapes("mlp.", D, F, gated=c.gated_mlp, bias=c.mlp_bias)
    E, M = c.num_experts, c.moe_intermediate_size
    shapes: Shapes = {
        "mlp.gate.weight": (E, D),
        "mlp.experts.gate_up_proj": (E, 2 * M, D),
        "mlp.experts.down_proj": (E, D, M),
    }
    if c.expert_bias:
        shapes |= {"mlp.gate.bias": (E,), "mlp.experts.gate_up_bias": (E, 2 * M), "mlp.experts.down_bias": (E, D)}
    if S := c.shared_expert_intermediate_size:
        shapes |= linear_shapes("mlp.shared_expert.", D, S, gated=True, bias=False)
        if c.shared_expert_gate:
            shapes["mlp.shared_expert_gate.weight"] = (1, D)
    return shapes


def linear_shapes(prefix: str, D: int, F: int, *, gated: bool, bias: bool) -> Shapes:
    """Shapes of gate (where there is one), up and down projections."""
    shapes: Shapes = {}
    for name, rows, columns in (("gate_proj", F, D), ("up_proj", F, D), ("down_proj", D, F)):
        if name == "gate_proj" and not gated:
            continue
        shapes[f"{prefix}{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{prefix}{name}.bias"] = (rows,)
    return shapes
