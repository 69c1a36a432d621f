"""Three memories as one list of prefixes with a time stamp each; nothing of the reference's tables is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.tiered_prefix_cache import TIERED_PREFIX_CACHE

Prefix = tuple[int, ...]


@oracle(TIERED_PREFIX_CACHE, library="exact enumeration")
def tiered_prefix_cache(
    *,
    num_blocks: int,
    block_tokens: int,
    host_blocks: int,
    disk_blocks: int,
    prompts: Sequence[Sequence[int]],
    commands: Sequence[tuple[str, int]],
) -> list[tuple[Any, ...]]:
    device: dict[Prefix, int] = {}  # prefix known on the device -> when it was last given back
    held: dict[int, list[Prefix | None]] = {}  # running prompt -> its blocks: the known ones, None for private ones
    below: dict[Prefix, tuple[str, int]] = {}  # prefix -> memory, when it came there
    clock = 0
    copied = [0, 0, 0, 0]

    def users(prefix: Prefix) -> int:
        return sum(table.count(prefix) for table in held.values())

    def unused() -> list[Prefix]:
        return sorted((prefix for prefix in device if not users(prefix)), key=lambda prefix: device[prefix])

    def free_count() -> int:
        private = sum(block is None for table in held.values() for block in table)
        return num_blocks - private - sum(users(prefix) > 0 for prefix in device)

    def oldest(memory: str) -> Prefix:
        return min((prefix for prefix, (where, _) in below.items() if where == memory), key=lambda prefix: below[prefix][1])

    def size(memory: str) -> int:
        return sum(where == memory for where, _ in below.values())

    def make_room(count: int) -> None:
        """Let go of known blocks nobody uses until `count` are truly free."""
        nonlocal clock
        while True:
            private = sum(block is None for table in held.values() for block in table)
            if num_blocks - private - len(device) >= count:
                return
            gone = unused()[0]
            del device[gone]
            if not host_blocks:
                continue
            clock += 1
            below[gone] = ("host", clock)
            copied[1] += 1
            if size("host") > host_blocks:
                spilled = oldest("host")
                del below[spilled]
                if disk_blocks:
                    clock += 1
                    below[spilled] = ("disk", clock)
                    copied[3] += 1
                    if size("disk") > disk_blocks:
                        del below[oldest("disk")]

    log: list[tuple[Any, ...]] = []
    for verb, index in commands:
        copied[:] = [0, 0, 0, 0]
        cached: int | None = None
        prompt = tuple(prompts[index])
        if verb == "start" and index not in held:
            ends = list(range(block_tokens, len(prompt) + 1, block_tokens))
            reusable = [prompt[:end] for end in ends if end < len(prompt)]
            known = 0
            while known < len(reusable) and reusable[known] in device:
                known += 1
            up = known
            while up < len(reusable) and reusable[up] in below and reusable[up] not in device:
                up += 1
            if up > known:
                held[-1] = list(reusable[:known])  # in use meanwhile
                fetched = reusable[known:up][: free_count()]
                for prefix in fetched:
                    copied[2] += below.pop(prefix)[0] == "disk"
                    copied[0] += 1
                make_room(len(fetched))
                del held[-1]
                for prefix in reversed(reusable[:known] + fetched):
                    clock += 1
                    if prefix in fetched or not users(prefix):
                        device[prefix] = clock
            found: list[Prefix | None] = []
            for prefix in reusable:
                if prefix not in device:
                    break
                found.append(prefix)
            held[index] = list(found)
            more = len(range(0, len(prompt), block_tokens)) - len(found)
            if more <= free_count():
                cached = len(found) * block_tokens
                make_room(more)
                held[index] += [None] * more
                for place, end in enumerate(ends):
                    if prompt[:end] not in device:
                        device[prompt[:end]] = 0
                        held[index][place] = prompt[:end]
                    below.pop(prompt[:end], None)
            else:
                for prefix_ in reversed(held.pop(index)):
                    clock += 1
                    if prefix_ is not None and not users(prefix_):
                        device[prefix_] = clock
        elif verb == "end" and index in held:
            for prefix_ in reversed(held.pop(index)):
                clock += 1
                if prefix_ is not None and not users(prefix_):
                    device[prefix_] = clock
            cached = 0
        log.append((cached, size("host"), size("disk"), tuple(copied)))
    return log
