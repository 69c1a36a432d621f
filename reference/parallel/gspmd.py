"""GSPMD: annotate some tensors, propagate the shardings, insert the collectives (Xu et al. 2021, arXiv:2105.04663).

Ranks form a mesh with named axes. A sharding names for each dimension of a tensor the mesh axis it is cut along, or None; a
mesh axis cuts at most one dimension of a tensor, and a tensor is repeated along the axes it does not name. Annotations may say
"?" for a dimension that propagation may still cut.

- Propagation (section 3.5): dimensions with the same letter in an operation's spec want the same mesh axis. One dimension at a
  time is refined, by the first operation that allows it: elementwise operations before those that contract, operands before
  results of the same one, until nothing changes. What is once cut stays cut, and what was annotated stays as it is, so a
  fixpoint is reached after at most as many refinements as there are dimensions.
- Partitioning (section 4): each operation runs on the shards that leave the fewest FLOPs per rank, then the fewest bytes to
  send. Operands come there by slices (free), all-to-alls (an axis moves to another dimension) and all-gathers; a contracted
  letter that is cut leaves partial sums, which a reduce-scatter or an all-reduce completes.

The outcome is one program for all ranks, a list of steps; both the NumPy ranks here and real ones run it.

Elements sent by all P ranks with n elements on a rank before the step and p ranks along the axis: all-gather P (p - 1) n,
all-to-all and reduce-scatter P (p - 1) n / p, all-reduce 2 P (p - 1) n / p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import (
    Parts,
    all_gather,
    all_reduce,
    all_to_all,
    lines,
    reduce_scatter,
    same_to_rounding,
)
from llmlab.reference.parallel._traffic import Traffic

Sharding = tuple[str | None, ...]
"""Mesh axis of each dimension."""

ELEMENTWISE: Mapping[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "multiply": np.multiply,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class Operation:
    """One operation: its result's name, "einsum" or an elementwise kind, the einsum spec of its dimensions, its operands."""

    result: str
    kind: str
    spec: str
    operands: tuple[str, ...]

    @property
    def letters(self) -> tuple[tuple[str, ...], str]:
        """Letters of the operands and of the result."""
        left, _, right = self.spec.partition("->")
        return tuple(left.split(",")), right


@dataclass(frozen=True)
class Step:
    """One step of every rank's program: an action on a register, by a mesh axis where it has one.

    `compute` writes `target` from the registers `sources`, `copy` from its only one. The others replace `target`: `slice`,
    `all_gather` and `reduce_scatter` along `dim`, `all_to_all` from `dim` to `to`, and `all_reduce`.
    """

    action: str
    target: str
    dim: int = -1
    to: int = -1
    axis: str = ""
    sources: tuple[str, ...] = ()
    operation: Operation | None = None


