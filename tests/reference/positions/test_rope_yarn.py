"""What only YaRN has: two rules, the paper's and the released one."""

import numpy as np
import pytest

from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_yarn import rope_yarn, temperature_factor, yarn_frequencies, yarn_scaling

RELEASED = [
    {"theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 4096},  # YaRN-Llama-2-7b-64k
    {"theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},  # Qwen2.5, Qwen3
    {"theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
    {"theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},  # gpt-oss
    {"theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.0},
    {"theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 2048, "attention_factor": 0.7, "beta_fast": 4.0},
]


@pytest.mark.parametrize("scaling", RELEASED)
@pytest.mark.parametrize("head_width", [8, 64, 128])
def test_the_released_rule_equals_transformers(head_width, scaling):
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.positions._scaled import transformers_scaling

    theirs = {**scaling, "rope_theta": scaling["theta"]}
    del theirs["theta"]
    context = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    frequencies, attention_factor = transformers_scaling("yarn", head_width, context=context, **theirs)
    ours, own_factor = yarn_scaling(head_width, **scaling)
    np.testing.assert_allclose(frequencies, ours, rtol=1e-5)
    assert attention_factor == pytest.approx(own_factor, rel=1e-12)


def test_the_release_blends_by_pair_index_where_the_paper_blends_by_turns():
    """Both keep pairs of 32 turns and more and slow those of 1 and fewer; between, the release keeps more of a pair's speed.

    Turns fall geometrically with the index, so a line in the index lies above a line in the turns: at the geometric mean of
    the edges the release keeps a half, the paper (sqrt(32) - 1) / 31 = 0.15. Published models were trained with the release.
    """
    sizes = {"theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 2048}
    plain = inverse_frequencies(128)
    turns = 2048 * plain / (2 * np.pi)
    paper, released = yarn_frequencies(128, **sizes), yarn_scaling(128, truncate=False, **sizes)[0]
    outside = (turns >= 32) | (turns <= 1)
    np.testing.assert_allclose(paper[outside], released[outside], rtol=1e-12)
    assert (released[~outside] > paper[~outside]).all()
    kept_by_paper, kept_by_release = ((speed / plain * 4 - 1) / 3 for speed in (paper, released))
    middle = np.argmin(np.abs(np.log(turns / 32**0.5)))
    assert kept_by_paper[middle] == pytest.approx(0.15, abs=0.03)
    assert kept_by_release[middle] == pytest.approx(0.5, abs=0.03)
    assert np.max(released / paper) == pytest.approx(1.69, abs=0.05)


def test_rounding_the_edges_outwards_widens_the_release_s_band():
    exact, rounded = (yarn_scaling(128, truncate=truncate)[0] for truncate in (False, True))
    plain = inverse_frequencies(128)
    blended = [np.sum((speed < plain) & (speed > plain / 4 * (1 + 1e-12))) for speed in (exact, rounded)]
    assert blended[0] <= blended[1]
    assert np.abs(exact / rounded - 1).max() > 1e-3


def test_scores_come_out_divided_by_the_temperature():
    """The factor multiplies queries and keys both: q.k grows by its square, 1/t of eq. 21."""
    x = np.random.default_rng(0).standard_normal((1, 1, 1, 8))
    out = rope_yarn(x, np.array([[3]]), factor=16.0)
    assert (out**2).sum() / (x**2).sum() == pytest.approx((0.1 * np.log(16) + 1) ** 2, rel=1e-12)
    assert temperature_factor(1.0) == 1.0


def test_edges_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"beta_fast=1.0: must be above beta_slow=1.0"):
        yarn_scaling(8, beta_fast=1.0)
    with pytest.raises(ValueError, match=r"factor=0.5"):
        rope_yarn(np.ones((1, 1, 1, 4)), np.zeros((1, 1), int), factor=0.5)
