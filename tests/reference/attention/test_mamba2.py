import numpy as np
import pytest

from llmlab.reference.attention._decayed import segment_sums
from llmlab.reference.attention.mamba2 import MAMBA2, mamba2, mamba2_cost, mamba2_in_chunks, mamba2_in_chunks_cost

DIMS = {"B": 2, "T": 13, "K": 2, "G": 3, "H": 4, "M": 5}


def drawn() -> dict[str, np.ndarray]:
    return MAMBA2.make_inputs(DIMS, np.random.default_rng(0))


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 64])
def test_chunks_give_what_the_recurrence_gives(chunk: int) -> None:
    given = drawn().values()
    for ours, theirs in zip(mamba2_in_chunks(*given, chunk=chunk), mamba2(*given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_equals_a_semiseparable_matrix_times_the_inputs() -> None:
    given = drawn()
    x, dt, a, b, c = (given[name] for name in ("x_BTKGH", "dt_BTKG", "a_KG", "b_BTKM", "c_BTKM"))
    matrix = np.einsum("btkm,bskm->bkts", c, b)[:, :, None] * np.exp(segment_sums(dt * a))
    expected = np.einsum("bkgts,bskg,bskgh->btkgh", matrix, dt, x)
    out, _ = mamba2(x, dt, a, b, c, given["d_KG"] * 0, given["state_BKGMH"] * 0)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-13)


def test_a_step_of_size_zero_leaves_the_state_alone() -> None:
    given = drawn()
    given["dt_BTKG"] = given["dt_BTKG"] * 0
    out, state = mamba2(*given.values())
    np.testing.assert_array_equal(state, given["state_BKGMH"])
    read = np.einsum("btkm,bkgmh->btkgh", given["c_BTKM"], state) + given["d_KG"][..., None] * given["x_BTKGH"]
    np.testing.assert_allclose(out, read, rtol=1e-12, atol=1e-13)


def test_an_infinitely_fast_rate_forgets_all_but_the_present() -> None:
    given = drawn()
    given["a_KG"] = np.full_like(given["a_KG"], -1e9)
    out, _ = mamba2(*given.values())
    now = np.einsum("btkm,btkm,btkg->btkg", given["c_BTKM"], given["b_BTKM"], given["dt_BTKG"]) + given["d_KG"]
    np.testing.assert_allclose(out, now[..., None] * given["x_BTKGH"], rtol=1e-10, atol=1e-13)


def test_two_halves_joined_by_their_state_are_the_whole() -> None:
    given = drawn()
    whole = mamba2(*given.values())
    parts = (slice(0, 6), slice(6, 13))
    halves = [{name: x[:, part] if "_BT" in name else x for name, x in given.items()} for part in parts]
    first, state = mamba2(*halves[0].values())
    second, state = mamba2(*{**halves[1], "state_BKGMH": state}.values())
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state, whole[1], rtol=1e-12, atol=1e-13)


def test_heads_of_a_group_share_the_scores_in_chunks_only() -> None:
    """One group of 80 heads: the square of scores is a small part of the chunked work; with 80 groups it is not."""
    shared = {"B": 1, "T": 256, "K": 1, "G": 80, "H": 64, "M": 128}
    alone = {**shared, "K": 80, "G": 1}
    assert mamba2_cost(shared).flops == mamba2_cost(alone).flops
    saved = mamba2_in_chunks_cost(alone).flops - mamba2_in_chunks_cost(shared).flops
    assert saved == 79 * 4 * 2 * 64 * 64 * 128


def test_lengths_that_differ_are_refused() -> None:
    given = drawn()
    with pytest.raises(ValueError, match="b T=12"):
        mamba2(*{**given, "b_BTKM": given["b_BTKM"][:, 1:]}.values())
