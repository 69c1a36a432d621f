"""What only T5's bucketed bias has."""

import numpy as np
import pytest

from llmlab.reference.positions.t5_bias import bucket_of, t5_bias


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets", [8, 20, 32, 64])
@pytest.mark.parametrize("max_distance", [64, 100, 128, 256])
def test_buckets_equal_transformers_at_every_distance(num_buckets, max_distance, bidirectional):
    """transformers takes the logarithm in float32 and truncates; at these sizes no edge moves."""
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = np.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(torch.from_numpy(offset), bidirectional, num_buckets, max_distance)
    ours = bucket_of(offset, num_buckets, bidirectional=bidirectional, max_distance=max_distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_every_bucket_is_used_and_distance_never_lowers_it():
    buckets = bucket_of(-np.arange(200), 32, bidirectional=False)
    assert set(buckets) == set(range(32))
    assert (np.diff(buckets) >= 0).all()


def test_edges_grow_geometrically():
    """16 exact distances, then 16 buckets up to 128: each edge is 8^(1/16) times the one before, rounded up."""
    buckets = bucket_of(-np.arange(129), 32, bidirectional=False)
    first = [int(np.argmax(buckets == bucket)) for bucket in range(16, 32)]
    np.testing.assert_array_equal(first, np.ceil(16 * 8 ** (np.arange(16) / 16) - 1e-9))


def test_a_decode_step_is_the_last_row():
    weight = np.random.default_rng(0).standard_normal((8, 2))
    full = t5_bias(np.zeros((1, 2, 9, 9)), weight, bidirectional=False)
    np.testing.assert_array_equal(t5_bias(np.zeros((1, 2, 1, 9)), weight, bidirectional=False)[:, :, 0], full[:, :, -1])


def test_impossible_tables_are_refused():
    with pytest.raises(ValueError, match="num_buckets=3: needs at least 4"):
        bucket_of(np.arange(3), 3)
    with pytest.raises(ValueError, match="max_distance=8: must be above the 8 distances"):
        bucket_of(np.arange(3), 32, max_distance=8)
