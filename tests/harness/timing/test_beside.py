"""What the machine reaches beside a case, by clocks that are told what to say."""

import numpy as np
import pytest

from llmlab.harness.roofline import Peaks
from llmlab.harness.timing import beside, loops
from llmlab.harness.timing.beside import Measured, Rates, Reached

PEAKS = Peaks("cpu", "", [(1e6, 4e9), (1e9, 1e9)], {"float32": 1e12, "bfloat16": 4e12}, {}, 0.0, False)


def test_the_best_call_counts_and_the_first_one_does_not(clock_of):
    clock = clock_of([0.001, 0.02, 0.01])
    assert beside.best_rate(clock.call, 5.0, clock=clock) == pytest.approx(500.0)
    assert clock.calls == 3


def test_short_calls_are_repeated_for_a_while(clock_of):
    clock = clock_of([0.001])
    beside.best_rate(clock.call, 1.0, budget_s=0.02, clock=clock)
    assert clock.calls in (21, 22)


def test_the_better_of_before_and_after_is_the_limit_and_their_distance_the_drift(clock_of, monkeypatch):
    clock = clock_of([*[2.0] * 6, *[1.0] * 6])
    monkeypatch.setattr(beside, "streams", lambda moved_bytes: [(clock.call, moved_bytes)])
    monkeypatch.setattr(beside, "arithmetic", lambda dtype: (clock.call, 8.0))
    probe = Measured(PEAKS, 100.0, "float32", clock=clock)
    assert probe.before == Rates(50.0, 4.0)
    assert probe.after() == Reached(Rates(100.0, 8.0), 0.5, 0.5)


def test_drift_is_of_the_rate_that_sets_the_limit():
    reached = Reached(Rates(bandwidth=10.0, arithmetic=100.0), bandwidth_drift=0.3, arithmetic_drift=0.1)
    assert reached.drift(flops=1.0, moved_bytes=1.0) == 0.3
    assert reached.drift(flops=1000.0, moved_bytes=1.0) == 0.1


@pytest.mark.parametrize(
    ("dtype", "flops", "expected"), [("bfloat16", 1.0, 4e12), ("bfloat16", 8e12, 8e12), ("float32", 8.0, 8.0)]
)
def test_a_narrow_dtype_has_its_products_peak_or_float32s(clock_of, monkeypatch, dtype, flops, expected):
    clock, asked = clock_of([1.0]), []
    monkeypatch.setattr(beside, "streams", lambda moved_bytes: [(clock.call, 1.0)])
    monkeypatch.setattr(beside, "arithmetic", lambda dtype: (asked.append(dtype), (clock.call, flops))[1])
    assert Measured(PEAKS, 1e6, dtype, clock=clock).after().rates.arithmetic == expected
    assert set(asked) == {"float32"}


def test_a_gpus_peaks_are_those_measured_once():
    gpu = Peaks("cuda", "", [(1e6, 4e9)], {"float32": 1e12}, {}, 0.0, False)
    assert beside.measured(gpu, 1e6, "float32").after() == Reached(Rates(4e9, 1e12))


@pytest.mark.parametrize("moved_bytes", [1.0, 3e5, 5e6])
def test_streams_are_as_large_as_the_work_within_the_sizes_of_peaks(moved_bytes):
    made = beside.streams(moved_bytes)
    size = max(moved_bytes, beside.CPU_WORKING_SETS[0])
    for call, moved in made:
        call()
        assert moved == pytest.approx(size * max(1, loops.BYTES_PER_CALL // int(size)), rel=0.01)
    beside.release()


def test_streams_share_one_block_and_do_not_overlap():
    block_N = loops.block(3 << 20)
    arrays = list(loops._arrays(3, 3 << 20, 2, block_N))
    assert all(np.shares_memory(array, block_N) for array in arrays)
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.min() for array in arrays] == [array.max() for array in arrays] == [0.0, 1.0, 2.0]


def test_without_a_compiler_a_copy_is_the_stream(monkeypatch):
    monkeypatch.setattr(beside, "numba_works", lambda: False)
    ((call, moved),) = beside.streams(1e6)
    call()
    assert moved == pytest.approx(1e6, rel=1e-3)
    assert beside.arithmetic("float32") == (None, 0.0)
