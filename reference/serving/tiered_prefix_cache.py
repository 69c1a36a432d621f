"""KV offload: prefix blocks that leave the device go to host memory, and from there to disk, and are found again there.

CachedAttention (Gao et al., USENIX ATC 2024, arXiv:2403.19708) and Mooncake (arXiv:2407.00079) keep the caches of past
requests in slower memories because loading them takes less time than computing them. Every memory forgets what was unused
longest. Blocks are copied up before they are used, so a policy sees device blocks only; the copies are counted, and a cost
model prices them. Units: blocks and tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes, most_reusable_blocks
from llmlab.reference.serving.prefix_cache import example as prefix_example


@dataclass(slots=True)
class Copies:
    """Blocks copied between memories since somebody last asked."""

    host_to_device: int = 0
    device_to_host: int = 0
    disk_to_host: int = 0
    host_to_disk: int = 0


class TieredPrefixCache(PrefixCache):
    """A prefix cache with host memory and disk behind it.

    A block is in one memory at a time. One found below the device is copied up when a request asks for its prefix, as long as
    the device has room beside the blocks in use.

    Args:
        blocks: the pool on the device.
        host_blocks: capacity of host memory.
        disk_blocks: capacity of the disk.

    Raises:
        ValueError: a negative capacity, or the pool has a cache already.

    >>> pool = KVBlocks(2, 2); cache = TieredPrefixCache(pool, host_blocks=2)
    >>> table = pool.allocate(2); cache.insert((11, 22), table); pool.free(table)
    >>> pool.free(pool.allocate(2))  # needs the room: both blocks go to host memory
    >>> cache.fetch((11, 22), most_blocks=2); cache.find((11, 22), most_blocks=2), cache.copies
    ([1, 0], Copies(host_to_device=2, device_to_host=2, disk_to_host=0, host_to_disk=0))
    """

    __slots__ = ("_disk", "_host", "copies", "disk_blocks", "host_blocks")

    def __init__(self, blocks: KVBlocks, *, host_blocks: int, disk_blocks: int = 0) -> None:
        if host_blocks < 0 or disk_blocks < 0:
            raise ValueError(f"{host_blocks=}, {disk_blocks=}: must not be negative")
        super().__init__(blocks)
        self.host_blocks, self.disk_blocks = host_blocks, disk_blocks
        self.copies = Copies()
        self._host: OrderedDict[int, None] = OrderedDict()  # hashes, longest unused first
        self._disk: OrderedDict[int, None] = OrderedDict()

    def insert(self, hashes: Sequence[int], blocks: Sequence[int]) -> None:
        """Make computed blocks findable on the device; a copy below is not needed any more."""
        super().insert(hashes, blocks)
        for key in hashes:
            self._host.pop(key, None)
            self._disk.pop(key, None)

    def fetch(self, hashes: Sequence[int], *, most_blocks: int) -> None:
        """Copy up the blocks that continue the prefix the device knows, as far as there is room for all of it."""
        known = self.find(hashes, most_blocks=most_blocks)
        below = []
        for key in hashes[len(known) : most_blocks]:
            if key not in self._host and key not in self._disk:
                break
            below.append(key)
        if not below:
            return
        self.blocks.fork(known)  # so that making room does not evict the head of this very prefix
        below = below[: self.blocks.free_blocks]
        for key in below:  # taken out first, so that what is evicted to make room cannot push them out
            if key in self._disk:
                del self._disk[key]
                self.copies.disk_to_host += 1
            else:
                del self._host[key]
            self.copies.host_to_device += 1
        fresh = self.blocks.allocate(len(below))
        super().insert(below, fresh)
        self.blocks.free([*known, *fresh])

    def take_copies(self) -> Copies:
        """Return the copies counted since the last call."""
        counted, self.copies = self.copies, Copies()
        return counted

    def stored(self) -> tuple[int, int]:
        """Blocks in host memory and on disk."""
        return len(self._host), len(self._disk)

    def _forget(self, block: int) -> None:
        key = self._hash_of[block]
        super()._forget(block)
        if self.host_blocks:
            self._host[key] = None
            self.copies.device_to_host += 1
            if len(self._host) > self.host_blocks:
                self._spill(self._host.popitem(last=False)[0])

    def _spill(self, key: int) -> None:
        if self.disk_blocks:
            self._disk[key] = None
            self.copies.host_to_disk += 1
            if len(self._disk) > self.disk_blocks:
                self._disk.popitem(last=False)


def tiered_prefix_cache(
    *,
    num_blocks: int,
    block_tokens: int,
    host_blocks: int,
    disk_blocks: int,
    prompts: Sequence[Sequence[int]],
    commands: Sequence[tuple[str, int]],
) -> list[tuple[Any, ...]]:
    """Start and end prompts; return (cached tokens or None where refused, host blocks, disk blocks, copies) after each command.

    ("start", i) fetches and takes what is known of prompt i, gives it blocks for the rest and remembers its full blocks;
    ("end", i) frees it. A prompt is started at most once at a time; one that does not fit is refused.

    Raises:
        ValueError: a size is out of range.
    """
    pool = KVBlocks(num_blocks, block_tokens)
    cache = TieredPrefixCache(pool, host_blocks=host_blocks, disk_blocks=disk_blocks)
    tables: dict[int, list[int]] = {}
    log: list[tuple[Any, ...]] = []
    for verb, index in commands:
        cached: int | None = None
        if verb == "start" and index not in tables:
            tokens = len(prompts[index])
            hashes = block_hashes(prompts[index], block_tokens)
            most = most_reusable_blocks(tokens, block_tokens)
            cache.fetch(hashes, most_blocks=most)
            table = cache.take(hashes, most_blocks=most)
            more = pool.blocks_for(tokens) - len(table)
            if more <= pool.free_blocks:
                cached = len(table) * block_tokens
                table += pool.allocate(more)
                cache.insert(hashes, table)
                tables[index] = table
            else:
                pool.free(table)
        elif verb == "end" and index in tables:
            pool.free(tables.pop(index))
            cached = 0
        counted = cache.take_copies()
        copied = (counted.host_to_device, counted.device_to_host, counted.disk_to_host, counted.host_to_disk)
        log.append((cached, *cache.stored(), copied))
    return log


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw branching prompts that come and go on a small device with small memories behind it."""
    drawn = dict(prefix_example(rng))
    return drawn | {"host_blocks": int(rng.integers(0, 8)), "disk_blocks": int(rng.integers(0, 8))}


def chat_example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw 400 turns of 40 chats of 1024 tokens, 8 at a time, on 1024 blocks of 16, with 4096 in host memory."""
    prompts = [rng.integers(0, 32000, size=1024).tolist() for _ in range(40)]
    commands: list[tuple[str, int]] = []
    for turn in range(400):
        commands.append(("start", turn % 40))
        if turn >= 8:
            commands.append(("end", (turn - 8) % 40))
    return {
        "num_blocks": 1024,
        "block_tokens": 16,
        "host_blocks": 4096,
        "disk_blocks": 0,
        "prompts": prompts,
        "commands": commands,
    }


TIERED_PREFIX_CACHE = Procedure(
    reference=tiered_prefix_cache,
    examples=example,
    paper="arXiv:2403.19708; arXiv:2407.00079",
    shapes={"400 turns of 40 chats": chat_example},
)
