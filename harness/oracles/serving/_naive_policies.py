"""The slow scheduler with other orders of admission, other conditions for it, and other steps.

Nothing of the reference is imported; what a policy promises is counted anew from the state at every question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.harness.oracles.serving._naive import Block, Generation, Machine


class PolicyMachine(Machine):
    """A machine whose order and admission are methods to replace."""

    chunked = True

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.arguments = arguments
        self.spare = 0

    def final_blocks(self, request: Generation) -> int:
        """Blocks of a request with its whole output, whose last token is not stored."""
        return self.blocks_of(len(request.prompt) + request.most - 1)

    def refuses(self, request: Generation) -> bool:
        """Whether it could never run."""
        return self.final_blocks(request) + self.spare > len(self.pool.all)

    def arrive(self, request: Generation) -> None:
        """A request comes."""
        self.waiting.append(request)

    def next_waiting(self) -> Generation:
        """Who is admitted next."""
        return self.waiting[0]

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        """Whether it may start, when its first step ends at token `end`."""
        return self.blocks_of(end) - len(shared) + self.spare <= self.unshared(shared)

    def unshared(self, shared: Sequence[Block]) -> int:
        """Blocks to be had beside these."""
        return len([block for block in self.pool.available() if block not in shared])

    def taken_at_start(self, request: Generation, end: int) -> int:
        """Tokens for which it gets blocks when it starts."""
        return end

    def admit_first(self, budget: int, *, whole: bool, spare: int) -> bool:
        if not self.waiting or len(self.running) >= self.most_running:
            return False
        request = self.next_waiting()
        known = len(request.prompt) + request.emitted
        shared = self.pool.longest(request.prompt, self.size, known - 1) if self.caching else []
        start = len(shared) * self.size
        tokens = known - start if whole else min(known - start, budget, self.longest_piece)
        if not 1 <= tokens <= budget or not self.allowed(request, shared, start + tokens):
            return False
        for block in shared:
            block.users.add(request.index)
        fresh = self.blocks_of(self.taken_at_start(request, start + tokens)) - len(shared)
        request.table = shared + self.pool.take(fresh, request.index)
        request.computed = start
        self.waiting.remove(request)
        self.running.append(request)
        self.parts.append((request, start, tokens))
        self.admitted(request)
        return True

    def admitted(self, request: Generation) -> None:
        """A request was started."""

    def evict(self, victim: Generation) -> Generation:
        """Preempt this one."""
        self.running.remove(victim)
        self.parts = [part for part in self.parts if part[0] is not victim]
        self.pool.give_back(victim.table, victim.index)
        victim.table, victim.computed = [], 0
        self.preempted.append(victim)
        self.waiting = sorted([*self.waiting, victim], key=lambda request: request.place)
        return victim

    def step(self) -> None:
        """Choose a step."""
        if self.chunked:
            self.decodes_first()
        else:
            self.whole_prompts_first()

    def whole_prompts_first(self) -> None:
        while self.admit_first(self.budget - self.used(), whole=True, spare=self.spare):
            pass
        if not self.parts:
            self.decode_all()

    def decode_all(self) -> None:
        """One token of every running request."""
        for request in list(self.running):
            if self.make_room(request, request.computed + 1):
                self.parts.append((request, request.computed, 1))

    def emits(self, request: Generation, start: int, tokens: int) -> bool:
        """Whether a token comes out of this part."""
        return tokens == request.missing()


class WholePrompts(PolicyMachine):
    """Whole prompts, on the condition that a recomputed request fits one step, beside 1 % of the pool."""

    chunked = False

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.spare = len(self.pool.all) // 100

    def refuses(self, request: Generation) -> bool:
        return len(request.prompt) + request.most - 1 > self.budget or super().refuses(request)


def _fits_to_the_end(machine: PolicyMachine, request: Generation, shared: Sequence[Block]) -> bool:
    asked = sum(machine.final_blocks(one) - len(one.table) for one in machine.running)
    return machine.final_blocks(request) - len(shared) + asked + machine.spare <= machine.unshared(shared)


class PromisedChunks(PolicyMachine):
    """Admission by the blocks everybody may still ask for."""

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        return _fits_to_the_end(self, request, shared)


class PromisedPrompts(WholePrompts):
    """The same for whole prompts."""

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        return _fits_to_the_end(self, request, shared)


class Iterations(PolicyMachine):
    """Orca: everybody takes part in every iteration, and has all its memory from the start."""

    def refuses(self, request: Generation) -> bool:
        return len(request.prompt) > self.budget or super().refuses(request)

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        return self.final_blocks(request) - len(shared) <= self.unshared(shared)

    def taken_at_start(self, request: Generation, end: int) -> int:
        return len(request.prompt) + request.most - 1

    def step(self) -> None:
        self.parts += [(request, request.computed, 1) for request in self.running]
        while self.admit_first(self.budget - self.used(), whole=True, spare=0):
            pass


class WholePromptFits(PolicyMachine):
    """Sarathi-Serve: pieces, but only of prompts that fit whole."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.spare = len(self.pool.all) // 100

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        known = len(request.prompt) + request.emitted
        owed = 0
        for one in self.running:
            if one.missing() > 1:
                owed += max(0, self.blocks_of(len(one.prompt) + one.emitted) - len(one.table))
        return self.blocks_of(known) - len(shared) + owed + self.spare <= self.unshared(shared)


