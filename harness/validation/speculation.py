"""Speed-up of speculation against acceptance rate: predicted by the serving simulator, measured on the real engine here.

Guesses come from the known text, wrong where the scheduler's own draw (`reference.serving.speculative.holds`) says that
they fail: the simulated and the real run then take the very same steps and differ in durations only. So made they cost
nothing; a draft model's own time is measured beside (`draft_call_s`) and may be put into `predicted_speedup`.
Units: seconds and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmlab.harness.calibration.steps import StepFit, fit_steps
from llmlab.harness.runtime.engine import Engine, Job, Run
from llmlab.harness.runtime.probe import probe
from llmlab.harness.runtime.speculation import Guess, SpeculatingEngine, VerifiedSpeculation
from llmlab.harness.timing.measure import watch
from llmlab.kernels.models.llama_torch import LlamaTorch
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import random_weights
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.router import make_router
from llmlab.reference.serving.speculative import SpeculativeDecoding, expected_tokens, holds
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.cluster import Cluster
from llmlab.simulator.serving.metrics import request_table
from llmlab.simulator.workload.workload import Workload

BLOCK_TOKENS, NUM_BLOCKS, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 16, 256, 4, 64

CONFIG = ModelConfig.from_dict(
    {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
    },
    "llmlab/llama-19m",
)
"""Large enough that a step of one token is bound by reading the weights: what speculation makes use of."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        acceptances: probability that a guess holds.
        drafts: guesses per decode and step.
        requests: texts, decoded one after the other.
        prompt_tokens: length of each prompt.
        output_tokens: tokens of each text.
        calibrate_s: seconds of steps to fit.
        rounds: how often each run is repeated, in turn; the quickest counts.
    """

    acceptances: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
    drafts: tuple[int, ...] = (2, 4)
    requests: int = 2
    prompt_tokens: int = 24
    output_tokens: int = 64
    calibrate_s: float = 6.0
    rounds: int = 3


def known_text(
    texts: Mapping[int, Sequence[int]], prompts: Mapping[int, int], *, acceptance: float, seed: int, vocab_size: int
) -> Guess:
    """Guesses from texts known beforehand, each wrong where the scheduler's draw fails it."""

    def guess(request: int, text: Sequence[int], count: int) -> list[int]:
        made = []
        for place in range(len(text), min(len(text) + count, len(texts[request]))):
            right = holds(seed, request, place - prompts[request], acceptance)
            made.append(texts[request][place] if right else (texts[request][place] + 1) % vocab_size)
        return made

    return guess


def validate_speculation(
    *, plan: Plan | None = None, config: ModelConfig = CONFIG, seed: int = 0, progress: Any = lambda name, done, total: None
) -> dict[str, Any]:
    """Calibrate, run plain decoding and every pair of acceptance and drafts, simulate the same; return {rows, summary}.

    A row holds acceptance, drafts, tokens per step (measured and expected), and the speed-up of the decode over plain decoding,
    measured and predicted.
    """
    plan = plan or Plan()
    model = LlamaTorch(config, random_weights(config, np.random.default_rng([seed, 0])))
    rng = np.random.default_rng([seed, 1])
    jobs = [
        Job(rng.integers(0, config.vocab_size, plan.prompt_tokens).tolist(), plan.output_tokens) for _ in range(plan.requests)
    ]
    with watch() as quiet:
        progress("calibrating", 0, 1)
        fit = calibrate(model, config, plan, seed)
        plain = Engine(model, _scheduler(ChunkedPrefill)).run(jobs, clients=1)
        texts = {index: [*job.prompt, *plain.outputs[index]] for index, job in enumerate(jobs)}
        prompts = {index: len(job.prompt) for index, job in enumerate(jobs)}
        pairs = [(a, k) for k in plan.drafts for a in plan.acceptances]
        plain_s, spent_s, runs = float("inf"), [float("inf")] * len(pairs), [plain] * len(pairs)
        for round_ in range(plan.rounds):  # in turn, so that a machine that changes its speed changes it for all
            plain_s = min(plain_s, decode_s(Engine(model, _scheduler(ChunkedPrefill)).run(jobs, clients=1)))
            for number, (acceptance, drafts) in enumerate(pairs):
                progress("running", round_ * len(pairs) + number, plan.rounds * len(pairs))
                guess = known_text(texts, prompts, acceptance=acceptance, seed=seed, vocab_size=config.vocab_size)
                scheduler = _scheduler(VerifiedSpeculation, num_drafts=drafts, acceptance=acceptance, seed=seed)
                runs[number] = SpeculatingEngine(model, scheduler, guess).run(jobs, clients=1)
                spent_s[number] = min(spent_s[number], decode_s(runs[number]))
    guessed_plain_s = simulated_s(fit, plan, None)
    guessed_s = [
        simulated_s(fit, plan, {"num_drafts": drafts, "acceptance": acceptance, "seed": seed}) for acceptance, drafts in pairs
    ]
    rows = [
        {
            "acceptance": acceptance,
            "drafts": drafts,
            "same_tokens": run.outputs == plain.outputs,
            "tokens_per_step": _tokens_per_step(run),
            "expected_tokens_per_step": expected_tokens(acceptance, drafts),
            "measured": plain_s / spent,
            "predicted": guessed_plain_s / guessed,
        }
        for (acceptance, drafts), run, spent, guessed in zip(pairs, runs, spent_s, guessed_s)
    ]
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in rows]  # type: ignore[operator]
    return {
        "rows": rows,
        "summary": {
            "parameters": config.num_parameters,
            "threads": torch.get_num_threads(),
            "plain_step_s": plain_s / (plan.requests * (plan.output_tokens - 1)),
            "held_out_step_error": fit.held_out_error,
            "median_abs_error": float(np.median(errors)),
            "others": quiet[0].others,
        },
    }


