"""Laws of reinforcement learning on pools: sums where phases follow each other, the slower pool where they do not."""

from dataclasses import replace

import pytest

from llmlab.reference.errors import InputError
from llmlab.reports.rlhf_figure import rlhf_figure
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.plan import framework, plan_of
from llmlab.simulator.training.rlhf import Rlhf, reshard_bytes, simulate_rlhf, tables
from llmlab.simulator.training.step import network_of

MODEL = load_model("meta-llama/Llama-3.1-8B")
PLAN = plan_of("megatron", dp=2, tp=4)
SMALL = Rlhf(prompts=4, samples=2, prompt_tokens=64, response_tokens=96.0, response_spread=1e-6)
TWO_POOLS = replace(SMALL, placement="separate", writer_gpus=8)


def run(setting=SMALL, plan=PLAN, **options):
    return simulate_rlhf(MODEL, plan, "h100", setting, **{"steps": 5, **options})


def test_on_one_pool_a_step_is_the_sum_of_its_phases():
    found = run()
    assert found.step_s == pytest.approx(sum(found.phase_s.values()), rel=0.01)
    assert found.pool_busy()["all devices"] == pytest.approx(1.0)


def test_resharding_is_bytes_over_bandwidth():
    bare = run(replace(SMALL, offload=False))
    network = network_of(load_device_sheet("h100"), framework("megatron"))
    assert bare.phase_s["reshard"] == pytest.approx(bare.reshard_bytes / network.inside_bytes_per_s)
    assert bare.reshard_bytes == pytest.approx(2 * MODEL.parameters * (1 - 1 / 4))


def test_newest_weights_make_two_pools_take_turns():
    found = run(TWO_POOLS)
    assert found.step_s == pytest.approx(sum(found.phase_s.values()), rel=0.01)
    assert sum(found.pool_busy().values()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("epochs", [1, 8])
def test_one_step_off_a_step_takes_as_long_as_the_slower_pool(epochs):
    found = run(replace(TWO_POOLS, staleness=1, epochs=epochs), steps=8)
    writing = found.phase_s["fetch weights"] + found.phase_s["write"]
    training = found.phase_s["score"] + found.phase_s["train"]
    assert found.step_s == pytest.approx(max(writing, training), rel=0.02)
    assert (training > writing) == (epochs == 8)


def test_batches_are_never_staler_than_allowed():
    for staleness in (0, 1, 2):
        spans = run(replace(TWO_POOLS, staleness=staleness), steps=6).spans
        trained = {span.step: span.end_s for span in spans if span.phase == "train"}
        for span in spans:
            if span.phase == "write" and span.step > staleness:
                assert span.start_s >= trained[span.step - 1 - staleness]


def test_long_tails_cost_writers_time():
    spread = replace(TWO_POOLS, response_spread=1.0, staleness=1)
    assert run(spread).phase_s["write"] > 1.2 * run(TWO_POOLS).phase_s["write"]


def test_optimizer_state_in_host_memory_leaves_room_for_keys_and_values():
    kept, moved = run(replace(SMALL, offload=False)), run()
    state = kept.memory["train"]["gradients"] + kept.memory["train"]["optimizer"]
    assert moved.memory["write"]["kv_cache"] - kept.memory["write"]["kv_cache"] == pytest.approx(state)
    assert moved.phase_s["reshard"] > kept.phase_s["reshard"]


def test_sharded_training_hands_over_more():
    sharded = plan_of("fsdp", dp=8, zero_stage=3)
    assert reshard_bytes(MODEL, sharded, 1, colocated=True) > reshard_bytes(MODEL, PLAN, 1, colocated=True)
    assert reshard_bytes(MODEL, PLAN, 1, colocated=False) == 2 * MODEL.parameters
    assert reshard_bytes(MODEL, PLAN, 4, colocated=True) == 0


def test_the_same_seed_gives_the_same_run():
    spread = replace(SMALL, response_spread=0.8)
    assert run(spread, seed=1, steps=2).to_json() == run(spread, seed=1, steps=2).to_json()
    assert run(spread, seed=1, steps=2).step_s != run(spread, seed=2, steps=2).step_s


def test_the_picture_has_a_box_per_phase_and_the_trace_too():
    found = run(replace(TWO_POOLS, staleness=1))
    figure = rlhf_figure(found)
    assert len(figure.axes[0].collections) == 2 + len(found.spans)
    said = [text.get_text().rsplit(" ", 1) for text in figure.legends[0].get_texts()]
    assert {phase for phase, _ in said} == {span.phase for span in found.spans}
    assert sum(float(share.rstrip("%")) for _, share in said) == pytest.approx(100, abs=0.3)
    assert sum(event["ph"] == "X" for event in found.trace_events()) == len(found.spans)
    assert tables(found)[1][0] == "Where the time goes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "prompts=0"),
        ({"prompts": 3, "samples": 1}, "must be a multiple"),
        ({"placement": "moon"}, "placement='moon'"),
        ({"staleness": 1}, "take separate pools"),
        ({"placement": "separate"}, "needs devices"),
        ({"writer_tp": 3}, "must divide 8 devices"),
        ({"response_tokens": float("nan")}, "response_tokens=nan"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        run(replace(SMALL, **changes))


def test_writers_without_room_are_told_what_to_do():
    with pytest.raises(InputError, match="offload, or raise writer_tp"):
        simulate_rlhf(load_model("meta-llama/Meta-Llama-3-70B"), plan_of("megatron", dp=1, tp=8, pp=4), "h100", SMALL, steps=1)