def shapes_of(operations: Sequence[Operation], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the graph.

    Raises:
        ValueError: an unknown kind or operand, a spec that does not fit, or a letter of two sizes.
    """
    known = dict(shapes)
    for operation in operations:
        letters, out = operation.letters
        if operation.kind != "einsum" and operation.kind not in ELEMENTWISE:
            raise ValueError(f"{operation.result}: kind={operation.kind!r} is none of einsum, {', '.join(ELEMENTWISE)}")
        if operation.kind != "einsum" and any(letter not in out for one in letters for letter in one):
            raise ValueError(f"{operation.result}: {operation.spec!r} drops a dimension, which only einsum does")
        sizes: dict[str, int] = {}
        if len(letters) != len(operation.operands) or operation.result in known:
            raise ValueError(
                f"{operation.result}: {operation.spec!r} does not fit {len(operation.operands)} operands or exists"
            )
        for one, name in zip(letters, operation.operands):
            if name not in known or len(known[name]) != len(one):
                raise ValueError(f"{operation.result}: operand {name!r} is not a tensor of dimensions {one!r}")
            for letter, size in zip(one, known[name]):
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(f"{operation.result}: {letter} is both {sizes[letter]} and {size}")
        if any(letter not in sizes for letter in out):
            raise ValueError(f"{operation.result}: {operation.spec!r} has a result dimension no operand has")
        known[operation.result] = tuple(sizes[letter] for letter in out)
    return known


def propagate(
    operations: Sequence[Operation],
    shapes: Mapping[str, tuple[int, ...]],
    annotations: Mapping[str, Sequence[str | None]],
    mesh: Mapping[str, int],
) -> dict[str, Sharding]:
    """Return a sharding for every tensor: the annotations, and what follows from them.

    Raises:
        ValueError: an annotation names no tensor or mesh axis, uses an axis twice, or cuts a dimension that does not divide.

    >>> graph = [Operation("h", "einsum", "bd,df->bf", ("x", "w")), Operation("y", "relu", "bf->bf", ("h",))]
    >>> asked = {"x": ("data", None), "w": (None, "model")}
    >>> found = propagate(graph, {"x": (4, 2), "w": (2, 4)}, asked, {"data": 2, "model": 2})
    >>> found["y"]
    ('data', 'model')
    """
    known = shapes_of(operations, shapes)
    for name, annotation in annotations.items():
        _check_annotation(name, annotation, known, mesh)
    cut: dict[str, list[str | None]] = {name: [None] * len(shape) for name, shape in known.items()}
    fixed = {name: [False] * len(shape) for name, shape in known.items()}
    for name, annotation in annotations.items():
        cut[name] = [None if axis == "?" else axis for axis in annotation]
        fixed[name] = [axis != "?" for axis in annotation]
    in_order = [op for op in operations if op.kind != "einsum"] + [op for op in operations if op.kind == "einsum"]
    while True:
        for name, dim, axis in _refinements(in_order, cut):
            if not fixed[name][dim] and axis not in cut[name] and known[name][dim] % mesh[axis] == 0:
                cut[name][dim] = axis
                break
        else:
            return {name: tuple(axes) for name, axes in cut.items()}


def _check_annotation(
    name: str, annotation: Sequence[str | None], shapes: Mapping[str, tuple[int, ...]], mesh: Mapping[str, int]
) -> None:
    if name not in shapes or len(annotation) != len(shapes[name]):
        raise ValueError(f"annotation {name}={tuple(annotation)}: no tensor of that name and number of dimensions")
    used = [axis for axis in annotation if axis not in (None, "?")]
    for axis, size in zip(annotation, shapes[name]):
        if axis in (None, "?"):
            continue
        if axis not in mesh or used.count(axis) > 1:
            raise ValueError(f"annotation {name}={tuple(annotation)}: {axis!r} is no mesh axis or used twice")
        if size % mesh[axis]:
            raise ValueError(f"annotation {name}={tuple(annotation)}: {size} is not a multiple of {axis}={mesh[axis]}")


def _refinements(operations: Sequence[Operation], cut: Mapping[str, Sequence[str | None]]) -> Iterator[tuple[str, int, str]]:
    """Dimensions that are whole while another of the same letter is cut, with that axis."""
    for operation in operations:
        letters, out = operation.letters
        places = [
            (letter, name, dim)
            for one, name in zip((*letters, out), (*operation.operands, operation.result))
            for dim, letter in enumerate(one)
        ]
        for letter, name, dim in places:
            if cut[name][dim] is None:
                for other, its_name, its_dim in places:
                    axis = cut[its_name][its_dim]
                    if other == letter and axis is not None:
                        yield name, dim, axis


def reshard(
    register: str, shape: tuple[int, ...], source: Sharding, target: Sharding, mesh: Mapping[str, int]
) -> tuple[list[Step], int]:
    """Return the steps from one sharding to another, and the elements that all ranks send in them."""
    now, steps, sent, ranks = list(source), [], 0, int(np.prod(list(mesh.values())))

    def held() -> int:
        return int(np.prod(shape)) // int(np.prod([mesh[axis] for axis in now if axis]))

    while tuple(now) != target:
        for dim, axis in enumerate(target):  # what makes a rank's part smaller comes first
            if axis and now[dim] is None and axis not in now:
                steps.append(Step("slice", register, dim, axis=axis))
                now[dim] = axis
                break
        else:
            for dim, axis in enumerate(target):
                if axis and now[dim] is None and axis in now:
                    away = now.index(axis)
                    sent += ranks * (mesh[axis] - 1) * held() // mesh[axis]
                    steps.append(Step("all_to_all", register, away, dim, axis))
                    now[away], now[dim] = None, axis
                    break
            else:
                dim, axis = next((d, a) for d, a in enumerate(now) if a and a != target[d])
                sent += ranks * (mesh[axis] - 1) * held()
                steps.append(Step("all_gather", register, dim, axis=axis))
                now[dim] = None
    return steps, sent


def partition(
    operations: Sequence[Operation],
    shapes: Mapping[str, tuple[int, ...]],
    shardings: Mapping[str, Sharding],
    mesh: Mapping[str, int],
) -> tuple[list[Step], int]:
    """Return the program of every rank, and the elements that all ranks send in it."""
    known, program, total = shapes_of(operations, shapes), [], 0
    for operation in operations:
        best: tuple[int, int, list[Step]] | None = None
        for choice in _choices(operation, shardings):
            steps, sent, work = _steps_of(operation, choice, known, shardings, mesh)
            if best is None or (work, sent) < best[:2]:
                best = work, sent, steps
        if best is not None:
            program += best[2]
            total += best[1]
    return program, total


def _choices(operation: Operation, shardings: Mapping[str, Sharding]) -> Iterator[dict[str, str | None]]:
    """Every way to cut the letters by axes they are cut by somewhere, no axis twice."""
    letters, out = operation.letters
    wanted: dict[str, list[str | None]] = {}
    for one, name in zip((out, *letters), (operation.result, *operation.operands)):
        for letter, axis in zip(one, shardings[name]):
            options = wanted.setdefault(letter, [None])
            if axis is not None and axis not in options:
                options.append(axis)
    for axes in product(*wanted.values()):
        used = [axis for axis in axes if axis]
        if len(used) == len(set(used)):
            yield dict(zip(wanted, axes))


def _steps_of(
    operation: Operation,
    choice: Mapping[str, str | None],
    shapes: Mapping[str, tuple[int, ...]],
    shardings: Mapping[str, Sharding],
    mesh: Mapping[str, int],
) -> tuple[list[Step], int, int]:
    """Steps of one operation with its letters cut so, elements sent, and products per rank."""
    letters, out = operation.letters
    steps, total, sources = [], 0, []
    sizes: dict[str, int] = {}
    for place, (one, name) in enumerate(zip(letters, operation.operands)):
        sizes |= dict(zip(one, shapes[name]))
        needed = tuple(choice[letter] for letter in one)
        register = name
        if needed != shardings[name]:
            register = f"{operation.result}.{place}"
            moves, sent = reshard(register, shapes[name], shardings[name], needed, mesh)
            steps += [Step("copy", register, sources=(name,)), *moves]
            total += sent
        sources.append(register)
    result, shape = operation.result, shapes[operation.result]
    steps.append(Step("compute", result, sources=tuple(sources), operation=operation))
    now: list[str | None] = [choice[letter] for letter in out]
    ranks = int(np.prod(list(mesh.values())))
    for letter in sizes:
        axis = choice[letter]
        if letter in out or axis is None:
            continue
        held = int(np.prod(shape)) // int(np.prod([mesh[a] for a in now if a]))
        once = ranks * (mesh[axis] - 1) * held // mesh[axis]
        dim = shardings[result].index(axis) if axis in shardings[result] else -1
        if dim >= 0 and now[dim] is None:
            steps.append(Step("reduce_scatter", result, dim, axis=axis))
            now[dim] = axis
            total += once
        else:
            steps.append(Step("all_reduce", result, axis=axis))
            total += 2 * once
    moves, sent = reshard(result, shape, tuple(now), shardings[result], mesh)
    work = int(np.prod(list(sizes.values()))) // int(np.prod([mesh[axis] for axis in choice.values() if axis]))
    return steps + moves, total + sent, work


def scattered(array: np.ndarray, sharding: Sharding, mesh: Mapping[str, int]) -> Parts:
    """Cut a whole array into what each rank of the row-major mesh holds."""
    axes = list(mesh)
    parts = []
    for place in np.ndindex(*mesh.values()):
        part = array
        for dim, axis in enumerate(sharding):
            if axis:
                part = np.split(part, mesh[axis], dim)[place[axes.index(axis)]]
        parts.append(part)
    return parts


def collected(parts: Parts, sharding: Sharding, mesh: Mapping[str, int]) -> np.ndarray:
    """The inverse of `scattered`; along axes that repeat the tensor, the first rank's copy counts."""
    axes = list(mesh)
    held = dict(zip(np.ndindex(*mesh.values()), parts))
    for dim, cut in enumerate(sharding):
        if cut:
            at = axes.index(cut)
            for place in [place for place in held if place[at] == 0]:
                whole = [held[(*place[:at], i, *place[at + 1 :])] for i in range(mesh[cut])]
                held[place] = np.concatenate(whole, dim)
    return held[(0,) * len(axes)]


def execute(
    program: Sequence[Step], registers: dict[str, Parts], mesh: Mapping[str, int], traffic: Traffic
) -> dict[str, Parts]:
    """Run the program on every rank's arrays; return all registers."""
    axes, shape = list(mesh), tuple(mesh.values())
    for step in program:
        if step.operation is not None:
            operation, operands = step.operation, zip(*(registers[name] for name in step.sources))
            registers[step.target] = [compute(operation, arrays) for arrays in operands]
            continue
        if step.action == "copy":
            registers[step.target] = registers[step.sources[0]]
            continue
        parts, at = registers[step.target], axes.index(step.axis)
        groups = lines(shape, at)
        if step.action == "slice":
            places = [place[at] for place in np.ndindex(*shape)]
            parts = [np.split(part, shape[at], step.dim)[place] for part, place in zip(parts, places)]
        elif step.action == "all_gather":
            parts = all_gather(parts, traffic, axis=step.dim, groups=groups)
        elif step.action == "reduce_scatter":
            parts = reduce_scatter(parts, traffic, axis=step.dim, groups=groups)
        elif step.action == "all_reduce":
            parts = all_reduce(parts, traffic, groups=groups)
        else:
            came = all_to_all([np.split(part, shape[at], step.to) for part in parts], traffic, groups=groups)
            parts = [np.concatenate(blocks, step.dim) for blocks in came]
        registers[step.target] = parts
    return registers


def compute(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Run one operation on local arrays; elementwise operands are first spread over the result's dimensions."""
    if operation.kind == "einsum":
        return np.einsum(operation.spec, *arrays)
    letters, out = operation.letters
    sizes = {letter: size for one, array in zip(letters, arrays) for letter, size in zip(one, array.shape)}
    spread = [
        np.einsum(f"{one}->{''.join(letter for letter in out if letter in one)}", array).reshape(
            [sizes[letter] if letter in one else 1 for letter in out]
        )
        for one, array in zip(letters, arrays)
    ]
    return ELEMENTWISE[operation.kind](*spread)


def gspmd(
    *,
    mesh: Mapping[str, int],
    inputs: Mapping[str, np.ndarray],
    operations: Sequence[Operation],
    annotations: Mapping[str, Sequence[str | None]],
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Propagate, partition and run a graph on the mesh; return every operation's result, put together.

    Raises:
        ValueError: a mesh axis below 1, an operation that does not fit its operands, or an impossible annotation.

    >>> graph = [Operation("y", "einsum", "bd,df->bf", ("x", "w"))]
    >>> arrays = {"x": np.ones((2, 4)), "w": np.ones((4, 2))}; traffic = Traffic()
    >>> gspmd(mesh={"model": 2}, inputs=arrays, operations=graph, annotations={"w": ("model", None)}, traffic=traffic)["y"]
    array([[4., 4.],
           [4., 4.]])
    >>> traffic.total_bytes  # x follows w and is cut too; the partial sums are all-reduced
    64
    """
    if any(size < 1 for size in mesh.values()):
        raise ValueError(f"mesh={dict(mesh)} has an axis below 1")
    traffic = Traffic() if traffic is None else traffic
    shapes = {name: array.shape for name, array in inputs.items()}
    shardings = propagate(operations, shapes, annotations, mesh)
    program, _ = partition(operations, shapes, shardings, mesh)
    registers = {name: scattered(array, shardings[name], mesh) for name, array in inputs.items()}
    execute(program, registers, mesh, traffic)
    results = [operation.result for operation in operations]
    return {name: collected(registers[name], shardings[name], mesh) for name in results}


GRAPHS: Mapping[str, tuple[dict[str, str], list[Operation]]] = {
    "feed-forward": (
        {"x": "btd", "up": "df", "bias": "f", "down": "fd"},
        [
            Operation("wide", "einsum", "btd,df->btf", ("x", "up")),
            Operation("biased", "add", "btf,f->btf", ("wide", "bias")),
            Operation("active", "relu", "btf->btf", ("biased",)),
            Operation("narrow", "einsum", "btf,fd->btd", ("active", "down")),
            Operation("out", "add", "btd,btd->btd", ("narrow", "x")),
            Operation("total", "einsum", "btd->b", ("out",)),
        ],
    ),
    "attention without its softmax": (
        {"x": "btd", "q": "dnh", "k": "dnh", "v": "dnh", "o": "nhd"},
        [
            Operation("queries", "einsum", "btd,dnh->btnh", ("x", "q")),
            Operation("keys", "einsum", "btd,dnh->btnh", ("x", "k")),
            Operation("values", "einsum", "btd,dnh->btnh", ("x", "v")),
            Operation("scores", "einsum", "btnh,bsnh->bnts", ("queries", "keys")),
            Operation("weights", "tanh", "bnts->bnts", ("scores",)),
            Operation("mixed", "einsum", "bnts,bsnh->btnh", ("weights", "values")),
            Operation("out", "einsum", "btnh,nhd->btd", ("mixed", "o")),
        ],
    ),
    "experts": (
        {"mask": "gsec", "x": "gsm", "up": "emf", "down": "efm"},
        [
            Operation("dispatched", "einsum", "gsec,gsm->egcm", ("mask", "x")),
            Operation("wide", "einsum", "egcm,emf->egcf", ("dispatched", "up")),
            Operation("active", "relu", "egcf->egcf", ("wide",)),
            Operation("narrow", "einsum", "egcf,efm->egcm", ("active", "down")),
            Operation("out", "einsum", "gsec,egcm->gsm", ("mask", "narrow")),
        ],
    ),
}
"""Name -> dimensions of the inputs, operations."""


def gspmd_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a graph, a mesh of one or two axes, and annotations of some tensors at random; letters are drawn 2, 4 or 6 long."""
    names = list(GRAPHS)
    dimensions, operations = GRAPHS[names[int(rng.integers(len(names)))]]
    sizes = {letter: 2 * int(rng.integers(1, 4)) for letter in sorted(set("".join(dimensions.values())))}
    inputs = {name: rng.standard_normal([sizes[letter] for letter in one]) for name, one in dimensions.items()}
    mesh = [{"x": 1}, {"x": 2}, {"x": 2, "y": 2}, {"x": 1, "y": 2}][int(rng.integers(4))]
    shapes = shapes_of(operations, {name: array.shape for name, array in inputs.items()})
    annotations: dict[str, list[str | None]] = {}
    for name, shape in shapes.items():
        if rng.random() < 0.5:
            free: list[str | None] = [*mesh, None, "?"]
            annotations[name] = []
            for _ in shape:
                axis = free[int(rng.integers(len(free)))]
                annotations[name].append(axis)
                if axis in mesh:
                    free.remove(axis)
    return {"mesh": mesh, "inputs": inputs, "operations": operations, "annotations": annotations}


GSPMD = Procedure(
    reference=gspmd,
    examples=gspmd_examples,
    paper="arXiv:2105.04663",
    same=same_to_rounding,
)
