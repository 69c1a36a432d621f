"""What only the embedding has."""

import numpy as np
import pytest

from llmlab.reference.layers.embedding import embedding, embedding_backward, tied_logits

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((7, 5))
IDS = np.array([[3, 3, 0], [6, 3, 1]])


def test_lookup_is_a_product_with_one_hot_rows():
    np.testing.assert_array_equal(embedding(IDS, WEIGHT), np.eye(7)[IDS] @ WEIGHT)


def test_repeated_tokens_gather_all_their_gradients():
    dout = RNG.standard_normal((2, 3, 5))
    _, dweight = embedding_backward(dout, IDS, WEIGHT)
    np.testing.assert_allclose(dweight[3], dout[0, 0] + dout[0, 1] + dout[1, 1], rtol=1e-14)
    assert (dweight[[2, 4, 5]] == 0).all()


@pytest.mark.parametrize("padding", [0, 3])
def test_padding_row_is_looked_up_but_learns_nothing_in_every_twin_as_in_torch(padding):
    torch = pytest.importorskip("torch", reason="needs torch")
    from llmlab.kernels.layers.embedding_numba import embedding_backward as numba_backward
    from llmlab.kernels.layers.embedding_torch import embedding as torch_twin

    dout = RNG.standard_normal((2, 3, 5))
    np.testing.assert_array_equal(embedding(IDS, WEIGHT, padding_index=padding), embedding(IDS, WEIGHT))
    layer = torch.nn.Embedding(7, 5, padding_idx=padding, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHT))
    layer(torch.from_numpy(IDS)).backward(torch.from_numpy(dout))
    weight = torch.from_numpy(WEIGHT).requires_grad_()
    torch_twin(torch.from_numpy(IDS), weight, padding_index=padding).backward(torch.from_numpy(dout))
    for dweight in (
        embedding_backward(dout, IDS, WEIGHT, padding_index=padding)[1],
        numba_backward(dout, IDS, WEIGHT, padding_index=padding)[1],
        weight.grad.numpy(),
    ):
        assert (dweight[padding] == 0).all()
        np.testing.assert_allclose(dweight, layer.weight.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("wrong", [-1, 7])
def test_an_id_outside_the_table_is_refused(wrong):
    pytest.importorskip("numba", reason="needs numba")
    from llmlab.kernels.layers.embedding_numba import embedding as numba_twin

    for function in (embedding, numba_twin):
        with pytest.raises(ValueError, match=f"id={wrong}: not in 0..6"):
            function(np.array([[0, wrong]]), WEIGHT)
    with pytest.raises(ValueError, match="padding_index=9"):
        embedding(IDS, WEIGHT, padding_index=9)


def test_tied_table_serves_both_ends_and_its_gradient_is_the_sum_of_both():
    """d/dW of sum(dlogits * (W[ids] W')) by product rule: once through the lookup, once through the projection."""
    dlogits = RNG.standard_normal((2, 3, 7))

    def score(table):
        return np.sum(dlogits * tied_logits(embedding(IDS, table), table))

    hidden = embedding(IDS, WEIGHT)
    _, through_lookup = embedding_backward(np.einsum("btv,vd->btd", dlogits, WEIGHT), IDS, WEIGHT)
    gradient = through_lookup + np.einsum("btv,btd->vd", dlogits, hidden)
    direction = RNG.standard_normal(WEIGHT.shape)
    step = 1e-5
    slope = (score(WEIGHT + step * direction) - score(WEIGHT - step * direction)) / (2 * step)
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-8)
