"""What only Llama 3.1's scaled rotary embedding has."""

import numpy as np
import pytest

from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_llama3 import llama3_frequencies, rope_llama3


def test_llama3_keeps_fast_pairs_slows_slow_ones_and_never_reorders():
    plain, scaled = inverse_frequencies(128, 500000.0), llama3_frequencies(128)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(scaled[turns >= 4], plain[turns >= 4])
    np.testing.assert_allclose(scaled[turns <= 1], plain[turns <= 1] / 8, rtol=1e-15)
    between = (turns > 1) & (turns < 4)
    assert between.sum() > 3
    assert ((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8)).all()
    assert (np.diff(scaled) < 0).all()
    np.testing.assert_allclose(llama3_frequencies(128, factor=1.0), plain, rtol=1e-15)


@pytest.mark.parametrize("head_width", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies_equal_transformers_to_float32(head_width, factor):
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.positions.rope_llama3 import transformers_frequencies

    bands = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = transformers_frequencies(head_width, theta=500000.0, original_context=8192, **bands)
    np.testing.assert_allclose(found, llama3_frequencies(head_width, **bands), rtol=1e-6)


def test_llama3_refuses_bands_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"high_freq_factor=1.0: must be above low_freq_factor=1.0"):
        rope_llama3(np.ones((1, 1, 1, 4)), np.zeros((1, 1), int), high_freq_factor=1.0)
