"""What only sinusoidal positions have."""

import numpy as np
import pytest

from llmlab.reference.positions.sinusoidal import encoding, sinusoidal


def test_a_shift_is_the_same_rotation_at_every_position():
    """Section 3.5: PE(pos + k) is a linear function of PE(pos)."""
    table = encoding(np.arange(40)[None], 16)[0]
    shift = np.linalg.lstsq(table[:20], table[7:27], rcond=None)[0]
    np.testing.assert_allclose(table[:30] @ shift, table[7:37], atol=1e-9)


def test_closeness_depends_on_distance_only():
    table = encoding(np.arange(30)[None], 64)[0]
    products = table @ table.T
    for distance in (1, 5, 20):
        np.testing.assert_allclose(np.diagonal(products, distance), products[0, distance], rtol=1e-12)
    assert products[0, 0] == pytest.approx(32)


def test_marian_puts_all_sines_first():
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = np.asarray(MarianSinusoidalPositionalEmbedding(20, 16).create_weight())
    ours = encoding(np.arange(20)[None], 16)[0]
    np.testing.assert_allclose(theirs, np.concatenate([ours[:, 0::2], ours[:, 1::2]], axis=1), atol=1e-6)


def test_whisper_spaces_wavelengths_wider_than_the_paper():
    """The paper's slowest of R wavelengths is theta^((R-1)/R); Whisper stretches the same R over the whole of theta."""
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.whisper.modeling_whisper import sinusoids

    R, theirs = 8, sinusoids(20, 16).numpy()
    ours = encoding(np.arange(20)[None], 16)[0]
    ordered = np.concatenate([ours[:, 0::2], ours[:, 1::2]], axis=1)
    assert np.abs(theirs - ordered).max() > 0.1
    stretched = encoding(np.arange(20)[None], 16, theta=10000.0 ** (R / (R - 1)))[0]
    np.testing.assert_allclose(theirs, np.concatenate([stretched[:, 0::2], stretched[:, 1::2]], axis=1), atol=1e-5)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="head_width=5"):
        sinusoidal(np.ones((1, 1, 5)), np.zeros((1, 1), int))
