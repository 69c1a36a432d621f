"""Batches computed one after the other from the arrival times, without a queue or a step loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving.static_batching import largest_head
from llmlab.reference.serving.dynamic_batching import DYNAMIC_BATCHING


@oracle(DYNAMIC_BATCHING, library="exact enumeration")
def dynamic_batching(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    window_ns: int,
    step_ns: int,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[int, list[int], list[int]]]:
    order = sorted(range(len(requests)), key=lambda i: (requests[i]["at_ns"], i))
    left = [
        (i, requests[i]["at_ns"], requests[i]["prompt_tokens"], requests[i]["output_tokens"])
        for i in order
        if requests[i]["prompt_tokens"] <= max_num_batched_tokens
        and len(range(0, requests[i]["prompt_tokens"] + requests[i]["output_tokens"] - 1, block_tokens)) <= num_blocks
    ]
    log: list[tuple[int, list[int], list[int]]] = []
    free_ns = 0
    while left:
        due_ns = left[0][1] + window_ns
        full_ns = left[max_num_seqs - 1][1] if len(left) >= max_num_seqs else due_ns
        start_ns = max(free_ns, left[0][1], min(due_ns, full_ns))
        there = [(prompt, output) for _, at_ns, prompt, output in left if at_ns <= start_ns]
        count = largest_head(there, rows=max_num_seqs, tokens=max_num_batched_tokens, blocks=num_blocks, size=block_tokens)
        batch, left = left[:count], left[count:]
        longest = max(output for *_, output in batch)
        for step in range(longest):
            ids = [i for i, _, _, output in batch if step < output]
            log.append((start_ns + step * step_ns, ids, [i for i, *_ in batch] if step + 1 == longest else []))
        free_ns = start_ns + longest * step_ns
    return log
