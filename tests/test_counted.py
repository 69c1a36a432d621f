"""Costs against counted arithmetic: what a formula claims is what its reference multiplies, operator by operator."""

import inspect
from typing import Any

import numpy as np
import pytest

from llmlab.harness import parity
from llmlab.harness.counting import Counts, count, einsum_flops
from llmlab.reference.catalog import components
from llmlab.reference.op import Op

FAMILIES = ("attention", "positions", "layers")
RAGGED = ("attention.paged", "attention.varlen")  # their cost is that of equally long sequences, tests draw ragged ones
OPS = [op for op in components().values() if isinstance(op, Op) and op.id.split(".")[0] in FAMILIES and op.id not in RAGGED]

EQUAL = (
    "bigbird", "block_sparse", "flash", "flash_decoding", "gqa", "linformer", "longformer", "mha", "performer", "reformer",
)  # fmt: skip
"""Attention whose reference multiplies exactly what its cost counts; causal ones where nothing is hidden."""

AT_MOST = {
    "sliding_window": "the formula also computes the pairs that its mask hides",
    "native_sparse": "the formula also computes the summaries that its mask hides",
    "mla": "the formula is the expanded form, the cost the cheaper one",
}
"""Attention that costs less than its reference multiplies, and why."""


def counted(op: Op, seed: int) -> tuple[float, Counts]:
    """Claimed FLOPs and counted ones, without a causal mask where both the operator and its cost can do without."""
    dims = op.complete(parity.draw_dims(op, np.random.default_rng(seed)))
    options: dict[str, Any] = dict(op.options[0])
    claimed = op.cost(dims).flops
    if all("causal" in inspect.signature(function).parameters for function in (op.reference, op.cost)):
        options["causal"] = False
        claimed = op.cost(dims, causal=False).flops  # type: ignore[call-arg]
    return claimed, count(op.reference, op.make_inputs(dims, np.random.default_rng(seed)), options)


def objection(op: Op, claimed: float, counts: Counts) -> str:
    """Say which law the claim breaks, or return the empty string."""
    family, name = op.id.split(".")
    if counts.contracted == 0:  # one operation per element is a matter of taste: exp may count for one or for several
        broken = not counts.elementwise / 2 <= claimed <= 2 * counts.elementwise
        return f"{claimed:g} FLOPs claimed, {counts.elementwise:g} elementwise operations counted" if broken else ""
    if family == "attention" and name in EQUAL and claimed != counts.contracted:
        return f"{claimed:g} FLOPs claimed, {counts.contracted:g} multiplied"
    if name in AT_MOST and claimed > counts.contracted:
        return f"{claimed:g} FLOPs claimed, only {counts.contracted:g} multiplied although {AT_MOST[name]}"
    if not counts.contracted / 4 <= claimed <= 4 * counts.total:
        return f"{claimed:g} FLOPs claimed, {counts.contracted:g} multiplied, {counts.elementwise:g} elementwise"
    return ""


@pytest.mark.parametrize("op", [pytest.param(op, id=op.id) for op in OPS])
def test_cost_is_what_the_reference_computes(op: Op) -> None:
    for seed in range(4):
        assert not objection(op, *counted(op, seed)), f"{op.id}: {objection(op, *counted(op, seed))}"


@pytest.mark.parametrize("name", EQUAL)
def test_a_cost_that_forgets_one_product_is_refused(name: str) -> None:
    op = components()[f"attention.{name}"]
    assert isinstance(op, Op)
    claimed, counts = counted(op, 1)
    assert objection(op, claimed / 2, counts)


def test_products_are_counted_apart_from_elements() -> None:
    def layer(x_BD: np.ndarray, weight_DF: np.ndarray) -> np.ndarray:
        return np.maximum(np.exp(x_BD @ weight_DF) + 1, 0).sum()

    counts = count(layer, {"x_BD": np.ones((2, 3)), "weight_DF": np.ones((3, 5))}, {})
    assert counts.contracted == 2 * 2 * 3 * 5
    assert counts.elementwise == 10 + 10 + 10 + 10
    assert einsum_flops("bskh,btkgh->bkgts", [(2, 3, 4, 5), (2, 6, 4, 7, 5)]) == 2 * 2 * 3 * 4 * 5 * 6 * 7


def test_addresses_and_masks_are_not_arithmetic() -> None:
    def gather(table_VD: np.ndarray, ids_B: np.ndarray) -> np.ndarray:
        return np.where(ids_B[:, None] * 2 > 1, table_VD[ids_B + 0], 0.0)

    assert count(gather, {"table_VD": np.ones((3, 2)), "ids_B": np.array([0, 2])}, {}) == Counts()
