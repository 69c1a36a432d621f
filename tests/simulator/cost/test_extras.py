"""Laws of what comes on top of a step."""

import dataclasses

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.extras import ExtraCost, Features, read_features
from llmlab.simulator.cost.step import StepCost

STEP = StepCost.cached("llama-3.1-8b", "h100")
DECODE = BatchShape((), 32, 32 * 1000, 32)


def cost(**features: object) -> ExtraCost:
    return ExtraCost(STEP, Features(**features), block_tokens=16)  # type: ignore[arg-type]


def test_nothing_extra_costs_nothing() -> None:
    assert cost().step_ns(DECODE) == STEP.step_ns(DECODE)
    assert Features().plain
    assert cost(max_loras=4).step_ns(DECODE) == STEP.step_ns(DECODE)  # no request of the step has an adapter


def test_the_breakdown_adds_up_and_the_rest_is_the_step_s_own() -> None:
    shape = dataclasses.replace(DECODE, moved_blocks=100, adapters=3, adapter_tokens=32, adapter_loads=1)
    priced = cost(max_loras=4, swap_bytes=1e9)
    assert sum(priced.breakdown(shape).values()) == pytest.approx(priced.seconds(shape))
    assert priced.model is STEP.model
    assert priced.interval(DECODE) == STEP.interval(DECODE)


def test_copies_take_their_bytes_over_the_bandwidth() -> None:
    priced = cost(swap_bytes=1e9, host_cache_bytes=1e9, disk_bytes_per_s=1e9)
    bytes_ = 10 * 16 * STEP.model.kv_bytes_per_token(1, "bfloat16")
    moved = dataclasses.replace(DECODE, moved_blocks=10)
    assert priced.seconds(moved) - STEP.seconds(DECODE) == pytest.approx(bytes_ / STEP.profile.device.host_link_bytes_per_s)
    to_disk = dataclasses.replace(DECODE, disk_blocks=10)
    assert priced.seconds(to_disk) - STEP.seconds(DECODE) == pytest.approx(bytes_ / 1e9)
    assert priced.binding(dataclasses.replace(DECODE, moved_blocks=10**5)) == "host link"


def test_an_adapter_has_rank_times_the_widths_of_every_product() -> None:
    """Llama-3.1-8B at rank 16: q 8192, k and v 5120 each, o 8192, gate and up 18432 each, down 18432, 32 layers.

    The fused products qkv and gate-up count as one each: 10240, 8192, 32768, 18432.
    """
    expected = 16 * 32 * ((4096 + 6144) + (4096 + 4096) + (4096 + 28672) + (14336 + 4096))
    assert cost(max_loras=1).adapter_elements == expected


def test_more_distinct_adapters_never_cost_less() -> None:
    priced = cost(max_loras=32)
    times = [priced.seconds(dataclasses.replace(DECODE, adapters=n, adapter_tokens=32)) for n in (0, 1, 4, 16, 32)]
    assert times == sorted(times)
    assert times[0] == STEP.seconds(DECODE)


def test_guesses_cost_rows_of_the_target_and_passes_of_the_drafter() -> None:
    guessing = dataclasses.replace(DECODE, draft_tokens=32 * 4, emitted=32 * 5)
    assert guessing.new_tokens == 160
    extra = {
        drafter: cost(drafter=drafter, num_drafts=4, draft_model="llama-3.2-1b" if drafter == "draft" else "").drafts_s(
            guessing
        )
        for drafter in ("draft", "medusa", "eagle", "ngram")
    }
    assert extra["ngram"] == 0.0
    assert 0 < extra["medusa"] < extra["draft"]
    assert 0 < extra["eagle"] < extra["draft"]
    assert STEP.seconds(DECODE) < STEP.seconds(guessing) < 5 * STEP.seconds(DECODE)


def test_a_drafter_takes_memory() -> None:
    eagle = cost(drafter="eagle", num_drafts=4)
    assert eagle.kv_share == pytest.approx(32 / 33)
    assert eagle.device_bytes > 1e9  # embedding and output projection of 128k words, and a layer
    assert cost(drafter="ngram", num_drafts=4).device_bytes == 0


@pytest.mark.parametrize(
    ("features", "field"),
    [
        ({"swap_bytes": -1.0}, "swap_bytes"),
        ({"acceptance": 1.5}, "acceptance"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"drafter": "oracle", "num_drafts": 2}, "drafter"),
        ({"drafter": "eagle"}, "num_drafts"),
        ({"drafter": "draft", "num_drafts": 2}, "draft_model"),
        ({"disk_cache_bytes": 1e9}, "disk_cache_bytes"),
    ],
)
def test_features_that_make_no_sense_are_refused(features: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as error:
        Features(**features)  # type: ignore[arg-type]
    assert error.value.field == field


@pytest.mark.parametrize("text", ["num_drafts", "luck=3", "num_drafts=few", "acceptance=2", "acceptance=nan"])
def test_texts_that_are_no_features_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_features([text])
