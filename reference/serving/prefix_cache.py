"""Reuse of computed prefixes: a cache of full KV blocks by chained hash (RadixAttention, Zheng et al. 2023, arXiv:2312.07104).

The hash of a block covers its tokens and the hash of the block before it, so equal hashes mean equal prefixes and a walk
along the hashes is a walk down the radix tree. Units: blocks and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving.kv_blocks import KVBlocks


def block_hashes(ids: Sequence[int] | np.ndarray, block_tokens: int, *, salt: bytes = b"") -> tuple[int, ...]:
    """Return the chained identity of each full block of `ids`; the rest of the tokens has none.

    Raises:
        ValueError: block_tokens < 1.

    >>> one, two = block_hashes([1, 2, 3, 4], 2), block_hashes([9, 2, 3, 4, 5], 2)
    >>> len(one), len(two), one[0] == two[0], one[1] == two[1]  # the second block is the same, its prefix is not
    (2, 2, False, False)
    """
    if block_tokens < 1:
        raise ValueError(f"{block_tokens=}: need at least 1")
    whole = np.asarray(ids, dtype="<i8")
    before, hashes = salt, []
    for start in range(0, len(whole) - block_tokens + 1, block_tokens):
        before = blake2b(before + whole[start : start + block_tokens].tobytes(), digest_size=16).digest()
        hashes.append(int.from_bytes(before, "little"))
    return tuple(hashes)


class PrefixCache:
    """Finds full blocks that were computed before; the blocks nobody uses leave least recently used first.

    Args:
        blocks: the pool the blocks live in. A pool has one cache.

    Raises:
        ValueError: the pool has a cache already.

    >>> pool = KVBlocks(4, 2); cache = PrefixCache(pool)
    >>> table = pool.allocate(2); cache.insert((11, 22), table); pool.free(table)
    >>> cache.take((11, 22, 33), most_blocks=2), pool.free_blocks, cache.hit_tokens
    ([0, 1], 2, 4)
    """

    __slots__ = ("_block_of", "_hash_of", "blocks", "evictions", "hit_tokens", "queried_tokens")

    def __init__(self, blocks: KVBlocks) -> None:
        if blocks.on_evict is not None:
            raise ValueError("the pool has a prefix cache already")
        self.blocks = blocks
        self.hit_tokens = 0
        self.queried_tokens = 0
        self.evictions = 0
        self._block_of: dict[int, int] = {}
        self._hash_of: dict[int, int] = {}
        blocks.on_evict = self._forget

    def find(self, hashes: Sequence[int], *, most_blocks: int) -> list[int]:
        """Return the blocks of the longest cached prefix, at most `most_blocks`, without taking them."""
        found = []
        for key in hashes[:most_blocks]:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def fetch(self, hashes: Sequence[int], *, most_blocks: int) -> None:
        """Bring what a slower memory knows of this prefix onto the device, where there is one."""

    def take(self, hashes: Sequence[int], *, most_blocks: int) -> list[int]:
        """Find, add one reference to each block and count the hit."""
        found = self.find(hashes, most_blocks=most_blocks)
        self.blocks.fork(found)
        self.hit_tokens += len(found) * self.blocks.block_tokens
        self.queried_tokens += len(hashes[:most_blocks]) * self.blocks.block_tokens
        return found

    def insert(self, hashes: Sequence[int], blocks: Sequence[int]) -> None:
        """Make computed blocks findable. Where a hash is known already its first block stays and this copy is private."""
        for key, block in zip(hashes, blocks):
            if key not in self._block_of and block not in self._hash_of:
                self._block_of[key] = block
                self._hash_of[block] = key
                self.blocks.keep(block)

    def __len__(self) -> int:
        return len(self._block_of)

    def _forget(self, block: int) -> None:
        del self._block_of[self._hash_of.pop(block)]
        self.evictions += 1


def most_reusable_blocks(known_tokens: int, block_tokens: int) -> int:
    """Full blocks of a prompt that may come from the cache: the last token is always computed, its logits are wanted.

    >>> most_reusable_blocks(8, 4), most_reusable_blocks(9, 4)
    (1, 2)
    """
    return (known_tokens - 1) // block_tokens


def prefix_cache(
    *, num_blocks: int, block_tokens: int, prompts: Sequence[Sequence[int]], commands: Sequence[tuple[str, int]]
) -> list[tuple[Any, ...]]:
    """Replay ("start", i) and ("end", i) of prompt i; return (table or None where refused, cached tokens, free, evictions).

    A start takes what is cached, allocates the rest and inserts all full blocks; an end frees the table.

    Raises:
        ValueError: a size is out of range.
    """
    pool = KVBlocks(num_blocks, block_tokens)
    cache = PrefixCache(pool)
    tables: dict[int, list[int]] = {}
    log: list[tuple[Any, ...]] = []
    for verb, index in commands:
        table: list[int] | None = None
        cached = 0
        if verb == "start" and index not in tables:
            prompt = prompts[index]
            hashes = block_hashes(prompt, block_tokens)
            found = cache.take(hashes, most_blocks=most_reusable_blocks(len(prompt), block_tokens))
            rest = pool.blocks_for(len(prompt)) - len(found)
            if rest <= pool.free_blocks:
                table = tables[index] = found + pool.allocate(rest)
                cached = len(found) * block_tokens
                cache.insert(hashes, table)
            else:
                pool.free(found)
        elif verb == "end" and index in tables:
            pool.free(tables.pop(index))
            table = []
        log.append((table, cached, pool.free_blocks, cache.evictions))
    return log


def example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw prompts over two letters that branch off one another, in a pool that is sometimes too small."""
    prompts: list[list[int]] = []
    for _ in range(rng.integers(1, 7)):
        stem = prompts[rng.integers(len(prompts))] if prompts and rng.random() < 0.7 else []
        stem = stem[: int(rng.integers(0, len(stem) + 1))]
        prompts.append(stem + rng.integers(0, 2, size=rng.integers(1, 9)).tolist())
    verbs = rng.choice(["start", "start", "end"], size=rng.integers(0, 30))
    return {
        "num_blocks": int(rng.integers(1, 14)),
        "block_tokens": int(rng.integers(1, 4)),
        "prompts": prompts,
        "commands": [(str(verb), int(rng.integers(len(prompts)))) for verb in verbs],
    }


def chat_example(rng: np.random.Generator) -> Mapping[str, Any]:
    """Draw 400 prompts of 1024 tokens behind 8 system prompts of 512, 16 at a time, on 2048 blocks of 16 tokens."""
    systems = rng.integers(0, 32000, size=(8, 512)).tolist()
    prompts = [systems[rng.integers(8)] + rng.integers(0, 32000, size=512).tolist() for _ in range(400)]
    commands: list[tuple[str, int]] = []
    for index in range(400):
        commands.append(("start", index))
        if index >= 16:
            commands.append(("end", index - 16))
    return {"num_blocks": 2048, "block_tokens": 16, "prompts": prompts, "commands": commands}


PREFIX_CACHE = Procedure(
    reference=prefix_cache,
    examples=example,
    paper="arXiv:2312.07104",
    shapes={"400 chats behind 8 system prompts": chat_example},
)
