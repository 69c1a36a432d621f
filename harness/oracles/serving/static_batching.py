"""Padded batches as a table of rows: which request is at which token in which step follows from its lengths alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.static_batching import STATIC_BATCHING


def largest_head(waiting: Sequence[tuple[int, int]], *, rows: int, tokens: int, blocks: int, size: int) -> int:
    """How many of these (prompt, output) make a batch: the longest head that fits every limit when padded."""
    best = 0
    for count in range(1, min(rows, len(waiting)) + 1):
        longest = max(p for p, _ in waiting[:count]) + max(o for _, o in waiting[:count]) - 1
        if count * max(p for p, _ in waiting[:count]) > tokens or count * len(range(0, longest, size)) > blocks:
            break
        best = count
    return best


@oracle(STATIC_BATCHING, library="exact enumeration")
def static_batching(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    requests: Sequence[Mapping[str, Any]],
    prefix_caching: bool = False,
) -> list[tuple[Any, ...]]:
    coming = sorted(enumerate(requests), key=lambda pair: (pair[1]["step"], pair[0]))
    waiting: list[int] = []
    log: list[tuple[Any, ...]] = []
    lengths = {i: (len(drawn["prompt"]), drawn["output_tokens"]) for i, drawn in coming}
    rows: list[int] = []
    step = 0  # of the batch that runs
    while coming or waiting or rows:
        refused = []
        while coming and coming[0][1]["step"] <= len(log):
            index, _ = coming.pop(0)
            prompt, output = lengths[index]
            if prompt > max_num_batched_tokens or len(range(0, prompt + output - 1, block_tokens)) > num_blocks:
                refused.append(index)
            else:
                waiting.append(index)
        if not rows:
            count = largest_head(
                [lengths[i] for i in waiting],
                rows=max_num_seqs, tokens=max_num_batched_tokens, blocks=num_blocks, size=block_tokens,
            )  # fmt: skip
            rows, waiting, step = waiting[:count], waiting[count:], 0
        slices = []
        for index in rows:
            prompt, output = lengths[index]
            if step < output:
                slices.append((index, prompt + step - 1, 1, True) if step else (index, 0, prompt, True))
        step += 1
        finished: list[int] = []
        if rows and all(lengths[i][1] <= step for i in rows):
            finished, rows = rows, []
        for index in [i for i in rows if requests[i].get("stop_after") == step and lengths[i][1] >= step]:
            rows.remove(index)
            finished.append(index)
        log.append((slices, [], finished, refused))
    return log
