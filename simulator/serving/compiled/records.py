"""What the compiled loop remembers: one record per request and per replica, and the arrays around them.

Requests and replicas are referred to by number; -1 is none. Times are integer nanoseconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NEVER = -1
FAR = 1 << 62

CHUNKED_PREFILL, CONTINUOUS_BATCHING, GUARANTEED_NO_EVICT, GUARANTEED_PREFILL_FIRST = range(4)
ROUND_ROBIN, LEAST_OUTSTANDING, RANDOM, POWER_OF_TWO, PREFIX_AFFINITY, KV_AWARE = range(6)

IDLE, WAITING, BEGUN, FRESH, DECODING = range(5)
"""Kinds of request: nowhere, waiting, prompt begun, decoding but not one decode step yet, decoding."""

SERVABLE, TOO_LONG, NEVER_FITS = range(3)
"""May a request be served, is it longer than the model's context, or would the scheduler refuse it?"""


def _record(text: str, kind: type = np.int64) -> np.dtype[Any]:
    return np.dtype([(name, kind) for name in text.split()])


REQUEST = _record(
    """prompt_tokens output_tokens may_serve
    sent_ns scheduled_ns first_token_ns finished_ns cached_at_start preemptions replica
    kind computed generated cached emitted_ns joins number next previous heap_place
    first_key num_keys remembered first_bit failures again_ns again"""
)
"""A request. While it decodes, `computed` and `generated` are kept less the replica's `clock`, so that a decode step, which
adds one to both for every request, changes no request: the clock alone goes on.

joins: first step it may be scheduled in, while it is on its way in. number: order of admission on its replica.
emitted_ns: its last token (of a decoding request that is no longer fresh, the replica knows). previous, next: in the list it
is in. first_key, num_keys: its prefix identities. remembered: blocks given to the prefix cache or taken from it; bit
`first_bit + i` says whether its block i is the cached one. failures: how often its replica failed; after one of them it is sent
again at again_ns. again: not the request's own, but an entry of the heap of those that are to be sent again, in this order."""

REPLICA = _record(
    """policy max_num_seqs max_num_batched_tokens max_chunk_tokens watermark_blocks num_blocks block_tokens caching
    event step end_ns duration_ns settled_ns idle woken
    waiting_first waiting_last waiting incoming_first incoming_last incoming running_first running_last running admitted
    clock decoding offsets fresh begun heap last_token_ns
    free promised least_free most_running busy_ns
    slices decodes decode_requests context_tokens emitted prompts prompt_tokens pairs_twice preempted
    outstanding seen up"""
)
"""A replica. event: twice the instant of its next event, plus one for the start of a step; `FAR` while it sleeps.

clock: decode steps so far. decoding: requests that decode, `offsets` the sum of their `computed`. fresh, begun, heap,
slices: lengths of its rows in `World`. free: blocks nobody holds and no prefix cache keeps. promised: blocks that running
requests may still ask for, kept right where a policy admits by it (and so preempts nobody).
decodes: decoding requests that the running step computes; the slices of all others stand in `World.slices`."""

RUN = _record(
    """now next_arrival sent unfinished over gave_up stuck events
    num_steps kept stride
    gaps steps refused draws turn next_fault again gateway_first gateway_last up metered limit
    clients think_ns frontend_ns reply_ns settle_ns router balance queue_tokens capacity_blocks stale
    router_block_tokens lag_whole record_steps watched key_parts keys_are_finer watch_ttft watch_tpot watch_e2e"""
)
"""The run: options and counters.

gaps, steps, refused, draws: how much of those buffers is used. again: requests in that heap.
num_steps, kept, stride: of a sample, how many steps there were, how many it keeps, and every how many-th it keeps; a second
entry counts a second sample.
up: replicas that may be chosen; while there is none, requests wait at the gateway. limit: retries of one request.
"""