def predicted_speedup(fit: StepFit, acceptance: float, drafts: int, context: int, draft_call_s: float = 0.0) -> float:
    """The closed form: tokens per step, over how much longer a step takes that verifies and drafts (Leviathan et al., 3.8)."""
    plain_s = fit.seconds(BatchShape((), 1, context, 1))
    verify_s = fit.seconds(as_run(BatchShape((), 1, context + drafts, 1 + drafts, drafts)))
    return expected_tokens(acceptance, drafts) * plain_s / (verify_s + drafts * draft_call_s)


def calibrate(model: LlamaTorch, config: ModelConfig, plan: Plan, seed: int) -> StepFit:
    """Time steps of one to four requests whose prompts are cut into pieces, as verified guesses are, and fit them."""
    steps = []
    for most, count in ((8, 1), (4, 1), (MAX_NUM_BATCHED_TOKENS, 2)):
        steps += probe(
            lambda most=most: Engine(model, _scheduler(ChunkedPrefill, most)),  # type: ignore[misc]
            clients=(count,),
            seconds=plan.calibrate_s / 3,
            longest_output=plan.output_tokens // 2,
            rng=np.random.default_rng([seed, 2, most]),
            vocab_size=config.vocab_size,
            longest_prompt=2 * plan.prompt_tokens + plan.output_tokens,
        )
    return fit_steps(steps, config)


def as_run(shape: BatchShape) -> BatchShape:
    """The shape as this engine computes it: a decode with guesses is a short piece of prompt over a cached context."""
    if not shape.draft_tokens:
        return shape
    requests = shape.decode_requests
    new, context = 1 + shape.draft_tokens / requests, shape.decode_context_tokens / requests
    pieces = tuple((round(new), round(context - new)) for _ in range(requests))
    return replace(shape, prefill=shape.prefill + pieces, decode_requests=0, decode_context_tokens=0, draft_tokens=0)


def simulated_s(fit: StepFit, plan: Plan, speculation: Mapping[str, Any] | None) -> float:
    """Seconds of all decode steps in a simulation of the plan, one request after the other, as the closed loop has them."""

    def step_ns(shape: BatchShape) -> int:
        return max(1, round(fit.seconds(as_run(shape)) * 1e9))

    seconds = 0.0
    for number in range(plan.requests):
        scheduler = _scheduler(ChunkedPrefill) if speculation is None else _scheduler(_Shifted, **speculation)
        if isinstance(scheduler, _Shifted):
            scheduler.shift = number
        workload = Workload(np.zeros(1, dtype=np.int64), np.array([plan.prompt_tokens]), np.array([plan.output_tokens]))
        router = make_router("round_robin", 1, np.random.default_rng(0))
        cluster = Cluster(
            workload,
            [scheduler],
            lambda shape: max(1, round(fit.seconds(as_run(shape)) * 1e9)),
            router,
            block_tokens=BLOCK_TOKENS,
        )

        table = request_table(workload, cluster.run())
        seconds += float(table["e2e_s"][0] - table["ttft_s"][0])
    return seconds


class _Shifted(SpeculativeDecoding):
    """Draws as for the request of another number: each simulation has one request, number 0."""

    shift = 0

    def accepted(self, part: Any) -> int:
        held, request = 0, part.request
        while held < part.drafts and holds(self.seed, self.shift, request.generated_tokens + held, self.acceptance):
            held += 1
        return held


def decode_s(run: Run) -> float:
    """Seconds from each request's first token to its last, added up."""
    return sum(times[-1] - times[0] for times in run.token_s.values())


def _tokens_per_step(run: Run) -> float:
    decoded = sum(len(times) - 1 for times in run.token_s.values())
    return decoded / sum(not step.shape.prefill for step in run.steps)


def _scheduler(kind: Any, most: int = MAX_NUM_BATCHED_TOKENS, **options: Any) -> Any:
    return kind(
        KVBlocks(NUM_BLOCKS, BLOCK_TOKENS), max_num_seqs=min(MAX_NUM_SEQS, most), max_num_batched_tokens=most, **options
    )


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What the command prints: one line per pair."""
    summary = result["summary"]
    title = f"speed-up of speculation, {summary['parameters'] / 1e6:.0f} M parameters, {summary['threads']} threads"
    yield (
        title,
        [
            {
                "acceptance": f"{row['acceptance']:.0%}",
                "drafts": row["drafts"],
                "tokens per step": row["tokens_per_step"],
                "expected": row["expected_tokens_per_step"],
                "measured": row["measured"],
                "predicted": row["predicted"],
                "error": f"{row['predicted'] / row['measured'] - 1:+.1%}",
            }
            for row in result["rows"]
        ],
    )
