"""Every scheduler and engine preset in a whole simulation, and what features do to it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import ENGINES
from llmlab.simulator.cost.extras import Features
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.presets import PRESETS, engine_of, preset_of, read_presets
from llmlab.simulator.serving.schedulers import NEEDS, SCHEDULERS
from llmlab.simulator.serving.simulate import SimulationResult, simulate
from llmlab.simulator.workload.workload import Workload

GIB = 2.0**30
FEATURES = {
    "swapping": Features(swap_bytes=4 * GIB),
    "multi_lora": Features(max_loras=2),
    "speculative": Features(drafter="ngram", num_drafts=3, acceptance=0.6),
    "dynamic_batching": Features(window_s=0.2),
}


def workload(requests: int = 60, seconds: float = 8.0) -> Workload:
    rng = np.random.default_rng(0)
    return Workload(
        np.sort(rng.integers(0, int(seconds * 1e9), requests)),
        rng.integers(10, 800, requests),
        rng.integers(1, 200, requests),
        client=rng.integers(0, 3, requests),
        priority=rng.integers(0, 3, requests),
        adapter=rng.integers(-1, 5, requests),
        predicted_tokens=rng.integers(1, 200, requests),
    )


def run(load: Workload, **changes: Any) -> SimulationResult:
    return simulate(Deployment("llama-3.1-8b", "h100", **changes), load, record="steps")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_request_is_served_and_its_times_are_in_order(scheduler: str) -> None:
    load = workload()
    result = run(load, scheduler=scheduler, features=FEATURES.get(scheduler, Features()), kv_blocks=400, max_num_seqs=16)
    log = result.log
    assert not log.refused
    assert sum(log.gaps_ns.values()) == int((load.output_tokens - 1).sum())
    for sent, begun, first, end in zip(log.sent_ns, log.scheduled_ns, log.first_token_ns, log.finished_ns):
        assert 0 <= sent <= begun < first <= end
    again = run(load, scheduler=scheduler, features=FEATURES.get(scheduler, Features()), kv_blocks=400, max_num_seqs=16)
    assert again.log.finished_ns == log.finished_ns


@pytest.mark.parametrize("engine", PRESETS)
def test_a_named_engine_brings_its_scheduler_and_limits(engine: str) -> None:
    preset = PRESETS[engine]
    deployment = Deployment("llama-3.1-8b", "h100", engine=engine)
    assert (deployment.scheduler, deployment.block_tokens) == (preset.scheduler, preset.block_tokens)
    site = resolve(deployment)
    if preset.max_num_seqs:
        assert site.max_num_seqs == preset.max_num_seqs
    assert site.engine.name in (engine, preset.name)
    load = workload(12)
    assert not simulate(site, load).log.refused
    assert Deployment("llama-3.1-8b", "h100", engine=engine, scheduler="orca", block_tokens=8).block_tokens == 8


def test_every_engine_with_constants_has_a_preset_and_borrowed_ones_exist() -> None:
    assert set(ENGINES) <= set(PRESETS)
    for preset in PRESETS.values():
        assert engine_of(preset.name).name == preset.name
    assert preset_of("something else") is PRESETS["generic"]


def test_requests_wait_for_company_as_long_as_the_window() -> None:
    lone = Workload(np.array([0]), np.array([100]), np.array([5]))
    ttft = [
        run(lone, engine="triton-dynamic", features=Features(window_s=window)).log.first_token_ns[0] for window in (0.0, 0.3)
    ]
    assert ttft[1] - ttft[0] == 300_000_000
    pair = Workload(np.array([0, 100_000_000]), np.array([100, 100]), np.array([5, 5]))
    both = run(pair, engine="triton-dynamic", features=Features(window_s=10.0), max_num_seqs=2).log
    assert both.first_token_ns[0] == both.first_token_ns[1] < 10**9  # full: nobody waits for the window


def test_one_slow_answer_holds_a_padded_batch_and_not_an_iteration() -> None:
    load = Workload(np.zeros(8, dtype=np.int64), np.full(8, 100), np.array([4] * 7 + [400]))
    ends = {engine: np.array(run(load, engine=engine).log.finished_ns) for engine in ("fastertransformer", "orca")}
    assert len(set(ends["fastertransformer"].tolist())) == 1
    assert ends["orca"][:7].max() < 0.2 * ends["orca"][7]


def test_swapping_pays_for_copies_instead_of_computing_again() -> None:
    load = dataclasses.replace(workload(40, 1.0), output_tokens=np.full(40, 300))
    tight = {"kv_blocks": 260, "max_num_seqs": 24, "max_num_batched_tokens": 4096, "prefix_caching": False}
    recompute = run(load, scheduler="continuous_batching", **tight)
    swap = run(load, scheduler="swapping", features=Features(swap_bytes=8 * GIB), **tight)
    assert min(sum(recompute.log.preemptions), sum(swap.log.preemptions)) > 0
    moved = sum(shape.moved_blocks for shape, _ in swap.log.sample.shapes)
    assert moved > 0
    computed = [sum(result.log.steps.prefill_tokens) for result in (recompute, swap) if result.log.steps is not None]
    assert computed[1] == int(load.prompt_tokens.sum()) < computed[0]


def test_host_memory_finds_prefixes_the_device_gave_up() -> None:
    turns = 40
    hashes = tuple(np.arange(64) + 1000 * (turn % 8) for turn in range(turns))
    load = Workload(
        np.arange(turns) * 10**9, np.full(turns, 1030), np.full(turns, 4), block_hashes=hashes, hash_block_tokens=16
    )
    found = [
        int(np.sum(run(load, kv_blocks=200, features=features).log.cached_tokens))
        for features in (Features(), Features(host_cache_bytes=GIB), Features(host_cache_bytes=0.1 * GIB, disk_cache_bytes=GIB))
    ]
    assert found[0] < found[1] == found[2] == 32 * 1024


def test_good_guesses_raise_speed_and_bad_ones_cost() -> None:
    load = Workload(np.zeros(4, dtype=np.int64), np.full(4, 100), np.full(4, 300))

    def seconds(**features: Any) -> float:
        scheduler = "speculative" if features else "chunked_prefill"
        return float(max(run(load, scheduler=scheduler, features=Features(**features)).log.finished_ns)) / 1e9

    plain = seconds()
    assert seconds(drafter="eagle", num_drafts=4, acceptance=0.8) < 0.6 * plain
    assert seconds(drafter="eagle", num_drafts=4, acceptance=0.0) > plain
    assert seconds(drafter="ngram", num_drafts=4, acceptance=1.0) < 0.3 * plain


def test_adapters_slow_a_step_and_too_few_places_slow_the_service() -> None:
    load = dataclasses.replace(workload(60, 0.5), adapter=np.arange(60) % 6)

    def end(**changes: Any) -> int:
        return max(run(load, **changes).log.finished_ns)

    roomy = end(scheduler="multi_lora", features=Features(max_loras=6))
    assert end() < roomy < end(scheduler="multi_lora", features=Features(max_loras=1))


@pytest.mark.parametrize("scheduler", [name for name in NEEDS if name != "dynamic_batching"])
def test_a_scheduler_and_its_feature_go_together(scheduler: str) -> None:
    with pytest.raises(InputError, match="needs more than 0"):
        Deployment("llama-3.1-8b", "h100", scheduler=scheduler)
    with pytest.raises(InputError, match=f"needs scheduler={scheduler}"):
        Deployment("llama-3.1-8b", "h100", features=FEATURES[scheduler])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("name: vllm", ""),
        ("- {name: x, scheduler: magic, block_tokens: 16, prefix_caching: true, source: s}", "scheduler"),
        ("- {name: x, luck: 3}", "luck"),
        ("- {name: x}", ""),
        ("- [", ""),
    ],
)
def test_malformed_presets_are_one_error(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "presets.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_presets(path)
    assert error.value.field == field


def test_labels_travel_with_their_requests() -> None:
    load = workload()
    part = load.select(np.array([3, 7]))
    assert [part.labels(i) for i in range(2)] == [load.labels(3), load.labels(7)]
    with pytest.raises(ValueError, match="2 labels client for 1 requests"):
        Workload(np.array([0]), np.array([1]), np.array([1]), client=np.array([1, 2]))
    with pytest.raises(ValueError, match="predicted_tokens"):
        Workload(np.array([0]), np.array([1]), np.array([1]), predicted_tokens=np.array([0]))
