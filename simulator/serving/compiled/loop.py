"""The serving loop of `cluster.py` and the schedulers it drives, compiled: equal event times, without Python.

A step that only decodes costs the same for one request and for a thousand. Every decoding request advances by one token
per decode step, so what a step needs is kept in sums: how many decode, how many tokens they attend to (a sum that grows by
their number), who finishes next (a heap), and how many need a new KV block now (those whose length has one residue modulo the
block size). A request is touched when it arrives, is admitted, computes a part of its prompt, emits its first token, finishes
or is preempted.

The order of ties is that of `cluster.py`: arrivals, then ends of steps, then starts of steps, by number.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from llmlab.simulator.cost.compiled import ALONE, step_ns
from llmlab.simulator.serving.compiled import memory
from llmlab.simulator.serving.compiled.memory import INSIDE
from llmlab.simulator.serving.compiled.records import (
    BEGUN,
    CHUNKED_PREFILL,
    DECODING,
    FAR,
    FRESH,
    GUARANTEED_NO_EVICT,
    GUARANTEED_PREFILL_FIRST,
    IDLE,
    KV_AWARE,
    LEAST_OUTSTANDING,
    NEVER,
    NEVER_FITS,
    POWER_OF_TWO,
    PREFIX_AFFINITY,
    RANDOM,
    ROUND_ROBIN,
    TOO_LONG,
    WAITING,
)

DONE, PAUSED, STUCK = range(3)
_function = njit(**ALONE, **INSIDE)


# Events


@_function
def schedule_event(w: Any, replica: Any, event: Any) -> None:
    """Set a replica's next event and play its matches of the tournament again."""
    w.replicas[replica].event = event
    leaves = len(w.winners) // 2
    place = (leaves + replica) // 2
    while place:
        left, right = w.winners[2 * place], w.winners[2 * place + 1]
        if right >= 0 and w.replicas[right].event < w.replicas[left].event:
            w.winners[place] = right
        else:
            w.winners[place] = left
        place //= 2


@_function
def count_gap(w: Any, gap: Any, times: Any) -> None:
    """So many tokens came this long after the one before."""
    place = w.run[0].gaps
    w.gaps[place, 0] = gap
    w.gaps[place, 1] = times
    w.run[0].gaps = place + 1


# Lists of requests: waiting, incoming (first in, first out), running (in order of admission)


@_function
def free_blocks(w: Any, replica: Any) -> Any:
    """Blocks that can be given out now, cached ones that nobody uses included."""
    return w.replicas[replica].free + w.cache.listed[replica]


@_function
def allocate(w: Any, replica: Any, count: Any) -> None:
    """Take blocks; what was cached and is unused longest goes first when none is empty."""
    r = w.replicas[replica]
    while count > r.free:
        slot = w.cache.first[replica]
        memory.unlink(w.cache, replica, slot)
        memory.remove(w.cache, replica, slot)
        r.free += 1
    r.free -= count
    r.promised -= count


@_function
def push_waiting(w: Any, replica: Any, index: Any) -> None:
    """Queue a request."""
    r, q = w.replicas[replica], w.requests[index]
    q.kind, q.next = WAITING, -1
    if r.waiting_last < 0:
        r.waiting_first = index
    else:
        w.requests[r.waiting_last].next = index
    r.waiting_last = index
    r.waiting += 1


@_function
def unlink_running(w: Any, replica: Any, index: Any) -> None:
    """Take a request out of those that run."""
    r, q = w.replicas[replica], w.requests[index]
    if q.previous < 0:
        r.running_first = q.next
    else:
        w.requests[q.previous].next = q.next
    if q.next < 0:
        r.running_last = q.previous
    else:
        w.requests[q.next].previous = q.previous
    r.running -= 1


# Prefix identities


