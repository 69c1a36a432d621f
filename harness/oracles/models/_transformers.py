"""A transformers model with given weights: built from its configuration, in float64, on a CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def loaded(model: Any, weights: Mapping[str, np.ndarray], *, made: tuple[str, ...] = (), tie: bool = True) -> Any:
    """Fill a freshly built model; weights that it makes or ties itself are named in `made` by the end of their name."""
    import torch

    model = model.double().eval()
    state = {name: torch.from_numpy(np.array(array, np.float64)) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith(made)] if made else missing
    assert not missing, f"transformers also wants {missing}"
    assert not unexpected, f"transformers does not know {unexpected}"
    if tie:
        model.tie_weights()
    return model
