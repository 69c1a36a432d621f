import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.longformer import longformer, longformer_pairs


def drawn(T: int = 12, P: int = 2, N: int = 2, H: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, size, N, H)) for size in (T, T, T, P, T, T)]


def test_a_window_over_everything_is_full_attention() -> None:
    q, k, v, *_ = drawn()
    everything = longformer(q, k, v, q[:, :3], k, v, window=24)
    np.testing.assert_allclose(everything, gqa(q[..., None, :], k, v, causal=False)[..., 0, :], rtol=1e-12)


def test_information_travels_a_half_window_per_layer() -> None:
    """Section 3.1: L layers see L windows; here two layers of window 4 reach 4 tokens to each side and no further."""
    q, k, v, _, global_k, global_v = drawn(P=0)
    none = q[:, :0]
    spoiled = v.copy()
    spoiled[:, 6] += 1

    def two_layers(values: np.ndarray) -> np.ndarray:
        return longformer(
            q, k, longformer(q, k, values, none, global_k, global_v, window=4), none, global_k, global_v, window=4
        )

    moved = np.abs(two_layers(spoiled) - two_layers(v)).max(axis=(0, 2, 3)) > 0
    assert moved.nonzero()[0].tolist() == list(range(2, 11))


def test_dilation_attends_each_residue_by_itself() -> None:
    q, k, v, *_ = drawn(P=0)
    none = q[:, :0]
    out = longformer(q, k, v, none, k, v, window=4, dilation=3)
    for r in range(3):
        every = np.s_[:, r::3]
        np.testing.assert_allclose(out[every], longformer(q[every], k[every], v[every], none, k[every], v[every], window=4))


def test_a_global_token_inside_a_window_counts_once() -> None:
    q, k, v, *_ = drawn()
    three = gqa(q[:, 1:2, :, None], k[:, :3], v[:, :3], causal=False)[:, 0, :, 0]
    np.testing.assert_allclose(longformer(q, k, v, q[:, :1], k, v, window=2)[:, 1], three, rtol=1e-12)


def test_transformers_layer_agrees() -> None:
    """Its attention_window counts both sides; its global tokens take their own projections; softmax scale 1 / sqrt(H)."""
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    T, P, N, H, window = 32, 3, 2, 8, 8
    config = transformers.LongformerConfig(
        hidden_size=N * H, num_attention_heads=N, attention_window=[window], attention_probs_dropout_prob=0.0
    )
    torch.manual_seed(0)
    layer = LongformerSelfAttention(config, layer_id=0).double().eval()
    hidden = torch.randn(1, T, N * H, dtype=torch.float64)
    mask = torch.zeros(1, T, dtype=torch.float64)
    mask[:, :P] = 10000.0  # as the model encodes global attention for its layers
    with torch.no_grad():
        theirs = layer(
            hidden, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0,
            is_global_attn=True,
        )[0]  # fmt: skip
        q, k, v, global_q, global_k, global_v = (
            getattr(layer, name)(hidden).view(1, T, N, H).numpy()
            for name in ("query", "key", "value", "query_global", "key_global", "value_global")
        )
    ours = longformer(q, k, v, global_q[:, :P], global_k, global_v, window=window)
    np.testing.assert_allclose(ours.reshape(1, T, N * H), theirs.numpy(), atol=1e-7)  # its softmax is float32


@pytest.mark.parametrize("window", [0, 2, 6])
@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("P", [0, 1, 4])
def test_pairs_are_counted_exactly(window: int, dilation: int, P: int) -> None:
    T = 11
    seen = sum(
        t < P or s < P or (abs(t - s) <= dilation * window // 2 and (t - s) % dilation == 0) for t in range(T) for s in range(T)
    )
    assert longformer_pairs(T, P, window=window, dilation=dilation) == seen


def test_impossible_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="window=3"):
        longformer(*drawn(), window=3)
    with pytest.raises(ValueError, match="dilation=0"):
        longformer(*drawn(), dilation=0)
    with pytest.raises(ValueError, match="P=13 global tokens of T=12"):
        longformer(*drawn(P=13))
