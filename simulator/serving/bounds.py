"""What the cost model alone rules out: lower bounds that hold for any schedule. Units: seconds and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.deployment import Site
from llmlab.simulator.serving.slo import Slo
from llmlab.simulator.workload.workload import Workload


@dataclass(frozen=True)
class Bounds:
    """What the cost model alone says about a device group.

    Attributes:
        reason: why no number of replicas can keep the objective; empty where one might.
        replicas: no fewer can do the work of the busiest stretch in time.
    """

    reason: str = ""
    replicas: int = 1


def bounds(site: Site, window: Workload, slo: Slo) -> Bounds:
    """Lower bounds that hold for any schedule.

    A token after the first takes at least a step of one decode over its shortest context, a first token at least the
    prefill of its own prompt (one token of it, where prefixes may be cached) in the largest allowed steps. Work: a step of n
    tokens takes at least n times the smallest time per token of any step, whatever else is in it.
    """
    cost, largest = site.cost, site.max_num_batched_tokens

    def prefill_s(tokens: int) -> float:
        whole, rest = divmod(int(tokens), largest)
        steps = [BatchShape(((largest, i * largest),), 0, 0, 0) for i in range(whole)]
        if rest > 1:
            steps.append(BatchShape(((rest, whole * largest),), 0, 0, 1))
        elif rest:
            steps.append(BatchShape((), 1, whole * largest + 1, 1))
        return sum(cost.step_ns(step) for step in steps) / 1e9

    longest = int((window.prompt_tokens + window.output_tokens).max())
    if site.longest_tokens is not None and longest > site.longest_tokens:
        return Bounds(f"requests of {longest} tokens pass the model's context of {site.longest_tokens}")
    blocks = -(-(longest - 1) // site.deployment.block_tokens)
    if blocks > site.kv_blocks:
        return Bounds(f"HBM capacity: the longest request needs {blocks} KV blocks, {site.kv_blocks} fit beside the weights")
    decode_s = cost.step_ns(BatchShape((), 1, 1, 1)) / 1e9
    prompts = np.sort(window.prompt_tokens)
    for target in slo.targets:
        fraction = target.quantile
        if target.metric in ("tpot", "itl") and decode_s > target.seconds:
            return Bounds(f"a lone request takes {decode_s * 1e3:.1f} ms per token ({cost.binding(BatchShape((), 1, 1, 1))})")
        if target.metric == "ttft" and fraction is not None and not window.block_hashes:
            prompt = int(prompts[math.floor((len(prompts) - 1) * fraction)])
            least = prefill_s(prompt) + site.engine.host_request_s
            if least > target.seconds:
                return Bounds(f"a lone prompt of {prompt} tokens takes {least:.2f} s to its first token (compute)")
    tokens = float((window.output_tokens - 1).sum()) + (
        len(window) if window.block_hashes else float(window.prompt_tokens.sum())
    )
    sizes = np.unique(np.minimum(2 ** np.arange(0, 40), largest))
    per_token_s = min(cost.step_ns(BatchShape((), int(n), int(n), int(n))) / 1e9 / n for n in sizes)
    # e2e is not bounded by the objective in general, so only a workload that lasts long tells how much time there is
    allowed_s = window.span_s + max(60.0, slo.limit("e2e") if math.isfinite(slo.limit("e2e")) else 60.0)
    return Bounds(replicas=max(1, math.ceil(tokens * per_token_s / allowed_s)) if not window.clients else 1)
