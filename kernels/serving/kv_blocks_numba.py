"""Paged allocator on one core: free lists as stacks, block tables as rows of one array, all commands in one compiled loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from llmlab.kernels.twin import twin
from llmlab.reference.serving.kv_blocks import KV_BLOCKS, KVBlocks

VERBS = {"append": 0, "fork": 1, "free": 2, "swap_out": 3, "swap_in": 4}
ABSENT, ON_DEVICE, ON_HOST = range(3)
REFUSED = -1


@twin(KV_BLOCKS, backend="numba", dtypes=("float64",))
def kv_blocks(
    *, num_blocks: int, block_tokens: int, num_host_blocks: int, commands: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    KVBlocks(num_blocks, block_tokens, num_host_blocks=num_host_blocks)  # refuses sizes out of range
    numbers: dict[str, int] = {}
    coded = np.zeros((len(commands), 3), np.int64)
    for row, (verb, name, *rest) in enumerate(commands):
        coded[row, :2] = VERBS[verb], numbers.setdefault(name, len(numbers))
        if verb == "append":
            coded[row, 2] = rest[0]
        elif verb == "fork":
            coded[row, 2] = numbers.setdefault(rest[0], len(numbers))
    counts, ids = _replay(num_blocks, block_tokens, num_host_blocks, coded, max(1, len(numbers)))
    flat, at = ids.tolist(), 0
    log: list[tuple[Any, ...]] = []
    for length, free, free_host in counts.tolist():
        table = None if length == REFUSED else flat[at : at + length]
        at += max(length, 0)
        log.append((table, free, free_host))
    return log


@njit(cache=True)
def _drop(table, length, references, free, num_free):
    """Drop one reference from each block, the last first; return how many blocks are free then."""
    for place in range(length - 1, -1, -1):
        block = table[place]
        references[block] -= 1
        if references[block] == 0:
            free[num_free] = block
            num_free += 1
    return num_free


@njit(cache=True)
def _replay(num_blocks, block_tokens, num_host_blocks, coded, num_names):
    free = np.arange(num_blocks - 1, -1, -1)
    free_host = np.arange(num_host_blocks - 1, -1, -1)
    num_free, num_host = num_blocks, num_host_blocks
    references = np.zeros(num_blocks, np.int64)
    tables = np.zeros((num_names, max(num_blocks, num_host_blocks)), np.int32)
    lengths, tokens, where = np.zeros(num_names, np.int64), np.zeros(num_names, np.int64), np.zeros(num_names, np.int64)
    counts = np.empty((len(coded), 3), np.int64)
    ids, used = np.empty(1024, np.int32), 0
    for row in range(len(coded)):
        verb, name, extra = coded[row]
        table, length = tables[name], lengths[name]
        done = False
        if verb == 0 and where[name] != ON_HOST:
            fresh = -(-(tokens[name] + extra) // block_tokens) - length
            shared = extra > 0 and tokens[name] % block_tokens != 0 and references[table[length - 1]] > 1
            if fresh + shared <= num_free:
                if shared:
                    references[table[length - 1]] -= 1
                    num_free -= 1
                    table[length - 1] = free[num_free]
                    references[table[length - 1]] = 1
                for place in range(length, length + fresh):
                    num_free -= 1
                    table[place] = free[num_free]
                    references[table[place]] = 1
                lengths[name] = length + fresh
                tokens[name] += extra
                where[name] = ON_DEVICE
                done = True
        elif verb == 1 and where[name] == ON_DEVICE and where[extra] == ABSENT:
            for place in range(length):
                references[table[place]] += 1
                tables[extra, place] = table[place]
            lengths[extra], tokens[extra], where[extra] = length, tokens[name], ON_DEVICE
            done = True
        elif verb == 2 and where[name] == ON_DEVICE:
            num_free = _drop(table, length, references, free, num_free)
            lengths[name] = tokens[name] = 0
            where[name] = ABSENT
            done = True
        elif verb == 3 and where[name] == ON_DEVICE and length <= num_host:
            num_free = _drop(table, length, references, free, num_free)
            for place in range(length):
                num_host -= 1
                table[place] = free_host[num_host]
            where[name] = ON_HOST
            done = True
        elif verb == 4 and where[name] == ON_HOST and length <= num_free:
            for place in range(length - 1, -1, -1):
                free_host[num_host] = table[place]
                num_host += 1
            for place in range(length):
                num_free -= 1
                table[place] = free[num_free]
                references[table[place]] = 1
            where[name] = ON_DEVICE
            done = True
        counts[row, 0] = lengths[name] if done else REFUSED
        counts[row, 1], counts[row, 2] = num_free, num_host
        if done:
            length = lengths[name]
            while used + length > len(ids):
                longer = np.empty(2 * len(ids), np.int32)
                longer[:used] = ids[:used]
                ids = longer
            ids[used : used + length] = tables[name, :length]
            used += length
    return counts, ids[:used]
