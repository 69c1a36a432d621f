"""Is a run under a plan the run of one process? To the last bit, or within what rounding can explain.

A number that went through n roundings is off by at most n half-units in the last place of the largest value it was summed from
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1, to first order). n is counted from the architecture: the
terms of every sum on the longest way from a weight through loss and backward to its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.harness.runtime.trainer import Trained
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.training.plan import ParallelPlan


def roundings(config: ModelConfig, plan: ParallelPlan, steps: int = 1) -> int:
    """Terms of all sums that follow each other in one step: forward, twice as many backward, and the tokens of the batch.

    >>> roundings(ModelConfig("one", "llama", 2, 2, 1, 1, 1, 2, vocab_size=3), ParallelPlan(sequence=4))
    97
    """
    D, H, T = config.hidden_size, config.head_dim, plan.sequence
    inner = config.moe_intermediate_size + config.num_experts_per_tok if config.is_moe else config.intermediate_size
    layer = 2 * D + (D + H + 2 * T + config.query_width) + (D + inner) + 2  # two norms, attention, feed-forward, two additions
    forward = config.num_hidden_layers * layer + 2 * D + config.vocab_size
    return steps * (3 * forward + plan.global_batch * plan.sequence)


def differences(run: Trained, alone: Trained) -> dict[str, float]:
    """Largest difference of losses, of each weight's gradient and of each weight; infinite where something is missing."""
    found = {"losses": _largest(run.losses, alone.losses)}
    for what in ("gradients", "weights"):
        ours, theirs = getattr(run, what), getattr(alone, what)
        found |= {f"{what} of {name}": _largest(ours.get(name), theirs[name]) for name in theirs}
    return found


def _largest(ours: np.ndarray | None, theirs: np.ndarray) -> float:
    if ours is None or ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0.0))


def allowed(config: ModelConfig, alone: Trained, plan: ParallelPlan) -> dict[str, float]:
    """How far losses, gradients and weights may be apart: half a unit in the last place of the largest, per rounding.

    The scale is the largest gradient of any weight: one that cancels to nothing (a bias of keys) was summed from such terms.
    """
    half_unit = 0.5 * float(np.finfo(plan.precision).eps)
    many = roundings(config, plan, len(alone.losses))
    return {
        "losses": many * half_unit * float(np.abs(alone.losses).max()),
        "gradients": many * half_unit * _scale(alone.gradients),
        "weights": many * half_unit * max(_scale(alone.weights), _scale(alone.gradients)),
    }


def _scale(arrays: Mapping[str, np.ndarray]) -> float:
    return max((float(np.abs(one).max(initial=0.0)) for one in arrays.values()), default=0.0)


def assert_same(config: ModelConfig, plan: ParallelPlan, run: Trained, alone: Trained, *, exact: bool) -> None:
    """Raise where a run is not that of one process.

    Raises:
        AssertionError: a loss, gradient or weight is off by more than allowed (anything at all where `exact`).
    """
    limits = allowed(config, alone, plan)
    for name, difference in differences(run, alone).items():
        limit = 0.0 if exact else limits[name.split(" of ")[0]]
        if not difference <= limit:
            raise AssertionError(f"{plan.schedule}: {name} differ by {difference:.3g}, allowed {limit:.3g}")
