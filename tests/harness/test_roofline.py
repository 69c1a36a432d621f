import pytest

from llmlab.harness.roofline import Peaks, limit

PEAKS = Peaks(
    device="cpu",
    machine="",
    bandwidth=[(1e6, 400e9), (1e8, 100e9), (1e10, 40e9)],
    flops={"float32": 1e12, "bfloat16": 4e12},
    methods={"float32": {"fma": 1e12, "numpy": 0.45e12, "torch": 0.9e12}},
    latency_s=1e-6,
    noisy=False,
)


def test_bandwidth_follows_the_working_set():
    assert PEAKS.bandwidth_at(10) == PEAKS.bandwidth_at(1e6) == 400e9
    assert PEAKS.bandwidth_at(1e7) == pytest.approx(200e9)  # half way in both logarithms
    assert PEAKS.bandwidth_at(1e8) == pytest.approx(100e9)
    assert PEAKS.bandwidth_at(1e15) == PEAKS.memory_bandwidth == 40e9


def test_bandwidth_never_grows_with_the_working_set():
    rates = [PEAKS.bandwidth_at(10**exponent) for exponent in range(4, 12)]
    assert rates == sorted(rates, reverse=True)


def test_the_slower_resource_sets_the_limit():
    memory = limit(flops=1e9, moved_bytes=1e8, bandwidth=1e11, arithmetic=1e12)
    assert (memory.seconds, memory.bound) == (pytest.approx(1e-3), "memory")
    compute = limit(flops=1e10, moved_bytes=1e8, bandwidth=1e11, arithmetic=1e12)
    assert (compute.seconds, compute.bound) == (pytest.approx(1e-2), "compute")
    narrow = limit(flops=1e10, moved_bytes=1e8, bandwidth=1e11, arithmetic=4e12)
    assert narrow.seconds == pytest.approx(2.5e-3)


def test_fraction_is_limit_over_measured():
    assert limit(flops=1e10, moved_bytes=0, bandwidth=1e11, arithmetic=1e12).fraction(0.04) == pytest.approx(0.25)


def test_a_slow_library_code_path_shows_as_a_fraction_of_the_arithmetic_peak():
    assert PEAKS.blas_fraction == pytest.approx({"numpy": 0.45, "torch": 0.9})
