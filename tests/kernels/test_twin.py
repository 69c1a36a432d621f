"""A twin that is judged less strictly says why, and only where it asked for it."""

import numpy as np
import pytest

from llmlab.harness import parity
from llmlab.kernels.twin import Twin, twin
from llmlab.reference.catalog import load

torch = pytest.importorskip("torch", reason="needs torch")

SOFTMAX = load("layers.softmax")
DIMS = {"B": 2, "T": 3, "S": 5}


def off_by(share, *, forward, gradient):
    """Softmax in torch whose result or gradients are wrong by a share of what is allowed at these sizes."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(context, x, axis):
            out = torch.softmax(x, axis)
            context.save_for_backward(out)
            context.axis = axis
            return out + forward * share

        @staticmethod
        def backward(context, dout):
            (out,) = context.saved_tensors
            return out * (dout - (out * dout).sum(context.axis, keepdim=True)) + gradient * share, None

    return lambda x, *, axis=-1: Off.apply(x, axis)


def verdicts(entry):
    case = (DIMS, "float64", 1, SOFTMAX.options[0])
    return parity.check_twin(SOFTMAX, entry, *case).passed, parity.check_backward(SOFTMAX, entry, *case).passed


@pytest.fixture(scope="module")
def allowed():
    exact = Twin(SOFTMAX, "torch", off_by(0.0, forward=0, gradient=0), ("float64",), source="exact")
    case = (DIMS, "float64", 1, SOFTMAX.options[0])
    return min(check(SOFTMAX, exact, *case).allowed for check in (parity.check_twin, parity.check_backward))


def entry(function, **factors):
    return Twin(SOFTMAX, "torch", function, ("float64",), source="slightly off", looser="a test", **factors)


def test_a_gradient_factor_loosens_gradients_alone(allowed):
    both = off_by(8 * allowed, forward=1, gradient=1)
    assert verdicts(entry(both)) == (False, False)
    assert verdicts(entry(both, gradient_factor=64.0)) == (False, True)
    assert verdicts(entry(both, tolerance_factor=64.0)) == (True, False)


def test_a_factor_has_its_bound(allowed):
    wrong = off_by(1e3 * allowed, forward=0, gradient=1)
    assert verdicts(entry(wrong, gradient_factor=4.0)) == (True, False)


def test_a_backward_twin_is_judged_by_what_it_returns(allowed):
    def backward(dout, x, *, axis=-1):
        (dx,) = SOFTMAX.backward(dout, x, axis=axis)
        return (dx + 8 * allowed,)

    def judged(**factors):
        given = Twin(SOFTMAX, "numba", backward, ("float64",), "backward", "off", "a test", **factors)
        return parity.check_backward(SOFTMAX, given, DIMS, "float64", 1, SOFTMAX.options[0]).passed

    assert (judged(), judged(tolerance_factor=64.0)) == (False, True)


def test_registering_asks_for_the_reason_and_refuses_factors_that_nothing_reads():
    for factors in ({"tolerance_factor": 2.0}, {"gradient_factor": 2.0}, {"looser": "because"}):
        with pytest.raises(ValueError, match="states why"):
            twin(SOFTMAX, backend="torch", **factors)
    with pytest.raises(ValueError, match="no autograd goes through a numba twin"):
        twin(SOFTMAX, backend="numba", looser="because", gradient_factor=2.0)
    with pytest.raises(ValueError, match="torch twin of the backward"):
        twin(SOFTMAX, backend="torch", of="backward", looser="because", gradient_factor=2.0)


def test_the_reason_and_the_factors_are_kept(monkeypatch):
    kept = []
    monkeypatch.setattr("llmlab.kernels.twin.register", kept.append)
    twin(SOFTMAX, backend="torch", looser="because", gradient_factor=2.0)(np.exp)
    assert [(one.looser, one.tolerance_factor, one.gradient_factor) for one in kept] == [("because", 1.0, 2.0)]
