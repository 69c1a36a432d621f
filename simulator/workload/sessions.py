"""Multi-turn sessions: chats of people who think between turns, and agents that wait for tools. Units: tokens, nanoseconds.

The prompt of a turn is the whole conversation before it (earlier prompts and answers) and something new; its block identities
run on over its answer, so that what a replica still holds of the last turn is found again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.simulator.workload.workload import NANOSECONDS, Workload


def conversations(
    arrival_ns: np.ndarray,
    turns: np.ndarray,
    new_tokens: np.ndarray,
    output_tokens: np.ndarray,
    gap_s: np.ndarray,
    *,
    system_tokens: int = 0,
    system_groups: int = 1,
    most_tokens: int | None = None,
    block_tokens: int = 16,
    name: str = "sessions",
) -> Workload:
    """Build the requests of sessions, one after another in order of arrival.

    Args:
        arrival_ns: when each session begins, ascending.
        turns: requests of each session, at least 1.
        new_tokens: per request (sessions one after another), what is new in its prompt.
        output_tokens: per request, its answer.
        gap_s: per request, the pause before it; that of a first turn is not used.
        system_tokens: length of the prompt that begins every session.
        system_groups: how many different ones there are; sessions take them in turn.
        most_tokens: a session ends before a turn whose prompt and answer would pass this.
        block_tokens: tokens of one block identity.

    Raises:
        ValueError: lengths that do not match, or a count below 1.
    """
    count = int(np.sum(turns))
    if len(arrival_ns) != len(turns) or not len(new_tokens) == len(output_tokens) == len(gap_s) == count:
        raise ValueError(
            f"{len(arrival_ns)} arrivals, {len(turns)} sessions of {count} turns, {len(new_tokens)} new lengths, "
            f"{len(output_tokens)} answers, {len(gap_s)} gaps"
        )
    if min(turns) < 1 or system_groups < 1 or block_tokens < 1 or system_tokens < 0:
        raise ValueError(f"turns={min(turns)}, {system_groups=}, {block_tokens=}: need at least 1; {system_tokens=}: 0")
    rows: list[tuple[int, int, int, int, int]] = []  # arrival, prompt, output, session, gap
    hashes: list[np.ndarray] = []
    shared = system_tokens // block_tokens
    fresh = system_groups * shared  # identities of the system prompts come first
    row = 0
    for session, (start_ns, wanted) in enumerate(zip(arrival_ns.tolist(), turns.tolist())):
        chain = np.arange(shared) + (session % system_groups) * shared
        held = system_tokens
        for turn in range(wanted):
            prompt, output = held + int(new_tokens[row + turn]), int(output_tokens[row + turn])
            if turn and most_tokens is not None and prompt + output > most_tokens:
                break
            blocks = (prompt + output) // block_tokens
            more = max(0, blocks - len(chain))
            chain = np.concatenate((chain, np.arange(fresh, fresh + more)))
            fresh += more
            gap_ns = round(float(gap_s[row + turn]) * NANOSECONDS) if turn else 0
            rows.append((start_ns, prompt, output, session, gap_ns))
            hashes.append(chain)
            held = prompt + output
        row += wanted
    table = np.array(rows, dtype=np.int64)
    return Workload(
        table[:, 0],
        table[:, 1],
        table[:, 2],
        tuple(hashes),
        block_tokens,
        session=table[:, 3],
        gap_ns=table[:, 4],
        name=name,
    )


def turn_numbers(session: Sequence[int] | np.ndarray) -> np.ndarray:
    """Number of each request within its session, from 0.

    >>> turn_numbers([4, 4, 7, 7, 7]).tolist()
    [0, 1, 0, 1, 2]
    """
    ids = np.asarray(session)
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    first = np.flatnonzero(np.concatenate(([True], np.diff(ids) != 0)))
    return np.arange(len(ids)) - np.repeat(first, np.diff(np.append(first, len(ids))))
