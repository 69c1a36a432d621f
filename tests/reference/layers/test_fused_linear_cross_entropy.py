"""What only the fused projection and cross-entropy has."""

import importlib

import numpy as np
import pytest

from llmlab.reference.layers.cross_entropy import cross_entropy
from llmlab.reference.layers.fused_linear_cross_entropy import (
    fused_linear_cross_entropy,
    fused_linear_cross_entropy_backward,
)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_fused_loss_does_not_depend_on_how_many_logits_are_alive(backend, monkeypatch):
    pytest.importorskip(backend, reason=f"needs {backend}")
    module = importlib.import_module(f"llmlab.kernels.layers.fused_linear_cross_entropy_{backend}")
    rng = np.random.default_rng(2)
    hidden, weight, targets = rng.standard_normal((2, 5, 8)), rng.standard_normal((17, 8)), rng.integers(0, 17, (2, 5))
    dloss = rng.standard_normal((2, 5))
    exact = fused_linear_cross_entropy(hidden, weight, targets)
    gradients = fused_linear_cross_entropy_backward(dloss, hidden, weight, targets)[:2]
    np.testing.assert_allclose(exact, cross_entropy(hidden @ weight.T, targets), rtol=1e-13)
    for alive in (1, 3 * 17, 10**6):
        monkeypatch.setattr(module, "LOGITS_ALIVE", alive)
        if backend == "numba":
            loss = module.fused_linear_cross_entropy(hidden, weight, targets)
            found = module.fused_linear_cross_entropy_backward(dloss, hidden, weight, targets)[:2]
        else:
            import torch

            leaves = [torch.from_numpy(array).requires_grad_() for array in (hidden, weight)]
            result = module.fused_linear_cross_entropy(*leaves, torch.from_numpy(targets))
            found = [g.numpy() for g in torch.autograd.grad(result, leaves, torch.from_numpy(dloss))]
            loss = result.detach().numpy()
        np.testing.assert_allclose(loss, exact, rtol=1e-12)
        for one, other in zip(found, gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
