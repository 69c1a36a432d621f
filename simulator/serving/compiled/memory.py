"""Maps with an order of use, for prefix caches and for routers that remember what they sent."""

from __future__ import annotations

from typing import Any

from numba import njit

from llmlab.simulator.cost.compiled import ALONE

INSIDE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of functions that only compiled code calls: half the time to compile them."""

_inlined = njit(**ALONE, **INSIDE)


@_inlined
def place_of(key: Any, mask: Any) -> Any:
    """Where a key's search begins: the finalizer of MurmurHash3 (public domain)."""
    h = key ^ (key >> 33)
    h *= -49064778989728563  # 0xff51afd7ed558ccd
    h ^= h >> 33
    h *= -4265267296055464877  # 0xc4ceb9fe1a85ec53
    h ^= h >> 33
    return h & mask


@_inlined
def find(memory: Any, replica: Any, key: Any) -> Any:
    """Slot of a key, or -1."""
    mask = memory.table_key.shape[1] - 1
    place = place_of(key, mask)
    while True:
        slot = memory.table_slot[replica, place]
        if slot < 0 or memory.table_key[replica, place] == key:
            return slot
        place = (place + 1) & mask


@_inlined
def insert(memory: Any, replica: Any, key: Any) -> Any:
    """Give a new key a slot outside the list; return it."""
    memory.num_unused[replica] -= 1
    slot = memory.unused[replica, memory.num_unused[replica]]
    mask = memory.table_key.shape[1] - 1
    place = place_of(key, mask)
    while memory.table_slot[replica, place] >= 0:
        place = (place + 1) & mask
    memory.table_key[replica, place] = key
    memory.table_slot[replica, place] = slot
    memory.key[replica, slot] = key
    memory.references[replica, slot] = 0
    return slot


@_inlined
def remove(memory: Any, replica: Any, slot: Any) -> None:
    """Forget a slot's key; what was displaced by it moves back."""
    mask = memory.table_key.shape[1] - 1
    place = place_of(memory.key[replica, slot], mask)
    while memory.table_slot[replica, place] != slot:
        place = (place + 1) & mask
    hole = place
    while True:
        place = (place + 1) & mask
        if memory.table_slot[replica, place] < 0:
            break
        wanted = place_of(memory.table_key[replica, place], mask)
        if ((place - wanted) & mask) >= ((place - hole) & mask):
            memory.table_key[replica, hole] = memory.table_key[replica, place]
            memory.table_slot[replica, hole] = memory.table_slot[replica, place]
            hole = place
    memory.table_slot[replica, hole] = -1
    memory.unused[replica, memory.num_unused[replica]] = slot
    memory.num_unused[replica] += 1


@_inlined
def append(memory: Any, replica: Any, slot: Any) -> None:
    """Put a slot at the end of the list."""
    last = memory.last[replica]
    memory.previous[replica, slot] = last
    memory.next[replica, slot] = -1
    if last < 0:
        memory.first[replica] = slot
    else:
        memory.next[replica, last] = slot
    memory.last[replica] = slot
    memory.listed[replica] += 1


@_inlined
def unlink(memory: Any, replica: Any, slot: Any) -> None:
    """Take a slot out of the list."""
    before, after = memory.previous[replica, slot], memory.next[replica, slot]
    if before < 0:
        memory.first[replica] = after
    else:
        memory.next[replica, before] = after
    if after < 0:
        memory.last[replica] = before
    else:
        memory.previous[replica, after] = before
    memory.listed[replica] -= 1


@_inlined
def clear(memory: Any, replica: Any) -> None:
    """Forget everything."""
    slots = memory.key.shape[1]
    for place in range(memory.table_slot.shape[1]):
        memory.table_slot[replica, place] = -1
    memory.first[replica] = memory.last[replica] = -1
    memory.listed[replica] = 0
    for i in range(slots):
        memory.unused[replica, i] = slots - 1 - i
    memory.num_unused[replica] = slots
