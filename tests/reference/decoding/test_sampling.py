"""What only sampling has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.harness.arrays import to_numpy
from llmlab.kernels.twin import twins_of
from llmlab.reference.decoding.sampling import SAMPLING, draw, sampling
from llmlab.reference.layers.softmax import softmax

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, B: int = 3, V: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((B, V)), rng.random(B)


def kept(logits_BV: np.ndarray, **options: float) -> np.ndarray:
    return sampling(logits_BV, np.zeros(len(logits_BV)), **options)[0] > 0  # type: ignore[arg-type]


@given(SEEDS)
def test_without_options_it_is_the_softmax(seed: int) -> None:
    logits_BV, uniform_B = drawn(seed)
    probabilities_BV, _ = sampling(logits_BV, uniform_B)
    np.testing.assert_array_equal(probabilities_BV, softmax(logits_BV))


@given(SEEDS, st.sampled_from(SAMPLING.options))
def test_what_is_kept_keeps_its_proportions(seed: int, options: dict[str, float]) -> None:
    logits_BV, uniform_B = drawn(seed)
    probabilities_BV, token_B = sampling(logits_BV, uniform_B, **options)  # type: ignore[arg-type]
    tempered_BV = np.where(probabilities_BV > 0, softmax(logits_BV / options.get("temperature", 1.0)), 0)
    np.testing.assert_allclose(probabilities_BV, tempered_BV / tempered_BV.sum(-1, keepdims=True), rtol=1e-12)
    assert np.all(probabilities_BV[np.arange(len(token_B)), token_B] > 0)


@given(SEEDS, st.integers(1, 60))
def test_top_k_keeps_k(seed: int, k: int) -> None:
    logits_BV, _ = drawn(seed)
    assert set(kept(logits_BV, top_k=k).sum(-1)) == {min(k, 40)}


@given(SEEDS, st.floats(0, 0.999))
def test_top_p_keeps_the_fewest_that_reach_p(seed: int, p: float) -> None:
    logits_BV, _ = drawn(seed)
    for row, mask in zip(softmax(logits_BV), kept(logits_BV, top_p=p)):
        assert row[mask].sum() >= p or mask.all()
        assert row[mask].sum() - row[mask].min() < p or mask.sum() == 1
        assert row[mask].min() >= row[~mask].max(initial=0)


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_a_larger_share_keeps_more(name: str) -> None:
    logits_BV, _ = drawn(0)
    masks = [kept(logits_BV, **{name: share}) for share in np.linspace(0, 1, 21)]
    for fewer, more in zip(masks, masks[1:]):  # noqa: RUF007
        assert np.all(fewer <= more)
    assert masks[0].sum() == 3
    assert masks[-1].all()


def test_ties_with_the_last_token_kept_are_kept() -> None:
    logits = np.log(np.array([[0.2, 0.2, 0.3, 0.2, 0.1]]))
    assert kept(logits, top_k=2)[0].tolist() == [True, True, True, True, False]
    assert kept(logits, top_p=0.4)[0].tolist() == [True, True, True, True, False]
    permuted = [3, 2, 4, 0, 1]
    np.testing.assert_array_equal(kept(logits[:, permuted], top_p=0.4), kept(logits, top_p=0.4)[:, permuted])


def test_the_most_likely_token_survives_every_cutoff() -> None:
    logits = np.zeros((1, 50))
    logits[0, 7] = 1e-3
    assert kept(logits, epsilon=0.9)[0].nonzero()[0].tolist() == [7]
    assert kept(logits, eta=1.0)[0, 7]
    assert kept(logits, top_p=0.0)[0].nonzero()[0].tolist() == [7]


def test_low_temperature_becomes_greedy_and_high_uniform() -> None:
    logits_BV, uniform_B = drawn(4)
    cold_BV, token_B = sampling(logits_BV, uniform_B, temperature=1e-4)
    np.testing.assert_array_equal(token_B, logits_BV.argmax(-1))
    hot_BV, _ = sampling(logits_BV, uniform_B, temperature=1e9)
    np.testing.assert_allclose(hot_BV, 1 / 40, rtol=1e-6)
    assert np.all(cold_BV.max(-1) > 0.99)


def test_drawing_inverts_the_cumulative_distribution() -> None:
    probabilities = np.array([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    at = {0.0: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, 0.9999: 4, 1.0: 4}
    assert [int(draw(probabilities, np.array([u]))[0]) for u in at] == list(at.values())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Equally spaced uniforms hit every token its share of times, give or take one: an exact law, not a statistic."""
    logits_BV, _ = drawn(5, B=1, V=12)
    N = 10_000
    probabilities_BV, token_B = sampling(np.repeat(logits_BV, N, axis=0), (np.arange(N) + 0.5) / N, top_p=0.9)
    counts = np.bincount(token_B, minlength=12)
    assert np.all(np.abs(counts - N * probabilities_BV[0]) <= 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", SAMPLING.options, ids=str)
def test_rows_without_a_distribution_draw_nothing(bad: float, options: dict[str, float]) -> None:
    logits_BV, uniform_B = drawn(6)
    logits_BV[1, 3] = bad
    logits_BV[2] = -np.inf
    with np.errstate(invalid="ignore"):
        probabilities_BV, token_B = sampling(logits_BV, uniform_B, **options)  # type: ignore[arg-type]
    assert token_B[0] >= 0
    assert token_B[1:].tolist() == [-1, -1]
    assert np.isnan(probabilities_BV[1]).all()
    assert not probabilities_BV[2].any()


@pytest.mark.parametrize("twin", [t for t in twins_of(SAMPLING) if t.backend != "triton"], ids=lambda t: t.backend)
def test_twins_agree_on_a_whole_vocabulary(twin) -> None:  # type: ignore[no-untyped-def]
    """Large enough that candidates do not all fit the shortcuts, and ties as 16-bit logits have them."""
    rng = np.random.default_rng(8)
    logits_BV = (3 * rng.standard_normal((4, 20_000))).astype(np.float16).astype(np.float64)
    logits_BV[3] *= 1e-3  # nearly flat: thousands of tokens are needed to reach any share
    uniform_B = rng.random(4)
    without_the_likeliest = {"typical_p": 0.2, "epsilon": 0.5}
    for options in (*SAMPLING.options, without_the_likeliest, {"top_k": 1}, {"top_p": 0.0}):
        expected_BV, expected_B = sampling(logits_BV, uniform_B, **options)  # type: ignore[arg-type]
        given = (logits_BV, uniform_B)
        if twin.backend == "torch":
            torch = pytest.importorskip("torch", reason="needs torch")
            given = tuple(torch.from_numpy(array) for array in given)
        actual_BV, actual_B = (to_numpy(part) for part in twin.function(*given, **options))
        np.testing.assert_array_equal(actual_BV > 0, expected_BV > 0, err_msg=str(options))
        np.testing.assert_array_equal(actual_B, expected_B)
        np.testing.assert_allclose(actual_BV, expected_BV, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"eta": float("nan")}, "eta=nan"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sampling(np.zeros((1, 3)), np.zeros(1), **options)  # type: ignore[arg-type]
