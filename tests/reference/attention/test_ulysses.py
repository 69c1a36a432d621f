"""What only the exchange of heads for positions promises."""

import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa, gqa_backward
from llmlab.reference.attention.ring import attention_arguments, ring
from llmlab.reference.attention.ulysses import ULYSSES, heads_for_positions, positions_for_heads, ulysses
from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._traffic import Traffic

SIZES = {"B": 2, "T": 12, "S": 12, "K": 4, "G": 3, "H": 5}


@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_attention_of_the_whole_sequence(causal):
    drawn = attention_arguments(np.random.default_rng(0), **SIZES)
    found = ulysses(**drawn, num_ranks=4, causal=causal)
    q, k, v, dout = drawn.values()
    assert same_to_rounding(gqa(q, k, v, causal=causal), found["out"])
    assert same_to_rounding(list(gqa_backward(dout, q, k, v, causal=causal)), [found[name] for name in ("dq", "dk", "dv")])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_exchange_moves_all_but_one_part_in_p(ranks):
    traffic = Traffic()
    ulysses(**attention_arguments(np.random.default_rng(0), **SIZES), num_ranks=ranks, traffic=traffic)
    queries, keys = 2 * 12 * 4 * 3 * 5, 2 * 12 * 4 * 5
    assert traffic.total_bytes == 2 * (ranks - 1) * (2 * queries + 2 * keys) // ranks * 8
    assert traffic.rounds == 8 * (ranks - 1)


def test_what_a_rank_sends_falls_with_ranks_where_a_ring_does_not():
    drawn = attention_arguments(np.random.default_rng(0), **{**SIZES, "G": 1})

    def sent(algorithm, ranks):
        traffic = Traffic()
        algorithm(**drawn, num_ranks=ranks, causal=False, traffic=traffic)
        return traffic.bytes_sent_by(0)

    assert sent(ulysses, 4) < sent(ulysses, 2)
    assert sent(ring, 4) > 0.9 * sent(ring, 2)


def test_the_way_back_is_the_inverse():
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((2, 3, 4, 5)) for _ in range(4)]
    back = positions_for_heads(heads_for_positions(parts, Traffic()), Traffic())
    assert all(np.array_equal(there, here) for there, here in zip(back, parts))


def test_a_wrong_result_is_refused():
    right = ULYSSES.reference(**ULYSSES.examples(np.random.default_rng(2)))
    assert not ULYSSES.same(right, {**right, "dv": right["dv"] * 1.001})


def test_bad_sizes_are_named():
    drawn = attention_arguments(np.random.default_rng(0), **SIZES)
    with pytest.raises(ValueError, match="key/value heads=4 is not a multiple of 3"):
        ulysses(**drawn, num_ranks=3)
    with pytest.raises(ValueError, match="T=12 > S=8"):
        ulysses(**{**drawn, "k_BSKH": drawn["k_BSKH"][:, :8]}, num_ranks=4)
