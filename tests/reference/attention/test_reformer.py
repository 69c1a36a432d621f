import numpy as np
import pytest

from llmlab.reference.attention.reformer import chunk_pairs, hash_buckets, reformer, sorted_chunks, union_BN1TT, unit_keys


def drawn(T: int = 16, N: int = 2, R: int = 2, buckets: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return *rng.standard_normal((2, 1, T, N, 4)), rng.integers(0, buckets, (1, N, R, T))


def test_one_bucket_is_full_attention_to_the_others() -> None:
    qk, v, _ = drawn()
    out = reformer(qk, v, np.zeros((1, 2, 1, 16), int), chunk=16)
    np.testing.assert_allclose(out[:, 0], v[:, 0])  # alone: itself
    np.testing.assert_allclose(out[:, 1], v[:, 0])  # token 1 sees token 0 only
    scores = np.einsum("btnh,bsnh->bnts", qk, unit_keys(qk))
    weights = np.exp(scores) * np.tril(np.ones((16, 16)), -1)
    expected = np.einsum("bnts,bsnh->btnh", weights[:, :, 1:] / weights[:, :, 1:].sum(-1, keepdims=True), v)
    np.testing.assert_allclose(out[:, 1:], expected, rtol=1e-12)


def test_rounds_merge_into_the_softmax_over_their_union() -> None:
    """Appendix A: pairs that several rounds find are not counted again."""
    qk, v, buckets = drawn(R=4)
    for causal in (True, False):
        seen = union_BN1TT(buckets, chunk=4, causal=causal)[:, :, 0]
        scores = np.einsum("btnh,bsnh->bnts", qk, unit_keys(qk))
        weights = np.where(seen, np.exp(scores), 0)
        expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(reformer(qk, v, buckets, chunk=4, causal=causal), expected, rtol=1e-12)
    np.testing.assert_allclose(
        reformer(qk, v, np.repeat(buckets[:, :, :1], 3, axis=2), chunk=4), reformer(qk, v, buckets[:, :, :1], chunk=4)
    )


def test_near_vectors_share_buckets_more_often_than_far_ones() -> None:
    rng = np.random.default_rng(0)
    rotations = rng.standard_normal((1, 8, 400, 4))
    x = rng.standard_normal(8)
    near, far = x + 0.2 * rng.standard_normal(8), rng.standard_normal(8)
    buckets = hash_buckets(np.stack([x, near, far])[None, :, None], rotations)[0, 0]
    shared = [(buckets[:, 0] == buckets[:, i]).mean() for i in (1, 2)]
    assert shared[0] > 0.5 > 0.35 > shared[1]


def test_the_future_does_not_matter() -> None:
    qk, v, buckets = drawn()
    changed = v.copy()
    changed[:, 9:] = 7.0
    np.testing.assert_array_equal(reformer(qk, changed, buckets, chunk=4)[:, :9], reformer(qk, v, buckets, chunk=4)[:, :9])


def test_pairs_are_counted_exactly() -> None:
    for T in range(1, 14):
        for chunk in (1, 2, 5, 20):
            counted = sum(len(q) * len(k) for q, k in sorted_chunks(np.zeros(T, int), chunk))
            assert chunk_pairs(T, chunk) == counted


def test_transformers_hashes_the_same() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    layer = transformers_layer()
    x = np.random.default_rng(0).standard_normal((1, 32, 2, 16)).astype(np.float32)
    theirs = layer._hash_vectors(torch.from_numpy(x).transpose(1, 2), 2, None).reshape(1, 2, 2, 32).numpy()
    torch.manual_seed(0)
    rotations = torch.randn(2, 16, 2, 2).numpy()
    ours = hash_buckets(x, rotations) + 4 * np.arange(2)[:, None]  # it numbers the buckets of all rounds in one row
    np.testing.assert_array_equal(ours, theirs)


def transformers_layer():  # type: ignore[no-untyped-def]
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = transformers.ReformerConfig(
        hidden_size=32, num_attention_heads=2, attention_head_size=16, lsh_attn_chunk_length=8, num_buckets=4, num_hashes=2,
        max_position_embeddings=64, hash_seed=0, is_decoder=False, lsh_num_chunks_before=1, lsh_num_chunks_after=0,
        lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return LSHSelfAttention(config).eval()


def test_transformers_wraps_around_crosses_buckets_and_counts_twice() -> None:
    """Three departures of LSHSelfAttention from the paper, shown by a formula that has them and equals it.

    It attends across buckets inside the reach of a chunk (eq. 5 masks j not in P_i); the first chunk of a round looks back at
    the last chunk of the round before, the very first at the very last; a pair found by two rounds weighs twice (no N_ij).
    """
    torch = pytest.importorskip("torch", reason="needs torch")
    layer = transformers_layer()
    torch.manual_seed(1)
    hidden = torch.randn(1, 32, 32)
    with torch.no_grad():
        theirs = layer(hidden).hidden_states[0].numpy()
        qk, v = (x(hidden).view(1, 32, 2, 16).double().numpy() for x in (layer.query_key, layer.value))
    torch.manual_seed(0)
    buckets = hash_buckets(qk, torch.randn(2, 16, 2, 2).double().numpy())
    found = np.zeros((2, 32, 32))
    for n in range(2):
        order = np.concatenate([np.argsort(buckets[0, n, r], kind="stable") for r in range(2)]).reshape(8, 8)
        for c in range(8):
            np.add.at(found[n], np.ix_(order[c], np.concatenate([order[c - 1], order[c]])), 1.0)
    keys = unit_keys(qk)
    weights = found * np.exp(np.einsum("btnh,bsnh->bnts", qk, keys)[0]) * (1 - np.eye(32))
    expected = np.einsum("nts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(theirs, expected.reshape(32, 32), atol=1e-5)
    ours = reformer(qk, v, buckets, chunk=8, causal=False).reshape(32, 32)
    assert np.abs(ours - theirs).max() > 0.05


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk=0"):
        reformer(*drawn(), chunk=0)
