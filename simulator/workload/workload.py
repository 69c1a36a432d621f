"""A workload: when requests arrive, how long they are, and which prompt prefixes they share.

Units: integer nanoseconds and tokens. Everything here is a pure function of its inputs (and a seed).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

NANOSECONDS = 1_000_000_000

LABELS = ("client", "priority", "adapter", "predicted_tokens")
"""What a request may be marked with, by the names of `Request`."""


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival.

    Attributes:
        arrival_ns: when each arrives, ascending; all zero in a closed loop, where the clients decide.
        prompt_tokens: prompt lengths, at least 1.
        output_tokens: tokens to generate, at least 1.
        block_hashes: per request the identity of each full prompt block of `hash_block_tokens` tokens, chained (equal means the
            whole prefix is equal); empty where no prompt shares anything.
        hash_block_tokens: tokens per identity in `block_hashes`.
        clients: 0 for open loop; otherwise a closed loop of that many clients, each sending its next request when the
            last one is finished.
        think_ns: pause of a client between an answer and its next request.
        session: per request the conversation or task it belongs to, turns in order and side by side; empty where every
            request stands alone. Only the first turn is sent at its time; each further one `gap_ns` after the answer before
            it, and in a closed loop a client leads one session after another. `block_hashes` of a turn may run on over its
            answer, which the next turn's prompt contains.
        gap_ns: per request the pause before it, after the previous turn's last token: thinking, or a tool's time.
        client, priority, adapter, predicted_tokens: labels of each request that policies ask for (who sent it; the lower the
            more urgent; id of its low-rank adapter, -1 for none; a guess of its output); empty where there are none.
        name: where it came from, for tables.
    """

    arrival_ns: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    block_hashes: tuple[np.ndarray, ...] = ()
    hash_block_tokens: int = 16
    clients: int = 0
    think_ns: int = 0
    session: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    gap_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    client: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    priority: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    adapter: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    predicted_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    name: str = "workload"

    def __post_init__(self) -> None:
        """Hold the laws every reader and generator promises.

        Raises:
            ValueError: lengths differ, a length below 1, times that are negative or not ascending, or an empty workload.
        """
        for name in ("arrival_ns", "prompt_tokens", "output_tokens", "session", "gap_ns", *LABELS):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        count = len(self.arrival_ns)
        if not count:
            raise ValueError("a workload needs at least one request")
        if len(self.prompt_tokens) != count or len(self.output_tokens) != count:
            raise ValueError(f"{count} arrivals, {len(self.prompt_tokens)} prompts, {len(self.output_tokens)} outputs")
        if len(self.block_hashes) not in (0, count):
            raise ValueError(f"{len(self.block_hashes)} lists of block hashes for {count} requests")
        if self.arrival_ns[0] < 0 or (np.diff(self.arrival_ns) < 0).any():
            raise ValueError("arrival times must ascend from 0 or later")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise ValueError("prompt_tokens and output_tokens must be at least 1")
        if self.clients < 0 or self.think_ns < 0:
            raise ValueError(f"clients={self.clients} and think_ns={self.think_ns} must not be negative")
        for name in LABELS:
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{len(getattr(self, name))} labels {name} for {count} requests")
        if len(self.predicted_tokens) and self.predicted_tokens.min() < 1:
            raise ValueError("predicted_tokens must be at least 1")
        if len(self.session) not in (0, count) or len(self.gap_ns) != len(self.session):
            raise ValueError(f"{len(self.session)} session ids and {len(self.gap_ns)} gaps for {count} requests")
        if len(self.session):
            if self.gap_ns.min() < 0:
                raise ValueError("gaps between turns must not be negative")
            if len(np.unique(self.session)) != self.num_sessions:
                raise ValueError("the turns of a session must stand side by side")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def num_sessions(self) -> int:
        """Sessions; every request is one of its own where none are given."""
        return 1 + int(np.count_nonzero(np.diff(self.session))) if len(self.session) else len(self)

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.arrival_ns[-1] - self.arrival_ns[0]) / NANOSECONDS

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate; 0 where all arrive at once."""
        return (len(self) - 1) / self.span_s if self.span_s else 0.0

    def hashes(self, index: int, block_tokens: int) -> tuple[int, ...]:
        """Identities of the full blocks of one prompt, for a cache whose blocks hold `block_tokens` tokens.

        A smaller block takes the identity of the one it lies in and its place in it; a larger one that of the last it
        covers, which names the whole prefix because identities are chained.

        Raises:
            ValueError: neither block size divides the other.
        """
        if not self.block_hashes:
            return ()
        own = self.block_hashes[index]
        full = int(self.prompt_tokens[index] + (self.output_tokens[index] if len(self.session) else 0)) // block_tokens
        if self.hash_block_tokens % block_tokens == 0:
            parts = self.hash_block_tokens // block_tokens
            fine = (np.repeat(own, parts) * parts + np.tile(np.arange(parts), len(own)))[:full]
            return tuple(fine.tolist())
        if block_tokens % self.hash_block_tokens == 0:
            parts = block_tokens // self.hash_block_tokens
            return tuple(own[parts - 1 :: parts][:full].tolist())
        raise ValueError(f"blocks of {block_tokens} tokens do not fit prefix identities of {self.hash_block_tokens} tokens")

    def labels(self, index: int) -> dict[str, Any]:
        """Labels of one request."""
        return {name: int(label[index]) for name in LABELS if len(label := getattr(self, name))}

    def select(self, chosen: np.ndarray | slice) -> Workload:
        """Keep the chosen requests, times unchanged."""
        positions = np.arange(len(self))[chosen]
        return replace(
            self,
            arrival_ns=self.arrival_ns[positions],
            prompt_tokens=self.prompt_tokens[positions],
            output_tokens=self.output_tokens[positions],
            block_hashes=tuple(self.block_hashes[i] for i in positions) if self.block_hashes else (),
            session=self.session[positions] if len(self.session) else self.session,
            gap_ns=self.gap_ns[positions] if len(self.session) else self.gap_ns,
            **{name: label[positions] for name in LABELS if len(label := getattr(self, name))},
        )

    def first(self, count: int) -> Workload:
        """Keep the first `count` requests.

        Raises:
            ValueError: count below 1.
        """
        if count < 1:
            raise ValueError(f"first={count} < 1")
        return self.select(slice(0, count))

    def window(self, start_s: float, end_s: float) -> Workload:
        """Keep arrivals in [start_s, end_s) and count time from start_s.

        Raises:
            ValueError: nothing arrives in it.
        """
        start_ns, end_ns = round(start_s * NANOSECONDS), round(end_s * NANOSECONDS)
        inside = (self.arrival_ns >= start_ns) & (self.arrival_ns < end_ns)
        if not inside.any():
            raise ValueError(f"nothing arrives in [{start_s}, {end_s}) s")
        kept = self.select(inside)
        return replace(kept, arrival_ns=kept.arrival_ns - start_ns)

    def at_rate(self, factor: float) -> Workload:
        """Let the same requests arrive `factor` times as fast.

        Raises:
            ValueError: factor is not positive and finite.
        """
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"rate_factor={factor} must be positive")
        return replace(self, arrival_ns=np.rint(self.arrival_ns / factor).astype(np.int64))

    def peak_window(self, seconds: float) -> Workload:
        """Keep the stretch of this length in which most tokens arrive (whole workload if it is shorter)."""
        length_ns = round(seconds * NANOSECONDS)
        if self.arrival_ns[-1] - self.arrival_ns[0] <= length_ns:
            return replace(self, arrival_ns=self.arrival_ns - self.arrival_ns[0])
        total = np.concatenate(([0], np.cumsum(self.prompt_tokens + self.output_tokens)))
        last = np.searchsorted(self.arrival_ns, self.arrival_ns + length_ns, side="left")
        begin = int(np.argmax(total[last] - total[np.arange(len(self))]))
        kept = self.select(slice(begin, int(last[begin])))
        return replace(kept, arrival_ns=kept.arrival_ns - kept.arrival_ns[0], name=f"{self.name} (busiest {seconds:g} s)")

    def with_clients(self, clients: int, think_s: float = 0.0) -> Workload:
        """Send the same requests from a closed loop of clients instead of at their times.

        Raises:
            ValueError: fewer than one client.
        """
        if clients < 1:
            raise ValueError(f"clients={clients} < 1")
        return replace(self, arrival_ns=np.zeros_like(self.arrival_ns), clients=clients, think_ns=round(think_s * NANOSECONDS))
