"""Paged allocation by counting: a block's references are the tables it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.kv_blocks import KV_BLOCKS


@oracle(KV_BLOCKS, library="exact enumeration")
def kv_blocks(
    *, num_blocks: int, block_tokens: int, num_host_blocks: int, commands: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    places = {"device": num_blocks, "host": num_host_blocks}
    held: dict[str, tuple[str, list[int], int]] = {}  # name -> (place, table, tokens)
    freed = {(place, block): -block for place, count in places.items() for block in range(count)}
    clock = 0

    def users(place: str, block: int) -> int:
        return sum(at == place and block in table for at, table, _ in held.values())

    def free(place: str) -> list[int]:
        """Free blocks, the one given back last first."""
        return sorted((b for b in range(places[place]) if not users(place, b)), key=lambda b: -freed[place, b])

    def drop(name: str) -> tuple[list[int], int]:
        nonlocal clock
        place, table, tokens = held.pop(name)
        for block in reversed(table):
            clock += 1
            freed[place, block] = clock
        return table, tokens

    log: list[tuple[Any, ...]] = []
    for verb, name, *rest in commands:
        place, table, tokens = held.get(name, ("nowhere", [], 0))
        result: list[int] | None = None
        if verb == "append" and place != "host":
            total = tokens + rest[0]
            shared = bool(rest[0] and tokens % block_tokens and users("device", table[-1]) > 1)
            fresh = len(range(0, total, block_tokens)) - len(table) + shared
            if fresh <= len(free("device")):
                result = (table[:-1] if shared else table) + free("device")[:fresh]
                held[name] = ("device", result, total)
        elif verb == "fork" and place == "device" and rest[0] not in held:
            result = table
            held[rest[0]] = held[name]
        elif verb == "free" and place == "device":
            drop(name)
            result = []
        elif verb in ("swap_out", "swap_in"):
            source, target = ("device", "host") if verb == "swap_out" else ("host", "device")
            if place == source and len(table) <= len(free(target)):
                drop(name)
                result = free(target)[: len(table)]
                held[name] = (target, result, tokens)
        log.append((result, len(free("device")), len(free("host"))))
    return log
