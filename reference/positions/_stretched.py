"""What rotary embeddings with changed frequencies have in common: their bound on the stretch, and most of their declaration."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Dims
from llmlab.reference.positions.rope import ROPE


def require_stretch(factor: float) -> None:
    """Refuse a factor that would shrink the context.

    Raises:
        ValueError: a factor below 1.
    """
    if not factor >= 1:
        raise ValueError(f"factor={factor}: must be at least 1")


def draw_early_positions(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Positions below 16 to begin with: libraries keep these frequencies in float32, which far positions magnify."""
    return rng.integers(0, 16, (d["B"], 1)) + np.arange(d["T"])


STRETCHED: dict[str, Any] = {
    "cost": ROPE.cost,
    "dims": ROPE.dims,
    "derived": ROPE.derived,
    "empty": ROPE.empty,
    "powers": ROPE.powers,
    "draw": {"positions_BT": draw_early_positions},
}
"""Fields of the `Op` of a rotation by other frequencies: all of plain rotation's but for where positions start."""

QUERIES_8K = {"B": 1, "T": 8192, "N": 32, "R": 64}
"""All queries of 8,192 tokens in a model of Llama's size."""
