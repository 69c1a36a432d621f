"""What only blockwise decoding has."""

import numpy as np
import pytest

from llmlab.reference.decoding._tree import chain
from llmlab.reference.decoding.blockwise import BLOCKWISE, BlockHeads, accept_block, blockwise
from llmlab.reference.decoding.greedy import greedy


@pytest.mark.parametrize("seed", range(5))
def test_exact_acceptance_is_greedy_decoding(seed: int) -> None:
    example = dict(BLOCKWISE.examples(np.random.default_rng(seed))) | {"top": 1, "least": 1, "max_tokens": 15}
    spoken = blockwise(**example)
    plain = greedy(example["step"], example["prompt"], max_tokens=15, stop_ids=example["stop_ids"])
    assert (spoken.ids, spoken.reason) == (plain.ids, plain.reason)


@pytest.mark.parametrize("seed", range(3))
def test_whole_blocks_taken_unseen_need_the_fewest_calls(seed: int) -> None:
    example = dict(BLOCKWISE.examples(np.random.default_rng(seed))) | {"max_tokens": 13, "stop_ids": []}
    K = len(example["inner_KFD"])
    spoken = blockwise(**example | {"least": K + 1})
    assert spoken.emitted[0] == 1  # the prompt's call verifies nothing yet
    assert all(count == K + 1 for count in spoken.emitted[1:-1])
    sure = blockwise(**example | {"top": 37, "least": 1})
    assert sure == spoken  # every token is among all of the vocabulary


def test_a_wider_choice_accepts_no_less() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        draft, logits_NV = chain(rng.integers(0, 6, 4).tolist()), rng.standard_normal((4, 6))
        lengths = [len(accept_block(draft, logits_NV, top=top)[0]) for top in range(1, 7)]
        assert lengths == sorted(lengths)
        assert lengths[-1] == 4


def test_heads_that_add_nothing_say_what_the_model_says() -> None:
    rng = np.random.default_rng(1)
    hidden_D, head_VD = rng.standard_normal(4), rng.standard_normal((7, 4))
    heads = BlockHeads(rng.standard_normal((2, 3, 4)), np.zeros((2, 4, 3)), head_VD)
    np.testing.assert_allclose(heads.logits(hidden_D), np.tile(head_VD @ hidden_D, (2, 1)))


def test_wrong_arguments_are_named() -> None:
    example = dict(BLOCKWISE.examples(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="top=0"):
        blockwise(**example | {"top": 0})
    with pytest.raises(ValueError, match=r"\(1, 2, 5\)"):
        blockwise(**example | {"inner_KFD": np.zeros((1, 2, 5))})
