"""The partitioned program over torch.distributed: every rank runs the same steps on its own tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Peers, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.parallel.gspmd import GSPMD, Operation, Step, collected, partition, propagate, scattered

ELEMENTWISE = {"add": torch.add, "multiply": torch.mul, "relu": torch.relu, "tanh": torch.tanh}


def compute(operation: Operation, tensors: Sequence[Tensor]) -> Tensor:
    if operation.kind == "einsum":
        return torch.einsum(operation.spec, *tensors)
    letters, out = operation.letters
    spread = []
    for one, tensor in zip(letters, tensors):
        ordered = tensor.permute([one.index(letter) for letter in out if letter in one])
        for dim, letter in enumerate(out):
            ordered = ordered if letter in one else ordered.unsqueeze(dim)
        spread.append(ordered)
    return ELEMENTWISE[operation.kind](*spread)


def run(program: Sequence[Step], registers: dict[str, Tensor], peers: Mapping[str, Peers]) -> dict[str, Tensor]:
    """Run the program of one rank; `peers` are its groups by mesh axis."""
    for step in program:
        if step.operation is not None:
            registers[step.target] = compute(step.operation, [registers[name] for name in step.sources])
            continue
        if step.action == "copy":
            registers[step.target] = registers[step.sources[0]]
            continue
        tensor, group = registers[step.target], peers[step.axis]
        if step.action == "slice":
            tensor = tensor.chunk(group.size, step.dim)[group.rank]
        elif step.action == "all_gather":
            tensor = group.all_gather(tensor, step.dim)
        elif step.action == "reduce_scatter":
            tensor = group.reduce_scatter(tensor, step.dim)
        elif step.action == "all_reduce":
            tensor = group.all_reduce(tensor)
        else:
            ones = [1] * group.size
            tensor = torch.cat(group.all_to_all(torch.stack(tensor.chunk(group.size, step.to)), ones, ones).unbind(), step.dim)
        registers[step.target] = tensor
    return registers


@twin(GSPMD, backend="torch", dtypes=("float64",))
def gspmd(
    *,
    mesh: Mapping[str, int],
    inputs: Mapping[str, np.ndarray],
    operations: Sequence[Operation],
    annotations: Mapping[str, Sequence[str | None]],
    traffic: object = None,
) -> dict[str, np.ndarray]:
    shapes = {name: array.shape for name, array in inputs.items()}
    shardings = propagate(operations, shapes, annotations, mesh)
    program, _ = partition(operations, shapes, shardings, mesh)
    cut = {name: scattered(array, shardings[name], mesh) for name, array in inputs.items()}

    def rank_program(*groups: Peers) -> dict[str, Tensor]:
        rank = int(np.ravel_multi_index([group.rank for group in groups], tuple(mesh.values())))
        registers = {name: torch.tensor(parts[rank]) for name, parts in cut.items()}
        return run(program, registers, dict(zip(mesh, groups)))

    ranks = on_mesh(tuple(mesh.values()), rank_program)
    results = [operation.result for operation in operations]
    return {name: collected([rank[name].numpy() for rank in ranks], shardings[name], mesh) for name in results}