class FixedForward(PolicyMachine):
    """Dynamic SplitFuse: fill the pass; stall without a block; the last gives way when nothing moves."""

    def step(self) -> None:
        decoding = [request for request in self.running if request.missing() == 1]
        for request in decoding + [request for request in self.running if request not in decoding]:
            most = 0  # the longest piece that the pass and the blocks allow, found by trying
            while most < min(request.missing(), self.budget - self.used()) and self.blocks_of(
                request.computed + most + 1
            ) - len(request.table) <= len(self.pool.available()):
                most += 1
            if most:
                fresh = self.blocks_of(request.computed + most) - len(request.table)
                request.table = request.table + self.pool.take(max(fresh, 0), request.index)
                self.parts.append((request, request.computed, most))
        while self.admit_first(self.budget - self.used(), whole=False, spare=0):
            pass
        if not self.parts and self.running:
            self.evict_last()


class PeakEstimate(WholePrompts):
    """LightLLM: play the running requests forward and look at the most they hold."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.spare = 0
        self.decodes = 0

    def still(self, request: Generation) -> int:
        """Tokens expected to be stored from now on."""
        drawn = self.arguments["requests"][request.index]
        return max(0, min(drawn.get("predicted_tokens") or request.most, request.most) - request.emitted - 1)

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        new = [one for one, _, _ in self.parts] + [request]
        most = max(self.still(one) for one in [*self.running, *new])
        held = [0]
        for t in range(1, most + 2):  # what is stored in the t-th decode step from now
            old = sum(
                len(one.prompt) + one.emitted + t - 1 for one in self.running if one not in new and self.still(one) >= t - 1
            )
            held.append(old + sum(len(one.prompt) + one.emitted + t for one in new if self.still(one) >= t))
        return max(held) <= len(self.pool.all) * self.size and super().allowed(request, shared, end)

    def step(self) -> None:
        if self.waiting and (not self.running or self.decodes >= self.arguments["max_wait_steps"]):
            self.decodes = 0
            while self.admit_first(self.budget - self.used(), whole=True, spare=0):
                pass
        if not self.parts:
            self.decodes += 1
            self.decode_all()


class Keyed(PolicyMachine):
    """Order by a key; the last in it is preempted."""

    def key(self, request: Generation) -> tuple[int, int]:
        """Priority, or expected length, then arrival."""
        drawn = self.arguments["requests"][request.index]
        if self.arguments["policy"] == "priority":
            return drawn.get("priority", 0), request.place
        return drawn.get("predicted_tokens") or request.most, request.place

    def next_waiting(self) -> Generation:
        return min(self.waiting, key=self.key)

    def evict_last(self) -> Generation:
        """Preempt the last in order."""
        return self.evict(max(self.running, key=self.key))

    def step(self) -> None:
        self.running.sort(key=self.key)
        super().step()


class Fair(PolicyMachine):
    """Virtual token counters, added up anew from the ledger of everything that was counted."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.ledger: list[tuple[int, int]] = []
        self.charged: list[int] = []
        self.left: int | None = None

    def client(self, request: Generation) -> int:
        """Who sent it."""
        return int(self.arguments["requests"][request.index].get("client", 0))

    def service(self, client: int) -> int:
        """Everything counted for a client."""
        return sum(amount for one, amount in self.ledger if one == client)

    def arrive(self, request: Generation) -> None:
        client = self.client(request)
        waiting = {self.client(one) for one in self.waiting}
        if client not in waiting:
            if waiting:
                floor = min(self.service(one) for one in waiting)
            else:
                floor = self.service(self.left) if self.left is not None else 0
            self.ledger.append((client, max(0, floor - self.service(client))))
        self.waiting.append(request)

    def next_waiting(self) -> Generation:
        return min(self.waiting, key=lambda one: (self.service(self.client(one)), self.client(one), one.place))

    def admitted(self, request: Generation) -> None:
        client = self.client(request)
        if request.index not in self.charged:
            self.charged.append(request.index)
            self.ledger.append((client, len(request.prompt)))
        if client not in {self.client(one) for one in self.waiting}:
            self.left = client

    def evict_last(self) -> Generation:
        """Preempt the one admitted last."""
        return self.evict(self.running[-1])

    def finish_step(self) -> list[Generation]:
        for request, start, tokens in self.parts:
            if start + tokens == len(request.prompt) + request.emitted:
                self.ledger.append((self.client(request), 2))
        return super().finish_step()


