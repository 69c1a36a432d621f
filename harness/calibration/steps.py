"""How long a step of the engine takes on this machine: a formula of its shape, fitted on steps that ran.

    seconds = step + requests b + body g(tokens) + head g(emitted)                 matrix products, g piecewise linear
            + decode context a + prefill pairs p + gathered context c + prompts d  attention

`g` is the time of all matrix products at m rows: one curve for the body's matrices and the output matrix, weighed by their
sizes. All coefficients are at least 0. The fit minimizes relative errors and gives stalls (another process took the core)
little weight; what they cost on average is put back by one factor, so that totals agree. What the formula leaves
unexplained is kept in order of time, so that a simulation can be run with the machine's own unsteadiness.
Units: seconds, tokens, requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from typing import Any

import numpy as np

from llmlab.harness.runtime.engine import Step
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.cost.batch import BatchShape

KNOTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rows at which the time of the matrix products is fitted; straight lines between, in proportion beyond the last."""

TERMS = ("step_s", "request_s", "context_token_s", "pair_s", "gathered_token_s", "prompt_s")
STALL = 3.0
"""A step more than this many times as long as predicted counts as that long: somebody else's work, not this engine's."""
STRETCH_S = 3.0
"""The machine's drift is what remains of the residuals averaged over so many seconds."""
BEND = 0.1
"""How much of a median step the curve is taken to bend from knot to knot."""
LEAST_DRIFT = 0.07
"""No machine is trusted to repeat itself better than this from one minute to the next: three quiet runs on a shared virtual
machine of 2 cores came out 3, 2 and 12 % slower than the minute before them had said."""
FEWEST_STEPS = 50


@dataclass(frozen=True)
class StepFit:
    """The fitted formula and what it leaves unexplained.

    Attributes:
        knots: row counts of the curve.
        head_share: the output matrix's part of all weights multiplied.
        coefficients: seconds of all matrix products at each knot, then one per name of `TERMS`.
        variants: the same, fitted on stretches of the measured steps drawn with replacement: what chance did to the fit.
        ratios: measured / predicted of each step, in order of time.
        drift: standard deviation of the logarithm of measured / predicted over whole stretches.
        after_idle: measured / predicted of steps that ran shortly after the engine had been idle, at least 1.
        held_out_error: median absolute relative error of single steps left out of a trial fit.
    """

    knots: tuple[int, ...]
    head_share: float
    coefficients: tuple[float, ...]
    variants: tuple[tuple[float, ...], ...]
    ratios: np.ndarray
    drift: float
    held_out_error: float
    after_idle: float = 1.0

    def seconds(self, shape: BatchShape, coefficients: Sequence[float] | None = None) -> float:
        """Predicted duration of one step, by the coefficients fitted or others."""
        if not shape.new_tokens:
            return 0.0
        chosen = self.coefficients if coefficients is None else coefficients
        return sum(amount * chosen[place] for place, amount in _parts(shape, self.knots, self.head_share))

    def step_ns(self, shape: BatchShape) -> int:
        """Predicted whole nanoseconds of one step."""
        return max(1, round(self.seconds(shape) * 1e9))

    def unsteady_ns(self, rng: np.random.Generator) -> Callable[[BatchShape], int]:
        """A machine like this one on another day: a variant of the fit, a drift, and the residuals from a random place on."""
        variant = self.variants[int(rng.integers(len(self.variants)))]
        slow = float(np.exp(self.drift * rng.standard_normal()))
        ratios = cycle(np.roll(self.ratios, -int(rng.integers(len(self.ratios)))).tolist())
        return lambda shape: max(1, round(self.seconds(shape, variant) * slow * next(ratios) * 1e9))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        curve, terms = self.coefficients[: len(self.knots)], self.coefficients[len(self.knots) :]
        return {
            "steps": len(self.ratios),
            "held_out_error": self.held_out_error,
            "drift": self.drift,
            "after_idle": self.after_idle,
            "head_share": self.head_share,
            "matrix_products_s": {str(knot): seconds for knot, seconds in zip(self.knots, curve)},
            **dict(zip(TERMS, terms)),
        }


def _parts(shape: BatchShape, knots: Sequence[int], share: float) -> list[tuple[int, float]]:
    """The coefficients a step is made of: (place, amount), a place possibly twice."""
    curve = [(place, weight * (1 - share)) for place, weight in _neighbours(shape.new_tokens, knots)]
    curve += [(place, weight * share) for place, weight in _neighbours(shape.emitted, knots)]
    return curve + [(len(knots) + index, amount) for index, amount in enumerate(_amounts(shape)) if amount]


def _amounts(shape: BatchShape) -> tuple[float, ...]:
    """How much of each of `TERMS` a step holds."""
    pairs = sum(new * (cached + 0.5 * (new + 1)) for new, cached in shape.prefill)
    gathered = sum(new + cached for new, cached in shape.prefill if cached)
    prompts = len(shape.prefill)
    return (1.0, shape.decode_requests + prompts, shape.decode_context_tokens, pairs, gathered, prompts)


def _neighbours(rows: int, knots: Sequence[int]) -> list[tuple[int, float]]:
    """The knots that interpolate at `rows`, with their weights.

    >>> _neighbours(6, (4, 8)), _neighbours(0, (4, 8)), _neighbours(16, (4, 8))
    ([(0, 0.5), (1, 0.5)], [], [(1, 2.0)])
    """
    if rows <= 0:
        return []
    if rows >= knots[-1]:
        return [(len(knots) - 1, rows / knots[-1])]
    above = next(place for place, knot in enumerate(knots) if knot > rows)
    if above == 0:
        return [(0, 1.0)]
    part = (rows - knots[above - 1]) / (knots[above] - knots[above - 1])
    return [(above - 1, 1 - part), (above, part)]


