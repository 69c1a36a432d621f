import numpy as np
import pytest

from llmlab.reference.attention._decayed import walk
from llmlab.reference.attention.gated_delta import (
    GATED_DELTA,
    gated_delta,
    gated_delta_cost,
    gated_delta_in_chunks,
    gated_delta_in_chunks_cost,
)

DIMS = {"B": 2, "T": 13, "K": 2, "G": 3, "H": 4, "M": 5}


def drawn() -> dict[str, np.ndarray]:
    return GATED_DELTA.make_inputs(DIMS, np.random.default_rng(0))


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 64])
def test_chunks_give_what_the_recurrence_gives(chunk: int) -> None:
    given = drawn().values()
    for ours, theirs in zip(gated_delta_in_chunks(*given, chunk=chunk), gated_delta(*given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_equals_a_product_of_the_papers_transition_matrices() -> None:
    given = drawn()
    k, v, beta = given["k_BTKM"][0, :, 0], given["v_BTKGH"][0, :, 0, 0], given["beta_BTKG"][0, :, 0, 0]
    alpha, state = np.exp(given["log_decay_BTKG"][0, :, 0, 0]), given["state_BKGMH"][0, 0, 0].T
    for t in range(13):
        state = state @ (alpha[t] * (np.eye(5) - beta[t] * np.outer(k[t], k[t]))) + beta[t] * np.outer(v[t], k[t])
    np.testing.assert_allclose(gated_delta(*given.values())[1][0, 0, 0], state.T, rtol=1e-10, atol=1e-12)


def test_a_share_of_one_and_no_decay_stores_a_value_that_its_key_finds_again() -> None:
    given = drawn()
    given["beta_BTKG"] = np.ones_like(given["beta_BTKG"])
    given["log_decay_BTKG"] = given["log_decay_BTKG"] * 0
    given["q_BTKM"] = given["k_BTKM"]
    out, _ = gated_delta(*given.values())
    np.testing.assert_allclose(out, given["v_BTKGH"], rtol=1e-9, atol=1e-12)


def test_orthogonal_keys_never_overwrite_each_other_so_it_is_plain_linear_attention() -> None:
    given = drawn()
    keys = np.broadcast_to(np.eye(5)[None, :, None], (2, 5, 2, 5))
    given = {name: x[:, :5] if "_BT" in name else x for name, x in given.items()}
    given |= {"k_BTKM": keys, "state_BKGMH": given["state_BKGMH"] * 0}
    weighed = given["beta_BTKG"][..., None] * given["v_BTKGH"]
    expected = walk(given["q_BTKM"], keys, weighed, np.exp(given["log_decay_BTKG"]), given["state_BKGMH"])
    for ours, theirs in zip(gated_delta(*given.values()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_share_of_zero_only_decays() -> None:
    given = drawn()
    given["beta_BTKG"] = given["beta_BTKG"] * 0
    _, state = gated_delta(*given.values())
    left = np.exp(given["log_decay_BTKG"].sum(1))[..., None, None]
    np.testing.assert_allclose(state, left * given["state_BKGMH"], rtol=1e-12)


def test_two_halves_joined_by_their_state_are_the_whole() -> None:
    given = drawn()
    whole = gated_delta(*given.values())
    parts = (slice(0, 6), slice(6, 13))
    halves = [{name: x[:, part] if "_BT" in name else x for name, x in given.items()} for part in parts]
    first, state = gated_delta(*halves[0].values())
    second, state = gated_delta(*{**halves[1], "state_BKGMH": state}.values())
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state, whole[1], rtol=1e-12, atol=1e-13)


def test_chunks_trade_more_flops_for_matrix_products() -> None:
    d = {"B": 1, "T": 256, "K": 2, "G": 2, "M": 16, "H": 16}
    assert gated_delta_in_chunks_cost(d).flops > gated_delta_cost(d).flops
    assert gated_delta_cost(d).flops == 256 * gated_delta_cost({**d, "T": 1}).flops


def test_lengths_that_differ_are_refused() -> None:
    given = drawn()
    with pytest.raises(ValueError, match="beta T=12"):
        gated_delta(*{**given, "beta_BTKG": given["beta_BTKG"][:, 1:]}.values())
