from dataclasses import replace

import pytest

from llmlab.harness.machine import describe
from llmlab.harness.timing import loops, peaks, results
from llmlab.harness.timing.measure import summarize
from llmlab.harness.timing.unlocked import unlocked_environment, why_not


@pytest.fixture
def instant(monkeypatch):
    """Peak measurements that run nothing and take one second each."""
    monkeypatch.setattr(peaks, "measure", lambda call, **_: summarize([1.0]))
    plan = [
        ("latency", "empty", 2, "", "numba", lambda: (None, 0.0, 0.0)),
        ("bandwidth", "1 MiB", 1 << 20, "", "read", lambda: (None, 0.0, 5e9)),
        ("bandwidth", "1 MiB", 1 << 20, "", "triad", lambda: (None, 0.0, 7e9)),
        ("arithmetic", "registers", 0, "float32", "fma", lambda: (None, 9e9, 0.0)),
        ("arithmetic", "n=8", 8, "float32", "numpy", lambda: (None, 4e9, 0.0)),
    ]
    monkeypatch.setattr(peaks, "_cpu_plan", lambda machine, quick: iter(plan))


@pytest.mark.usefixtures("instant")
def test_peaks_are_kept_in_the_results_file_and_found_by_the_machine(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    first = peaks.peaks("cpu", path=path, fresh=True)
    assert first.bandwidth == [(float(1 << 20), 7e9)]
    assert first.flops == {"float32": 9e9}
    assert first.methods == {"float32": {"fma": 9e9, "numpy": 4e9}}
    assert first.machine == describe().digest
    results.append(path, [replace(one, noisy=False) for one in results.read(path)])
    monkeypatch.setattr(peaks, "measure_peaks", lambda *_, **__: pytest.fail("measured again"))
    again = peaks.peaks("cpu", path=path)
    assert (again.bandwidth, again.flops, again.noisy) == (first.bandwidth, first.flops, False)


@pytest.mark.usefixtures("instant")
def test_another_machine_has_other_peaks(tmp_path):
    path = tmp_path / "results.jsonl"
    peaks.peaks("cpu", path=path)
    assert peaks.from_records(results.read(path), "another machi", "cpu") is None
    assert peaks.from_records(results.read(path), describe().digest, "cuda") is None


@pytest.mark.usefixtures("instant")
def test_the_best_ever_reached_counts_and_one_quiet_measurement_suffices(tmp_path):
    records = list(peaks.measure_peaks(describe(), "cpu"))
    slow = [replace(one, best_s=2.0, median_s=2.0, lower_s=2.0, upper_s=2.0, noisy=True) for one in records]
    quiet = [replace(one, noisy=False) for one in records]
    digest = describe().digest
    assert peaks.from_records([*quiet, *slow], digest, "cpu").flops == {"float32": 9e9}
    assert not peaks.from_records([*quiet, *slow], digest, "cpu").noisy
    assert peaks.from_records(slow, digest, "cpu").noisy


class Unlocked:
    """Libraries without their vendor check whose products take half the time."""

    asked = 0

    def differs(self, library):
        return library == "torch"

    def products(self, quick):
        self.asked += 1
        plan = [("arithmetic", "n=8", 8, "float32", name, lambda: (None, 8e9, 0.0)) for name in ("numpy", "torch")]
        return list(peaks.measure_peaks(replace(describe(), threads=99), "cpu", lambda *_: iter(plan)))


@pytest.mark.usefixtures("instant")
def test_products_of_unlocked_libraries_are_peaks_of_the_same_machine_and_measured_once(tmp_path):
    path, peers = tmp_path / "results.jsonl", Unlocked()
    assert "torch (unlocked)" not in peaks.peaks("cpu", path=path).methods["float32"]
    found = peaks.peaks("cpu", path=path, peers=peers)
    assert found.methods["float32"] == {"fma": 9e9, "numpy": 4e9, "torch (unlocked)": 8e9}
    assert found.blas_fraction["torch (unlocked)"] == pytest.approx(8 / 9)
    assert peaks.peaks("cpu", path=path, peers=peers).methods == found.methods
    assert peers.asked == 1


def test_loops_do_the_work_they_count():
    call, flops, _ = loops.fused("float64", 1)
    call()
    assert flops == 2.0 * loops.FMA_STEPS * loops.ACCUMULATORS * loops.vector_bytes() / 8
    call, _, moved = loops.reading(1 << 20, 1)
    call()
    assert moved == loops.BYTES_PER_CALL
    call, _, moved = loops.triad(3 << 20, 1)
    call()
    assert moved <= loops.BYTES_PER_CALL


def test_libraries_are_unlocked_only_where_they_are_handicapped(tmp_path):
    intel = replace(describe(), vendor="GenuineIntel", features=("avx2", "avx512f"))
    amd = replace(intel, vendor="AuthenticAMD")
    assert "vendor check" in why_not(intel)
    with pytest.raises(ValueError, match="vendor check"):
        unlocked_environment(intel, tmp_path)
    if why_not(amd):
        pytest.skip(why_not(amd))
    environment = unlocked_environment(amd, tmp_path, {"LD_PRELOAD": "other.so", "HOME": "/"})
    library, other = environment["LD_PRELOAD"].split(":")
    assert library.startswith(str(tmp_path))
    assert (other, environment["HOME"], environment["OPENBLAS_CORETYPE"]) == ("other.so", "/", "SkylakeX")


def test_without_a_compiler_peaks_are_still_measured(monkeypatch):
    monkeypatch.setattr(peaks, "numba_works", lambda: False)
    monkeypatch.setattr(peaks, "measure", lambda call, **_: (call(), summarize([1.0]))[1])
    monkeypatch.setattr(peaks, "CPU_WORKING_SETS", (1 << 16, 1 << 17))
    monkeypatch.setattr(peaks, "GEMM_SIZE", {"float64": 8, "float32": 8})
    records = list(peaks.measure_peaks(describe(), "cpu"))
    found = peaks.from_records(records, describe().digest, "cpu")
    assert [size for size, _ in found.bandwidth] == [1 << 16, 1 << 17]
    assert "fma" not in found.methods["float32"]
