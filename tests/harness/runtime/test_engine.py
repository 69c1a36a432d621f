"""The engine emits the reference model's greedy tokens, whatever the scheduler does, and records when."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.runtime.engine import REQUEST_COLUMNS, Engine, Job, Run, columns  # noqa: E402
from llmlab.kernels.models.llama_torch import LlamaTorch  # noqa: E402
from llmlab.reference.errors import InputError  # noqa: E402
from llmlab.reference.models._weights import random_weights  # noqa: E402
from llmlab.reference.models.llama import llama_step, tiny_config  # noqa: E402
from llmlab.reference.serving._queue import Queue  # noqa: E402
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill  # noqa: E402
from llmlab.reference.serving.continuous_batching import ContinuousBatching  # noqa: E402
from llmlab.reference.serving.kv_blocks import KVBlocks  # noqa: E402
from llmlab.reference.serving.prefix_cache import PrefixCache  # noqa: E402

KINDS = ("llama-2", "llama-3", "tied", "biases")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BLOCK = 4


@cache
def tiny(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    config = tiny_config(kind)
    drawn = random_weights(config, np.random.default_rng(3), std=0.3)
    return config, {name: weight.astype(np.float64) for name, weight in drawn.items()}


def model(kind: str = "llama-3", device: str = "cpu") -> LlamaTorch:
    config, weights = tiny(kind)
    return LlamaTorch(config, weights, dtype=torch.float64, device=device)


def scheduler(policy: type[Queue], num_blocks: int, *, caching: bool = False, seqs: int = 5, budget: int = 64) -> Queue:
    blocks = KVBlocks(num_blocks, BLOCK)
    cache = PrefixCache(blocks) if caching else None
    return policy(blocks, max_num_seqs=seqs, max_num_batched_tokens=budget, prefix_cache=cache)


def jobs(count: int, seed: int) -> list[Job]:
    """Prompts that often share their beginning."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, 37, size=16).tolist()
    return [
        Job(
            stem[: int(rng.integers(0, 17))] + rng.integers(0, 37, size=rng.integers(1, 14)).tolist(),
            int(rng.integers(1, 12)),
        )
        for _ in range(count)
    ]


def reference_tokens(kind: str, job: Job) -> list[int]:
    config, weights = tiny(kind)
    logits_BTV, past = llama_step(config, weights, np.array([job.prompt]))
    out = [int(logits_BTV[0, -1].argmax())]
    while len(out) < job.output_tokens and out[-1] not in job.stop_ids:
        logits_BTV, past = llama_step(config, weights, np.array([[out[-1]]]), past)
        out.append(int(logits_BTV[0, -1].argmax()))
    return out


