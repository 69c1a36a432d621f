"""Assignment to two pools recomputed from the whole history of commands at each one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.disaggregated import DISAGGREGATED


@oracle(DISAGGREGATED, library="exact enumeration")
def disaggregated(
    *,
    num_prefill: int,
    num_decode: int,
    num_blocks: int,
    seats: int,
    requests: Sequence[tuple[int, int]],
    commands: Sequence[tuple[str, int]],
) -> list[Any]:
    sent_to: dict[int, int] = {}
    done: list[int] = []  # prefilled, in order
    moved: dict[int, int] = {}  # request -> decode worker, for good
    ended: set[int] = set()
    dead: set[int] = set()
    answers: list[Any] = []
    for verb, number in commands:
        if verb == "arrive" and number not in sent_to:
            queue = [
                sum(requests[r][0] for r, w in sent_to.items() if w == worker and r not in done)
                for worker in range(num_prefill)
            ]
            sent_to[number] = queue.index(min(queue))
            answers.append(sent_to[number])
            continue
        if verb == "prefilled" and number in sent_to and number not in done:
            done.append(number)
        elif verb == "finished" and number in moved and moved[number] not in dead and number not in ended:
            ended.add(number)
        elif verb == "fail" and number < num_decode and number not in dead:
            dead.add(number)
        else:
            answers.append(None)
            continue
        admitted = []
        for request in [r for r in done if r not in moved]:
            used = [
                [requests[r][1] for r, w in moved.items() if w == worker and r not in ended] for worker in range(num_decode)
            ]
            room = {
                worker: num_blocks - sum(used[worker])
                for worker in range(num_decode)
                if worker not in dead and len(used[worker]) < seats and num_blocks - sum(used[worker]) >= requests[request][1]
            }
            if not room:
                break
            best = max(room.values())
            moved[request] = min(worker for worker, free in room.items() if free == best)
            admitted.append((request, moved[request]))
        answers.append(admitted)
    return answers
