"""A fitted workload behaves like its trace; the statistics themselves agree with closed forms."""

import os
from pathlib import Path

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.fit import fit_workload
from llmlab.simulator.workload.spec import WorkloadSpec, load_workload, make_workload
from llmlab.simulator.workload.statistics import (
    clock_grid_ns,
    describe,
    fano,
    gap_cv,
    lru_hit_fraction,
    reuse_of,
    spread_over_grid,
)
from llmlab.simulator.workload.workload import Workload

TRACES = Path(os.environ.get("LLMLAB_DATA", "")) / "traces"
needs_traces = pytest.mark.skipif(
    not (os.environ.get("LLMLAB_DATA") and TRACES.is_dir()), reason="LLMLAB_DATA/traces is missing"
)


def steady(count=4000, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Workload(
        synthetic.poisson(count, 5.0, rng),
        synthetic.lognormal(count, 300, 1.0, rng),
        synthetic.lognormal(count, 80, 0.7, rng),
        **more,
    )


def test_fano_of_poisson_arrivals_is_one_and_of_equal_gaps_zero():
    times = synthetic.poisson(60_000, 10.0, np.random.default_rng(1))
    for window in (1, 10):
        assert abs(fano(times, window) - 1) < 4 * np.sqrt(2 * window / 6000)  # variance of a sample variance
    assert fano(synthetic.constant(10_000, 10.0), 1) == 0


def test_fano_of_a_wandering_rate_is_the_integral_of_its_autocovariance():
    """Cox process: F(w) = 1 + (rate / w) * 2 int_0^w (w - t) C(t) dt, with C of exp of an Ornstein-Uhlenbeck process."""
    rate, log_std, seconds = 20.0, 0.4, 15.0
    times = synthetic.modulated(40_000, rate, 1.0, [(log_std, seconds)], np.random.default_rng(0))
    runs = [
        fano(synthetic.modulated(40_000, rate, 1.0, [(log_std, seconds)], np.random.default_rng(seed)), 10)
        for seed in range(12)
    ]
    w, t = 10.0, np.linspace(0, 10.0, 2001)
    covariance = np.expm1(log_std**2 * np.exp(-t / seconds))
    wanted = 1 + rate / w * 2 * np.trapezoid((w - t) * covariance, t)
    assert abs(np.mean(runs) - wanted) < 4 * np.std(runs) / np.sqrt(len(runs))
    assert (np.diff(times) >= 0).all()


def test_a_coarse_clock_is_found_and_spread():
    rng = np.random.default_rng(0)
    ticks = np.sort(rng.integers(0, 300, 2000)) * 3_000_000_000
    workload = Workload(ticks, np.ones(2000), np.ones(2000))
    spread, grid = spread_over_grid(workload)
    assert grid == 3_000_000_000
    assert (spread.arrival_ns // grid * grid == ticks).all()
    assert clock_grid_ns(spread.arrival_ns) == 0
    assert clock_grid_ns(steady().arrival_ns) == 0


def test_a_bursty_wandering_trace_is_matched():
    rng = np.random.default_rng(5)
    arrivals = synthetic.modulated(8000, 6.0, 1.8, [(0.3, 8.0), (0.4, 120.0)], rng)
    trace = Workload(arrivals, synthetic.lognormal(8000, 500, 1.2, rng), synthetic.uniform(8000, 5, 50, rng), name="bursty")
    found = {row["statistic"]: row for row in fit_workload(trace).rows()}
    for name, within in (("rate_per_s", 0.1), ("gap_cv", 0.1), ("fano_1s", 0.15), ("fano_10s", 0.2), ("fano_60s", 0.4)):
        assert abs(found[name]["error"]) < within, found[name]
    for name in ("prompt_tokens.mean", "prompt_tokens.p50", "prompt_tokens.p95", "output_tokens.mean", "output_tokens.p99"):
        assert abs(found[name]["error"]) < 0.05, found[name]


def test_smooth_arrivals_stay_smooth():
    rng = np.random.default_rng(2)
    trace = Workload(synthetic.gamma(3000, 5.0, 0.3, rng), np.full(3000, 64), np.full(3000, 8))
    fitted = fit_workload(trace)
    assert fitted.content["prompt_tokens"] == {"distribution": "fixed", "tokens": 64}
    rows = {row["statistic"]: row for row in fitted.rows()}
    assert abs(rows["gap_cv"]["error"]) < 0.1
    assert rows["fano_10s"]["synthetic"] < 0.3


def test_lengths_keep_their_rank_correlation():
    rng = np.random.default_rng(3)
    left, right = synthetic.correlated_uniforms(5000, -0.6, rng)
    at, tokens = [0, 0.5, 1], [1, 50, 1000]
    trace = Workload(
        synthetic.poisson(5000, 9.0, rng),
        synthetic.from_quantiles(left, at, tokens),
        synthetic.from_quantiles(right, at, tokens),
    )
    found = fit_workload(trace)
    assert abs(found.measured["length_rank_correlation"] + 0.6) < 0.03
    assert abs(found.synthetic["length_rank_correlation"] + 0.6) < 0.03


def test_reuse_counts_what_an_endless_cache_would_find():
    chains = (np.array([1, 2, 3]), np.array([1, 2, 9]), np.array([1, 2, 9]), np.array([7]))
    workload = Workload(np.arange(4), np.array([48, 48, 40, 16]), np.ones(4), chains, 16)
    reuse = reuse_of(workload)
    assert reuse is not None
    assert reuse.known.tolist() == [0, 2, 2, 0]  # the third prompt's last block is not full
    assert reuse.parent.tolist() == [-1, 0, 1, -1]
    assert lru_hit_fraction(workload, 100) == pytest.approx(4 / 9)
    assert lru_hit_fraction(workload, 0) == 0


def test_prefix_reuse_is_matched():
    rng = np.random.default_rng(7)
    prompts = synthetic.lognormal(3000, 900, 0.8, rng, low=64)
    hashes = synthetic.reused_prompts(
        prompts,
        16,
        root_tokens=64,
        continued=0.5,
        depth=([0, 1], [0.2, 0.9]),
        distance=([0, 1], [1, 300]),
        rng=rng,
    )
    trace = Workload(synthetic.poisson(3000, 5.0, rng), prompts, np.full(3000, 10), hashes, 16, name="chats")
    rows = {row["statistic"]: row for row in fit_workload(trace).rows()}
    assert rows["prefix.root_blocks"]["trace"] == 4
    assert abs(rows["prefix.continued_fraction"]["error"]) < 0.05
    assert abs(rows["prefix.known_fraction"]["error"]) < 0.1
    assert abs(rows["prefix.lru_25%_of_blocks"]["error"]) < 0.15


def test_the_file_reads_back_as_the_same_workload(tmp_path):
    fitted = fit_workload(steady(500), seeds=1)
    fitted.write(tmp_path / "twin.yaml")
    again = load_workload(tmp_path / "twin.yaml", seed=4)
    direct = make_workload(WorkloadSpec.model_validate(fitted.content), 4, tmp_path / "twin.yaml")
    assert (again.arrival_ns == direct.arrival_ns).all()
    assert (again.prompt_tokens == direct.prompt_tokens).all()
    assert (tmp_path / "twin.yaml").read_text() == fit_workload(steady(500), seeds=1).text()
    with pytest.raises(InputError, match="yaml"):
        fitted.write(tmp_path / "twin.txt")


def test_too_few_requests_are_refused_and_bursts_noted():
    with pytest.raises(InputError, match="too few"):
        fit_workload(steady(10))
    burst = Workload(np.zeros(50), np.full(50, 9), np.full(50, 9))
    fitted = fit_workload(burst)
    assert fitted.content["arrivals"] == {"process": "at_once"}
    assert fitted.notes
    closed = fit_workload(steady(50).with_clients(4, 1.5))
    assert closed.content["arrivals"] == {"process": "closed_loop", "clients": 4, "think_s": 1.5}


@needs_traces
@pytest.mark.data
@pytest.mark.parametrize("name", ["azure2023_conv.csv.gz", "mooncake_conversation.csv.gz"])
def test_published_traces_are_matched(name):
    rows = {row["statistic"]: row for row in fit_workload(load_workload(TRACES / name), seeds=2).rows()}
    within = {"rate_per_s": 0.05, "gap_cv": 0.1, "fano_1s": 0.1, "fano_10s": 0.25, "fano_60s": 0.35}
    within |= {"prompt_tokens.mean": 0.03, "output_tokens.mean": 0.03, "prompt_tokens.p99": 0.05}
    if name.startswith("mooncake"):
        within |= {"prefix.known_fraction": 0.1, "prefix.lru_25%_of_blocks": 0.1}
    for statistic, bound in within.items():
        assert abs(rows[statistic]["error"]) < bound, rows[statistic]


@needs_traces
@pytest.mark.data
def test_servegen_tables_give_their_rate_and_lengths(tmp_path):
    path = tmp_path / "gen.yaml"
    windows, lengths = TRACES / "servegen_m-small_windows.csv.gz", TRACES / "servegen_m-small_lengths.csv.gz"
    path.write_text(f"servegen: {{windows: {windows}, lengths: {lengths}, window_s: [144600, 145200], rate_factor: 0.1}}\n")
    workload = load_workload(path)
    found = describe(workload)
    assert found["requests"] > 1000
    assert gap_cv(workload.arrival_ns) > 1
    assert (load_workload(path).prompt_tokens == workload.prompt_tokens).all()


def servegen_tables(tmp_path, rows="0,0,5,1,Gamma,1,0.2\n1,0,2,3,Weibull,0.5,1\n"):
    (tmp_path / "w.csv").write_text("client,window_start_s,rate_rps,iat_cv,family,p1,p2\n" + rows)
    columns = ["client", "window_start_s"]
    for side in ("in", "out"):
        columns += [f"{side}_mean", *(f"{side}_p{p}" for p in (1, 5, 25, 50, 75, 90, 95, 99))]
    one = [0, 0, *[50, 10, 20, 30, 40, 60, 80, 90, 100], *[5, 1, 2, 3, 4, 6, 8, 9, 10]]
    other = [1, 0, *[""] * 18]
    (tmp_path / "l.csv").write_text("\n".join(",".join(map(str, row)) for row in (columns, one, other)) + "\n")
    (tmp_path / "gen.yaml").write_text("servegen: {windows: w.csv, lengths: l.csv, window_s: [0, 600]}\n")
    return tmp_path / "gen.yaml"


def test_servegen_draws_the_stated_rate_and_leaves_out_clients_without_lengths(tmp_path):
    workload = load_workload(servegen_tables(tmp_path))
    assert abs(len(workload) - 3000) < 4 * np.sqrt(3000)  # client 0 is a Poisson process of 5 per second
    assert "1 clients without lengths" in workload.name
    assert abs(workload.prompt_tokens.mean() - 50) < 3
    assert workload.prompt_tokens.min() >= 10


@pytest.mark.parametrize(
    ("row", "told"),
    [("0,0,5,1,Pareto,1,1", "family"), ("0,0,-5,1,Gamma,1,1", "rate_rps"), ("0,9000,5,1,Gamma,1,1", "nothing arrives")],
)
def test_servegen_mistakes_are_named(tmp_path, row, told):
    path = servegen_tables(tmp_path, f"{row}\n")
    with pytest.raises(InputError, match=told):
        load_workload(path)
