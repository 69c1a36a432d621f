"""What only Sarathi-Serve's admission promises."""

import numpy as np

from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.sarathi import Sarathi, sarathi


def test_no_decode_waits_for_a_prompt() -> None:
    for seed in range(100):
        decoding: set[int] = set()
        for slices, preempted, finished, _ in sarathi(**_queue.example(np.random.default_rng(seed))):
            assert decoding <= {id_ for id_, *_ in slices} | set(preempted)
            decoding = (decoding - set(preempted)) | {id_ for id_, _, _, emits in slices if emits}
            decoding -= set(finished)


def test_prompts_of_single_output_are_never_preempted() -> None:
    """Without decodes that grow, room for whole prompts is room enough."""
    scheduler = Sarathi(KVBlocks(10, 4), max_num_seqs=4, max_num_batched_tokens=5)
    for index in range(6):
        scheduler.add(Request(index, 17, 1))
    while scheduler.waiting or scheduler.running:
        batch = scheduler.schedule()
        assert not batch.preempted
        scheduler.complete(batch)


def test_one_percent_of_the_blocks_stays_free() -> None:
    assert Sarathi(KVBlocks(250, 4), max_num_seqs=1, max_num_batched_tokens=4).watermark_blocks == 2
