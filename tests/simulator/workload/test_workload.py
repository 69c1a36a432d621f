"""Laws of workloads, generators and the YAML form."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload

SPEC = """
requests: 200
arrivals: {process: gamma, rate_per_s: 4, cv: 2}
prompt_tokens: {distribution: lognormal, mean: 300, cv: 1, high: 2000}
output_tokens: {distribution: uniform, low: 2, high: 50}
prefix: {kind: shared, groups: 3, tokens: 64}
"""


def write(tmp_path, text, name="load.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_poisson_gaps_have_unit_cv_and_the_rate():
    gaps = np.diff(synthetic.poisson(20_000, 5.0, np.random.default_rng(0)))
    assert abs(gaps.mean() / 2e8 - 1) < 4 / np.sqrt(len(gaps))
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_the_asked_cv(cv):
    gaps = np.diff(synthetic.gamma(50_000, 2.0, cv, np.random.default_rng(1)))
    assert abs(gaps.mean() / 5e8 - 1) < 5 * cv / np.sqrt(len(gaps))
    assert abs(gaps.std() / gaps.mean() / cv - 1) < 0.1


def test_lognormal_lengths_have_the_asked_mean_and_cv():
    lengths = synthetic.lognormal(200_000, 1000, 0.8, np.random.default_rng(2))
    assert abs(lengths.mean() / 1000 - 1) < 0.01
    assert abs(lengths.std() / lengths.mean() / 0.8 - 1) < 0.03


def test_uniform_reaches_both_ends():
    assert set(synthetic.uniform(500, 3, 5, np.random.default_rng(0)).tolist()) == {3, 4, 5}


def test_empirical_draws_only_measured_pairs():
    pairs = synthetic.empirical(100, np.array([1, 2]), np.array([10, 20]), np.random.default_rng(0))
    assert {tuple(pair) for pair in pairs.tolist()} == {(1, 10), (2, 20)}


def test_shared_prompts_share_exactly_the_whole_blocks_of_the_system_prompt():
    hashes = synthetic.shared_prompts(np.array([100, 100, 100, 20]), groups=2, prefix_tokens=40, block_tokens=16)
    assert [len(ids) for ids in hashes] == [6, 6, 6, 1]
    assert hashes[0][:2].tolist() == hashes[2][:2].tolist() != hashes[1][:2].tolist()
    assert hashes[3][0] == hashes[1][0]
    own = np.concatenate([ids[2:] for ids in hashes])
    assert len(set(own.tolist())) == len(own)
    assert not set(own.tolist()) & set(np.concatenate([ids[:2] for ids in hashes]).tolist())


def test_cyclic_prompts_come_back_whole():
    lengths = np.array([50, 70, 50, 70, 50])
    hashes = synthetic.cyclic_prompts(lengths, distinct=2, groups=1, prefix_tokens=32, block_tokens=16)
    assert hashes[0].tolist() == hashes[2].tolist() == hashes[4].tolist()
    assert hashes[0][:2].tolist() == hashes[1][:2].tolist()
    assert hashes[0][2] != hashes[1][2]
    with pytest.raises(ValueError, match="request 1 repeats"):
        synthetic.cyclic_prompts(np.array([50, 60]), distinct=1, groups=1, prefix_tokens=0, block_tokens=16)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 125), st.sampled_from([4, 8, 16, 32, 64]))
def test_prefix_identities_survive_any_block_size(left, right, common_blocks, block_tokens):
    """Two prompts share n tokens of whole identities; at another block size they share the whole blocks within them."""
    full = [length // 16 for length in (left, right)]
    common = min(common_blocks, *full)
    ids = [np.concatenate((np.arange(common), 1000 * (i + 1) + np.arange(n - common))) for i, n in enumerate(full)]
    workload = Workload(np.zeros(2), np.array([left, right]), np.array([1, 1]), tuple(ids), 16)
    first, second = workload.hashes(0, block_tokens), workload.hashes(1, block_tokens)
    shared = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    assert shared == common * 16 // block_tokens
    assert len(first) == full[0] * 16 // block_tokens


def test_identities_that_do_not_divide_are_refused():
    workload = Workload(np.zeros(1), np.array([64]), np.array([1]), (np.arange(4),), 16)
    with pytest.raises(ValueError, match="blocks of 24 tokens"):
        workload.hashes(0, 24)


def test_rescaling_keeps_order_and_lengths():
    workload = Workload(np.array([0, 10, 10, 40]) * 10**9, np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1]))
    assert workload.at_rate(2).arrival_ns.tolist() == [0, 5 * 10**9, 5 * 10**9, 20 * 10**9]
    assert workload.rate_per_s == pytest.approx(3 / 40)
    assert workload.window(5, 40).prompt_tokens.tolist() == [2, 3]
    assert workload.window(5, 40).arrival_ns.tolist() == [5 * 10**9] * 2
    assert workload.first(2).output_tokens.tolist() == [4, 3]
    with pytest.raises(ValueError, match="nothing arrives"):
        workload.window(11, 12)
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate_factor"):
            workload.at_rate(factor)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20))
def test_peak_window_holds_the_most_tokens_of_any_stretch(seed, seconds):
    rng = np.random.default_rng(seed)
    workload = Workload(np.sort(rng.integers(0, 30 * 10**9, 40)), rng.integers(1, 99, 40), rng.integers(1, 99, 40))
    peak = workload.peak_window(seconds)
    tokens, length_ns = workload.prompt_tokens + workload.output_tokens, round(seconds * 1e9)
    most = max(
        tokens[(workload.arrival_ns >= begin) & (workload.arrival_ns < begin + length_ns)].sum()
        for begin in workload.arrival_ns
    )
    assert (peak.prompt_tokens + peak.output_tokens).sum() == most
    assert peak.arrival_ns[0] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"arrival_ns": []},
        {"arrival_ns": [3, 2]},
        {"arrival_ns": [-1, 2]},
        {"prompt_tokens": [0, 1]},
        {"output_tokens": [1]},
        {"block_hashes": (np.arange(1),)},
        {"clients": -1},
    ],
)
def test_a_workload_holds_its_laws(fields):
    with pytest.raises(ValueError, match=r"."):
        Workload(**({"arrival_ns": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 1]} | fields))


def test_spec_is_a_pure_function_of_file_and_seed(tmp_path):
    path = write(tmp_path, SPEC)
    one, same, other = (load_workload(path, seed) for seed in (5, 5, 6))
    assert one.arrival_ns.tolist() == same.arrival_ns.tolist() != other.arrival_ns.tolist()
    assert one.prompt_tokens.tolist() == same.prompt_tokens.tolist()
    assert len(one.block_hashes) == 200


def test_changing_one_distribution_leaves_the_other_draws(tmp_path):
    one = load_workload(write(tmp_path, SPEC), 5)
    other = load_workload(write(tmp_path, SPEC.replace("high: 50", "high: 5")), 5)
    assert one.arrival_ns.tolist() == other.arrival_ns.tolist()
    assert one.prompt_tokens.tolist() == other.prompt_tokens.tolist()
    assert other.output_tokens.max() <= 5


def test_spec_is_the_same_in_another_process(tmp_path):
    path = write(tmp_path, SPEC)
    code = (
        "import sys; from llmlab.simulator.workload.spec import load_workload; w = load_workload(sys.argv[1], 3);"
        "print(w.arrival_ns.sum(), w.prompt_tokens.sum(), w.output_tokens.sum())"
    )
    here = load_workload(path, 3)
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.split() == [str(v.sum()) for v in (here.arrival_ns, here.prompt_tokens, here.output_tokens)]


def test_spec_takes_requests_and_lengths_from_a_trace(tmp_path):
    write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,10,3\n1,20,4\n2,30,5\n3,40,6\n", "t.csv")
    scaled = load_workload(write(tmp_path, "trace: {file: t.csv, window_s: [1, 4], rate_factor: 2, first: 2}"))
    assert scaled.arrival_ns.tolist() == [0, 5 * 10**8]
    assert scaled.prompt_tokens.tolist() == [20, 30]
    closed = load_workload(write(tmp_path, "trace: {file: t.csv, clients: 2}"))
    assert closed.clients == 2
    drawn = load_workload(write(tmp_path, "requests: 50\narrivals: {process: at_once}\nlengths_from: t.csv"))
    assert set(zip(drawn.prompt_tokens.tolist(), drawn.output_tokens.tolist())) <= {(10, 3), (20, 4), (30, 5), (40, 6)}


def test_duration_gives_the_number_of_requests(tmp_path):
    text = SPEC.replace("requests: 200", "duration_s: 10")
    assert len(load_workload(write(tmp_path, text))) == 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requests: [", "is not YAML"),
        ("- 1\n- 2", "must hold keys"),
        ("", "must hold keys"),
        (SPEC + "colour: red", "colour='red'"),
        (SPEC.replace("requests: 200", "requests: -2"), "requests=-2"),
        (SPEC.replace("requests: 200", ""), "requests=None: is missing"),
        (SPEC.replace("rate_per_s: 4", "rate_per_s: -4"), "rate_per_s=-4"),
        (SPEC.replace("rate_per_s: 4", "rate_per_s: .nan"), "rate_per_s"),
        (SPEC.replace("gamma", "fractal"), "arrivals"),
        (SPEC.replace("low: 2, high: 50", "low: 60, high: 50"), "low=60, high=50"),
        (SPEC + "trace: {file: t.csv}", "does not go together with trace"),
        ("trace: {file: nowhere.csv}", "No such file"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("requests: 5\narrivals: {process: at_once}\nprompt_tokens: {distribution: fixed, tokens: 3}", "output_tokens=None"),
    ],
)
def test_a_bad_spec_is_one_clear_line(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as caught:
        load_workload(write(tmp_path, text))
    assert "\n" not in str(caught.value)
