"""Laws of prefix reuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes, most_reusable_blocks, prefix_cache

ids = st.lists(st.integers(0, 2), max_size=12)


@settings(deadline=None)
@given(ids, ids, st.integers(1, 4))
def test_hashes_are_equal_exactly_where_the_whole_prefix_is(left: list[int], right: list[int], size: int) -> None:
    pairs = zip(block_hashes(left, size), block_hashes(right, size))
    for index, (one, other) in enumerate(pairs):
        end = (index + 1) * size
        assert (one == other) == (left[:end] == right[:end])
    assert len(block_hashes(left, size)) == len(left) // size


def test_hashes_do_not_depend_on_the_container_and_a_salt_separates() -> None:
    tokens = [5, 7, 9, 11]
    assert block_hashes(tokens, 2) == block_hashes(np.array(tokens, dtype=np.int32), 2)
    assert not set(block_hashes(tokens, 2)) & set(block_hashes(tokens, 2, salt=b"other model"))
    with pytest.raises(ValueError, match="at least 1"):
        block_hashes(tokens, 0)


@given(st.integers(1, 50), st.integers(1, 9))
def test_the_last_token_is_never_reused(known: int, size: int) -> None:
    assert known - size - 1 < most_reusable_blocks(known, size) * size < known


def test_a_prompt_seen_before_is_reused_but_for_its_last_block() -> None:
    log = prefix_cache(num_blocks=8, block_tokens=2, prompts=[[1, 2, 3, 4]], commands=[("start", 0), ("end", 0), ("start", 0)])
    assert [cached for _, cached, _, _ in log] == [0, 0, 2]


def test_a_copy_of_a_known_block_stays_private() -> None:
    pool = KVBlocks(4, 2)
    cache = PrefixCache(pool)
    first, second = pool.allocate(2)
    cache.insert((7,), [first])
    cache.insert((7,), [second])
    assert (len(cache), cache.find((7,), most_blocks=9)) == (1, [first])
    pool.free([second])
    assert pool.allocate(1) == [second]


def test_evicted_blocks_are_not_found_again() -> None:
    pool = KVBlocks(2, 2)
    cache = PrefixCache(pool)
    table = pool.allocate(2)
    cache.insert((1, 2), table)
    pool.free(table)
    pool.allocate(1)
    assert cache.find((1, 2), most_blocks=2) == [table[0]]  # the tail went first
    pool.allocate(1)
    assert (cache.find((1, 2), most_blocks=2), cache.evictions, len(cache)) == ([], 2, 0)


def test_a_pool_has_one_cache() -> None:
    pool = KVBlocks(2, 2)
    PrefixCache(pool)
    with pytest.raises(ValueError, match="already"):
        PrefixCache(pool)