class HostSwap(WholePrompts):
    """Preemption to host memory where there is room."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.host: dict[int, int] = {}  # swapped request -> blocks it holds there

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        return request.index not in self.host and super().allowed(request, shared, end)

    def evict_last(self) -> Generation:
        victim = max(self.running, key=lambda request: request.place)
        held, computed = len(victim.table), victim.computed
        super().evict_last()
        if held + sum(self.host.values()) <= self.arguments["num_host_blocks"]:
            self.host[victim.index] = held
            victim.computed = computed
        return victim

    def whole_prompts_first(self) -> None:
        super().whole_prompts_first()
        prompts = any(request.emitted == 0 or tokens > 1 for request, _, tokens in self.parts)
        if self.preempted or (prompts and not any(request.index in self.host for request in self.waiting[:1])):
            return
        if self.parts and any(start == 0 for _, start, _ in self.parts):
            return
        while self.waiting and self.waiting[0].index in self.host and len(self.running) < self.most_running:
            request = self.waiting[0]
            if self.blocks_of(request.computed + 1) + self.spare > len(self.pool.available()):
                return
            del self.host[request.index]
            request.table = self.pool.take(self.blocks_of(request.computed + 1), request.index)
            self.waiting.remove(request)
            self.running.append(request)
            self.parts.append((request, request.computed, 1))


class Adapters(PolicyMachine):
    """A place for a few adapters only; whoever has none lets others pass."""

    def evict_last(self) -> Generation:
        """Preempt the one admitted last, which is not the latest arrival where others passed it."""
        return self.evict(self.running[-1])

    def adapter(self, request: Generation) -> int:
        """Its adapter, -1 for none."""
        return int(self.arguments["requests"][request.index].get("adapter", -1))

    def placed(self, request: Generation) -> bool:
        """Whether its adapter can be on the device beside those in use."""
        used = {self.adapter(one) for one in [*self.running, request]} - {-1}
        return self.adapter(request) == -1 or len(used) <= self.arguments["max_loras"]

    def next_waiting(self) -> Generation:
        return next((request for request in self.waiting if self.placed(request)), self.waiting[0])

    def allowed(self, request: Generation, shared: Sequence[Block], end: int) -> bool:
        return self.placed(request) and super().allowed(request, shared, end)


def _uniform(seed: int, request: int, position: int) -> float:
    state = np.array([0], dtype=np.uint64)
    for word in (seed, request, position):
        state = (state ^ np.uint64(word)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return float(int(state[0]) // 2**11) / 2.0**53


class Guesses(PolicyMachine):
    """Decodes that verify guesses."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.drafts: dict[int, int] = {}

    def step(self) -> None:
        self.drafts = {}
        begun = [request for request in self.running if request.missing() > 1]
        decoding = [request for request in self.running if request.missing() == 1]
        for place, request in enumerate(decoding):
            others = len(decoding) - place - 1
            drafts = max(0, min(self.arguments["num_drafts"], request.most - request.emitted - 1,
                                self.budget - self.used() - others - 1))  # fmt: skip
            if self.make_room(request, request.computed + 1 + drafts):
                self.parts.append((request, request.computed, 1 + drafts))
                self.drafts[request.index] = drafts
        for request in begun:
            tokens = min(request.missing(), self.budget - self.used(), self.longest_piece)
            if tokens > 0 and self.make_room(request, request.computed + tokens):
                self.parts.append((request, request.computed, tokens))
        if not self.preempted:
            while self.admit_first(self.budget - self.used(), whole=False, spare=0):
                pass

    def emits(self, request: Generation, start: int, tokens: int) -> bool:
        return tokens - self.drafts.get(request.index, 0) == request.missing()

    def finish_step(self) -> list[Generation]:
        kept = []
        for request, start, tokens in self.parts:
            drafts = self.drafts.get(request.index, 0)
            accepted = 0
            for guess in range(drafts):
                if _uniform(self.arguments["seed"], request.index, request.emitted + guess) >= self.arguments["acceptance"]:
                    break
                accepted += 1
            request.emitted += accepted
            kept.append((request, start, tokens - drafts + accepted))
        self.parts = kept
        ended = super().finish_step()
        for request in self.running:
            while len(request.table) > self.blocks_of(max(request.computed, 1)) and request.index in self.drafts:
                self.pool.give_back([request.table.pop()], request.index)
        return ended


def run_policy(policy: type[PolicyMachine], arguments: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run all requests to the end; return the log in the reference's form."""
    machine = policy(arguments)
    requests = arguments["requests"]
    coming = sorted(enumerate(requests), key=lambda pair: (pair[1]["step"], pair[0]))
    log: list[tuple[Any, ...]] = []
    while coming or machine.waiting or machine.running:
        refused = []
        while coming and coming[0][1]["step"] <= len(log):
            index, drawn = coming.pop(0)
            request = Generation(index, len(requests) - len(coming), drawn)
            if machine.refuses(request):
                refused.append(index)
            else:
                machine.arrive(request)
        machine.parts, machine.preempted = [], []
        machine.step()
        parts = [(request.index, start, n, machine.emits(request, start, n)) for request, start, n in machine.parts]
        preempted = [request.index for request in machine.preempted]
        log.append((parts, preempted, [request.index for request in machine.finish_step()], refused))
    return log
