"""Relative results: the search for a capacity finds known ones, and quick comparisons keep their sign."""

import numpy as np
import pytest

from llmlab.harness.validation import papers
from llmlab.reference.errors import InputError
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.workload.workload import Workload


def test_capacity_is_the_rate_at_which_a_lone_slot_is_always_busy():
    """One request at a time, equal work, equal gaps: a queue forms exactly when the gap is shorter than the service."""
    deployment = Deployment("meta-llama/Llama-3.1-8B", "h100", max_num_seqs=1, max_num_batched_tokens=512, engine="generic")

    def make(rate):
        return Workload(np.rint(np.arange(40) * 1e9 / rate), np.full(40, 256), np.full(40, 8))

    table = papers.simulate(deployment, make(0.01)).requests
    front = table["queue_s"].max()  # before the slot is taken, however free it is
    alone = table["e2e_s"].mean() - front

    def keeps(result):
        return result.requests["queue_s"].max() < front + 0.5 * alone

    found = papers.capacity(deployment, make, keeps, low=0.1 / alone, high=0.5 / alone)
    assert found == pytest.approx(1 / alone, rel=0.05)
    assert papers.capacity(deployment, make, lambda result: False, low=1.0, high=2.0) == 1.0


def test_chunk_and_cache_comparisons_run_and_can_fail():
    rows = papers.validate_papers(["P17"])
    assert {row["id"] for row in rows} == {"P17"}
    assert all(row["holds"] is True for row in rows)  # plain, for JSON
    jump = next(row for row in rows if "cache full" in row["comparison"])
    assert jump["obtained"] > 2
    with pytest.raises(InputError, match="P99"):
        papers.validate_papers(["P99"])


def test_every_comparison_names_its_source_once():
    assert len({paper.id for paper in papers.PAPERS}) == len(papers.PAPERS)
    assert all(paper.source and paper.run.__doc__ for paper in papers.PAPERS)
