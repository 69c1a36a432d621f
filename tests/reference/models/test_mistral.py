"""What only Mistral has."""

import numpy as np

from llmlab.reference.models._blocks import drawn
from llmlab.reference.models.mistral import ARCHITECTURE, mistral


def test_every_layer_carries_what_it_sees_one_window_further() -> None:
    """Two layers of 4 positions: the last token hears of the 6 before it and of none further back (section 2, figure 1)."""
    config, weights = drawn(ARCHITECTURE, "mistral windowed")
    ids = np.arange(12)[None]
    last = mistral(config, weights, ids)[0, -1]
    for place in range(11):
        other = ids.copy()
        other[0, place] = 30
        heard = np.abs(mistral(config, weights, other)[0, -1] - last).max() > 1e-9
        assert heard == (place >= 12 - 1 - 2 * 3)


def test_without_a_window_the_first_token_is_heard() -> None:
    config, weights = drawn(ARCHITECTURE, "mistral")
    ids = np.arange(12)[None]
    other = ids.copy()
    other[0, 0] = 30
    assert np.abs(mistral(config, weights, other) - mistral(config, weights, ids))[0, -1].max() > 1e-6