@_function
def key_of(w: Any, q: Any, block: Any) -> Any:
    """Identity of a request's block, as `Workload.hashes` gives it."""
    parts = w.run[0].key_parts
    if w.run[0].keys_are_finer:
        return w.keys[q.first_key + (block + 1) * parts - 1]
    return w.keys[q.first_key + block // parts] * parts + block % parts


@_function
def has_bit(w: Any, bit: Any) -> Any:
    """Say whether a block of a request is the cached one."""
    return (w.bits[bit >> 3] >> (bit & 7)) & 1


@_function
def set_bit(w: Any, bit: Any, value: Any) -> None:
    """Note whether a block of a request is the cached one."""
    mask = 1 << (bit & 7)
    if value:
        w.bits[bit >> 3] |= mask
    else:
        w.bits[bit >> 3] &= 255 - mask


@_function
def cached_blocks(w: Any, replica: Any, q: Any) -> Any:
    """Length of the longest cached prefix a request may reuse, and how many of its blocks nobody uses."""
    most = min((q.prompt_tokens + q.generated - 1) // w.replicas[replica].block_tokens, q.num_keys)
    unused = 0
    for block in range(most):
        slot = memory.find(w.cache, replica, key_of(w, q, block))
        if slot < 0:
            return block, unused
        unused += w.cache.references[replica, slot] == 0
    return most, unused


@_function
def take_cached(w: Any, replica: Any, q: Any, count: Any) -> None:
    """Share the first cached blocks of a request."""
    for block in range(count):
        slot = memory.find(w.cache, replica, key_of(w, q, block))
        if w.cache.references[replica, slot] == 0:
            memory.unlink(w.cache, replica, slot)
        w.cache.references[replica, slot] += 1
        set_bit(w, q.first_bit + block, True)


@_function
def remember(w: Any, replica: Any, q: Any, computed: Any) -> None:
    """Make full, computed blocks findable; where a block is known already this copy stays private."""
    upto = min(computed // w.replicas[replica].block_tokens, q.num_keys)
    for block in range(q.remembered, upto):
        key = key_of(w, q, block)
        new = memory.find(w.cache, replica, key) < 0
        if new:
            slot = memory.insert(w.cache, replica, key)
            w.cache.references[replica, slot] = 1
        set_bit(w, q.first_bit + block, new)
    q.remembered = max(q.remembered, upto)


@_function
def release(w: Any, replica: Any, q: Any, tokens: Any) -> None:
    """Give back the blocks of `tokens` tokens, the last first; what the prefix cache keeps stays findable."""
    r = w.replicas[replica]
    blocks = -(-tokens // r.block_tokens)
    if r.caching:
        for block in range(q.remembered - 1, -1, -1):
            if has_bit(w, q.first_bit + block):
                blocks -= 1
                slot = memory.find(w.cache, replica, key_of(w, q, block))
                w.cache.references[replica, slot] -= 1
                if w.cache.references[replica, slot] == 0:
                    memory.append(w.cache, replica, slot)
    r.free += blocks


# Decoding requests


@_function
def later(w: Any, a: Any, b: Any) -> Any:
    """Say whether request a finishes after request b."""
    one, two = w.requests[a], w.requests[b]
    end_one = one.output_tokens - one.generated
    end_two = two.output_tokens - two.generated
    return end_one > end_two or (end_one == end_two and one.number > two.number)


@_function
def sift_up(w: Any, replica: Any, place: Any) -> None:
    """Restore the heap above `place`."""
    heap = w.heap[replica]
    index = heap[place]
    while place > 0:
        above = (place - 1) // 2
        if not later(w, heap[above], index):
            break
        heap[place] = heap[above]
        w.requests[heap[place]].heap_place = place
        place = above
    heap[place] = index
    w.requests[index].heap_place = place


@_function
def sift_down(w: Any, replica: Any, place: Any) -> None:
    """Restore the heap below `place`."""
    heap, size = w.heap[replica], w.replicas[replica].heap
    index = heap[place]
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and later(w, heap[below], heap[below + 1]):
            below += 1
        if not later(w, index, heap[below]):
            break
        heap[place] = heap[below]
        w.requests[heap[place]].heap_place = place
        place = below
    heap[place] = index
    w.requests[index].heap_place = place


@_function
def begin_decoding(w: Any, replica: Any, index: Any) -> None:
    """One token of a request is missing: from now on it decodes with the others."""
    r, q = w.replicas[replica], w.requests[index]
    q.kind = FRESH
    q.computed -= r.clock
    q.generated -= r.clock
    w.fresh[replica, r.fresh] = index
    r.fresh += 1
    r.decoding += 1
    r.offsets += q.computed
    w.residues[replica, q.computed % r.block_tokens] += 1
    w.heap[replica, r.heap] = index
    r.heap += 1
    sift_up(w, replica, r.heap - 1)


@_function
def end_decoding(w: Any, replica: Any, index: Any) -> None:
    """Take a request out of the sums; its counts are its own again."""
    r, q = w.replicas[replica], w.requests[index]
    r.decoding -= 1
    r.offsets -= q.computed
    w.residues[replica, q.computed % r.block_tokens] -= 1
    r.heap -= 1
    place = q.heap_place
    if place < r.heap:
        moved = w.heap[replica, r.heap]
        w.heap[replica, place] = moved
        w.requests[moved].heap_place = place
        sift_up(w, replica, place)
        sift_down(w, replica, w.requests[moved].heap_place)
    q.computed += r.clock
    q.generated += r.clock
    q.kind = IDLE


# Choosing a step


@_function
def preempt_last(w: Any, replica: Any, has_slice: Any) -> Any:
    """Take the cache of the last running request, which then waits at the head and recomputes all it knew."""
    r = w.replicas[replica]
    index = r.running_last
    q = w.requests[index]
    unlink_running(w, replica, index)
    if q.kind == BEGUN:
        r.begun -= 1
        held = q.computed
    else:
        if q.kind == FRESH:
            r.fresh -= 1
        else:
            q.emitted_ns = r.last_token_ns
        end_decoding(w, replica, index)
        held = q.computed
        if has_slice:
            held += 1
            r.decodes -= 1
            r.decode_requests -= 1
            r.context_tokens -= held
            r.emitted -= 1
    release(w, replica, q, held)
    q.computed = q.cached = q.remembered = 0
    q.preemptions += 1
    r.preempted += 1
    q.kind, q.next = WAITING, r.waiting_first
    r.waiting_first = index
    if r.waiting_last < 0:
        r.waiting_last = index
    r.waiting += 1
    return index


@_function
def put(w: Any, replica: Any, index: Any, start: Any, tokens: Any, emits: Any) -> None:
    """Add a slice to the step."""
    r = w.replicas[replica]
    part = w.slices[replica, r.slices]
    part.request, part.start, part.tokens, part.emits = index, start, tokens, emits
    r.slices += 1
    if tokens == 1:
        r.decode_requests += 1
        r.context_tokens += start + 1
    else:
        r.prompts += 1
        r.prompt_tokens += tokens
        r.pairs_twice += tokens * (2 * start + tokens)
    r.emitted += emits


@_function
def decode_all(w: Any, replica: Any) -> None:
    """Give every decoding request its token and, where it needs one, its block; preempt the last where none is free."""
    r = w.replicas[replica]
    needed = w.residues[replica, (-r.clock) % r.block_tokens]
    if needed <= free_blocks(w, replica):
        allocate(w, replica, needed)
    else:
        index = r.running_first
        while index >= 0:
            q = w.requests[index]
            if q.kind != BEGUN and (q.computed + r.clock) % r.block_tokens == 0:
                itself = False
                while not itself and free_blocks(w, replica) == 0:
                    itself = preempt_last(w, replica, False) == index
                if itself:
                    break
                allocate(w, replica, 1)
            index = q.next
    r.decodes = r.decode_requests = r.emitted = r.decoding
    r.context_tokens = r.offsets + r.decoding * (r.clock + 1)


@_function
def continue_prompts(w: Any, replica: Any) -> None:
    """Compute the next pieces of prompts already begun, in order of admission."""
    r = w.replicas[replica]
    place = 0
    while place < r.begun:
        index = w.begun[replica, place]
        q = w.requests[index]
        missing = q.prompt_tokens + q.generated - q.computed
        left = r.max_num_batched_tokens - r.decode_requests - r.prompt_tokens
        tokens = min(missing, min(left, r.max_chunk_tokens))
        if tokens > 0:
            more = -(-(q.computed + tokens) // r.block_tokens) + (-q.computed // r.block_tokens)
            itself = False
            while not itself and more > free_blocks(w, replica):
                itself = preempt_last(w, replica, True) == index
            if itself:
                return
            if more > 0:
                allocate(w, replica, more)
            put(w, replica, index, q.computed, tokens, tokens == missing)
        place += 1


@_function
def admit_waiting(w: Any, replica: Any, budget: Any, whole: Any) -> None:
    """Start waiting requests, first come first served, while tokens, seats and blocks last."""
    r = w.replicas[replica]
    while r.waiting and budget > 0 and r.running < r.max_num_seqs:
        index = r.waiting_first
        q = w.requests[index]
        cached, unused = 0, 0
        if q.num_keys:
            cached, unused = cached_blocks(w, replica, q)
        start = cached * r.block_tokens
        missing = q.prompt_tokens + q.generated - start
        tokens = min(missing, min(budget, r.max_chunk_tokens))
        if whole and tokens < missing:
            return
        blocks = -(-(start + tokens) // r.block_tokens) - cached
        final = -(-(q.prompt_tokens + q.output_tokens - 1) // r.block_tokens) - cached
        wanted = blocks
        if r.policy == GUARANTEED_NO_EVICT or r.policy == GUARANTEED_PREFILL_FIRST:
            wanted = final + r.promised
        if wanted + unused + r.watermark_blocks > free_blocks(w, replica):
            return
        r.promised += final
        if cached:
            take_cached(w, replica, q, cached)
        allocate(w, replica, blocks)
        q.remembered, q.computed, q.cached = cached, start, min(start, q.prompt_tokens)
        r.waiting_first = q.next
        if r.waiting_first < 0:
            r.waiting_last = -1
        r.waiting -= 1
        q.kind, q.number = BEGUN, r.admitted
        r.admitted += 1
        q.previous, q.next = r.running_last, -1
        if r.running_last < 0:
            r.running_first = index
        else:
            w.requests[r.running_last].next = index
        r.running_last = index
        r.running += 1
        w.begun[replica, r.begun] = index
        r.begun += 1
        budget -= tokens
        put(w, replica, index, start, tokens, tokens == missing)


@_function
def choose_step(w: Any, replica: Any) -> None:
    """Fill in the replica's next step."""
    r = w.replicas[replica]
    r.slices = r.decodes = r.decode_requests = r.context_tokens = r.emitted = 0
    r.prompts = r.prompt_tokens = r.pairs_twice = r.preempted = 0
    if r.policy == CHUNKED_PREFILL or r.policy == GUARANTEED_NO_EVICT:
        if r.decoding:
            decode_all(w, replica)
        if r.begun:
            continue_prompts(w, replica)
        if r.waiting and r.preempted == 0:
            admit_waiting(w, replica, r.max_num_batched_tokens - r.decode_requests - r.prompt_tokens, False)
    else:
        if r.waiting:
            admit_waiting(w, replica, r.max_num_batched_tokens, True)
        if r.slices == 0:
            decode_all(w, replica)


# Requests come and go


@_function
def over_limit(w: Any, first: Any, last: Any, nanoseconds: Any) -> Any:
    """Count one value against the clauses of its metric; say whether one of them can no longer hold."""
    over = False
    for place in range(first, last):
        entry = w.watches[place]
        if entry[3] != 0.0:
            entry[1] += nanoseconds
            over |= entry[1] > entry[2]
        elif nanoseconds > entry[0]:
            entry[1] += 1.0
            over |= entry[1] >= entry[2]
    return over


@_function
def give_up(w: Any) -> None:
    """Stop: the objective cannot be met any more."""
    w.run[0].gave_up = w.run[0].over = 1


@_function
def send_next(w: Any, think_ns: Any) -> None:
    """A closed-loop client sends the next request of the list after its pause."""
    g = w.run[0]
    if g.sent < len(w.requests):
        w.requests[g.sent].sent_ns = g.now + think_ns
        g.sent += 1


@_function
def one_less(w: Any) -> None:
    """Stop when the last request is done; in a closed loop its client goes on."""
    g = w.run[0]
    g.unfinished -= 1
    if g.unfinished == 0:
        g.over = 1
    elif g.clients:
        send_next(w, g.think_ns)


@_function
def refuse(w: Any, index: Any) -> None:
    """This request can never be served."""
    g = w.run[0]
    w.refused[g.refused] = index
    g.refused += 1
    if g.watched:
        give_up(w)
    one_less(w)


@_function
def first_token(w: Any, index: Any, start_ns: Any) -> None:
    """The first token of a request exists."""
    g, q = w.run[0], w.requests[index]
    note_begun(w, q, start_ns)
    q.first_token_ns = g.now + g.reply_ns
    if g.watched and over_limit(w, 0, g.watch_ttft, q.first_token_ns - q.sent_ns):
        give_up(w)


@_function
def finish(w: Any, replica: Any, index: Any) -> None:
    """The last token of a request exists."""
    g, q = w.run[0], w.requests[index]
    q.finished_ns = g.now + g.reply_ns
    left(w, replica)
    if g.watched:
        over = over_limit(w, g.watch_tpot, g.watch_e2e, q.finished_ns - q.sent_ns)
        if q.output_tokens > 1:
            per_token = (q.finished_ns - q.first_token_ns) / (q.output_tokens - 1)
            over = over_limit(w, g.watch_ttft, g.watch_tpot, per_token) or over
        if over:
            give_up(w)
    one_less(w)


@_function
def left(w: Any, replica: Any) -> None:
    """Tell the router that one request of a replica is done."""
    r = w.replicas[replica]
    r.outstanding -= 1
    r.seen -= 1


@_function
def candidate(w: Any, place: Any) -> Any:
    """The replica at this place among those that may be chosen."""
    if w.run[0].up == len(w.replicas):
        return place
    replica = 0
    while place > 0 or not w.replicas[replica].up:
        place -= w.replicas[replica].up
        replica += 1
    return replica


@_function
def route(w: Any, q: Any) -> Any:
    """Choose a replica and count the request as outstanding there."""
    g, replicas = w.run[0], w.replicas
    count = len(replicas)
    chosen = -1
    if g.router == ROUND_ROBIN:
        chosen = g.turn
        while not replicas[chosen].up:
            chosen = (chosen + 1) % count
        g.turn = (chosen + 1) % count
    elif g.router == LEAST_OUTSTANDING:
        for replica in range(count):
            if replicas[replica].up and (chosen < 0 or replicas[replica].seen < replicas[chosen].seen):
                chosen = replica
    elif g.router == RANDOM:
        chosen = candidate(w, int(w.draws[g.draws] * g.up))
        g.draws += 1
    elif g.router == POWER_OF_TWO:
        place = int(w.draws[g.draws] * g.up)
        chosen = candidate(w, place)
        g.draws += 1
        if g.up > 1:
            other = int(w.draws[g.draws] * (g.up - 1))
            g.draws += 1
            second = candidate(w, other + (other >= place))
            if replicas[second].seen < replicas[chosen].seen:
                chosen = second
    else:
        chosen = route_by_prefix(w, q)
    replicas[chosen].outstanding += 1
    replicas[chosen].seen += 1
    return chosen


@_function
def route_by_prefix(w: Any, q: Any) -> Any:
    """The replica that was sent the longest prefix and is not too far ahead, or that has the least work ahead."""
    g, replicas = w.run[0], w.replicas
    count = len(replicas)
    least = FAR
    for replica in range(count):
        if replicas[replica].up:
            least = min(least, replicas[replica].seen)
    chosen, best = -1, FAR
    for replica in range(count):
        seen = replicas[replica].seen
        if not replicas[replica].up or (g.router == PREFIX_AFFINITY and seen > least + g.balance):
            continue
        known = 0
        while known < q.num_keys and memory.find(w.sent, replica, key_of(w, q, known)) >= 0:
            known += 1
        if g.router == PREFIX_AFFINITY:
            cost = -known
        else:
            cost = g.queue_tokens * seen + max(0, q.prompt_tokens - known * g.router_block_tokens)
        if chosen < 0 or cost < best or (cost == best and seen < replicas[chosen].seen):
            chosen, best = replica, cost
    for block in range(q.num_keys):
        key = key_of(w, q, block)
        slot = memory.find(w.sent, chosen, key)
        if slot < 0:
            slot = memory.insert(w.sent, chosen, key)
        else:
            memory.unlink(w.sent, chosen, slot)
        memory.append(w.sent, chosen, slot)
    while w.sent.listed[chosen] > g.capacity_blocks:
        slot = w.sent.first[chosen]
        memory.unlink(w.sent, chosen, slot)
        memory.remove(w.sent, chosen, slot)
    return chosen


@_function
def add(w: Any, replica: Any, index: Any) -> None:
    """Hand a request to the scheduler; one that can never fit is refused."""
    if w.requests[index].may_serve == NEVER_FITS:
        left(w, replica)
        refuse(w, index)
    else:
        push_waiting(w, replica, index)


@_function
def deliver(w: Any, index: Any) -> None:
    """A request reaches the gateway for the first time; one that is longer than the model's context is refused."""
    if w.requests[index].may_serve == TOO_LONG:
        refuse(w, index)
    else:
        arrive(w, index)


@_function
def arrive(w: Any, index: Any) -> None:
    """Hand out a request, or keep it at the gateway where no replica can be chosen."""
    g = w.run[0]
    if g.up:
        hand_out(w, index)
        return
    w.requests[index].next = -1
    if g.gateway_last < 0:
        g.gateway_first = index
    else:
        w.requests[g.gateway_last].next = index
    g.gateway_last = index


@_function
def hand_out(w: Any, index: Any) -> None:
    """Route one request; its replica takes it now or, working ahead, later."""
    g, q = w.run[0], w.requests[index]
    replica = route(w, q)
    q.replica = replica
    r = w.replicas[replica]
    lag_fraction = w.meters[replica].lag_fraction
    if r.idle == 0 and (g.lag_whole > 0 or lag_fraction > 0.0):
        missed = (r.end_ns - g.now) < lag_fraction * r.duration_ns
        q.joins, q.next = r.step + 1 + g.lag_whole + missed, -1
        if r.incoming_last < 0:
            r.incoming_first = index
        else:
            w.requests[r.incoming_last].next = index
        r.incoming_last = index
        r.incoming += 1
        return
    add(w, replica, index)
    if r.idle and r.waiting:
        r.idle, r.woken = 0, 1
        schedule_event(w, replica, 2 * g.now + 1)


@_function
def take_incoming(w: Any, replica: Any) -> None:
    """Hand the first request on its way in to the scheduler."""
    r = w.replicas[replica]
    index = r.incoming_first
    r.incoming_first = w.requests[index].next
    if r.incoming_first < 0:
        r.incoming_last = -1
    r.incoming -= 1
    add(w, replica, index)


@_function
def note_begun(w: Any, q: Any, now_ns: Any) -> None:
    """Record the start of the first step that computes a part of a request."""
    if q.scheduled_ns == NEVER:
        q.scheduled_ns = now_ns
        q.cached_at_start = q.cached


# Steps


@_function
def start_step(w: Any, replica: Any, cost: Any) -> None:
    """Choose a step and let its time begin, or sleep where there is nothing to do."""
    g, r = w.run[0], w.replicas[replica]
    if r.woken:
        r.woken = 0
        r.settled_ns = g.now + g.settle_ns
    while True:
        while r.incoming and w.requests[r.incoming_first].joins <= r.step + 1:
            take_incoming(w, replica)
        choose_step(w, replica)
        if r.decodes + r.slices:
            break
        if r.preempted:
            continue
        if r.incoming:
            while r.incoming:
                take_incoming(w, replica)
            continue
        if r.waiting:
            g.stuck = replica + 1
            g.over = 1
        r.idle = 1
        schedule_event(w, replica, FAR)
        return
    r.step += 1
    duration_ns = step_ns(
        cost,
        r.decode_requests + r.prompt_tokens,
        r.emitted,
        r.prompts,
        r.prompt_tokens,
        0.5 * r.pairs_twice,
        r.decode_requests,
        r.context_tokens,
    )
    if g.now < r.settled_ns:
        duration_ns = round(duration_ns * w.meters[replica].after_idle)
    r.least_free = min(r.least_free, free_blocks(w, replica))
    r.most_running = max(r.most_running, r.decodes + r.slices)
    if r.prompts:
        if r.decodes:
            for place in range(r.fresh):
                q = w.requests[w.fresh[replica, place]]
                if q.generated + r.clock == 0:
                    note_begun(w, q, g.now)
        for place in range(r.slices):
            q = w.requests[w.slices[replica, place].request]
            if q.generated == 0:
                note_begun(w, q, g.now)
    r.end_ns, r.duration_ns = g.now + duration_ns, duration_ns
    if g.metered:
        meter_step(w, replica)
    schedule_event(w, replica, 2 * r.end_ns)


@_function
def copy_sample(w: Any, row: Any, origin: Any, place: Any) -> None:
    """Keep a sampled step at another place."""
    kept, old = w.samples[row, place], w.samples[row, origin]
    kept.duration_ns, kept.decode_requests, kept.context_tokens = old.duration_ns, old.decode_requests, old.context_tokens
    kept.emitted, kept.prompts = old.emitted, old.prompts
    for i in range(old.prompts):
        w.sampled_prompts[row, place, i, 0] = w.sampled_prompts[row, origin, i, 0]
        w.sampled_prompts[row, place, i, 1] = w.sampled_prompts[row, origin, i, 1]


@_function
def sample_step(w: Any, row: Any, replica: Any) -> None:
    """Count a replica's step, and keep it whole where it is one of the sample."""
    r, s = w.replicas[replica], w.run[row]
    if s.num_steps & (s.stride - 1) == 0:
        if s.kept == w.samples.shape[1]:
            s.kept = w.samples.shape[1] // 2
            s.stride *= 2
            for place in range(1, s.kept):
                copy_sample(w, row, 2 * place, place)
        if s.num_steps & (s.stride - 1) == 0:
            kept = w.samples[row, s.kept]
            kept.duration_ns, kept.decode_requests, kept.context_tokens = r.duration_ns, r.decode_requests, r.context_tokens
            kept.emitted, kept.prompts = r.emitted, r.prompts
            count = 0
            for place in range(r.slices):
                part = w.slices[replica, place]
                if part.tokens > 1:
                    w.sampled_prompts[row, s.kept, count, 0] = part.tokens
                    w.sampled_prompts[row, s.kept, count, 1] = part.start
                    count += 1
            s.kept += 1
    s.num_steps += 1


@_function
def meter_step(w: Any, replica: Any) -> None:
    """Note the energy of a step at its start."""
    r, m = w.replicas[replica], w.meters[replica]
    m.share = min(1.0, (r.decode_requests + r.prompt_tokens) / m.balance_rows)
    m.w = m.devices * (m.decode_w + (m.prefill_w - m.decode_w) * m.share)
    m.busy_j += m.w * r.duration_ns / 1_000_000_000
    m.computing_ns += m.share * r.duration_ns
    sample_step(w, 1, replica)


@_function
def note_step(w: Any, replica: Any) -> None:
    """Record the step that ends now."""
    g, r = w.run[0], w.replicas[replica]
    sample_step(w, 0, replica)
    r.busy_ns += r.duration_ns
    if g.record_steps:
        step = w.steps[g.steps]
        step.replica, step.start_ns, step.duration_ns = replica, g.now - r.duration_ns, r.duration_ns
        step.prefill_tokens, step.decode_requests, step.context_tokens = r.prompt_tokens, r.decode_requests, r.context_tokens
        step.waiting, step.preempted = r.waiting + r.incoming, r.preempted
        g.steps += 1


@_function
def end_decodes(w: Any, replica: Any) -> Any:
    """The decoding requests have their tokens; return how many are done, listed in `w.done`."""
    g, r = w.run[0], w.replicas[replica]
    start_ns = g.now - r.duration_ns
    steady = r.decodes - r.fresh
    if steady:
        count_gap(w, g.now - r.last_token_ns, steady)
    r.last_token_ns = g.now
    r.clock += 1
    for place in range(r.fresh):
        index = w.fresh[replica, place]
        q = w.requests[index]
        q.kind = DECODING
        if r.caching:
            computed = q.computed + r.clock
            if computed % r.block_tokens == 0:
                remember(w, replica, q, computed)
        if q.emitted_ns == NEVER:
            first_token(w, index, start_ns)
        else:
            count_gap(w, g.now - q.emitted_ns, 1)
        q.emitted_ns = g.now
    r.fresh = 0
    done = 0
    while r.heap:
        index = w.heap[replica, 0]
        q = w.requests[index]
        if q.generated + r.clock < q.output_tokens:
            break
        end_decoding(w, replica, index)
        w.done[done] = index
        done += 1
    return done


@_function
def end_slices(w: Any, replica: Any, done: Any) -> Any:
    """The pieces of prompts are computed; return how many requests are done in all."""
    g, r = w.run[0], w.replicas[replica]
    start_ns = g.now - r.duration_ns
    for place in range(r.slices):
        part = w.slices[replica, place]
        index = part.request
        q = w.requests[index]
        q.computed += part.tokens
        if part.emits:
            q.generated += 1
            if q.emitted_ns == NEVER:
                first_token(w, index, start_ns)
            else:
                count_gap(w, g.now - q.emitted_ns, 1)
            q.emitted_ns = g.now
        if r.caching and (part.tokens > 1 or q.computed % r.block_tokens == 0):
            remember(w, replica, q, q.computed)
        if q.generated >= q.output_tokens:
            q.kind = IDLE
            w.done[done] = index
            done += 1
        elif q.prompt_tokens + q.generated - q.computed == 1:
            begin_decoding(w, replica, index)
    kept = 0
    for place in range(r.begun):
        index = w.begun[replica, place]
        if w.requests[index].kind == BEGUN:
            w.begun[replica, kept] = index
            kept += 1
    r.begun = kept
    return done


@_function
def end_step(w: Any, replica: Any) -> None:
    """Hand out the tokens of the step that ends now."""
    g, r = w.run[0], w.replicas[replica]
    note_step(w, replica)
    done = 0
    if r.decodes:
        done = end_decodes(w, replica)
    if r.slices:
        done = end_slices(w, replica, done)
    for place in range(done):
        index = w.done[place]
        unlink_running(w, replica, index)
        release(w, replica, w.requests[index], w.requests[index].computed)
    for place in range(done):
        finish(w, replica, w.done[place])
    schedule_event(w, replica, 2 * g.now + 1)


# Outages


@_function
def sooner(w: Any, a: Any, b: Any) -> Any:
    """Say whether request a is sent again before request b."""
    one, two = w.requests[a].again_ns, w.requests[b].again_ns
    return one < two or (one == two and a < b)


@_function
def push_again(w: Any, index: Any) -> None:
    """Let a request be sent again at its time."""
    place = w.run[0].again
    w.run[0].again = place + 1
    while place > 0:
        above = (place - 1) // 2
        if not sooner(w, index, w.requests[above].again):
            break
        w.requests[place].again = w.requests[above].again
        place = above
    w.requests[place].again = index


@_function
def pop_again(w: Any) -> Any:
    """Take the request that is sent again first."""
    size = w.run[0].again - 1
    w.run[0].again = size
    first, index = w.requests[0].again, w.requests[size].again
    place = 0
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and sooner(w, w.requests[below + 1].again, w.requests[below].again):
            below += 1
        if not sooner(w, w.requests[below].again, index):
            break
        w.requests[place].again = w.requests[below].again
        place = below
    w.requests[place].again = index
    return first


@_function
def send_again(w: Any, replica: Any, index: Any) -> None:
    """Send a request whose replica failed once more, after a pause and with what it has emitted, unless it failed too often."""
    g, q = w.run[0], w.requests[index]
    left(w, replica)
    q.kind = IDLE
    q.computed = q.cached = q.remembered = 0
    q.failures += 1
    if q.failures > g.limit:
        refuse(w, index)
    else:
        q.again_ns = g.now + w.faults[q.failures - 1].pause_ns
        push_again(w, index)


@_function
def turn(w: Any, replica: Any, up: Any) -> None:
    """Let a replica be chosen from now on, or not."""
    g, r = w.run[0], w.replicas[replica]
    g.up += up - r.up
    r.up = up
    w.faults[g.next_fault].played = 1


@_function
def fail(w: Any, replica: Any) -> None:
    """A replica and all it holds is gone; its requests go back to the gateway: running, waiting, not yet taken in."""
    g, r = w.run[0], w.replicas[replica]
    if r.event != FAR and r.event & 1 == 0:  # the running step is lost, its time was spent
        left_ns = r.end_ns - g.now
        r.busy_ns += r.duration_ns - left_ns
        if g.metered:
            m = w.meters[replica]
            m.busy_j -= m.w * left_ns / 1_000_000_000
            m.computing_ns -= m.share * left_ns
    turn(w, replica, 0)
    if g.router == PREFIX_AFFINITY or g.router == KV_AWARE:
        memory.clear(w.sent, replica)
    for part in range(3):
        index = (r.running_first, r.waiting_first, r.incoming_first)[part]
        while index >= 0:
            q = w.requests[index]
            after = q.next
            if q.kind == DECODING:
                q.emitted_ns = r.last_token_ns
            if part == 0 and q.kind != BEGUN:
                q.generated += r.clock
            send_again(w, replica, index)
            index = after
    for residue in range(r.block_tokens):
        w.residues[replica, residue] = 0
    memory.clear(w.cache, replica)
    r.running_first = r.running_last = r.waiting_first = r.waiting_last = r.incoming_first = r.incoming_last = -1
    r.running = r.waiting = r.incoming = r.begun = r.fresh = r.heap = r.decoding = r.offsets = 0
    r.slices = r.decodes = r.promised = r.end_ns = r.duration_ns = r.woken = 0
    r.free, r.idle = r.num_blocks, 1
    schedule_event(w, replica, FAR)


@_function
def repair(w: Any, replica: Any) -> None:
    """A replica is whole again; what waits at the gateway is handed out, in order of arrival."""
    g = w.run[0]
    if w.replicas[replica].up:
        return
    turn(w, replica, 1)
    while g.gateway_first >= 0:
        index = g.gateway_first
        g.gateway_first = w.requests[index].next
        hand_out(w, index)
    g.gateway_last = -1


@_function
def play_faults(w: Any) -> None:
    """Repairs, then outages of this instant."""
    g = w.run[0]
    while g.next_fault < len(w.faults) and w.faults[g.next_fault].at_ns == g.now:
        fault = w.faults[g.next_fault]
        if fault.fails:
            fail(w, fault.replica)
        else:
            repair(w, fault.replica)
        g.next_fault += 1


@_function
def run_until(w: Any, cost: Any, most_events: Any) -> Any:
    """Go on until the run is over, a buffer may overflow, or so many events have passed."""
    g = w.run[0]
    gaps_at_once = len(w.done) + 2
    nothing_ns = FAR >> 1
    for _ in range(most_events):
        if g.over:
            return STUCK if g.stuck else DONE
        if g.gaps + gaps_at_once > len(w.gaps) or (g.record_steps and g.steps == len(w.steps)):
            return PAUSED
        arrival_ns = nothing_ns
        if g.clients:
            if g.next_arrival < g.sent:
                arrival_ns = w.requests[g.next_arrival].sent_ns + g.frontend_ns
        elif g.next_arrival < len(w.requests):
            arrival_ns = w.arrival_ns[g.next_arrival] + g.frontend_ns
        replica = w.winners[1]
        event = w.replicas[replica].event
        again_ns = w.requests[w.requests[0].again].again_ns if g.again else nothing_ns
        if g.next_fault < len(w.faults):
            fault_ns = w.faults[g.next_fault].at_ns
            if fault_ns <= arrival_ns and fault_ns <= again_ns and fault_ns <= event >> 1:
                g.now = fault_ns
                play_faults(w)
                continue
        if arrival_ns <= event >> 1 and arrival_ns <= again_ns:
            if arrival_ns == nothing_ns:
                g.stuck = len(w.replicas) + 1
                return STUCK
            g.now = arrival_ns
            if g.clients:
                g.next_arrival += 1
                deliver(w, g.next_arrival - 1)
                continue
            while g.next_arrival < len(w.requests) and w.arrival_ns[g.next_arrival] + g.frontend_ns == arrival_ns:
                w.requests[g.next_arrival].sent_ns = w.arrival_ns[g.next_arrival]
                g.next_arrival += 1
                deliver(w, g.next_arrival - 1)
        elif again_ns <= event >> 1:
            g.now = again_ns
            arrive(w, pop_again(w))
        else:
            g.now = event >> 1
            if event & 1:
                start_step(w, replica, cost)
            else:
                end_step(w, replica)
    return PAUSED


def compiled_with(fingerprint: int) -> Any:
    """`run_until` under a name in Numba's cache that changes with the sources it is compiled from."""

    @njit(cache=True, error_model="numpy")
    def play(w: Any, cost: Any, most_events: Any) -> Any:
        if fingerprint == 0:
            return STUCK
        return run_until(w, cost, most_events)

    return play


__all__ = ["DONE", "KV_AWARE", "PAUSED", "STUCK", "compiled_with", "run_until"]
