"""Tokens are drawn from the reference's distribution, and a request's draws are its own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.runtime.engine import Engine, Job  # noqa: E402
from llmlab.harness.runtime.sampling import greedy, sampled  # noqa: E402
from llmlab.kernels.models.llama_torch import LlamaTorch  # noqa: E402
from llmlab.reference.decoding.sampling import sampling  # noqa: E402
from llmlab.reference.models._weights import random_weights  # noqa: E402
from llmlab.reference.models.llama import tiny_config  # noqa: E402
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill  # noqa: E402
from llmlab.reference.serving.kv_blocks import KVBlocks  # noqa: E402


def test_draws_follow_the_truncated_distribution() -> None:
    logits_1V = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]], dtype=torch.float64)
    options = {"temperature": 1.3, "top_p": 0.9}
    choose = sampled(7, **options)
    count = 4000
    drawn = np.bincount([choose(logits_1V, [(0, place)])[0] for place in range(count)], minlength=5) / count
    expected_1V, _ = sampling(logits_1V.numpy(), np.zeros(1), **options)
    assert np.abs(drawn - expected_1V[0]).max() < 4 * 0.5 / count**0.5
    assert drawn[4] == 0


def test_one_candidate_is_greedy() -> None:
    logits_RV = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = [(row, 0) for row in range(6)]
    assert sampled(0, top_k=1)(logits_RV, steps) == greedy(logits_RV, steps)


def test_a_requests_tokens_do_not_depend_on_its_batch() -> None:
    config = tiny_config("llama-3")
    weights = {n: w.astype(np.float64) for n, w in random_weights(config, np.random.default_rng(1), std=0.3).items()}
    model = LlamaTorch(config, weights, dtype=torch.float64)
    jobs = [Job([index + 1, 2, 3], 9) for index in range(5)]
    outputs = []
    for clients, num_blocks in ((1, 40), (5, 40), (5, 7)):  # alone, together, and with preemption
        scheduler = ChunkedPrefill(KVBlocks(num_blocks, 4), max_num_seqs=5, max_num_batched_tokens=8)
        run = Engine(model, scheduler, sampler=sampled(3, temperature=2.0)).run(jobs, clients=clients)
        outputs.append(run.outputs)
        preempted = sum(row["preemptions"] for row in run.requests)
        assert (preempted > 0) == (num_blocks == 7)
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({tuple(tokens) for tokens in outputs[0].values()}) == 5


def test_bad_options_and_bad_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        sampled(0, temperature=0.0)
    with pytest.raises(ValueError, match="request 4, token 2"):
        sampled(0)(torch.full((1, 3), torch.nan), [(4, 2)])
