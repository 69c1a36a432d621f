import itertools
import os
import subprocess
import sys

import pytest

from llmlab.harness.timing import measure as timing


def test_a_steady_call_stops_early_and_a_jumping_one_uses_the_budget(clock_of):
    steady, jumping = clock_of([0.01]), clock_of([0.01, 0.02, 0.03])
    assert timing.measure(steady.call, clock=steady, budget_s=5.0).rounds == 10
    measured = timing.measure(jumping.call, clock=jumping, budget_s=1.0)
    assert measured.rounds > 40
    assert (measured.best_s, measured.median_s) == pytest.approx((0.01, 0.02))
    assert measured.noisy


def test_a_short_call_is_repeated_within_a_round(clock_of):
    clock = clock_of([1e-6])
    measured = timing.measure(clock.call, clock=clock, budget_s=0.01)
    assert measured.calls in (200, 201)
    assert measured.median_s == pytest.approx(1e-6)


def test_the_first_call_is_not_a_round(clock_of):
    durations = itertools.chain([3.0], itertools.repeat(0.01))
    clock = clock_of(durations)
    assert timing.measure(clock.call, clock=clock).upper_s == pytest.approx(0.01)


def test_a_call_longer_than_the_budget_is_one_round(clock_of):
    clock = clock_of([10.0])
    measured = timing.measure(clock.call, clock=clock, budget_s=1.0)
    assert (measured.rounds, measured.median_s, clock.calls) == (1, 10.0, 3)


def test_rounds_end_when_a_neighbour_makes_them_endless(clock_of):
    clock = clock_of(itertools.chain([0.01] * 8, itertools.repeat(5.0)))
    assert timing.measure(clock.call, clock=clock, budget_s=0.5).rounds < 5


@pytest.mark.parametrize(("fresh", "calls", "expected"), [([0, 1000, 0, 0, 0, 0], 6, 0.0), ([1000], 8, 1000.0)])
def test_a_round_that_faults_is_taken_again_and_one_that_always_does_is_timed_so(clock_of, monkeypatch, fresh, calls, expected):
    clock, pages = clock_of([1.0]), itertools.cycle(fresh)
    faulted = itertools.accumulate(page for step in itertools.count() for page in (0, next(pages)))
    monkeypatch.setattr(timing, "warm_up", lambda call, **_: (1, 1.0))
    monkeypatch.setattr(timing, "minor_faults", lambda: next(faulted))
    measured = timing.measure(clock.call, clock=clock, budget_s=5.0)
    assert (measured.rounds, measured.page_faults, clock.calls) == (5, expected, calls)


@pytest.mark.parametrize("rounds", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_rounds_that_are_no_times_are_refused(rounds):
    with pytest.raises(ValueError, match="positive time"):
        timing.summarize(rounds)


def test_median_quartiles_and_noise_of_rounds():
    measured = timing.summarize([1.0, 2.0, 3.0, 4.0, 5.0], calls=7)
    assert (measured.median_s, measured.lower_s, measured.upper_s, measured.best_s) == (3.0, 2.0, 4.0, 1.0)
    assert measured.spread == pytest.approx(2 / 3)
    assert measured.noisy
    assert not timing.summarize([1.0] * 9 + [100.0]).noisy  # one interruption moves neither quartile
    assert timing.summarize([1.0], noisy=True).noisy


@pytest.mark.parametrize(
    ("others", "spin", "noisy"), [(0.0, 0.0, False), (0.5, 0.0, True), (0.0, 0.6, True), (0.05, 0.1, False)]
)
def test_a_machine_is_noisy_when_others_use_it_or_arithmetic_jumps(others, spin, noisy):
    assert timing.Quiet(others=others, spin=spin, load=0.0).noisy is noisy


def test_own_work_is_not_somebody_elses():
    assert timing.others_fraction(busy_s=2.0, own_s=2.0, elapsed_s=1.0, processors=2) == 0.0
    assert timing.others_fraction(busy_s=2.0, own_s=1.0, elapsed_s=1.0, processors=2) == 0.5
    assert timing.others_fraction(busy_s=1.0, own_s=0.0, elapsed_s=0.01, processors=2, tick_s=0.01) == 0.0


def test_spins_of_equal_length_vary_by_nothing():
    assert timing.spin_variation([2.0] * 20) == 0.0
    assert timing.spin_variation([1.0] * 15 + [3.0] * 5) == pytest.approx(2.0)
    assert timing.spin_variation([1.0, 9.0]) == 0.0


def test_waiting_for_quiet_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr(timing, "others_fraction", lambda *_: 0.9)
    looks = []
    quiet = timing.wait_until_quiet(0.0, window_s=0.0, sleep=looks.append)
    assert quiet.noisy
    assert len(looks) == 1


def test_waiting_for_quiet_ends_when_it_is_quiet(monkeypatch):
    shares = iter([0.9, 0.9, 0.0])
    monkeypatch.setattr(timing, "others_fraction", lambda *_: next(shares))
    monkeypatch.setattr(timing, "spin_times", lambda repeats: [])
    assert not timing.wait_until_quiet(60.0, window_s=0.0).noisy
    assert next(shares, None) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's page fault counter")
def test_a_warm_allocator_gives_large_outputs_pages_it_already_has():
    def call():
        return bytearray(64 << 20)

    with timing.warm_allocator() as told:
        if not told:
            pytest.skip("needs glibc")
        timing.reserve_pages(200 << 20)
        timing.warm_up(call)
        before = timing.minor_faults()
        for _ in range(3):
            call()
        assert (timing.minor_faults() - before) / 3 < 0.05 * (64 << 20) / 4096


def test_work_of_a_living_child_is_the_familys_own():
    pytest.importorskip("psutil", reason="needs psutil")
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint('spun', flush=True)\ninput()"
    before = timing.family_seconds()
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "spun\n"
        assert timing.family_seconds() - before >= 0.25
        child.communicate("\n")
