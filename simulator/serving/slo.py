"""Service-level objectives: `ttft_p99=2s,tpot_p99=50ms` as data, as a test of results, and as a watch that gives up early."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.reference.errors import InputError

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency",
    "e2e": "whole request",
}
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_TARGET = re.compile(r"\s*([a-z0-9]+)_([a-z0-9.]+)\s*=\s*([^\s]+)\s*")
_AMOUNT = re.compile(r"([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)([a-z]*)")


@dataclass(frozen=True)
class Target:
    """One clause: a statistic of a metric is at most `seconds`.

    Attributes:
        quantile: 0.99 for p99, 1.0 for max; None for the mean.
    """

    metric: str
    statistic: str
    seconds: float

    @property
    def quantile(self) -> float | None:
        """The fraction of requests that must keep the limit; None for a mean."""
        if self.statistic == "mean":
            return None
        return 1.0 if self.statistic == "max" else float(self.statistic[1:]) / 100

    def __str__(self) -> str:
        return f"{self.metric}_{self.statistic}={self.seconds:g}s"


@dataclass(frozen=True)
class Slo:
    """All clauses must hold."""

    targets: tuple[Target, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.targets))

    def limit(self, metric: str) -> float:
        """The tightest limit on a metric in seconds; infinite where there is none."""
        return min((target.seconds for target in self.targets if target.metric == metric), default=math.inf)

    def relaxed(self, factor: float) -> Slo:
        """The same clauses with every limit `factor` times as long."""
        return Slo(tuple(Target(target.metric, target.statistic, factor * target.seconds) for target in self.targets))

    def broken(self, summary: Mapping[str, Mapping[str, float | None]]) -> list[str]:
        """Say which clauses a summary ({"ttft_s": {"p99": ...}}) breaks; a statistic that does not exist breaks none."""
        said = []
        for target in self.targets:
            value = summary[f"{target.metric}_s"].get(target.statistic)
            if value is not None and value > target.seconds:
                said.append(f"{target.metric}_{target.statistic} {value:.4g} s > {target.seconds:g} s")
        return said


def parse_slo(text: str) -> Slo:
    """Read clauses separated by commas, each METRIC_STATISTIC=AMOUNT with a unit.

    Raises:
        InputError: no clause, an unknown metric, statistic or unit, a limit that is not positive, or the same clause twice.

    >>> print(parse_slo("ttft_p99=2s,tpot_p99=50ms"))
    ttft_p99=2s,tpot_p99=0.05s
    """
    targets: list[Target] = []
    for clause in text.split(","):
        found = _TARGET.fullmatch(clause)
        if not found:
            raise InputError("--slo", "clause", clause.strip(), "must read METRIC_STATISTIC=AMOUNT, as in ttft_p99=2s")
        metric, statistic, amount = found.groups()
        if metric not in METRICS:
            raise InputError("--slo", "metric", metric, f"is none of {', '.join(METRICS)}")
        percent = float(statistic[1:]) if re.fullmatch(r"p[0-9]+(\.[0-9]+)?", statistic) else math.nan
        if statistic not in ("mean", "max") and not 0 < percent < 100:
            raise InputError("--slo", "statistic", statistic, "is none of mean, max, p50, p90, p99, p99.9 (above 0, below 100)")
        parts = _AMOUNT.fullmatch(amount)
        try:
            number = float(parts.group(1)) if parts else math.nan
        except ValueError:
            number = math.nan
        unit = parts.group(2) if parts else ""
        if math.isnan(number):
            raise InputError("--slo", f"{metric}_{statistic}", amount, "must be a number with a unit, as in 50ms")
        if unit not in UNITS:
            raise InputError("--slo", f"{metric}_{statistic}", amount, f"needs a unit, one of {', '.join(UNITS)}")
        if not (0 < number < math.inf):
            raise InputError("--slo", f"{metric}_{statistic}", amount, "must be positive")
        if any((target.metric, target.statistic) == (metric, statistic) for target in targets):
            raise InputError("--slo", "clause", clause.strip(), "is given twice")
        targets.append(Target(metric, statistic, number * UNITS[unit]))
    return Slo(tuple(targets))


class Watch:
    """Counts while a run goes on, and says when a clause can no longer hold whatever the rest does.

    For a quantile q of n values (linear interpolation between order statistics, as NumPy computes it) that is when
    n - floor((n - 1) q) of them lie above the limit; for a mean, when their sum alone passes n times the limit.
    """

    def __init__(self, slo: Slo, output_tokens: Sequence[int] | np.ndarray) -> None:
        count = {"ttft": len(output_tokens), "e2e": len(output_tokens), "tpot": int((np.asarray(output_tokens) > 1).sum())}
        self.targets: dict[str, list[list[float]]] = {"ttft": [], "tpot": [], "e2e": []}
        for target in slo.targets:
            if target.metric not in self.targets:
                continue  # gaps are not known per request
            n = count[target.metric]
            if target.quantile is None:
                entry = [target.seconds * 1e9, 0.0, target.seconds * 1e9 * n, 1.0]
            else:
                entry = [target.seconds * 1e9, 0.0, n - math.floor((n - 1) * target.quantile), 0.0]
            self.targets[target.metric].append(entry)

    def _over(self, metric: str, nanoseconds: float) -> bool:
        over = False
        for entry in self.targets[metric]:
            limit, so_far, most, is_mean = entry
            if is_mean:
                entry[1] = so_far + nanoseconds
                over |= entry[1] > most
            elif nanoseconds > limit:
                entry[1] = so_far + 1
                over |= entry[1] >= most
        return over

    def first_token(self, ttft_ns: int) -> bool:
        """Count a time to first token."""
        return self._over("ttft", ttft_ns)

    def finished(self, decode_ns: int, e2e_ns: int, output_tokens: int) -> bool:
        """Count a finished request."""
        over = self._over("e2e", e2e_ns)
        return (output_tokens > 1 and self._over("tpot", decode_ns / (output_tokens - 1))) or over

    def failed(self) -> bool:
        """A refused request breaks any objective."""
        return True
