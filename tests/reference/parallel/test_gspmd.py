"""What only sharding propagation and partitioning promise."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.gspmd import (
    GRAPHS,
    GSPMD,
    Operation,
    collected,
    execute,
    gspmd,
    partition,
    propagate,
    reshard,
    scattered,
    shapes_of,
)

MESH = {"data": 2, "model": 2}


def compiled(graph, annotations, size=4, mesh=MESH):
    """Shardings and collectives of a graph whose letters all have one size: [(action, register, axis)]."""
    dimensions, operations = GRAPHS[graph]
    shapes = {name: (size,) * len(one) for name, one in dimensions.items()}
    shardings = propagate(operations, shapes, annotations, mesh)
    program, _ = partition(operations, shapes, shardings, mesh)
    moves = [(s.action, s.target, s.axis) for s in program if s.action not in ("compute", "copy", "slice")]
    return shardings, moves


def test_a_cut_batch_needs_nothing():
    shardings, moves = compiled("feed-forward", {"x": ("data", None, None)})
    assert shardings["out"] == ("data", None, None)
    assert shardings["up"] == (None, None)
    assert moves == []


def test_two_annotated_weights_make_megatrons_layer():
    asked = {"x": ("data", None, None), "up": (None, "model"), "down": ("model", None), "out": ("data", None, None)}
    shardings, moves = compiled("feed-forward", asked)
    assert shardings["active"] == ("data", None, "model")
    assert shardings["bias"] == ("model",)  # backwards from the sum it enters
    assert moves == [("all_reduce", "narrow", "model")]


def test_an_output_cut_along_the_sequence_turns_the_all_reduce_into_a_reduce_scatter():
    cut = ("data", "model", None)
    asked = {"x": cut, "up": (None, "model"), "down": ("model", None), "wide": ("data", None, "model"), "narrow": cut}
    _, moves = compiled("feed-forward", asked)
    assert moves[:2] == [("all_gather", "wide.0", "model"), ("reduce_scatter", "narrow", "model")]
    assert moves[2:] == [("all_reduce", "total", "model")]  # which sums over the sequence


def test_weights_cut_along_the_batch_axis_are_gathered_where_used():
    asked = {"x": ("data", None, None), "up": ("data", None), "down": ("data", None), "wide": ("data", None, None)}
    _, moves = compiled("feed-forward", asked | {"bias": (None,), "narrow": ("data", None, None)})
    assert moves == [("all_gather", "wide.1", "data"), ("all_gather", "narrow.1", "data")]


def test_experts_cut_as_tokens_are_make_all_to_alls():
    asked = {"x": ("data", None, None), "mask": ("data", None, None, None), "dispatched": ("data", None, None, None)}
    asked |= {"up": ("data", None, None), "down": ("data", None, None), "out": ("data", None, None)}
    _, moves = compiled("experts", asked)
    assert {action for action, _, _ in moves} == {"all_to_all"}
    assert len(moves) == 2


def test_heads_follow_from_one_projection():
    shardings, moves = compiled("attention without its softmax", {"q": (None, "model", None)})
    assert shardings["k"] == shardings["v"] == (None, "model", None)
    assert shardings["o"] == ("model", None, None)
    assert moves == [("all_reduce", "out", "model")]


def test_a_fixpoint_stays_and_annotations_are_kept():
    for seed in range(40):
        drawn = GSPMD.examples(np.random.default_rng(seed))
        shapes = {name: array.shape for name, array in drawn["inputs"].items()}
        found = propagate(drawn["operations"], shapes, drawn["annotations"], drawn["mesh"])
        assert propagate(drawn["operations"], shapes, found, drawn["mesh"]) == found
        for name, annotation in drawn["annotations"].items():
            assert all(axis in ("?", cut) for axis, cut in zip(annotation, found[name]))
            assert len(set(annotation) - {None, "?"}) <= sum(cut is not None for cut in found[name])


def test_what_propagation_leaves_whole_it_could_not_cut():
    for seed in range(40):
        drawn = GSPMD.examples(np.random.default_rng(seed))
        shapes = shapes_of(drawn["operations"], {name: array.shape for name, array in drawn["inputs"].items()})
        inputs = {name: array.shape for name, array in drawn["inputs"].items()}
        found = propagate(drawn["operations"], inputs, drawn["annotations"], drawn["mesh"])
        for operation in drawn["operations"]:
            letters, out = operation.letters
            tensors = list(zip((*letters, out), (*operation.operands, operation.result)))
            axes = {(letter, axis) for one, name in tensors for letter, axis in zip(one, found[name]) if axis}
            for one, name in tensors:
                for dim, letter in enumerate(one):
                    if found[name][dim] is not None or drawn["annotations"].get(name, ["?"] * len(one))[dim] != "?":
                        continue
                    assert all(
                        axis in found[name] or shapes[name][dim] % drawn["mesh"][axis] for l, axis in axes if l == letter
                    )


def test_the_plan_knows_every_byte_that_is_sent():
    total = 0
    for seed in range(60):
        drawn, traffic = GSPMD.examples(np.random.default_rng(seed)), Traffic()
        shapes = {name: array.shape for name, array in drawn["inputs"].items()}
        gspmd(**drawn, traffic=traffic)
        shardings = propagate(drawn["operations"], shapes, drawn["annotations"], drawn["mesh"])
        _, sent = partition(drawn["operations"], shapes, shardings, drawn["mesh"])
        assert traffic.total_bytes == 8 * sent
        total += sent
    assert total > 0


def test_annotations_change_where_never_what():
    for seed in range(60):
        drawn = GSPMD.examples(np.random.default_rng(seed))
        alone = gspmd(**{**drawn, "mesh": {}, "annotations": {}})
        assert same_to_rounding(alone, gspmd(**drawn))


def test_any_sharding_is_reached_from_any_other():
    whole, shape = np.arange(64.0).reshape(4, 4, 4), (4, 4, 4)
    every = [(a, b, c) for a in (None, *MESH) for b in (None, *MESH) for c in (None, *MESH)]
    every = [cut for cut in every if len(set(cut) - {None}) == sum(axis is not None for axis in cut)]
    for source in every:
        for target in every:
            steps, sent = reshard("t", shape, source, target, MESH)
            traffic = Traffic()
            parts = execute(steps, {"t": scattered(whole, source, MESH)}, MESH, traffic)["t"]
            assert all(np.array_equal(one, other) for one, other in zip(parts, scattered(whole, target, MESH), strict=True))
            assert np.array_equal(collected(parts, target, MESH), whole)
            assert traffic.total_bytes == 8 * sent
            assert sent or all(axis is None or axis == target[dim] for dim, axis in enumerate(source))


def test_a_wrong_result_is_refused():
    right = GSPMD.reference(**GSPMD.examples(np.random.default_rng(2)))
    assert not GSPMD.same(right, {name: array * 1.001 + 1e-3 for name, array in right.items()})


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"nothing": (None,)}, "no tensor of that name"),
        ({"x": ("data", None)}, "number of dimensions"),
        ({"x": ("pipe", None, None)}, "'pipe' is no mesh axis"),
        ({"x": ("data", "data", None)}, "used twice"),
    ],
)
def test_impossible_annotations_are_named(asked, why):
    with pytest.raises(ValueError, match=why):
        compiled("feed-forward", asked)


def test_a_dimension_that_does_not_divide_is_refused_if_asked_and_left_whole_if_not():
    with pytest.raises(ValueError, match="3 is not a multiple of data=2"):
        compiled("feed-forward", {"x": ("data", None, None)}, size=3)
    graph = [Operation("y", "einsum", "ab->ba", ("x",))]
    assert propagate(graph, {"x": (4, 3)}, {"x": ("data", "?")}, MESH)["y"] == (None, "data")


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (Operation("y", "sort", "ab->ab", ("x",)), "kind='sort'"),
        (Operation("y", "relu", "ab->a", ("x",)), "drops a dimension"),
        (Operation("y", "einsum", "aa->a", ("x",)), "a is both 4 and 6"),
        (Operation("y", "einsum", "ab->abc", ("x",)), "no operand has"),
        (Operation("y", "einsum", "abc->a", ("x",)), "operand 'x'"),
        (Operation("y", "add", "ab,ab->ab", ("x",)), "does not fit 1 operands"),
    ],
)
def test_operations_that_do_not_fit_are_named(operation, why):
    with pytest.raises(ValueError, match=why):
        shapes_of([operation], {"x": (4, 6)})


def test_a_mesh_without_ranks_is_refused():
    with pytest.raises(ValueError, match="axis below 1"):
        gspmd(mesh={"x": 0}, inputs={}, operations=[], annotations={})
