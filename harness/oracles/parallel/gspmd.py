"""PyTorch running the graph on whole tensors, as oracle of parallel.gspmd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.gspmd import GSPMD, Operation


@oracle(GSPMD, library="torch.einsum on whole tensors", needs=("torch",))
def whole_tensors(
    *, mesh: Mapping[str, int], inputs: Mapping[str, np.ndarray], operations: Sequence[Operation], annotations: object
) -> dict[str, np.ndarray]:
    import torch

    known = {name: torch.tensor(array) for name, array in inputs.items()}
    for operation in operations:
        given = [known[name] for name in operation.operands]
        if operation.kind == "einsum":
            known[operation.result] = torch.einsum(operation.spec, *given)
        else:  # the graphs' elementwise operands lie along the last dimensions of the result
            function = {"add": torch.add, "multiply": torch.mul, "relu": torch.relu, "tanh": torch.tanh}[operation.kind]
            known[operation.result] = function(*given)
    return {operation.result: known[operation.result].numpy() for operation in operations}
