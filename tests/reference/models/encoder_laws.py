"""Laws that encoders and encoder-decoders share, asserted on any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmlab.harness.tolerance import error_of


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the order of sums: float64 leaves 2**-40 of the largest value for a handful of layers."""
    assert error_of(actual, expected) <= 2.0**-40 * np.abs(expected).max(initial=1.0)


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of a table of shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def assert_cutting_targets_changes_nothing(
    encode: Callable[..., np.ndarray], decode_step: Callable[..., Any], config: Any, weights: Any, inputs: Mapping[str, Any]
) -> None:
    """Decoding token by token over cached keys and values, the encoder's output given once, equals decoding at once."""
    source, keep, target = inputs["source"], inputs["keep_BM"], inputs["target_BT"]
    memory = encode(config, weights, source, keep) if keep is not None else encode(config, weights, source)
    more = {"keep_BM": keep} if keep is not None else {}
    whole, _ = decode_step(config, weights, target, memory, **more)
    past, parts = None, []
    for t in range(target.shape[1]):
        logits, past = decode_step(config, weights, target[:, t : t + 1], None if past else memory, **more, past=past)
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), whole)


def assert_every_weight_matters(
    call: Callable[[Mapping[str, np.ndarray]], np.ndarray], weights: Mapping[str, np.ndarray]
) -> None:
    """No weight is read and dropped: moving any of them moves the result, but for biases of keys, which softmax cancels."""
    before = call(weights)
    for name, array in weights.items():
        if name.endswith(("k_proj.bias", "key.bias")):
            continue
        moved = array + 0.3 * np.random.default_rng(0).standard_normal(array.shape)
        assert error_of(call({**weights, name: moved}), before) > 1e-6, f"{name} has no say"
