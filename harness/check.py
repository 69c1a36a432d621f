"""`llmlab check`: every check of every chosen component, as a table of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmlab.harness import parity
from llmlab.harness.oracle import oracles_of
from llmlab.harness.parity import Verdict
from llmlab.kernels.twin import BACKENDS, Twin, load_kernel, missing, twins_of
from llmlab.reference.catalog import components
from llmlab.reference.errors import InputError
from llmlab.reference.op import Component, Op, Procedure

SEEDS = 3


def choose(ids: Sequence[str] | None) -> list[Component]:
    """Components by id, by family, or all of them.

    Raises:
        InputError: an id names neither a component nor a family.
    """
    known = components()
    if not ids:
        return list(known.values())
    chosen: dict[str, Component] = {}
    for wanted in ids:
        found = {name: one for name, one in known.items() if name == wanted or name.split(".")[0] == wanted}
        if not found:
            raise InputError("component", "id", wanted, "is neither a component nor a family; see `llmlab list`")
        chosen |= found
    return [chosen[name] for name in sorted(chosen)]


def choose_backends(backends: Sequence[str] | None) -> list[str]:
    """Validate backend names; all of them when none are given.

    Raises:
        InputError: an unknown backend.
    """
    for backend in backends or ():
        if backend not in BACKENDS:
            raise InputError("option", "--backend", backend, f"is none of {', '.join(BACKENDS)}")
    return list(backends or BACKENDS)


def bring(kernel: str, op_id: str | None, backend: str | None) -> Twin:
    """Register the kernel of `--kernel FILE.py:NAME --op ID --backend B`.

    Raises:
        InputError: an option is missing or names nothing.
    """
    if not op_id or not backend:
        raise InputError("option", "--kernel", kernel, "needs --op ID and one --backend beside it")
    (component,) = choose([op_id])
    choose_backends([backend])
    if missing(backend):
        raise InputError("option", "--backend", backend, missing(backend))
    try:
        return load_kernel(kernel, component, backend)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError("option", "--kernel", kernel, str(error)) from None


def checks_of(component: Component, backends: Sequence[str], only: Twin | None = None) -> Iterator[Verdict]:
    """Run the checks of one component; a twin's verdicts come per dtype, worst case over seeds and options."""
    if only is None:
        for oracle in oracles_of(component):
            if not oracle.missing():
                yield _worst(_oracle_verdicts(component, oracle))
    if isinstance(component, Procedure):
        yield from _procedure_twins(component, backends)
        return
    if only is None:
        if component.backward is not None:
            yield _worst(
                parity.check_gradient(component, _dims(component, seed), seed, options)
                for seed in range(SEEDS)
                for options in component.options
            )
        yield _worst(parity.check_cost(component, _dims(component, seed)) for seed in range(SEEDS))
    for twin in [only] if only else twins_of(component, backends):
        if parity.cannot_run(twin):
            continue
        for dtype in parity.testable_dtypes(twin):
            if twin.of == "reference":
                worst = _worst(_forward_verdicts(component, twin, dtype))
                yield replace(worst, check="parity") if worst.passed else worst
            if component.backward is not None and only is None and (twin.of == "backward" or twin.backend == "torch"):
                yield _worst(
                    parity.check_backward(component, twin, _dims(component, seed), dtype, seed, options)
                    for seed in range(SEEDS)
                    for options in component.options
                )


def _dims(op: Op, seed: int) -> dict[str, int]:
    return parity.draw_dims(op, np.random.default_rng(seed))


def _forward_verdicts(op: Op, twin: Twin, dtype: str) -> Iterator[Verdict]:
    for seed in range(1 if twin.backend == "triton" else SEEDS):
        for options in op.options:
            yield parity.check_twin(op, twin, _dims(op, seed), dtype, seed, options)
        yield parity.check_twin(op, twin, _dims(op, seed), dtype, seed, op.options[0], views=True)
    yield parity.check_twin(op, twin, parity.smallest_dims(op), dtype, 0, op.options[0])


def _oracle_verdicts(component: Component, oracle: Any) -> Iterator[Verdict]:
    for seed in range(SEEDS):
        for options in component.options if isinstance(component, Op) else (None,):
            yield parity.check_oracle(component, oracle, seed, options=options)


def _procedure_twins(component: Procedure, backends: Sequence[str]) -> Iterator[Verdict]:
    for twin in twins_of(component, backends):
        if not parity.cannot_run(twin):
            yield _worst(parity.check_procedure_twin(component, twin, seed) for seed in range(SEEDS))


def _worst(verdicts: Iterator[Verdict]) -> Verdict:
    """The first failure, else the verdict closest to its allowance."""
    worst: Verdict | None = None
    for verdict in verdicts:
        if not verdict.passed:
            return verdict
        if worst is None or verdict.error * worst.allowed >= worst.error * verdict.allowed:
            worst = verdict
    assert worst is not None
    return worst


def run_checks(
    ids: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    *,
    only: Twin | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Verdict]:
    """Check the chosen components; `progress(name, done, total)` is called before each."""
    chosen = [only.component] if only else choose(ids)
    wanted = choose_backends(backends)
    verdicts: list[Verdict] = []
    for done, component in enumerate(chosen):
        progress(component.id, done, len(chosen))
        verdicts += checks_of(component, wanted, only)
    progress("", len(chosen), len(chosen))
    return verdicts
