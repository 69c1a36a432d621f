"""What only the GLM models have."""

from itertools import combinations, permutations

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blank_infilling import blank_infilling
from llmlab.reference.models._blocks import block, drawn
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models.glm import ARCHITECTURE

MASK, START, END = 90, 91, 92


def test_sandwiched_outputs_do_not_depend_on_their_own_scale() -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, 24))
    for name, stays in (("glm-4-0414", True), ("glm-4", False)):
        config, weights = drawn(ARCHITECTURE, name)
        config = ModelConfig(**{**vars(config), "rms_norm_eps": 1e-30})
        _, (own, *_) = unpack(config, weights)
        louder = own | {key: 4 * own[key] for key in ("self_attn.o_proj.weight", "mlp.down_proj.weight")}
        same = error_of(block(config, louder, x, None, layer=0)[0], block(config, own, x, None, layer=0)[0]) < 1e-12
        assert same == stays


def test_the_papers_figure() -> None:
    """Figure 2: six tokens, the spans {3} and {5, 6}, the second predicted first."""
    one = blank_infilling([1, 2, 3, 4, 5, 6], [(2, 3), (4, 6)], [1, 0], mask=MASK, start=START, end=END)
    assert one.ids.tolist() == [1, 2, MASK, 4, MASK, START, 5, 6, START, 3]
    assert one.targets.tolist() == [-1] * 5 + [5, 6, END, 3, END]
    assert one.place.tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert one.within.tolist() == [0] * 5 + [1, 2, 3, 1, 2]
    assert one.seen.sum(1).tolist() == [5] * 5 + [6, 7, 8, 9, 10]


def test_every_example_predicts_each_blanked_token_once_from_what_it_may_see() -> None:
    """All pairs of spans of five tokens, in both orders: what a target is conditioned on, written out from eq. 1 and 2."""
    text = list(range(5))
    edges = list(combinations(range(6), 2))
    for first, second in combinations(edges, 2):
        spans = [first, second]
        if first[1] > second[0]:
            continue
        for order in permutations(range(2)):
            one = blank_infilling(text, spans, order, mask=MASK, start=START, end=END)
            kept = [token for token in text if not any(a <= token < b for a, b in spans)]
            done: list[int] = []
            rows = iter(np.flatnonzero(one.targets >= 0))
            for which in order:
                span = list(range(*spans[which]))
                for count, token in enumerate([*span, END]):
                    row = next(rows)
                    seen = sorted(one.ids[one.seen[row]].tolist())
                    starts = [START] * (1 + order.index(which))
                    assert one.targets[row] == token
                    assert seen == sorted([*kept, MASK, MASK, *done, *span[:count], *starts])
                done += span
            assert next(rows, None) is None


def test_wrong_spans_are_named() -> None:
    for spans, order in (([(2, 2)], [0]), ([(0, 2), (1, 3)], [0, 1]), ([(4, 7)], [0]), ([(0, 1)], [1])):
        with pytest.raises(ValueError, match=r"spans|order"):
            blank_infilling(list(range(5)), spans, order, mask=MASK, start=START, end=END)
