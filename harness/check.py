"""`llmlab check`: every check of every chosen component, as a table of verdicts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from difflib import get_close_matches
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
"""Inputs drawn per check, options and dtype: enough to find a wrong kernel; `--seeds` draws more."""


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
            raise InputError("component", "id", wanted, f"is neither a component nor a family{_meant(wanted, known)}")
        chosen |= found
    return [chosen[name] for name in sorted(chosen)]


def _meant(wanted: str, known: Iterable[str]) -> str:
    """Ids that end in the wanted name or are spelled much like it; where to look when there are none."""
    ids = sorted(known)
    ending = [name for name in ids if name.split(".")[1] == wanted]
    near = ending or get_close_matches(wanted, ids, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; see `llmlab list`"


def choose_backends(backends: Sequence[str] | None) -> list[str]:
    """Validate backend names; all of them when none are given.

    Raises:
        InputError: an unknown backend.
    """
    for backend in backends or ():
        if backend not in BACKENDS:
            raise InputError("option", "--backend", backend, f"is none of {', '.join(BACKENDS)}")
    return list(backends or BACKENDS)


def bring(kernel: str | None, op_id: str | None, backends: Sequence[str] | None, ids: Sequence[str] | None) -> Twin | None:
    """Register the kernel of `--kernel FILE.py:NAME --op ID --backend B`; None when no kernel is named.

    Raises:
        InputError: an option is missing, names nothing or names too much, or the file does not import.
    """
    if kernel is None:
        if op_id:
            raise InputError("option", "--op", op_id, "needs --kernel FILE.py:FUNCTION beside it")
        return None
    if not op_id or not backends or len(backends) > 1:
        raise InputError("option", "--kernel", kernel, "needs --op ID and one --backend beside it")
    if ids:
        raise InputError("option", "--kernel", kernel, f"is measured alone; leave out {' '.join(ids)}")
    (backend,) = backends
    found = choose([op_id])
    if len(found) > 1:
        raise InputError("option", "--op", op_id, "is a family; name one component of it")
    (component,) = found
    choose_backends([backend])
    if missing(backend):
        raise InputError("option", "--backend", backend, missing(backend))
    try:
        return load_kernel(kernel, component, backend)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError("option", "--kernel", kernel, str(error).removeprefix(f"kernel={kernel!r}: ")) from None
    except Exception as error:  # whatever importing somebody's file raises
        raise InputError("option", "--kernel", kernel, f"does not import: {type(error).__name__}: {error}") from error


def checks_of(component: Component, backends: Sequence[str], only: Twin | None = None, seeds: int = SEEDS) -> Iterator[Verdict]:
    """Run the checks of one component; a twin's verdicts come per dtype, worst case over seeds and options."""
    if only is None:
        for oracle in oracles_of(component):
            if not oracle.missing():
                yield _worst(_oracle_verdicts(component, oracle, seeds))
    if isinstance(component, Procedure):
        yield from _procedure_twins(component, backends, seeds)
        return
    if only is None:
        if component.backward is not None:
            yield _worst(
                parity.check_gradient(component, _dims(component, seed), seed, options)
                for seed in range(seeds)
                for options in component.options
            )
        yield _worst(parity.check_cost(component, _dims(component, seed)) for seed in range(seeds))
    for twin in [only] if only else twins_of(component, backends):
        if parity.cannot_run(twin):
            continue
        for dtype in parity.testable_dtypes(twin):
            if twin.of == "reference":
                worst = _worst(_forward_verdicts(component, twin, dtype, seeds))
                yield replace(worst, check="parity") if worst.passed else worst
            if component.backward is not None and only is None and (twin.of == "backward" or twin.backend == "torch"):
                yield _worst(
                    parity.check_backward(component, twin, _dims(component, seed), dtype, seed, options)
                    for seed in range(seeds)
                    for options in component.options
                )


def _dims(op: Op, seed: int) -> dict[str, int]:
    return parity.draw_dims(op, np.random.default_rng(seed))


def _forward_verdicts(op: Op, twin: Twin, dtype: str, seeds: int) -> Iterator[Verdict]:
    interpreted = twin.backend == "triton" and parity.device_of("triton") == "cpu"
    for seed in range(-(-seeds // SEEDS) if interpreted else seeds):
        for options in op.options:
            yield parity.check_twin(op, twin, _dims(op, seed), dtype, seed, options)
        yield parity.check_twin(op, twin, _dims(op, seed), dtype, seed, op.options[0], views=True)
    yield parity.check_twin(op, twin, parity.smallest_dims(op), dtype, 0, op.options[0])


def _oracle_verdicts(component: Component, oracle: Any, seeds: int) -> Iterator[Verdict]:
    for seed in range(seeds):
        for options in component.options if isinstance(component, Op) else (None,):
            yield parity.check_oracle(component, oracle, seed, options=options)


def _procedure_twins(component: Procedure, backends: Sequence[str], seeds: int) -> Iterator[Verdict]:
    for twin in twins_of(component, backends):
        if not parity.cannot_run(twin):
            yield _worst(parity.check_procedure_twin(component, twin, seed) for seed in range(seeds))


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
    seeds: int = SEEDS,
    jobs: int = 1,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Verdict]:
    """Check the chosen components, sorted by id; `progress(name, done, total)` is called before or after each.

    Args:
        ids: components or families; all when none are given.
        backends: only these.
        only: check this twin alone.
        seeds: inputs drawn per check; a third as many for kernels that are interpreted.
        jobs: processes that share the components; the verdicts are the same for any number.
        progress: called as components are done.

    Raises:
        InputError: an unknown component or backend.
    """
    chosen = [only.component] if only else choose(ids)
    wanted = choose_backends(backends)
    if only or min(jobs, len(chosen)) <= 1:
        verdicts: list[Verdict] = []
        for done, component in enumerate(chosen):
            progress(component.id, done, len(chosen))
            verdicts += checks_of(component, wanted, only, seeds)
        progress("", len(chosen), len(chosen))
        return verdicts
    found: dict[str, list[Verdict]] = {}
    with ProcessPoolExecutor(min(jobs, len(chosen)), multiprocessing.get_context("spawn"), _alone) as pool:
        tasks = {pool.submit(_checks_of_id, component.id, wanted, seeds): component.id for component in chosen}
        for done, task in enumerate(as_completed(tasks)):
            found[tasks[task]] = task.result()
            progress(tasks[task], done + 1, len(chosen))
    return [verdict for component in chosen for verdict in found[component.id]]


def _alone() -> None:
    """Each of several processes computes on one thread where it can be told to."""
    if not missing("torch"):
        import torch

        torch.set_num_threads(1)


def _checks_of_id(component_id: str, backends: Sequence[str], seeds: int) -> list[Verdict]:
    return list(checks_of(components()[component_id], backends, seeds=seeds))
