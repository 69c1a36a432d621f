"""The engine speculates over its paged cache: the same tokens, in fewer steps, by the simulator's own scheduler."""

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.runtime.asynchronous import AsyncEngine  # noqa: E402
from llmlab.harness.runtime.engine import Engine, Job  # noqa: E402
from llmlab.harness.runtime.speculation import (  # noqa: E402
    DraftModels,
    SpeculatingEngine,
    VerifiedSpeculation,
    prompt_lookup,
)
from llmlab.kernels.models.llama_torch import LlamaTorch  # noqa: E402
from llmlab.reference.decoding.skeleton_of_thought import answer  # noqa: E402
from llmlab.reference.errors import InputError  # noqa: E402
from llmlab.reference.models._weights import random_weights  # noqa: E402
from llmlab.reference.models.llama import tiny_config  # noqa: E402
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill  # noqa: E402
from llmlab.reference.serving.kv_blocks import KVBlocks  # noqa: E402
from llmlab.reference.serving.prefix_cache import PrefixCache  # noqa: E402
from llmlab.reference.serving.speculative import SpeculativeDecoding  # noqa: E402


def models() -> tuple[LlamaTorch, LlamaTorch]:
    config, rng = tiny_config("llama-3"), np.random.default_rng(3)
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, rng, std=0.3).items()}
    noisy = {name: w + 0.03 * rng.standard_normal(w.shape) for name, w in weights.items()}
    return LlamaTorch(config, weights, dtype=torch.float64), LlamaTorch(config, noisy, dtype=torch.float64)


TARGET, DRAFT = models()


def jobs(count: int, stop_ids: frozenset[int] = frozenset()) -> list[Job]:
    rng = np.random.default_rng(count)
    return [
        Job(rng.integers(0, 37, int(rng.integers(1, 20))).tolist(), int(rng.integers(1, 14)), stop_ids=stop_ids)
        for _ in range(count)
    ]


def scheduler(kind: Any, num_blocks: int = 100, caching: bool = False, **options: Any) -> Any:
    blocks = KVBlocks(num_blocks, 4)
    cache = PrefixCache(blocks) if caching else None
    return kind(blocks, max_num_seqs=4, max_num_batched_tokens=24, prefix_cache=cache, **options)


def plain(wanted: list[Job]) -> dict[int, list[int]]:
    return Engine(TARGET, scheduler(ChunkedPrefill)).run(wanted, clients=4).outputs


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize(
    "guess",
    [prompt_lookup(), DraftModels(DRAFT), DraftModels(TARGET), lambda r, text, k: []],
    ids=["prompt lookup", "draft model", "perfect draft", "no guess"],
)
def test_guesses_change_no_token(guess: Any, caching: bool) -> None:
    guess = DraftModels(guess.model) if isinstance(guess, DraftModels) else guess  # no caches of another run
    wanted = jobs(9, frozenset({5, 20}))
    engine = SpeculatingEngine(TARGET, scheduler(VerifiedSpeculation, caching=caching, num_drafts=3), guess)
    run = engine.run(wanted, clients=4)
    assert run.outputs == plain(wanted)
    assert {index: len(times) for index, times in run.token_s.items()} == {i: len(ids) for i, ids in run.outputs.items()}
    assert sum(step.shape.draft_tokens for step in run.steps) > 0


def test_a_small_cache_preempts_and_still_changes_no_token() -> None:
    wanted = jobs(10)
    engine = SpeculatingEngine(TARGET, scheduler(VerifiedSpeculation, num_blocks=13, num_drafts=3), prompt_lookup())
    run = engine.run(wanted, clients=6)
    assert run.outputs == plain(wanted)
    assert sum(row["preemptions"] for row in run.requests) > 0


def test_a_perfect_draft_needs_a_step_per_block() -> None:
    job = Job([1, 2, 3], 13)
    engine = SpeculatingEngine(TARGET, scheduler(VerifiedSpeculation, num_drafts=3), DraftModels(TARGET))
    assert len(engine.run([job], clients=1).steps) == 1 + 3


def test_simulated_and_real_runs_take_the_same_steps() -> None:
    """Guesses that hold exactly where the scheduler's own draw says so: both executors see the same shapes."""
    from llmlab.harness.validation.speculation import known_text

    wanted = jobs(7)
    texts = {index: [*job.prompt, *plain(wanted)[index]] for index, job in enumerate(wanted)}
    options = {"num_drafts": 3, "acceptance": 0.6, "seed": 4}
    guess = known_text(texts, {i: len(job.prompt) for i, job in enumerate(wanted)}, acceptance=0.6, seed=4, vocab_size=37)
    real = SpeculatingEngine(TARGET, scheduler(VerifiedSpeculation, **options), guess).run(wanted, clients=7)
    drawn = scheduler(SpeculativeDecoding, **options)
    from llmlab.reference.serving._request import Request

    for index, job in enumerate(wanted):
        drawn.add(Request(index, len(job.prompt), job.output_tokens))
    shapes = []
    while drawn.running or drawn.waiting:
        batch = drawn.schedule()
        shapes.append((batch.tokens, batch.draft_tokens, batch.emitted))
        drawn.complete(batch)
    assert [(s.shape.new_tokens, s.shape.draft_tokens, s.shape.emitted) for s in real.steps] == shapes


def test_coroutines_share_the_engines_steps() -> None:
    wanted = jobs(6)

    async def all_of_them(engine: AsyncEngine) -> list[list[int]]:
        return await asyncio.gather(*(engine.generate(job) for job in wanted))

    engine = Engine(TARGET, scheduler(ChunkedPrefill))
    told = asyncio.run(all_of_them(AsyncEngine(engine)))
    assert told == list(plain(wanted).values())
    assert max(step.shape.decode_requests for step in engine.steps) > 1
    assert all(one.start_s <= two.start_s for one, two in pairwise(engine.steps))


def test_points_of_a_skeleton_are_written_in_the_same_steps() -> None:
    """Skeleton-of-thought over the asynchronous engine: letters stand for tokens, and the model's text for points."""
    engine = Engine(TARGET, scheduler(ChunkedPrefill, num_blocks=200))
    serving = AsyncEngine(engine)

    async def ask(prompt: str) -> str:
        tokens = [ord(c) % 37 for c in prompt[-40:]]
        ids = await serving.generate(Job(tokens, 6))
        return " one\n2. two\n3. three" if prompt.endswith("1.") else "".join(chr(97 + v % 26) for v in ids)

    told = asyncio.run(answer(ask, "Which?"))
    assert len(told.expansions) == 3
    assert all(len(expansion) == 6 for expansion in told.expansions)
    assert max(step.shape.decode_requests for step in engine.steps) == 3


def test_a_request_that_never_fits_is_named() -> None:
    engine = AsyncEngine(Engine(TARGET, scheduler(ChunkedPrefill, num_blocks=2)))
    with pytest.raises(InputError, match="never be served"):
        asyncio.run(engine.generate(Job(list(range(30)), 3)))
