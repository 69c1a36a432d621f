import numpy as np
import pytest

from llmlab.reference.attention.flash import flash, flash_backward
from llmlab.reference.attention.flash2 import flash2, flash2_backward, tasks_of, tiles_seen


def drawn(T: int = 5, S: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, T, 2, 3, 4)), rng.standard_normal((2, S, 2, 4)), rng.standard_normal((2, S, 2, 4))


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (2, 3), (5, 9), (128, 64)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_other_loop_order_gives_what_version_1_gives(rows: int, block: int, causal: bool) -> None:
    for ours, theirs in zip(flash2(*drawn(), causal=causal, rows=rows, block=block), flash(*drawn(), causal=causal)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (2, 3), (128, 64)])
def test_backward_over_tiles_of_keys_gives_what_version_1_gives(rows: int, block: int) -> None:
    q, k, v = drawn()
    rng = np.random.default_rng(1)
    dout, dlse = rng.standard_normal(q.shape), rng.standard_normal(q.shape[:-1])
    expected = flash_backward(dout, dlse, q, k, v)
    for ours, theirs in zip(flash2_backward(dout, dlse, q, k, v, rows=rows, block=block), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_block_of_queries_does_not_depend_on_any_other() -> None:
    q, k, v = drawn()
    out, lse = flash2(q, k, v, causal=False, rows=2)
    part, part_lse = flash2(q[:, 2:4], k, v, causal=False, rows=2)
    np.testing.assert_array_equal(out[:, 2:4], part)
    np.testing.assert_array_equal(lse[:, 2:4], part_lse)


def test_causal_blocks_touch_about_half_of_the_tiles() -> None:
    tiles = [len(tiles_seen(slice(start, start + 8), 64, 64, True, 8)) for start in range(0, 64, 8)]
    assert tiles == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(len(tiles_seen(slice(start, start + 8), 64, 64, False, 8)) == 8 for start in range(0, 64, 8))


def test_long_sequences_make_tasks_that_one_head_alone_would_not() -> None:
    one_head = {"B": 1, "T": 16384, "K": 1, "G": 1}
    assert tasks_of(one_head) == 128
    assert tasks_of(one_head, rows=16384) == 1


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="T=6 > S=5"):
        flash2(*drawn(T=6, S=5))
    with pytest.raises(ValueError, match="rows=0"):
        flash2(*drawn(), rows=0)
