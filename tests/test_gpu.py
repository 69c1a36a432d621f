"""Every torch and triton twin on a CUDA device, in every dtype it claims, at small odd sizes and at the shapes people quote."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmlab.harness import parity
from llmlab.kernels.twin import Twin, twins_of
from llmlab.reference.catalog import components
from llmlab.reference.op import Op

pytestmark = pytest.mark.gpu


def cuda_params() -> Iterator[Any]:
    for op in components().values():
        if isinstance(op, Op):
            for twin in twins_of(op, ("torch", "triton")):
                for dtype in twin.dtypes:
                    yield pytest.param(op, twin, dtype, id=f"{op.id}-{twin.label}-{dtype}")


@pytest.mark.parametrize(("op", "twin", "dtype"), list(cuda_params()))
def test_twin_on_cuda(op: Op, twin: Twin, dtype: str) -> None:
    for seed in range(4):
        dims = parity.draw_dims(op, np.random.default_rng(seed))
        for options in op.options:
            if twin.of == "reference":
                parity.assert_passed(parity.check_twin(op, twin, dims, dtype, seed, options))
            if op.backward is not None and (twin.of == "backward" or twin.backend == "torch"):
                parity.assert_passed(parity.check_backward(op, twin, dims, dtype, seed, options))


@pytest.mark.parametrize(("op", "twin", "dtype"), list(cuda_params()))
def test_twin_on_cuda_at_quoted_shapes(op: Op, twin: Twin, dtype: str) -> None:
    if twin.of != "reference":
        return
    for dims in op.shapes.values():
        if op.cost_of(dims).flops < 2e9:  # the NumPy reference has to keep up
            parity.assert_passed(parity.check_twin(op, twin, dims, dtype, 0, op.options[0]))
