import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.mla import absorbed_flops, expanded_flops, mla, mla_absorbed, mla_cost


def drawn(T: int = 4, S: int = 6, N: int = 3, H: int = 5, R: int = 2, L: int = 7, V: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(2, T, N, H), (2, T, N, R), (2, S, L), (2, S, R), (N, H, L), (N, V, L)]
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("causal", [True, False])
def test_absorbed_and_expanded_forms_are_one_map(causal: bool) -> None:
    np.testing.assert_allclose(mla_absorbed(*drawn(), causal=causal), mla(*drawn(), causal=causal), rtol=1e-11)


def test_identity_expansions_are_multi_query_attention() -> None:
    """With W_UK = W_UV = I every head reads the latent itself; without a rotated part nothing else is left."""
    q, _, latent, *_ = drawn(H=7)
    none = np.zeros((2, 4, 3, 0)), np.zeros((2, 6, 0))
    eye = np.broadcast_to(np.eye(7), (3, 7, 7))
    expected = gqa(q[:, :, None], latent[:, :, None], latent[:, :, None])[:, :, 0]
    np.testing.assert_allclose(mla(q, none[0], latent, none[1], eye, eye), expected, rtol=1e-11)


def test_decode_steps_give_the_rows_of_prefill() -> None:
    q, q_rope, latent, k_rope, up_k, up_v = drawn(T=6)
    steps = [
        mla_absorbed(q[:, t : t + 1], q_rope[:, t : t + 1], latent[:, : t + 1], k_rope[:, : t + 1], up_k, up_v)
        for t in range(6)
    ]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), mla(*drawn(T=6)), rtol=1e-11)


def test_the_cheaper_form_changes_from_decode_to_prefill() -> None:
    d = {"B": 1, "S": 4096, "N": 128, "H": 128, "R": 64, "L": 512, "V": 128}
    decode, prefill = {**d, "T": 1}, {**d, "T": 4096}
    assert mla_cost(decode).flops == absorbed_flops(decode) < expanded_flops(decode) / 50
    assert mla_cost(prefill).flops == expanded_flops(prefill) < absorbed_flops(prefill) / 2


def test_a_cached_token_is_small() -> None:
    """Section 2.1.4: 512 + 64 numbers for DeepSeek-V2, where multi-head attention would hold 2 x 128 x 128."""
    d = {"B": 1, "T": 1, "N": 128, "H": 128, "R": 64, "L": 512, "V": 128}
    per_token = mla_cost({**d, "S": 4097}).elements_read - mla_cost({**d, "S": 4096}).elements_read
    assert per_token == 576
    assert 2 * 128 * 128 / per_token > 56


def test_deepseek_v3_layer_agrees() -> None:
    """transformers de-interleaves the pairs before it rotates halves; the scale is 1 / sqrt(H + R)."""
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    from llmlab.reference.layers.rms_norm import rms_norm
    from llmlab.reference.positions.rope import rope

    T, N, H, R, L, V = 12, 4, 16, 8, 20, 12
    config = transformers.DeepseekV3Config(
        hidden_size=32, num_attention_heads=N, num_key_value_heads=N, q_lora_rank=24, kv_lora_rank=L, qk_rope_head_dim=R,
        qk_nope_head_dim=H, v_head_dim=V, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    layer = DeepseekV3Attention(config, layer_idx=0).eval()
    hidden = torch.randn(1, T, 32)
    rotation = DeepseekV3RotaryEmbedding(config)(hidden, torch.arange(T)[None])
    mask = torch.full((T, T), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        theirs = layer(hidden, position_embeddings=rotation, attention_mask=mask)[0].numpy()
    w = {name: array.double().numpy() for name, array in layer.state_dict().items()}
    h = hidden.double().numpy()
    compressed = rms_norm(h @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], eps=config.rms_norm_eps)
    queries = (compressed @ w["q_b_proj.weight"].T).reshape(1, T, N, H + R)
    keys = h @ w["kv_a_proj_with_mqa.weight"].T
    latent = rms_norm(keys[..., :L], w["kv_a_layernorm.weight"], eps=config.rms_norm_eps)
    theta = config.rope_parameters["rope_theta"]
    turned = {"positions_BT": np.arange(T)[None], "theta": theta, "interleaved": True}
    q_rope = rope(queries[..., H:], **turned)
    k_rope = rope(keys[:, :, None, L:], **turned)[:, :, 0]
    up = w["kv_b_proj.weight"].reshape(N, H + V, L)
    for form in (mla, mla_absorbed):
        out = form(queries[..., :H], q_rope, latent, k_rope, up[:, :H], up[:, H:])
        np.testing.assert_allclose(out.reshape(1, T, N * V) @ w["o_proj.weight"].T, theirs, atol=1e-5)


def test_more_queries_than_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="T=7 > S=6"):
        mla(*drawn(T=7))
