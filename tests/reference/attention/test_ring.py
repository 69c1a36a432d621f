"""What only ring attention promises."""

import numpy as np
import pytest

from llmlab.reference.attention.gqa import gqa, gqa_backward
from llmlab.reference.attention.ring import RING, attention_arguments, positions_of_ranks, ring, seen_by
from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._traffic import Traffic

SIZES = {"B": 2, "T": 24, "S": 24, "K": 2, "G": 3, "H": 5}


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("causal", [True, False])
def test_any_layout_equals_attention_of_the_whole_sequence(layout, causal):
    drawn = attention_arguments(np.random.default_rng(0), **SIZES)
    found = ring(**drawn, num_ranks=4, causal=causal, layout=layout)
    q, k, v, dout = drawn.values()
    assert same_to_rounding(gqa(q, k, v, causal=causal), found["out"])
    assert same_to_rounding(list(gqa_backward(dout, q, k, v, causal=causal)), [found[name] for name in ("dq", "dk", "dv")])


@pytest.mark.parametrize("T", [12, 48])
def test_without_a_mask_queries_and_keys_may_differ_in_number(T):
    drawn = attention_arguments(np.random.default_rng(3), **{**SIZES, "T": T})
    q, k, v, dout = drawn.values()
    found = ring(**drawn, num_ranks=3, causal=False, layout="zigzag")
    assert same_to_rounding(gqa(q, k, v, causal=False), found["out"])
    assert same_to_rounding(list(gqa_backward(dout, q, k, v, causal=False)), [found[name] for name in ("dq", "dk", "dv")])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_keys_go_round_once_and_their_gradients_come_home(ranks):
    traffic = Traffic()
    ring(**attention_arguments(np.random.default_rng(0), **SIZES), num_ranks=ranks, traffic=traffic)
    shard = 2 * (24 // ranks) * 2 * 5 * 8
    away = 0 if ranks == 1 else ranks * ranks  # a ring of one sends nothing
    assert traffic.total_bytes == (4 * ranks * (ranks - 1) + 2 * away) * shard
    assert traffic.rounds == 2 * ranks - 1
    assert {(destination - source) % ranks for source, destination in traffic.messages} <= {1}


def test_zigzag_and_stripes_balance_what_causal_attention_computes():
    def pairs(layout):
        held = positions_of_ranks(32, 4, layout)
        return [sum(int(seen_by(queries, keys, True).sum()) for keys in held) for queries in held]

    assert len(set(pairs("zigzag"))) == 1
    assert max(pairs("striped")) - min(pairs("striped")) <= 32
    assert max(pairs("contiguous")) > 5 * min(pairs("contiguous"))
    assert sum(pairs("zigzag")) == sum(pairs("contiguous")) == 32 * 33 // 2


def test_large_scores_do_not_overflow():
    drawn = attention_arguments(np.random.default_rng(1), **SIZES)
    drawn["q_BTKGH"] = drawn["q_BTKGH"] * 1e4
    found = ring(**drawn, num_ranks=4)
    assert all(np.isfinite(array).all() for array in found.values())
    assert same_to_rounding(gqa(drawn["q_BTKGH"], drawn["k_BSKH"], drawn["v_BSKH"]), found["out"])


def test_a_wrong_result_is_refused():
    right = RING.reference(**RING.examples(np.random.default_rng(2)))
    assert not RING.same(right, {**right, "lse": right["lse"] + 1e-3})


def test_bad_arguments_are_named():
    drawn = attention_arguments(np.random.default_rng(0), **SIZES)
    with pytest.raises(ValueError, match="positions=24 is not a multiple of 5"):
        ring(**drawn, num_ranks=5)
    with pytest.raises(ValueError, match="layout='spiral'"):
        ring(**drawn, num_ranks=2, layout="spiral")
    with pytest.raises(ValueError, match="T=12 != S=24"):
        ring(**{**drawn, "q_BTKGH": drawn["q_BTKGH"][:, :12]}, num_ranks=2)
    with pytest.raises(ValueError, match="num_ranks=0"):
        ring(**drawn, num_ranks=0)


def test_ranks_share_the_work():
    sizes = {"B": 1, "T": 64, "K": 2, "G": 2, "H": 8}
    assert RING.cost({**sizes, "P": 1}).flops == 4 * RING.cost({**sizes, "P": 4}).flops
