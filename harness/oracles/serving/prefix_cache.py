"""Prefix reuse with a dictionary of whole prefixes: what is cached is known by the tuple of its tokens, not by a hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.prefix_cache import PREFIX_CACHE


@oracle(PREFIX_CACHE, library="exact enumeration")
def prefix_cache(
    *, num_blocks: int, block_tokens: int, prompts: Sequence[Sequence[int]], commands: Sequence[tuple[str, int]]
) -> list[tuple[Any, ...]]:
    known: dict[tuple[int, ...], int] = {}
    tables: dict[int, list[int]] = {}
    freed = {block: -block for block in range(num_blocks)}
    clock = evictions = 0

    def order(block: int) -> tuple[bool, int]:
        """Unknown blocks first, the one given back last before the others; then known ones, longest unused first."""
        cached = block in known.values()
        return cached, freed[block] if cached else -freed[block]

    def unused() -> list[int]:
        return sorted((b for b in range(num_blocks) if not any(b in table for table in tables.values())), key=order)

    def drop(table: Sequence[int]) -> None:
        nonlocal clock
        for block in reversed(table):
            clock += 1
            if block in unused():
                freed[block] = clock

    log: list[tuple[Any, ...]] = []
    for verb, index in commands:
        table: list[int] | None = None
        cached = 0
        if verb == "start" and index not in tables:
            prompt = tuple(prompts[index])
            ends = range(block_tokens, len(prompt) + 1, block_tokens)
            found: list[int] = []
            for end in ends:
                if end == len(prompt) or prompt[:end] not in known:  # the last token is always computed
                    break
                found.append(known[prompt[:end]])
            fresh = len(range(0, len(prompt), block_tokens)) - len(found)
            rest = [block for block in unused() if block not in found]
            if fresh <= len(rest):
                evictions += sum(block in known.values() for block in rest[:fresh])
                known = {prefix: block for prefix, block in known.items() if block not in rest[:fresh]}
                table = tables[index] = found + rest[:fresh]
                cached = len(found) * block_tokens
                for end, block in zip(ends, table):
                    known.setdefault(prompt[:end], block)
            else:
                drop(found)  # looking something up is a use of it
        elif verb == "end" and index in tables:
            drop(tables.pop(index))
            table = []
        log.append((table, cached, len(unused()), evictions))
    return log
