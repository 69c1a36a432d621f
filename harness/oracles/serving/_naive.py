"""Slow models of the serving components in which every quantity is counted anew from the state, never kept.

Blocks are objects with their set of users; a prefix is the tuple of its tokens. Nothing of the reference is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Block:
    """A block: who uses it, the prefix it is known for, and when it was last given back."""

    def __init__(self) -> None:
        self.users: set[int] = set()
        self.prefix: tuple[int, ...] | None = None
        self.idle_since = 0


class Pool:
    """A set of blocks; all questions are answered by looking at every block."""

    def __init__(self, count: int) -> None:
        self.all = [Block() for _ in range(count)]
        self.clock = 0
        self.evictions = 0

    def available(self) -> list[Block]:
        """Blocks without a user, in the order they are taken: unknown ones first, then the one idle longest."""
        unused = [block for block in self.all if not block.users]
        return sorted(unused, key=lambda block: (block.prefix is not None, block.idle_since))

    def take(self, count: int, user: int) -> list[Block]:
        """Take blocks for a user."""
        taken = self.available()[:count]
        assert len(taken) == count, "asked for more than there is"
        for block in taken:
            self.evictions += block.prefix is not None
            block.prefix = None
            block.users = {user}
        return taken

    def give_back(self, table: Sequence[Block], user: int) -> None:
        """Drop a user from blocks, the last first."""
        for block in reversed(table):
            self.clock += 1
            block.users.remove(user)
            if not block.users:
                block.idle_since = self.clock

    def known(self, prefix: tuple[int, ...]) -> Block | None:
        """The block known for this prefix."""
        return next((block for block in self.all if block.prefix == prefix), None)

    def longest(self, tokens: Sequence[int], size: int, most_tokens: int) -> list[Block]:
        """Blocks of the longest known prefix of whole blocks within `most_tokens` tokens."""
        found: list[Block] = []
        while (end := (len(found) + 1) * size) <= min(most_tokens, len(tokens)):
            block = self.known(tuple(tokens[:end]))
            if block is None:
                break
            found.append(block)
        return found

    def learn(self, tokens: Sequence[int], table: Sequence[Block], size: int, ends: range) -> None:
        """Know each block that was filled just now by its prefix, unless another is known for it already."""
        for end in ends:
            prefix = tuple(tokens[:end])
            if end % size == 0 and len(prefix) == end and self.known(prefix) is None:
                table[end // size - 1].prefix = prefix


class Generation:
    """A request: its tokens known and computed, and its blocks."""

    def __init__(self, index: int, place: int, drawn: Mapping[str, Any]) -> None:
        self.index = index
        self.place = place  # in the order of arrival
        self.prompt: list[int] = list(drawn["prompt"])
        self.most = drawn["output_tokens"]
        self.stop = drawn.get("stop_after")
        self.emitted = 0
        self.computed = 0
        self.table: list[Block] = []

    def missing(self) -> int:
        """Known tokens that are not computed."""
        return len(self.prompt) + self.emitted - self.computed


Part = tuple[Generation, int, int]  # request, first position, tokens


class Machine:
    """State of a scheduler: who waits, who runs, and the pool. Both lists are kept in order of arrival by sorting them."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.size = arguments["block_tokens"]
        self.most_running = arguments["max_num_seqs"]
        self.budget = arguments["max_num_batched_tokens"]
        self.caching = arguments["prefix_caching"]
        self.longest_piece = arguments.get("max_chunk_tokens") or self.budget
        self.pool = Pool(arguments["num_blocks"])
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.preempted: list[Generation] = []
        self.parts: list[Part] = []

    def blocks_of(self, tokens: int) -> int:
        """Blocks for this many tokens."""
        return len(range(0, tokens, self.size))

    def used(self) -> int:
        """Tokens in this step so far."""
        return sum(tokens for _, _, tokens in self.parts)

    def evict_last(self) -> Generation:
        """Preempt the latest arrival that runs."""
        victim = max(self.running, key=lambda request: request.place)
        self.running.remove(victim)
        self.parts = [part for part in self.parts if part[0] is not victim]
        self.pool.give_back(victim.table, victim.index)
        victim.table, victim.computed = [], 0
        self.preempted.append(victim)
        self.waiting = sorted([*self.waiting, victim], key=lambda request: request.place)
        return victim

    def make_room(self, request: Generation, tokens: int) -> bool:
        """Let a running request hold `tokens` tokens, at the cost of later ones; False where it lost its own place."""
        while request in self.running:
            more = self.blocks_of(tokens) - len(request.table)
            if more <= len(self.pool.available()):
                request.table = request.table + self.pool.take(max(more, 0), request.index)
                return True
            self.evict_last()
        return False

    def admit_first(self, budget: int, *, whole: bool, spare: int) -> bool:
        """Start the request that waits longest, if it fits."""
        if not self.waiting or len(self.running) == self.most_running:
            return False
        request = self.waiting[0]
        shared = self.pool.longest(request.prompt, self.size, len(request.prompt) + request.emitted - 1) if self.caching else []
        start = len(shared) * self.size
        tokens = len(request.prompt) + request.emitted - start
        if not whole:
            tokens = min(tokens, budget, self.longest_piece)
        fresh = self.blocks_of(start + tokens) - len(shared)
        left = [block for block in self.pool.available() if block not in shared]
        if tokens < 1 or tokens > budget or fresh + spare > len(left):
            return False
        for block in shared:
            block.users.add(request.index)
        request.table = shared + self.pool.take(fresh, request.index)
        request.computed = start
        self.waiting.remove(request)
        self.running.append(request)
        self.parts.append((request, start, tokens))
        return True

    def whole_prompts_first(self) -> None:
        """Choose a step as Orca and vLLM's first scheduler do."""
        spare = len(self.pool.all) // 100
        while self.admit_first(self.budget - self.used(), whole=True, spare=spare):
            pass
        if not self.parts:
            for request in list(self.running):
                if self.make_room(request, request.computed + 1):
                    self.parts.append((request, request.computed, 1))

    def decodes_first(self) -> None:
        """Choose a step as Sarathi-Serve does: decodes, prompts begun, then new requests."""
        begun = [request for request in self.running if request.missing() > 1]
        for request in [request for request in self.running if request.missing() == 1]:
            if self.make_room(request, request.computed + 1):
                self.parts.append((request, request.computed, 1))
        for request in begun:
            tokens = min(request.missing(), self.budget - self.used(), self.longest_piece)
            if tokens > 0 and self.make_room(request, request.computed + tokens):
                self.parts.append((request, request.computed, tokens))
        if not self.preempted:
            while self.admit_first(self.budget - self.used(), whole=False, spare=0):
                pass

    def finish_step(self) -> list[Generation]:
        """Count what was computed; return the requests that ended, in the reference's order: full length, then stopped."""
        ended, stopped = [], []
        for request, start, tokens in self.parts:
            request.computed = start + tokens
            if request.missing() == 0:
                request.emitted += 1
                if request.emitted >= request.most:
                    ended.append(request)
                elif request.emitted == request.stop:
                    stopped.append(request)
            if self.caching:
                self.pool.learn(request.prompt, request.table, self.size, range(start + 1, start + tokens + 1))
        for request in ended + stopped:
            self.running.remove(request)
            self.pool.give_back(request.table, request.index)
        return ended + stopped


def run(policy: str, arguments: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run all requests to the end under the named method of `Machine`; return the log in the reference's form."""
    machine = Machine(arguments)
    coming = sorted(enumerate(arguments["requests"]), key=lambda pair: (pair[1]["step"], pair[0]))
    log: list[tuple[Any, ...]] = []
    while coming or machine.waiting or machine.running:
        refused = []
        while coming and coming[0][1]["step"] <= len(log):
            index, drawn = coming.pop(0)
            longest = len(drawn["prompt"]) + drawn["output_tokens"] - 1
            spare = len(machine.pool.all) // 100 if policy == "whole_prompts_first" else 0
            too_long = policy == "whole_prompts_first" and longest > machine.budget
            if too_long or machine.blocks_of(longest) + spare > len(machine.pool.all):
                refused.append(index)
            else:
                machine.waiting.append(Generation(index, len(arguments["requests"]) - len(coming), drawn))
        machine.parts, machine.preempted = [], []
        getattr(machine, policy)()
        parts = [(request.index, start, tokens, tokens == request.missing()) for request, start, tokens in machine.parts]
        preempted = [request.index for request in machine.preempted]
        log.append((parts, preempted, [request.index for request in machine.finish_step()], refused))
    return log
