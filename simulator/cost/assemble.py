"""From tables to the seconds of a step: the arithmetic that the readable and the compiled path share, written once.

`StepCost` calls these functions with tables of plain lists; `cost/compiled.py` compiles the very same functions with Numba and
hands them arrays. Keep them to what Numba compiles: numbers, indexing, `math`, `min`, `max`, if and for; no dictionaries made
here, no keyword-only arguments, no strings. Both paths then do the same operations in the same order and get the same bits.

A step is described by seven numbers: tokens through the linear layers, rows of the output layer, prompts (requests with more
than one new token), requests that compute one token, the tokens those attend to, and (through `prefill_s`) the sums of the
prompts' new tokens and of their (query, key) pairs. Whatever else a cost depends on belongs into the tables.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

TABLE_ROWS = 1024
"""Row counts up to this are tabulated one by one; above, every 32 up to 8192 and by a factor 2**(1/16) beyond, a straight
line between."""


class Tables(NamedTuple):
    """What `StepCost` is made of. Sequences are lists, or arrays where compiled.

    Attributes:
        tokens_s: seconds of everything that runs on the step's new tokens, by their number from 0 to `TABLE_ROWS`.
        emitted_s: of everything that runs on the emitted rows only.
        rows: row counts of the next two, ascending.
        tokens_far_s, emitted_far_s: the same seconds at `rows`.
        contexts: mean contexts of the decode tables, eight per doubling from 1.
        decode_s: number of decode requests -> seconds of decode attention at each of `contexts`.
        decode_launch_s: what decode attention saves when prompts share its launch.
        gaps_s: idle time between the kernels of a step.
        launch_s: host time to launch all kernels one by one.
        graph_launch_s: host time to replay a captured step.
        graph_tokens: largest step without prompts that is replayed; -1 where none is.
        host_step_s, host_request_step_s: host time per step, and per request and step.
        stages: pipeline stages a step's requests are dealt to, see `seconds`.
    """

    tokens_s: Any
    emitted_s: Any
    rows: Any
    tokens_far_s: Any
    emitted_far_s: Any
    contexts: Any
    decode_s: Any
    decode_launch_s: float
    gaps_s: float
    launch_s: float
    graph_launch_s: float
    graph_tokens: int
    host_step_s: float
    host_request_step_s: float
    stages: int = 1


def linear_s(near: Any, far: Any, grid: Any, rows: int) -> float:
    """Look up a table of rows: exact to `TABLE_ROWS`, on straight lines beyond, proportional past the end."""
    if rows <= TABLE_ROWS:
        return near[rows]
    last = grid[-1]
    if rows > last:
        return far[-1] * rows / last
    low, high = 0, len(grid) - 1
    while low < high:  # first place whose row count is not below
        middle = (low + high) // 2
        if grid[middle] < rows:
            low = middle + 1
        else:
            high = middle
    left, right = grid[low - 1], grid[low]
    below = far[low - 1]
    return below + (far[low] - below) * (rows - left) / (right - left)


def decode_s(t: Tables, requests: int, context_tokens: int) -> float:
    """Decode attention of requests that attend to this many tokens together: straight lines between tabulated contexts."""
    context = context_tokens / requests
    place = min(int(8.0 * math.log2(context)), len(t.contexts) - 2) if context > 1.0 else 0
    table, left = t.decode_s[requests], t.contexts[place]
    low = table[place]
    return low + (table[place + 1] - low) * (context - left) / (t.contexts[place + 1] - left)


def attention_s(t: Tables, prompts: int, decode_requests: int, decode_context_tokens: int, prefill_s: float) -> float:
    """Seconds of all attention; prompts and decoding requests share its launch."""
    if decode_requests == 0:
        return prefill_s
    seconds = decode_s(t, decode_requests, decode_context_tokens)
    if prompts > 0:
        seconds -= t.decode_launch_s
    return prefill_s + seconds


def device_s(
    t: Tables,
    new_tokens: int,
    emitted: int,
    prompts: int,
    decode_requests: int,
    decode_context_tokens: int,
    prefill_s: float,
) -> float:
    """Seconds the devices compute and communicate."""
    if new_tokens == 0:
        return 0.0
    linear = linear_s(t.tokens_s, t.tokens_far_s, t.rows, new_tokens)
    output = linear_s(t.emitted_s, t.emitted_far_s, t.rows, emitted)
    return linear + output + attention_s(t, prompts, decode_requests, decode_context_tokens, prefill_s) + t.gaps_s


def launch_s(t: Tables, new_tokens: int, prompts: int) -> float:
    """Seconds the host needs to submit the step's kernels."""
    if prompts == 0 and new_tokens <= t.graph_tokens:
        return t.graph_launch_s
    return t.launch_s


def host_s(t: Tables, requests: int) -> float:
    """Seconds of host work that no device work hides."""
    return t.host_step_s + t.host_request_step_s * requests if requests > 0 else 0.0


def micro_batch(
    stages: int, new_tokens: int, emitted: int, prompts: int, decode_requests: int, decode_context_tokens: int
) -> tuple[int, int, int, int]:
    """The largest part of a step dealt to `stages`: its tokens, emitted rows, decodes and what those attend to."""
    decodes = math.ceil(decode_requests / min(stages, max(decode_requests, 1)))
    prefills = math.ceil((new_tokens - decode_requests) / min(stages, max(prompts, 1)))
    rows = math.ceil(emitted / min(stages, max(decode_requests + prompts, 1)))
    context = math.ceil(decode_context_tokens * decodes / decode_requests) if decode_requests > 0 else 0
    return decodes + prefills, rows, decodes, context


def seconds(
    t: Tables,
    new_tokens: int,
    emitted: int,
    prompts: int,
    decode_requests: int,
    decode_context_tokens: int,
    prefill_s: float,
) -> float:
    """Seconds of the step: the device's, or the launches' where those take longer, and the host's on top.

    With pipeline stages, as many micro-batches are under way, each with its part of the requests (vLLM: as many batches in
    flight as stages). While one passes all stages every other advances once too, so a step of all requests takes what one
    micro-batch takes through the whole model. Prompts are dealt whole; `prefill_s` is that of a micro-batch already. This
    is exact for equal micro-batches and stages; a lone long prompt beside decodes is priced as the micro-batch that holds it.
    """
    if new_tokens == 0:
        return 0.0
    requests = decode_requests + prompts
    if t.stages > 1:
        new_tokens, emitted, decode_requests, decode_context_tokens = micro_batch(
            t.stages, new_tokens, emitted, prompts, decode_requests, decode_context_tokens
        )
    device = device_s(t, new_tokens, emitted, prompts, decode_requests, decode_context_tokens, prefill_s)
    return max(device, launch_s(t, new_tokens, prompts)) + host_s(t, requests)
