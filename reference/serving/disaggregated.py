"""Disaggregated prefill and decode: which worker computes a prompt, and which one continues it (a state machine, no clock).

DistServe (Zhong et al. 2024, arXiv:2401.09670), Splitwise (Patel et al. 2023, arXiv:2311.18677) and Mooncake (Qin et al.
2024, arXiv:2407.00079) compute prompts on one pool of workers and generate on another; the KV cache moves between them.

- A prompt goes to the prefill worker with the fewest prompt tokens still to compute (the shortest queue of DistServe and
  Splitwise), or, with a pool of shared prefixes, with the fewest tokens ahead of its end once reused ones are left out
  (Mooncake, algorithm 1, with the queue as the estimate of time).
- A computed prompt keeps its blocks on the prefill worker until a decode worker has room for them: the workers pull
  (DistServe, section 4.3). Prompts are admitted in order of completion; the first that fits nowhere holds the rest back, so
  none starves.
- Of the decode workers with a seat and enough free blocks it goes to the one with the most free blocks.

Ties go to the lowest worker number. A worker that is not up gets nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure


class Disaggregated:
    """Assignment of requests to two pools of workers.

    Args:
        num_prefill: workers that compute prompts.
        num_decode: workers that generate.

    >>> pools = Disaggregated(2, 1)
    >>> pools.arrive(7, 100), pools.arrive(8, 40), pools.arrive(9, 10)  # 100 | 40, then 100 | 50
    (0, 1, 1)
    >>> pools.prefilled(8, blocks=3); pools.prefilled(7, blocks=7)
    >>> pools.admit(free_blocks=[9], free_seats=[5])  # 7 blocks do not fit beside 3
    [(8, 0)]
    """

    def __init__(self, num_prefill: int, num_decode: int) -> None:
        if num_prefill < 1 or num_decode < 1:
            raise ValueError(f"{num_prefill=}, {num_decode=}: need at least 1 of each")
        self.queued_tokens = [0] * num_prefill
        self.prefill_up = [True] * num_prefill
        self.decode_up = [True] * num_decode
        self.at: dict[int, tuple[int, int]] = {}  # request -> (prefill worker, tokens it adds to the queue)
        self.held: deque[tuple[int, int]] = deque()  # (request, blocks), computed and waiting for a decode worker

    def arrive(self, request: int, prompt_tokens: int, reusable_tokens: Sequence[int] | None = None) -> int:
        """Choose the prefill worker; `reusable_tokens` says how much of the prompt each one need not compute.

        Raises:
            ValueError: the request is known already, or no prefill worker is up.
        """
        reusable = reusable_tokens or [0] * len(self.queued_tokens)
        up = [worker for worker, may in enumerate(self.prefill_up) if may]
        if not up:
            raise ValueError("no prefill worker is up")
        chosen = min(up, key=lambda worker: (self.queued_tokens[worker] + prompt_tokens - reusable[worker], worker))
        self.take(request, chosen, prompt_tokens - reusable[chosen])
        return chosen

    def take(self, request: int, worker: int, tokens: int) -> None:
        """Count a request on the prefill worker that somebody else (a router) chose for it.

        Raises:
            ValueError: the request is known already.
        """
        if request in self.at:
            raise ValueError(f"request {request} is in the prefill pool already")
        self.queued_tokens[worker] += tokens
        self.at[request] = (worker, tokens)

    def left(self, request: int) -> None:
        """A request is no longer in the prefill pool's queues: computed, failed or cancelled."""
        worker, tokens = self.at.pop(request)
        self.queued_tokens[worker] -= tokens

    def prefilled(self, request: int, blocks: int) -> None:
        """A prompt is computed and needs `blocks` blocks on a decode worker."""
        self.left(request)
        self.held.append((request, blocks))

    def hold_again(self, request: int, blocks: int) -> None:
        """A prompt whose way to a decode worker failed waits again, first in line."""
        self.held.appendleft((request, blocks))

    def drop_held(self, requests: Sequence[int]) -> None:
        """Forget held prompts whose cache is gone."""
        gone = set(requests)
        self.held = deque(entry for entry in self.held if entry[0] not in gone)

    def admit(self, free_blocks: Sequence[int], free_seats: Sequence[int]) -> list[tuple[int, int]]:
        """Return (request, decode worker) of all held prompts that can go now, in order."""
        blocks_left, seats_left = list(free_blocks), list(free_seats)
        admitted: list[tuple[int, int]] = []
        while self.held:
            request, blocks = self.held[0]
            room = [
                worker
                for worker, may in enumerate(self.decode_up)
                if may and seats_left[worker] > 0 and blocks_left[worker] >= blocks
            ]
            if not room:
                break
            chosen = min(room, key=lambda worker: (-blocks_left[worker], worker))
            blocks_left[chosen] -= blocks
            seats_left[chosen] -= 1
            admitted.append((request, chosen))
            self.held.popleft()
        return admitted