def head_share(config: ModelConfig) -> float:
    """The output matrix's part of all weights a token is multiplied with.

    >>> round(head_share(ModelConfig("one", "llama", 8, 12, 1, 1, 1, 8, vocab_size=68)), 2)
    0.5
    """
    head = config.vocab_size * config.hidden_size
    shapes = [shape for layer in range(config.num_hidden_layers) for shape in config.layer_shapes(layer).values()]
    return head / (head + sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2))


def fit_steps(steps: Sequence[Step], config: ModelConfig, *, variants: int = 16) -> StepFit:
    """Fit the formula on measured steps, in the order they ran.

    A trial fit leaves every fifth step out and is scored on those; the formula returned is fitted on all.

    Raises:
        ValueError: fewer than 50 steps.
    """
    if len(steps) < FEWEST_STEPS:
        raise ValueError(f"{len(steps)} steps are too few to fit: need {FEWEST_STEPS}")
    share = head_share(config)
    most = max(step.shape.new_tokens for step in steps)
    knots = (*(knot for knot in KNOTS if knot < most), most)
    design = np.zeros((len(steps), len(knots) + len(TERMS)))
    for row, step in zip(design, steps):
        for place, amount in _parts(step.shape, knots, share):
            row[place] += amount
    measured = np.array([step.duration_s for step in steps])

    held = np.arange(len(steps)) % 5 == 4
    trial = design[held] @ _solve(design[~held], measured[~held], knots)
    solution = _with_stalls(design, measured, _solve(design, measured, knots))
    predicted = design @ solution
    clipped = np.minimum(measured, STALL * predicted)
    stretch = (np.cumsum(clipped) // STRETCH_S).astype(int)
    rng = np.random.default_rng(0)
    return StepFit(
        knots=knots,
        head_share=share,
        coefficients=tuple(solution.tolist()),
        variants=tuple(
            tuple(_with_stalls(design[drawn], measured[drawn], _solve(design[drawn], measured[drawn], knots)).tolist())
            for drawn in (_resample(stretch, rng) for _ in range(variants))
        ),
        ratios=np.divide(clipped, predicted, out=np.ones_like(clipped), where=predicted > 0),
        drift=_drift(stretch, clipped, predicted),
        held_out_error=float(np.median(np.abs(trial / measured[held] - 1))),
    )


def with_idle(fit: StepFit, steps: Sequence[Step]) -> StepFit:
    """The same fit, knowing how much longer steps after an idle pause take in total; stalls count up to `STALL`."""
    predicted = np.array([fit.seconds(step.shape) for step in steps])
    measured = np.minimum([step.duration_s for step in steps], STALL * predicted)
    return replace(fit, after_idle=max(1.0, float(measured.sum() / predicted.sum())))


def _with_stalls(design: np.ndarray, measured: np.ndarray, solution: np.ndarray) -> np.ndarray:
    """Scale a robust fit so that it gives the total time, stalls included up to `STALL`."""
    predicted = design @ solution
    return solution * (np.minimum(measured, STALL * predicted).sum() / predicted.sum())


def _resample(stretch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Steps of as many stretches as there are, drawn with replacement."""
    places = [np.flatnonzero(stretch == number) for number in np.unique(stretch)]
    return np.concatenate([places[chosen] for chosen in rng.integers(len(places), size=len(places))])


def _solve(design: np.ndarray, measured: np.ndarray, knots: Sequence[int]) -> np.ndarray:
    """Non-negative least squares of relative errors, reweighted so that steps far off (stalls) count little.

    The curve never falls (more rows never take less time), and its bends are taken to be about `BEND` of a median step: the
    noisier the steps, the more that holds knots which few of them touch to their neighbours.
    """
    from scipy.optimize import nnls

    rises = np.eye(design.shape[1])
    rises[: len(knots), : len(knots)] = np.tri(len(knots))  # solve for the curve's rises from knot to knot
    bend = np.zeros((max(len(knots) - 2, 0), design.shape[1]))
    for i, (before, after) in enumerate(pairwise(np.diff(knots))):
        bend[i, i : i + 3] = np.array([1 / before, -1 / before - 1 / after, 1 / after]) * min(before, after)
    bend = bend @ rises / (BEND * np.median(measured))
    columns = design @ rises
    scale = columns.max(axis=0)
    scale[scale == 0] = 1.0
    weight, spread = np.ones(len(measured)), 0.1
    solution = np.zeros(design.shape[1])
    for _ in range(8):
        stacked = np.vstack([columns * (weight / measured)[:, None], spread * bend]) / scale
        target = np.concatenate([weight, np.zeros(len(bend))])
        solution = nnls(stacked, target, maxiter=100 * design.shape[1])[0] / scale
        residual = np.abs(measured / np.maximum(columns @ solution, 1e-12) - 1)
        spread = max(1.4826 * float(np.median(residual)), 1e-3)
        weight = np.sqrt(np.minimum(1.0, 1.5 * spread / np.maximum(residual, 1e-12)))
    return rises @ solution


def _drift(stretch: np.ndarray, measured: np.ndarray, predicted: np.ndarray) -> float:
    """Standard deviation of log(measured / predicted) of whole stretches."""
    total, expected = np.bincount(stretch, measured), np.bincount(stretch, predicted)
    ratios = total[expected > 0] / expected[expected > 0]  # one long stall may span a whole stretch and leave it empty
    return max(float(np.log(ratios).std()), LEAST_DRIFT)
