"""Laws of sessions: a turn contains the conversation so far, and its identities say so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.sessions import conversations, turn_numbers
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload


def drawn(seed, **options):
    rng = np.random.default_rng(seed)
    turns = rng.integers(1, 7, 9)
    count = int(turns.sum())
    return conversations(
        np.sort(rng.integers(0, 10**10, 9)),
        turns,
        rng.integers(1, 200, count),
        rng.integers(1, 90, count),
        rng.exponential(5, count),
        system_tokens=100,
        system_groups=3,
        **options,
    )


@given(st.integers(0, 10**6), st.sampled_from([1, 16, 64]))
def test_every_turn_begins_with_the_turn_before_and_its_answer(seed, block_tokens):
    workload = drawn(seed, block_tokens=block_tokens)
    turn = turn_numbers(workload.session)
    for i in range(len(workload)):
        own = workload.hashes(i, block_tokens)
        assert len(own) == (workload.prompt_tokens[i] + workload.output_tokens[i]) // block_tokens
        if turn[i]:
            before = workload.hashes(i - 1, block_tokens)
            assert own[: len(before)] == before
            assert workload.prompt_tokens[i] > workload.prompt_tokens[i - 1] + workload.output_tokens[i - 1]
            assert workload.arrival_ns[i] == workload.arrival_ns[i - 1]


@given(st.integers(0, 10**6))
def test_sessions_share_their_system_prompt_by_groups_and_nothing_else(seed):
    workload = drawn(seed)
    first = np.flatnonzero(turn_numbers(workload.session) == 0)
    last = np.append(first[1:], len(workload)) - 1
    for a, i in enumerate(last):
        for b, j in enumerate(last[:a]):
            common = set(workload.hashes(i, 16)) & set(workload.hashes(j, 16))
            assert len(common) == (6 if a % 3 == b % 3 else 0)


def test_a_long_conversation_ends_before_the_context_does():
    workload = conversations(np.zeros(1, int), np.array([5]), np.full(5, 100), np.full(5, 50), np.zeros(5), most_tokens=400)
    assert workload.prompt_tokens.tolist() == [100, 250]
    assert workload.num_sessions == 1


def test_subsets_keep_their_sessions():
    workload = drawn(1)
    kept = workload.first(7)
    assert kept.session.tolist() == workload.session[:7].tolist()
    assert kept.gap_ns.tolist() == workload.gap_ns[:7].tolist()
    assert workload.with_clients(3).num_sessions == 9


@pytest.mark.parametrize(
    ("session", "gap", "said"),
    [([0, 1, 0], [0, 0, 0], "side by side"), ([0, 0], [0, 0], "2 session ids"), ([0, 0, 1], [0, -1, 0], "not be negative")],
)
def test_sessions_that_make_no_sense_are_named(session, gap, said):
    with pytest.raises(ValueError, match=said):
        Workload([0, 0, 0], [1, 1, 1], [1, 1, 1], session=np.array(session), gap_ns=np.array(gap))


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match="2 sessions of 3 turns"):
        conversations(np.zeros(2, int), np.array([1, 2]), np.ones(2), np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="turns=0"):
        conversations(np.zeros(1, int), np.array([0]), np.ones(0), np.ones(0), np.zeros(0))


GOOD = """
requests: 40
arrivals: {process: poisson, rate_per_s: 2}
prompt_tokens: {distribution: uniform, low: 10, high: 90}
output_tokens: {distribution: fixed, tokens: 20}
sessions: {turns: {distribution: uniform, low: 2, high: 6}, gap_s: {mean: 4, cv: 1}, system_tokens: 64}
"""


def written(tmp_path, text):
    path = tmp_path / "load.yaml"
    path.write_text(text)
    return path


def test_a_file_describes_sessions(tmp_path):
    path = written(tmp_path, GOOD)
    workload = load_workload(path, 3)
    assert workload.num_sessions == 40
    turn = turn_numbers(workload.session)
    assert np.bincount(workload.session).min() >= 2
    assert np.bincount(workload.session).max() <= 6
    gaps = workload.gap_ns[turn > 0] / 1e9
    assert abs(gaps.mean() - 4) < 4 * 4 / np.sqrt(len(gaps))
    assert (workload.gap_ns[turn == 0] == 0).all()
    assert (load_workload(path, 3).gap_ns == workload.gap_ns).all()
    assert load_workload(written(tmp_path, GOOD.replace("poisson, rate_per_s: 2", "closed_loop, clients: 5"))).clients == 5
    even = load_workload(written(tmp_path, GOOD.replace("cv: 1", "cv: 0")))
    assert set(even.gap_ns.tolist()) == {0, 4 * 10**9}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mean: 4", "mean: -4", "sessions.gap_s.mean=-4"),
        ("turns: {distribution: uniform, low: 2, high: 6}, ", "", "sessions.turns"),
        ("system_tokens: 64", "system: 64", "sessions.system=64"),
        ("\nsessions", "\nprefix: {kind: shared, groups: 2, tokens: 32}\nsessions", "does not go together"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, old, new, said):
    with pytest.raises(InputError, match=said):
        load_workload(written(tmp_path, GOOD.replace(old, new)))
