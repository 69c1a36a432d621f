"""What only lookahead has: its window, its pool, and that guesses change nothing but the number of calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._loop import without_cache
from llmlab.reference.decoding.greedy import greedy
from llmlab.reference.decoding.lookahead import Lookahead, lookahead

SEEDS = st.integers(0, 2**32 - 1)


def language(seed: int, V: int = 7):  # type: ignore[no-untyped-def]
    table = np.random.default_rng(seed).standard_normal((V, V, V))
    return without_cache(lambda ids: np.array([[table[ids[0, -2] if ids.shape[1] > 1 else 0, ids[0, -1]]]]))


@given(SEEDS, st.integers(1, 6), st.integers(2, 5), st.integers(0, 5))
def test_the_text_is_greedy_decodings(seed: int, window: int, ngram: int, guesses: int) -> None:
    step = language(seed)
    spoken = lookahead(step, [1, 2], window=window, ngram=ngram, guesses=guesses, max_tokens=25, stop_ids=[3])
    plain = greedy(step, [1, 2], max_tokens=25, stop_ids=[3])
    assert (spoken.ids, spoken.reason) == (plain.ids, plain.reason)
    assert sum(spoken.emitted) == len(spoken.ids)
    assert max(spoken.emitted) <= max(window + ngram - 1, ngram)


@given(SEEDS)
def test_a_draft_is_both_branches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, N = int(rng.integers(1, 5)), int(rng.integers(2, 5))
    drafter = Lookahead(W, N, 0)
    draft = drafter.draft(rng.integers(0, 5, 4).tolist())
    assert len(draft.tokens) == 1 + W * (N - 1)
    depths = sorted(len(draft.path_to(n)) - 1 for n in range(len(draft.tokens)))
    expected = sorted([0, *(1 + i + j for i in range(N - 1) for j in range(W))])  # the place of row i, column j
    assert depths == expected


def test_a_loop_of_text_is_soon_said_in_ngrams() -> None:
    """A text that repeats needs few calls once the pool knows its n-grams, and without a pool it saves little."""
    step = lambda new, state: (np.eye(5)[(new[-1] + 1) % 5], None)  # noqa: E731
    with_pool = lookahead(step, [0], window=4, ngram=4, guesses=4, max_tokens=60)
    assert len(with_pool.emitted) < 25
    assert with_pool.ids == tuple((1 + i) % 5 for i in range(60))


def test_the_pool_keeps_the_latest() -> None:
    drafter = Lookahead(1, 2, 2)
    for answer in (4, 5, 4, 6):
        drafter._rows = [[9]]
        from llmlab.reference.decoding._tree import Scored

        draft = drafter.draft([9])
        drafter.learn(draft, Scored(np.eye(8)[[answer] * len(draft.tokens)]), [0])
    assert drafter._pool[9] == [(4,), (6,)]


@pytest.mark.parametrize("change", [{"window": 0}, {"ngram": 1}, {"guesses": -1}])
def test_sizes_too_small_are_named(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="=".join(map(str, next(iter(change.items()))))):
        lookahead(language(0), [1], **{"window": 1, "ngram": 2, "guesses": 1, "max_tokens": 1, **change})
