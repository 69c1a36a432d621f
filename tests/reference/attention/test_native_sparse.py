import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa
from llmlab.reference.attention.native_sparse import (
    block_scores,
    compress,
    native_sparse,
    native_sparse_pairs,
    num_summaries,
    seen_summaries,
    select_blocks,
)

SIZES = {"stride": 2, "block": 4, "selected": 4, "window": 5}


def drawn(T: int = 40, S: int = 40, K: int = 2, G: int = 2, H: int = 4, C: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, T, K, G, H)), *rng.standard_normal((2, 1, S, K, H))
    return [q, k, v, rng.random(C), rng.random(C), rng.random((1, T, K, G, 3))]


def only(branch: int, gates: np.ndarray) -> np.ndarray:
    return np.eye(3)[branch] * np.ones_like(gates)


def test_selecting_every_block_is_full_attention() -> None:
    q, k, v, pool_k, pool_v, gates = drawn()
    out = native_sparse(q, k, v, pool_k, pool_v, only(1, gates), **{**SIZES, "selected": 10})
    np.testing.assert_allclose(out, gqa(q, k, v), rtol=1e-12)


def test_branches_add_up_by_their_gates() -> None:
    *arrays, gates = drawn()
    parts = [gates[..., z : z + 1] * native_sparse(*arrays, only(z, gates), **SIZES) for z in range(3)]
    np.testing.assert_allclose(native_sparse(*arrays, gates, **SIZES), sum(parts), rtol=1e-12)


def test_the_future_does_not_matter() -> None:
    q, k, v, *rest = drawn()
    changed_k, changed_v = k.copy(), v.copy()
    changed_k[:, 23:], changed_v[:, 23:] = 9.0, -9.0
    changed = native_sparse(q, changed_k, changed_v, *rest, **SIZES)
    np.testing.assert_array_equal(changed[:, :23], native_sparse(q, k, v, *rest, **SIZES)[:, :23])


def test_decode_steps_give_the_rows_of_prefill() -> None:
    q, k, v, pool_k, pool_v, gates = drawn()
    whole = native_sparse(q, k, v, pool_k, pool_v, gates, **SIZES)
    for t in (0, 3, 17, 39):
        one = native_sparse(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1], pool_k, pool_v, gates[:, t : t + 1], **SIZES)
        np.testing.assert_allclose(one[:, 0], whole[:, t], rtol=1e-11)


def test_first_own_and_previous_block_are_always_chosen_and_heads_of_a_group_share() -> None:
    weights = np.random.default_rng(0).random((1, 2, 3, 40, num_summaries(40, 4, 2)))
    chosen = select_blocks(weights, 40, 4, stride=2, block=4, selected=4)
    assert chosen.shape == (1, 40, 2, 4)
    for t in range(40):
        for listed in chosen[0, t]:
            blocks = listed[listed >= 0].tolist()
            assert {0, t // 4, max(t // 4 - 1, 0)} <= set(blocks)
            assert len(set(blocks)) == len(blocks) == min(4, t // 4 + 1)
            assert blocks == sorted(blocks)


def test_a_compressed_token_counts_once_per_stretch_it_shares_with_a_block() -> None:
    """Eq. 9 counts blocks from 1: compressed token i of 0.. covers tokens 2i .. 2i + 3, block j tokens 4j .. 4j + 3."""
    weights = np.eye(9)[None, None, None]  # one query per compressed token
    scores = block_scores(weights, 20, 4, stride=2, block=4)[0, :, 0]
    for i in range(9):
        shared = [len(set(range(2 * i, 2 * i + 4)) & set(range(4 * j, 4 * j + 4))) / 2 for j in range(5)]
        np.testing.assert_array_equal(scores[i], shared)


def test_equal_weights_summarise_by_the_mean() -> None:
    x = np.random.default_rng(0).standard_normal((1, 12, 1, 2))
    np.testing.assert_allclose(compress(x, np.full(4, 0.25), 4)[0], x.reshape(3, 4, 1, 2).mean(axis=1))


def test_pairs_are_counted_exactly() -> None:
    for T, S in ((40, 40), (1, 40), (7, 33), (3, 5)):
        seen = int(seen_summaries(T, S, 4, 2).sum())
        chosen = sum(min(p // 4, 3) * 4 + p % 4 + 1 for p in range(S - T, S))
        near = sum(min(p + 1, 5) for p in range(S - T, S))
        assert native_sparse_pairs(T, S, 4, **SIZES) == (seen, chosen, near)


def test_flash_linear_attention_is_the_case_of_plain_means() -> None:
    """Its compressed blocks are its selected blocks (C = stride = block) and their mean; a group has at least 16 heads."""
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("fla", reason="needs fla")
    from llmlab.harness.oracles.attention._fla import naive

    q, k, v, _, _, gates = (x.astype(np.float32) for x in drawn(K=1, G=16))
    mean = np.full(4, 0.25, np.float32)
    nsa = naive("nsa")
    flat = torch.from_numpy(q.reshape(1, 40, 16, 4))
    summary_k, summary_v = (torch.from_numpy(compress(x, mean, 4)) for x in (k, v))
    blocks = nsa.naive_nsa_topk(flat, summary_k, 4, 4, 0.5)
    full = nsa.naive_nsa_selection(flat, torch.from_numpy(k), torch.from_numpy(v), blocks, 4)
    compressed, _ = nsa.naive_nsa_compression(flat, summary_k, summary_v, 4, 0.5)
    theirs = (gates[..., 0:1] * compressed.numpy().reshape(q.shape)) + (gates[..., 1:2] * full.numpy().reshape(q.shape))
    gates = gates * np.array([1, 1, 0], np.float32)
    ours = native_sparse(q, k, v, mean, mean, gates, stride=4, block=4, selected=4, window=1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="stride=3 must divide the compressed C=4 and block=4"):
        native_sparse(*drawn(), **{**SIZES, "stride": 3})
    with pytest.raises(ValueError, match="selected=2"):
        native_sparse(*drawn(), **{**SIZES, "selected": 2})
    with pytest.raises(ValueError, match="T=41 > S=40"):
        native_sparse(*drawn(T=41), **SIZES)
