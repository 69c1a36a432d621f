"""Laws of the assignment to prefill and decode pools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.serving.disaggregated import Disaggregated, disaggregated, example


@given(st.integers(0, 10**6))
def test_every_prompt_is_admitted_at_most_once_in_order_of_completion_and_blocks_never_run_out(seed):
    drawn = example(np.random.default_rng(seed))
    answers = disaggregated(**drawn)
    admitted = [entry for answer in answers if isinstance(answer, list) for entry in answer]
    requests = [request for request, _ in admitted]
    assert len(requests) == len(set(requests))
    done = [n for (verb, n), answer in zip(drawn["commands"], answers) if verb == "prefilled" and answer is not None]
    assert requests == done[: len(requests)]
    inside: dict[int, int] = {}
    for (verb, number), answer in zip(drawn["commands"], answers):
        if verb == "finished" and answer is not None:
            inside.pop(number)
        if isinstance(answer, list):
            inside |= dict(answer)
        for worker in range(drawn["num_decode"]):
            own = [request for request, at in inside.items() if at == worker]
            assert sum(drawn["requests"][request][1] for request in own) <= drawn["num_blocks"]
            assert len(own) <= drawn["seats"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 4))
def test_queues_differ_by_no_more_than_one_prompt(prompts, workers):
    pools = Disaggregated(workers, 1)
    for request, tokens in enumerate(prompts):
        pools.arrive(request, tokens)
    assert max(pools.queued_tokens) - min(pools.queued_tokens) <= max(prompts)
    for request in range(len(prompts)):
        pools.left(request)
    assert pools.queued_tokens == [0] * workers


def test_a_reused_prefix_outweighs_a_short_queue():
    pools = Disaggregated(2, 1)
    assert pools.arrive(0, 500) == 0
    assert pools.arrive(1, 1000, [900, 0]) == 0  # 500 + 100 < 1000
    assert pools.arrive(2, 1000, [200, 0]) == 1


def test_a_large_prompt_is_not_passed_by_smaller_ones():
    pools = Disaggregated(1, 1)
    for request, blocks in enumerate((8, 1)):
        pools.arrive(request, 1)
        pools.prefilled(request, blocks)
    assert pools.admit([5], [9]) == []
    assert pools.admit([9], [9]) == [(0, 0), (1, 0)]


def test_what_is_down_gets_nothing_and_held_prompts_can_be_dropped():
    pools = Disaggregated(2, 2)
    pools.prefill_up[0] = pools.decode_up[1] = False
    assert pools.arrive(0, 9) == 1
    pools.prefilled(0, 1)
    assert pools.admit([0, 9], [9, 9]) == []
    pools.drop_held([0])
    assert pools.admit([9, 9], [9, 9]) == []
    pools.prefill_up[1] = False
    with pytest.raises(ValueError, match="no prefill worker is up"):
        pools.arrive(1, 9)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_prefill=0"):
        Disaggregated(0, 1)
    pools = Disaggregated(1, 1)
    pools.arrive(4, 1)
    with pytest.raises(ValueError, match="request 4 is in the prefill pool already"):
        pools.arrive(4, 1)