SLICE = _record("request start tokens emits")
STEP = _record("replica start_ns duration_ns prefill_tokens decode_requests context_tokens waiting preempted")
SAMPLE = _record("duration_ns decode_requests context_tokens emitted prompts")

METER = _record("lag_fraction after_idle devices decode_w prefill_w balance_rows busy_j computing_ns w share", np.float64)
"""What of a replica is no whole number. lag_fraction, after_idle: see `cluster.py`. The rest is energy: what `energy.Power`
knows of a device, and how many there are; the sums so far; power and computing share of the running step."""

FAULT = _record("at_ns fails replica played pause_ns")
"""An outage, or a repair; played: 1 once it has changed something. pause_ns: before the n-th retry of a request, in the n-th
entry, where no outage takes part."""


class Memory(NamedTuple):
    """One map per replica from key to slot, with a list of slots in order of last use. Rows are replicas.

    `table_key` and `table_slot` are a hash table with linear probing (-1 = empty); the slots hold the key, the references and
    the neighbours in the list.
    """

    table_key: np.ndarray
    table_slot: np.ndarray
    key: np.ndarray
    references: np.ndarray
    previous: np.ndarray
    next: np.ndarray
    first: np.ndarray
    last: np.ndarray
    listed: np.ndarray
    unused: np.ndarray
    num_unused: np.ndarray


def new_memory(replicas: int, slots: int) -> Memory:
    """Empty maps that hold up to `slots` keys each."""
    size = 1 << max(2, (2 * slots - 1).bit_length())
    return Memory(
        table_key=np.zeros((replicas, size), dtype=np.int64),
        table_slot=np.full((replicas, size), -1, dtype=np.int32),
        key=np.zeros((replicas, slots), dtype=np.int64),
        references=np.zeros((replicas, slots), dtype=np.int32),
        previous=np.full((replicas, slots), -1, dtype=np.int32),
        next=np.full((replicas, slots), -1, dtype=np.int32),
        first=np.full(replicas, -1, dtype=np.int64),
        last=np.full(replicas, -1, dtype=np.int64),
        listed=np.zeros(replicas, dtype=np.int64),
        unused=np.tile(np.arange(slots - 1, -1, -1, dtype=np.int32), (replicas, 1)),
        num_unused=np.full(replicas, slots, dtype=np.int64),
    )


class World(NamedTuple):
    """Everything the loop reads and writes.

    Attributes:
        run: one `RUN`.
        arrival_ns: of each request in an open loop.
        residues: per replica, decoding requests by `computed` modulo the block size: whose next token needs a block when.
        begun, fresh, heap: requests per replica, the first two in order of admission, the last a heap by the clock at which
            they finish, then by order of admission.
        slices: per replica, the slices of its running step that are no plain decode.
        winners: tournament over the replicas' events.
        gaps: pairs of an inter-token gap and how many tokens came after it.
        refused: requests in the order of their refusal.
        draws: uniform numbers for the router.
        samples, sampled_prompts: a row per sample of the steps: one counts their ends, another their starts.
        watches: rows (limit, so far, most, is a mean) of `slo.Watch`: first TTFT, then TPOT, then E2E.
        keys: prefix identities of all requests.
        bits: see `REQUEST`.
        cache: prefix cache of each replica.
        sent: what a router remembers of each replica.
        meters: one per replica.
        faults: in the order in which they are played.
    """

    run: np.ndarray
    requests: np.ndarray
    replicas: np.ndarray
    arrival_ns: np.ndarray
    residues: np.ndarray
    begun: np.ndarray
    fresh: np.ndarray
    heap: np.ndarray
    slices: np.ndarray
    winners: np.ndarray
    gaps: np.ndarray
    steps: np.ndarray
    refused: np.ndarray
    draws: np.ndarray
    samples: np.ndarray
    sampled_prompts: np.ndarray
    watches: np.ndarray
    meters: np.ndarray
    keys: np.ndarray
    bits: np.ndarray
    done: np.ndarray
    cache: Memory
    sent: Memory
    faults: np.ndarray