def check_table(run: Run, wanted: list[Job]) -> None:
    assert [row["request_id"] for row in run.requests] == list(range(len(wanted)))
    for row, job in zip(run.requests, wanted):
        assert tuple(row) == REQUEST_COLUMNS
        assert row["prompt_tokens"] == len(job.prompt)
        assert row["output_tokens"] == len(run.outputs[row["request_id"]])
        assert 0 <= row["queue_s"] <= row["ttft_s"] <= row["e2e_s"]
        if row["output_tokens"] > 1:
            assert row["tpot_s"] == pytest.approx((row["e2e_s"] - row["ttft_s"]) / (row["output_tokens"] - 1))
        else:
            assert row["tpot_s"] is None
    assert sum(step.shape.emitted for step in run.steps) == sum(row["output_tokens"] for row in run.requests)
    assert all(0 <= step.host_s <= step.duration_s for step in run.steps)
    assert all(one.start_s + one.duration_s <= two.start_s for one, two in zip(run.steps, run.steps[1:]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [ChunkedPrefill, ContinuousBatching])
def test_greedy_tokens_equal_the_reference_models(policy: type[Queue], kind: str, device: str) -> None:
    wanted = jobs(8, seed=1)
    run = Engine(model(kind, device), scheduler(policy, 200)).run(wanted, clients=4)
    assert run.outputs == {index: reference_tokens(kind, job) for index, job in enumerate(wanted)}
    check_table(run, wanted)


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("policy", [ChunkedPrefill, ContinuousBatching])
def test_preemption_and_reuse_change_no_token(policy: type[Queue], caching: bool) -> None:
    wanted = jobs(14, seed=2)
    budget = 9 if policy is ChunkedPrefill else 64  # the small budget cuts every prompt into pieces
    run = Engine(model(), scheduler(policy, 14, caching=caching, budget=budget)).run(wanted, clients=6)
    assert run.outputs == {index: reference_tokens("llama-3", job) for index, job in enumerate(wanted)}
    assert sum(row["preemptions"] for row in run.requests) > 0, "nothing was preempted: the test shows nothing"
    assert (sum(row["cached_tokens"] for row in run.requests) > 0) == caching
    check_table(run, wanted)


def test_a_second_turn_finds_what_the_first_one_generated() -> None:
    first = Job(list(range(6)), 11)
    engine = Engine(model(), scheduler(ChunkedPrefill, 50, caching=True))
    answer = engine.run([first], clients=1).outputs[0]
    second = Job([*first.prompt, *answer, 1, 2, 3], 4)
    run = engine.run([second], clients=1)
    assert run.outputs[1] == reference_tokens("llama-3", second)
    assert run.requests[0]["cached_tokens"] == (6 + 11 - 1) // BLOCK * BLOCK  # the last answered token was never computed


def test_a_stop_token_ends_a_request_and_frees_its_blocks() -> None:
    free = Job([1, 2, 3], 12)
    stop = reference_tokens("llama-3", free)[2]
    stopping = Job(free.prompt, 12, stop_ids=frozenset({stop}))
    engine = Engine(model(), scheduler(ChunkedPrefill, 50))
    run = engine.run([stopping, free], clients=2)
    assert run.outputs == {0: reference_tokens("llama-3", stopping), 1: reference_tokens("llama-3", free)}
    assert run.outputs[0][-1] == stop
    assert len(run.outputs[0]) < 12
    assert engine.scheduler.blocks.free_blocks == 50
    check_table(run, [stopping, free])


def test_a_job_that_cannot_fit_is_refused_and_the_others_run() -> None:
    wanted = [Job([1, 2], 3), Job(list(range(37)), 400), Job([3, 4], 3)]
    for clients in (None, 1):
        run = Engine(model(), scheduler(ChunkedPrefill, 20)).run(wanted, clients=clients)
        assert list(run.refused) == [1]
        assert "blocks" in run.refused[1]
        assert sorted(run.outputs) == [0, 2]


@dataclass
class Ticks:
    """A model that answers at once while a clock it shares with the engine moves by what a step is said to take."""

    seconds: float = 1.0
    now: float = 100.0
    device: Any = field(default_factory=lambda: torch.device("cpu"))

    def new_cache(self, num_blocks: int, block_tokens: int) -> None:
        return None

    def forward(self, ids_T: Any, positions_T: Any, cache: Any, starts: Any, tables: Any, contexts: list[int]) -> Any:
        self.now += self.seconds
        return torch.zeros(len(contexts), 5)


def test_times_are_what_the_clock_says() -> None:
    ticks = Ticks()
    engine = Engine(ticks, scheduler(ChunkedPrefill, 50, seqs=1), clock=lambda: ticks.now)
    run = engine.run([Job([1, 2], 3), Job([3], 2, arrival_s=0.0)])
    rows = columns(run.requests)
    assert rows["queue_s"].tolist() == [0.0, 3.0]  # one at a time
    assert rows["ttft_s"].tolist() == [1.0, 4.0]
    assert rows["e2e_s"].tolist() == [3.0, 5.0]
    assert rows["tpot_s"].tolist() == [1.0, 1.0]
    assert [(step.start_s, step.duration_s, step.host_s) for step in run.steps] == [(float(i), 1.0, 0.0) for i in range(5)]
    assert run.inter_token_s() == [1.0, 1.0, 1.0]
    assert run.step_rows()[0]["prefill"] == ((2, 0),)
    assert (run.wall_s, run.step_rows()[1]["decode_context_tokens"]) == (5.0, 3)


def test_a_request_that_comes_during_a_step_waits_for_its_end() -> None:
    ticks = Ticks(seconds=1.0)
    run = Engine(ticks, scheduler(ChunkedPrefill, 50), clock=lambda: ticks.now).run([Job([1], 2), Job([2], 1, arrival_s=0.25)])
    assert run.requests[1]["queue_s"] == 0.75
    assert run.requests[1]["ttft_s"] == 1.75


def test_an_idle_engine_wakes_for_the_next_arrival() -> None:
    run = Engine(model(), scheduler(ChunkedPrefill, 50)).run([Job([1], 1), Job([2], 1, arrival_s=0.03)])
    assert run.requests[1]["queue_s"] >= 0
    assert run.steps[1].start_s >= 0.03
    assert len(run.steps) == 2


def test_clients_keep_as_many_requests_in_flight_as_there_are_clients() -> None:
    ticks = Ticks()
    run = Engine(ticks, scheduler(ChunkedPrefill, 50), clock=lambda: ticks.now).run([Job([1], 4) for _ in range(7)], clients=3)
    assert [step.shape.decode_requests + len(step.shape.prefill) for step in run.steps] == [3] * 8 + [1] * 4
    assert [row["arrival_s"] for row in run.requests] == [0.0] * 3 + [4.0] * 3 + [8.0]


def bad_runs() -> Iterator[Any]:
    for times in ([-1.0], [1.0, 0.5], [float("nan")], [float("inf")]):
        yield pytest.param([Job([1], 1, arrival_s=at) for at in times], None, "arrival_s", id=f"arrivals {times}")
    yield pytest.param([Job([1], 1)], 0, "clients", id="no clients")
    yield pytest.param([Job([], 1)], 1, "prompt", id="empty prompt")
    yield pytest.param([Job([1], 0)], 1, "output_tokens", id="no tokens wanted")


@pytest.mark.parametrize(("wanted", "clients", "names"), list(bad_runs()))
def test_impossible_runs_are_refused_with_the_field(wanted: list[Job], clients: int | None, names: str) -> None:
    with pytest.raises(InputError, match=names):
        Engine(model(), scheduler(ChunkedPrefill, 50)).run(wanted, clients=clients)


def test_the_collector_is_as_it_was_after_a_run() -> None:
    import gc

    before = gc.isenabled()
    Engine(model(), scheduler(ChunkedPrefill, 50)).run([Job([1], 1)])
    assert gc.isenabled() == before
