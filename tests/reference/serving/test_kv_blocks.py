"""Laws of the paged allocator."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmlab.reference.serving.kv_blocks import KVBlocks

NUM_BLOCKS = 6


class Pool(RuleBasedStateMachine):
    """Any sequence of calls against a count of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = KVBlocks(NUM_BLOCKS, 4)
        self.tables: list[list[int]] = []
        self.kept: set[int] = set()
        self.pool.on_evict = self.kept.discard

    def held(self) -> Counter[int]:
        return Counter(block for table in self.tables for block in table)

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        if count > self.pool.free_blocks:
            with pytest.raises(ValueError, match="asked for"):
                self.pool.allocate(count)
        else:
            held = self.held()
            table = self.pool.allocate(count)
            assert not any(held[block] for block in table)
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.fork(table)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        shared = self.held()[table[-1]] > 1 or table[-1] in self.kept
        if shared and not self.pool.free_blocks:
            with pytest.raises(ValueError, match="asked for"):
                self.pool.make_writable(table[-1])
            return
        before, table[-1] = table[-1], self.pool.make_writable(table[-1])
        assert (table[-1] != before) == shared
        assert self.pool.references(table[-1]) == 1

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([block for table in self.tables for block in table]))
        self.pool.keep(block)
        self.kept.add(block)

    @rule(block=st.integers(0, NUM_BLOCKS - 1))
    def forget(self, block: int) -> None:
        self.pool.forget(block)
        self.kept.discard(block)

    @rule(block=st.integers(0, NUM_BLOCKS - 1))
    def revive(self, block: int) -> None:
        if self.held()[block] or block in self.kept:
            self.pool.fork([block])
            self.tables.append([block])
        else:
            for refused in (self.pool.fork, self.pool.free):
                with pytest.raises(ValueError, match="free"):
                    refused([block])

    @invariant()
    def references_are_the_tables_and_blocks_are_conserved(self) -> None:
        held = self.held()
        assert [self.pool.references(block) for block in range(NUM_BLOCKS)] == [held[block] for block in range(NUM_BLOCKS)]
        assert self.pool.free_blocks + len(held) == NUM_BLOCKS
        assert self.pool.kept_blocks == len(self.kept)


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = Pool.TestCase


def test_the_block_freed_last_is_given_out_first() -> None:
    pool = KVBlocks(5, 4)
    table = pool.allocate(3)
    pool.free(table)
    assert pool.allocate(4) == [0, 1, 2, 3]


def test_kept_blocks_leave_longest_unused_first_and_only_when_nothing_else_is_free() -> None:
    pool = KVBlocks(3, 4)
    left: list[int] = []
    pool.on_evict = left.append
    first, second, _ = pool.allocate(3)
    pool.keep(first)
    pool.keep(second)
    pool.free([second])
    pool.free([first])
    pool.free([2])
    assert pool.free_blocks == 3
    assert pool.allocate(1) == [2]
    assert left == []
    assert pool.allocate(2) == [second, first]
    assert left == [second, first]


def test_swapping_out_and_in_conserves_blocks_on_both_sides() -> None:
    pool = KVBlocks(4, 2, num_host_blocks=3)
    host = pool.swap_out(pool.allocate(3))
    assert (pool.free_blocks, pool.free_host_blocks) == (4, 0)
    assert len(pool.swap_in(host)) == 3
    assert (pool.free_blocks, pool.free_host_blocks) == (1, 3)
    with pytest.raises(ValueError, match="not all are in use"):
        pool.swap_in(host)
    with pytest.raises(ValueError, match="host blocks"):
        KVBlocks(4, 2).swap_out([0])


@pytest.mark.parametrize(("num_blocks", "block_tokens", "host"), [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_impossible_sizes_are_refused(num_blocks: int, block_tokens: int, host: int) -> None:
    with pytest.raises(ValueError, match="need at least"):
        KVBlocks(num_blocks, block_tokens, num_host_blocks=host)
