"""What only expert parallelism promises."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.expert import EXPERT, choose, expert, expert_arguments, places

SIZES = {"N": 24, "D": 5, "E": 8, "F": 7}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_without_capacity_any_number_of_ranks_gives_what_one_gives(ranks):
    drawn = expert_arguments(np.random.default_rng(0), **SIZES)
    found = expert(**drawn, num_ranks=ranks)
    assert same_to_rounding(expert(**drawn, num_ranks=1), found)
    assert found["kept"].all()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_padded_buffers_have_one_size_whatever_the_routing(ranks):
    drawn = expert_arguments(np.random.default_rng(1), **SIZES)
    for gate in (drawn["gate_DE"], drawn["gate_DE"] * 0):
        traffic = Traffic()
        expert(**{**drawn, "gate_DE": gate}, num_ranks=ranks, capacity_factor=1.25, traffic=traffic)
        room = places(24 // ranks, 8, 2, 1.25)
        assert traffic.total_bytes == (ranks - 1) * (4 * 8 * room * 5 + 2 * 5 * 8) * 8
        assert traffic.rounds == 4 * (ranks - 1) + 2 * (ranks - 1)


def test_dropless_sends_only_what_goes_elsewhere():
    drawn, traffic = expert_arguments(np.random.default_rng(2), **SIZES), Traffic()
    expert(**drawn, num_ranks=4, top_k=2, traffic=traffic)
    experts_NK, _ = choose(drawn["x_ND"] @ drawn["gate_DE"], 2)
    elsewhere = int((experts_NK // 2 != np.arange(24)[:, None] // 6).sum())
    assert traffic.total_bytes == (4 * elsewhere * 5 + 4 * 3 * 2 + 2 * 3 * 5 * 8) * 8


def test_capacity_drops_second_choices_first_and_the_latest_of_them():
    drawn = expert_arguments(np.random.default_rng(3), N=4, D=2, E=2, F=3)
    drawn["x_ND"], drawn["gate_DE"] = np.ones((4, 2)), np.array([[1.0, 0], [1, 0]])  # all want 0, then 1
    kept = expert(**drawn, num_ranks=1, top_k=2, capacity_factor=0.75)["kept"]
    assert kept.astype(int).tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    mixed = {**drawn, "x_ND": np.array([[1.0, 1], [1, 1], [-1, -1], [-1, -1]])}
    kept = expert(**mixed, num_ranks=1, top_k=2, capacity_factor=0.5)["kept"]
    assert kept.astype(int).tolist() == [[1, 0]] * 4


def test_a_dropped_token_gives_zeros_and_takes_no_gradient():
    drawn = expert_arguments(np.random.default_rng(4), N=6, D=3, E=3, F=4)
    drawn["x_ND"] = np.tile(drawn["x_ND"][:1], (6, 1))
    found = expert(**drawn, num_ranks=1, top_k=1, capacity_factor=0.5)
    assert found["kept"].sum() == 1
    assert not found["out"][1:].any()
    assert not found["dx"][1:].any()


def test_gradients_are_slopes():
    rng = np.random.default_rng(5)
    drawn = expert_arguments(rng, **SIZES)
    found = expert(**drawn, num_ranks=4, capacity_factor=1.0)
    for name in ("x_ND", "gate_DE", "up_EDF", "down_EFD"):
        way = rng.standard_normal(drawn[name].shape)
        ahead, behind = (
            np.sum(
                expert(**{**drawn, name: drawn[name] + step * way}, num_ranks=4, capacity_factor=1.0)["out"] * drawn["dout_ND"]
            )
            for step in (1e-6, -1e-6)
        )
        assert (ahead - behind) / 2e-6 == pytest.approx(np.sum(found[f"d{name.partition('_')[0]}"] * way), rel=1e-4)


def test_a_wrong_result_is_refused():
    right = EXPERT.reference(**EXPERT.examples(np.random.default_rng(6)))
    assert not EXPERT.same(right, {**right, "out": right["out"] * 1.001 + 1e-3})
    assert not EXPERT.same(right, {**right, "kept": ~right["kept"]})


def test_bad_arguments_are_named():
    drawn = expert_arguments(np.random.default_rng(0), **SIZES)
    with pytest.raises(ValueError, match=r"top_k=9 is not in 1\.\.8"):
        expert(**drawn, num_ranks=1, top_k=9)
    with pytest.raises(ValueError, match="capacity_factor=0"):
        expert(**drawn, num_ranks=1, capacity_factor=0)
    with pytest.raises(ValueError, match="experts=8 is not a multiple of 3"):
        expert(**drawn, num_ranks=3)
