"""What the tokenizers' kernels share: words remembered by their bytes, pairs as an open hash table, merging in place."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
from numba import njit

LONGEST_KEPT = 64
"""Bytes of a piece that is remembered."""
SCANNED = 96
"""Symbols of a piece up to which a scan for the lowest rank beats a heap."""
WORDS, WORD_BYTES = 1 << 17, 1 << 21
"""Room for words that are remembered, beyond those given."""

Memory = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""A table of (start, length, first id, count), the bytes, the ids, and (bytes used, ids used, words kept, most words)."""
PairTable = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Keys left << 32 | right, -1 where free; ranks; merged ids."""


def pair_table(pairs: Mapping[tuple[int, int], tuple[int, int]]) -> PairTable:
    """`reference.tokenizers.bpe.Pairs` as arrays."""
    given = np.array([(a, b, *found) for (a, b), found in pairs.items()], np.int64).reshape(-1, 4)
    slots = 1 << int(2 * len(given) + 2).bit_length()
    keys, ranks, merged = np.full(slots, -1), np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    _fill_pairs(given, keys, ranks, merged)
    return keys, ranks, merged


def word_memory(known: Mapping[bytes, int], room: int = WORDS) -> Memory:
    """A memory that starts with these words, each one token, and has room for more."""
    text = np.frombuffer(b"".join(known), np.uint8)
    lengths = np.array([len(word) for word in known], np.int64)
    slots = 1 << int(2 * (len(known) + room)).bit_length()
    table, state = np.full((slots, 4), -1, np.int32), np.zeros(4, np.int64)
    arena, kept_ids = np.empty(text.size + WORD_BYTES, np.uint8), np.empty(len(known) + 4 * room, np.int32)
    _fill_words(text, lengths, np.array(list(known.values()), np.int32), table, arena, kept_ids, state)
    state[3] = len(known) + room
    return table, arena, kept_ids, state


@njit(cache=True)
def find(data, place, length, table, arena):
    """The slot that holds these bytes, or the free one where they belong."""
    code = np.uint64(14695981039346656037)  # FNV-1a
    for i in range(length):
        code = (code ^ np.uint64(data[place + i])) * np.uint64(1099511628211)
    slot = np.int64((code ^ (code >> np.uint64(29))) & np.uint64(len(table) - 1))
    while table[slot, 0] >= 0:
        if table[slot, 1] == length:
            start, same = table[slot, 0], True
            for i in range(length):
                if arena[start + i] != data[place + i]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & (len(table) - 1)
    return slot


@njit(cache=True)
def remember(data, place, length, ids, slot, table, arena, kept_ids, state):
    """Keep a word in its free slot; once there is no room nothing more is kept."""
    if state[2] >= state[3] or state[0] + length > arena.size or state[1] + ids.size > kept_ids.size:
        return
    arena[state[0] : state[0] + length] = data[place : place + length]
    kept_ids[state[1] : state[1] + ids.size] = ids
    table[slot, 0], table[slot, 1], table[slot, 2], table[slot, 3] = state[0], length, state[1], ids.size
    state[0] += length
    state[1] += ids.size
    state[2] += 1


@njit(cache=True)
def _fill_words(text, lengths, numbers, table, arena, kept_ids, state):
    state[3] = lengths.size
    place = 0
    for i in range(lengths.size):
        slot = find(text, place, lengths[i], table, arena)
        remember(text, place, lengths[i], numbers[i : i + 1], slot, table, arena, kept_ids, state)
        place += lengths[i]


@njit(cache=True)
def slot_of(key, keys):
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & (keys.size - 1)
    while keys[slot] != -1 and keys[slot] != key:
        slot = (slot + 1) & (keys.size - 1)
    return slot


@njit(cache=True)
def _fill_pairs(given, keys, ranks, merged):
    for i in range(len(given)):
        key = given[i, 0] << 32 | given[i, 1]
        slot = slot_of(key, keys)
        keys[slot], ranks[slot], merged[slot] = key, given[i, 2], given[i, 3]


@njit(cache=True)
def merge(ids, n, keys, ranks, merged):
    """Merge in place; return how many tokens are left."""
    if n > SCANNED:
        return _merge_long(ids, n, keys, ranks, merged)
    none = np.int64(1) << 40
    rank = np.empty(SCANNED, np.int64)
    for i in range(n - 1):
        slot = slot_of(np.int64(ids[i]) << 32 | ids[i + 1], keys)
        rank[i] = ranks[slot] if keys[slot] >= 0 else none
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if rank[i] < rank[best]:
                best = i
        if rank[best] == none:
            break
        ids[best] = merged[slot_of(np.int64(ids[best]) << 32 | ids[best + 1], keys)]
        n -= 1
        for i in range(best + 1, n):
            ids[i] = ids[i + 1]
            rank[i - 1] = rank[i]
        for i in range(max(best - 1, 0), min(best + 1, n - 1)):
            slot = slot_of(np.int64(ids[i]) << 32 | ids[i + 1], keys)
            rank[i] = ranks[slot] if keys[slot] >= 0 else none
    return n


@njit(cache=True)
def _merge_long(ids, n, keys, ranks, merged):
    """A heap of rank and place in one number; an entry whose rank is no longer the place's is out of date."""
    following, previous, rank = np.arange(1, n + 1), np.arange(-1, n - 1), np.full(n, -1)
    heap = [np.int64(0) for _ in range(0)]
    for i in range(n - 1):
        slot = slot_of(np.int64(ids[i]) << 32 | ids[i + 1], keys)
        if keys[slot] >= 0:
            rank[i] = ranks[slot]
            heap.append(rank[i] << 32 | i)
    heapq.heapify(heap)
    while len(heap):
        entry = heapq.heappop(heap)
        left = entry & 0xFFFFFFFF
        if rank[left] != entry >> 32:
            continue
        right = following[left]
        ids[left] = merged[slot_of(np.int64(ids[left]) << 32 | ids[right], keys)]
        ids[right], rank[right], rank[left] = -1, -1, -1
        following[left] = following[right]
        if following[left] < n:
            previous[following[left]] = left
        for one in (previous[left], left):
            if one < 0:
                continue
            rank[one] = -1
            if following[one] < n:
                slot = slot_of(np.int64(ids[one]) << 32 | ids[following[one]], keys)
                if keys[slot] >= 0:
                    rank[one] = ranks[slot]
                    heapq.heappush(heap, rank[one] << 32 | one)
    count = 0
    for i in range(n):
        if ids[i] >= 0:
            ids[count] = ids[i]
            count += 1
    return count
