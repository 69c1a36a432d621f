"""What data-parallel references train: a small network, its loss and gradients, and the optimizers, on one process.

Weights are [W0, b0, W1, b1, ...]; every layer but the last ends in tanh; the loss is the mean squared error. Axes: B examples,
I inputs and O outputs of a layer. A batch is (x_BI, y_BO).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmlab.reference.op import Cost, Dims

Batch = tuple[np.ndarray, np.ndarray]
OPTIMIZERS = ("sgd", "adam")


def layer_forward(x_BI: np.ndarray, weight_IO: np.ndarray, bias_O: np.ndarray, *, last: bool) -> np.ndarray:
    """Return x W + b, and tanh of it unless this is the last layer."""
    out_BO = np.einsum("bi,io->bo", x_BI, weight_IO) + bias_O
    return out_BO if last else np.tanh(out_BO)


def layer_backward(
    grad_BO: np.ndarray, x_BI: np.ndarray, out_BO: np.ndarray, weight_IO: np.ndarray, *, last: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x_BI, weight_IO and bias_O."""
    before_BO = grad_BO if last else grad_BO * (1 - out_BO**2)
    return (
        np.einsum("bo,io->bi", before_BO, weight_IO),
        np.einsum("bi,bo->io", x_BI, before_BO),
        before_BO.sum(0),
    )


def loss_of(out_BO: np.ndarray, y_BO: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean squared error and its gradient."""
    return float(np.mean((out_BO - y_BO) ** 2)), 2 * (out_BO - y_BO) / out_BO.size


def gradients(weights: Sequence[np.ndarray], batch: Batch) -> tuple[float, list[np.ndarray]]:
    """Return the loss of one batch and the gradient of every weight."""
    x_BI, y_BO = batch
    seen, num_layers = [x_BI], len(weights) // 2
    for layer in range(num_layers):
        seen.append(layer_forward(seen[-1], *weights[2 * layer : 2 * layer + 2], last=layer == num_layers - 1))
    loss, grad = loss_of(seen[-1], y_BO)
    found: list[np.ndarray] = []
    for layer in reversed(range(num_layers)):
        last = layer == num_layers - 1
        grad, *own = layer_backward(grad, seen[layer], seen[layer + 1], weights[2 * layer], last=last)
        found = own + found
    return loss, found


class Optimizer:
    """SGD, or Adam (Kingma and Ba 2014, arXiv:1412.6980) with betas 0.9 and 0.999 and epsilon 1e-8, for one array.

    Attributes:
        state: the arrays Adam keeps, empty for SGD.
    """

    def __init__(self, name: str, learning_rate: float, like: np.ndarray) -> None:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer={name!r} is none of {', '.join(OPTIMIZERS)}")
        self.learning_rate, self.steps = learning_rate, 0
        self.state = [np.zeros_like(like), np.zeros_like(like)] if name == "adam" else []

    def step(self, weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return the weights after one step along `gradient`."""
        if not self.state:
            return weights - self.learning_rate * gradient
        self.steps += 1
        mean, square = self.state = [0.9 * self.state[0] + 0.1 * gradient, 0.999 * self.state[1] + 0.001 * gradient**2]
        scale = np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8
        return weights - self.learning_rate / (1 - 0.9**self.steps) * mean / scale


def flatten(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Put all weights behind each other."""
    return np.concatenate([array.ravel() for array in weights])


def unflatten(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cut a flat array into the shapes of `like`."""
    cuts = np.cumsum([array.size for array in like])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, cuts), like)]


def shard_batch(batch: Batch, num_ranks: int) -> list[Batch]:
    """Deal a batch out in equal consecutive parts, so that the mean of the ranks' gradients is the gradient of the whole.

    Raises:
        ValueError: no rank, or ranks that do not divide the batch.
    """
    if num_ranks < 1 or not len(batch[0]) or len(batch[0]) % num_ranks:
        raise ValueError(f"num_ranks={num_ranks} does not divide a batch of {len(batch[0])}")
    return list(zip(np.split(batch[0], num_ranks), np.split(batch[1], num_ranks)))


def step_cost(d: Dims, volume: float) -> Cost:
    """One training step on all N ranks together, P parameters, B examples, `volume` times the weights sent by a rank.

    FLOPs are 2 per weight and example forward and 4 backward; elements are those sent and received between ranks.
    """
    moved = volume * (d["N"] - 1) * d["P"]
    return Cost(flops=6 * d["P"] * d["B"], elements_read=moved, elements_written=moved)


def train_alone(
    weights: Sequence[np.ndarray], batches: Sequence[Batch], optimizer: str, learning_rate: float
) -> dict[str, Any]:
    """Train on one process; return the weights and the loss of every step: what every parallel way must give."""
    held = list(weights)
    optimizers = [Optimizer(optimizer, learning_rate, array) for array in held]
    losses = []
    for batch in batches:
        loss, found = gradients(held, batch)
        held = [one.step(array, gradient) for one, array, gradient in zip(optimizers, held, found)]
        losses.append(loss)
    return {"weights": held, "losses": losses}


def task(rng: np.random.Generator, num_ranks: int, num_batches: int | None = None) -> dict[str, Any]:
    """Draw a network of one to three layers, batches that the ranks divide (up to three unless said), and an optimizer."""
    num_batches = int(rng.integers(0, 4)) if num_batches is None else num_batches
    widths = rng.integers(1, 7, rng.integers(2, 5)).tolist()
    weights = []
    for inputs, outs in pairwise(widths):
        weights += [rng.standard_normal((inputs, outs)), rng.standard_normal(outs)]
    size = num_ranks * int(rng.integers(1, 4))
    return {
        "weights": weights,
        "batches": [
            (rng.standard_normal((size, widths[0])), rng.standard_normal((size, widths[-1]))) for _ in range(num_batches)
        ],
        "optimizer": str(rng.choice(OPTIMIZERS)),
        "learning_rate": 0.05,
    }


def same_training(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two runs agree up to the order of their sums: 2**14 units in the last place of the largest number."""
    if len(left["weights"]) != len(right["weights"]) or len(left["losses"]) != len(right["losses"]):
        return False
    if [np.shape(one) for one in left["weights"]] != [np.shape(one) for one in right["weights"]]:
        return False
    one, other = (np.concatenate([flatten(run["weights"]), np.asarray(run["losses"])]) for run in (left, right))
    largest = float(np.abs(one).max(initial=1.0))
    return bool(np.abs(one - other).max(initial=0.0) <= 2**14 * np.finfo(np.float64).eps * largest)
