"""Paged key/value cache: blocks with reference counts and copy-on-write (Kwon et al. 2023, arXiv:2309.06180, section 4).

A block holds the keys and values of `block_tokens` consecutive tokens of one sequence, or of several that share them.
Units: blocks and tokens. Nothing is stored here; this decides which block holds what.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure


class KVBlocks:
    """Allocator of `num_blocks` blocks.

    The block freed last is given out first, and before any was freed the lowest id. A block that a prefix cache keeps is
    not forgotten when its last user leaves: it stays reusable until room is needed, and then the one unused longest goes first.

    Args:
        num_blocks: blocks on the device, at least 1.
        block_tokens: tokens per block, at least 1.
        num_host_blocks: blocks of host memory to swap to.

    Raises:
        ValueError: a size is out of range, a block is freed twice, or more is asked for than is free.

    >>> pool = KVBlocks(4, 16)
    >>> first = pool.allocate(2); pool.fork(first); first, pool.free_blocks
    ([0, 1], 2)
    >>> pool.make_writable(1)  # shared: the writer gets its own
    2
    """

    __slots__ = ("_evictable", "_free", "_free_host", "_kept", "_references", "block_tokens", "num_blocks", "on_evict")

    def __init__(self, num_blocks: int, block_tokens: int, *, num_host_blocks: int = 0) -> None:
        if num_blocks < 1 or block_tokens < 1 or num_host_blocks < 0:
            raise ValueError(f"{num_blocks=}, {block_tokens=}, {num_host_blocks=}: need at least 1, 1 and 0")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.on_evict: Callable[[int], None] | None = None
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._kept: set[int] = set()
        self._evictable: OrderedDict[int, None] = OrderedDict()  # kept, but used by nobody; longest unused first
        self._free_host = list(range(num_host_blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks that can be given out now, kept ones that nobody uses included."""
        return len(self._free) + len(self._evictable)

    @property
    def free_host_blocks(self) -> int:
        """Host blocks that can be swapped to."""
        return len(self._free_host)

    @property
    def kept_blocks(self) -> int:
        """Blocks a prefix cache keeps, in use or not."""
        return len(self._kept)

    def references(self, block: int) -> int:
        """How many sequences hold this block."""
        return self._references[block]

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def allocate(self, count: int = 1) -> list[int]:
        """Give out blocks, each with one reference."""
        if count > len(self._free) + len(self._evictable):
            raise ValueError(f"{count} blocks asked for, {self.free_blocks} of {self.num_blocks} free")
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._evictable.popitem(last=False)
                self._kept.discard(block)
                if self.on_evict is not None:
                    self.on_evict(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def fork(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block: another sequence shares it. Kept blocks that nobody uses are taken up again."""
        for block in blocks:
            if self._references[block] == 0:
                if block not in self._evictable:
                    raise ValueError(f"{block=} is free: it cannot be shared")
                del self._evictable[block]
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference from each block, the last first: of a kept sequence the tail is evicted before the head."""
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"{block=} is freed twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._kept:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def make_writable(self, block: int) -> int:
        """Return a block only the caller holds: this one, or a fresh one (the caller copies) where it is shared or kept."""
        if self._references[block] == 0:
            raise ValueError(f"{block=} is free: it cannot be written")
        if self._references[block] == 1 and block not in self._kept:
            return block
        fresh = self.allocate()[0]
        self.free([block])
        return fresh

    def keep(self, block: int) -> None:
        """Let a block outlive its users: a prefix cache knows its content."""
        if self._references[block] == 0:
            raise ValueError(f"{block=} is free: it cannot be kept")
        self._kept.add(block)

    def forget(self, block: int) -> None:
        """Stop keeping a block; it is free at once where nobody uses it."""
        self._kept.discard(block)
        if block in self._evictable:
            del self._evictable[block]
            self._free.append(block)

    def swap_out(self, blocks: Sequence[int]) -> list[int]:
        """Move a sequence's blocks to host memory; return the host blocks (the caller copies)."""
        if len(blocks) > len(self._free_host):
            raise ValueError(f"{len(blocks)} host blocks asked for, {len(self._free_host)} free")
        self.free(blocks)
        return [self._free_host.pop() for _ in blocks]

    def swap_in(self, host_blocks: Sequence[int]) -> list[int]:
        """Move a sequence's blocks back to the device; return the device blocks (the caller copies)."""
        if any(block in self._free_host for block in host_blocks) or len(set(host_blocks)) < len(host_blocks):
            raise ValueError(f"host blocks {list(host_blocks)}: not all are in use")
        fresh = self.allocate(len(host_blocks))
        self._free_host.extend(reversed(host_blocks))
        return fresh

    def free_host(self, host_blocks: Sequence[int]) -> None:
        """Give host blocks back without copying them: their sequence ended while it was swapped out."""
        if any(block in self._free_host for block in host_blocks) or len(set(host_blocks)) < len(host_blocks):
            raise ValueError(f"host blocks {list(host_blocks)}: not all are in use")
        self._free_host.extend(reversed(host_blocks))


def kv_blocks(
    *, num_blocks: int, block_tokens: int, num_host_blocks: int, commands: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Replay commands on named sequences; return (block table or None where refused, free blocks, free host blocks) after each.

    ("append", name, tokens) grows a sequence, which is made where it is new, and makes its last, partly filled block writable;
    ("fork", name, new) shares all blocks; ("free", name); ("swap_out", name); ("swap_in", name). A command that does not fit
    or names a sequence that is not there (or is elsewhere) changes nothing.

    Raises:
        ValueError: a size is out of range.
    """
    pool = KVBlocks(num_blocks, block_tokens, num_host_blocks=num_host_blocks)
    tables: dict[str, list[int]] = {}
    hosted: dict[str, list[int]] = {}
    tokens_of: dict[str, int] = {}
    log: list[tuple[Any, ...]] = []
    for command in commands:
        verb, name = command[0], command[1]
        table: list[int] | None = None
        if verb == "append" and name not in hosted:
            table = _append(pool, tables.get(name, []), tokens_of.get(name, 0), command[2])
            if table is not None:
                tables[name] = table
                tokens_of[name] = tokens_of.get(name, 0) + command[2]
        elif verb == "fork" and name in tables and command[2] not in tokens_of:
            table = list(tables[name])
            pool.fork(table)
            tables[command[2]], tokens_of[command[2]] = table, tokens_of[name]
        elif verb == "free" and name in tables:
            pool.free(tables.pop(name))
            del tokens_of[name]
            table = []
        elif verb == "swap_out" and name in tables and len(tables[name]) <= pool.free_host_blocks:
            table = hosted[name] = pool.swap_out(tables.pop(name))
        elif verb == "swap_in" and name in hosted and len(hosted[name]) <= pool.free_blocks:
            table = tables[name] = pool.swap_in(hosted.pop(name))
        log.append((table, pool.free_blocks, pool.free_host_blocks))
    return log


def _append(pool: KVBlocks, table: list[int], held: int, tokens: int) -> list[int] | None:
    """Return the table after `tokens` more, or None where they do not fit."""
    fresh = pool.blocks_for(held + tokens) - len(table)
    writes_shared = tokens > 0 and held % pool.block_tokens != 0 and pool.references(table[-1]) > 1
    if fresh + writes_shared > pool.free_blocks:
        return None
    if writes_shared:
        table = [*table[:-1], pool.make_writable(table[-1])]
    return table + pool.allocate(fresh)


def example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw a pool, sometimes a tiny one, and a mix of all commands on a few names."""
    names = "abcde"
    commands: list[tuple[Any, ...]] = []
    for verb in rng.choice(["append", "append", "append", "fork", "free", "swap_out", "swap_in"], size=rng.integers(0, 40)):
        name, other = (str(name) for name in rng.choice(list(names), size=2, replace=False))
        extra = {"append": (int(rng.integers(0, 9)),), "fork": (other,)}.get(str(verb), ())
        commands.append((str(verb), name, *extra))
    return {
        "num_blocks": int(rng.integers(1, 12)),
        "block_tokens": int(rng.integers(1, 5)),
        "num_host_blocks": int(rng.integers(0, 6)),
        "commands": commands,
    }


def chat_example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw 1000 sequences of 64 to 1024 tokens that come and go, 16 at a time, on 2048 blocks of 16 tokens."""
    commands: list[tuple[Any, ...]] = []
    for index, tokens in enumerate(rng.integers(64, 1024, size=1000)):
        commands.append(("append", str(index), int(tokens)))
        if index >= 16:
            commands.append(("free", str(index - 16)))
    return {"num_blocks": 2048, "block_tokens": 16, "num_host_blocks": 0, "commands": commands}


KV_BLOCKS = Procedure(
    reference=kv_blocks,
    examples=example,
    paper="arXiv:2309.06180",
    shapes={"1000 chats on 2048 blocks of 16": chat_example},
)