def disaggregated(
    *,
    num_prefill: int,
    num_decode: int,
    num_blocks: int,
    seats: int,
    requests: Sequence[tuple[int, int]],
    commands: Sequence[tuple[str, int]],
) -> list[Any]:
    """Replay commands; return what each answers.

    Request i has (prompt tokens, blocks). ("arrive", i) gives the prefill worker; ("prefilled", i) and ("finished", i) give
    the admissions they allow; ("fail", w) takes decode worker w down for good: its requests are gone. What does not apply
    (a request that is not there) answers None.

    Raises:
        ValueError: no worker in a pool.

    >>> disaggregated(num_prefill=2, num_decode=1, num_blocks=4, seats=9, requests=[(10, 3), (20, 2)],
    ...               commands=[("arrive", 0), ("arrive", 1), ("prefilled", 1), ("prefilled", 0), ("finished", 1)])
    [0, 1, [(1, 0)], [], [(0, 0)]]
    """
    pools = Disaggregated(num_prefill, num_decode)
    free, empty = [num_blocks] * num_decode, [seats] * num_decode
    decoding: dict[int, int] = {}
    log: list[Any] = []
    seen: set[int] = set()
    for verb, number in commands:
        if verb == "arrive" and number not in seen:
            seen.add(number)
            log.append(pools.arrive(number, requests[number][0]))
            continue
        if verb == "prefilled" and number in pools.at:
            pools.prefilled(number, requests[number][1])
        elif verb == "finished" and number in decoding:
            worker = decoding.pop(number)
            free[worker] += requests[number][1]
            empty[worker] += 1
        elif verb == "fail" and number < num_decode and pools.decode_up[number]:
            pools.decode_up[number] = False
            decoding = {request: worker for request, worker in decoding.items() if worker != number}
        else:
            log.append(None)
            continue
        admitted = pools.admit(free, empty)
        for request, worker in admitted:
            decoding[request] = worker
            free[worker] -= requests[request][1]
            empty[worker] -= 1
        log.append(admitted)
    return log


def example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw small pools and a shuffled life of up to 14 requests, some too large to be admitted."""
    count = int(rng.integers(0, 15))
    num_decode = int(rng.integers(1, 4))
    commands: list[tuple[str, int]] = []
    for number in rng.permutation(count).tolist():
        place = int(rng.integers(0, len(commands) + 1))
        for verb in ("arrive", "prefilled", "finished"):
            commands.insert(place, (verb, number))
            place = int(rng.integers(place + 1, len(commands) + 1))
    if rng.random() < 0.3:
        commands.insert(int(rng.integers(0, len(commands) + 1)), ("fail", int(rng.integers(num_decode))))
    return {
        "num_prefill": int(rng.integers(1, 4)),
        "num_decode": num_decode,
        "num_blocks": int(rng.integers(3, 12)),
        "seats": int(rng.integers(1, 5)),
        "requests": [(int(rng.integers(1, 60)), int(rng.integers(1, 6))) for _ in range(count)],
        "commands": commands,
    }


DISAGGREGATED = Procedure(
    reference=disaggregated, examples=example, paper="arXiv:2401.09670, arXiv:2311.18677, arXiv:2407.00079"
)
