"""Replays: a run simulated elsewhere comes back exactly, what is unknown is said, and bad files end with one line."""

import gzip

import numpy as np
import pytest

from llmlab.harness.validation import perrequest
from llmlab.harness.validation.perrequest import read_runs, read_settings, replays, settings_of
from llmlab.harness.validation.resolve import Unsimulated
from llmlab.reference.errors import InputError
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.workload import Workload

MODEL, GPU = "meta-llama/Llama-3.1-8B", "H100-SXM-80GB"
HEAD = "run,arrival_s,prompt_tokens,output_tokens,ttft_ms,e2e_ms,model,gpu,engine,engine_version,max_num_seqs,kv_blocks"


def truth(count=120, stretch=1.0):
    """A run of the simulator itself, as a measurement."""
    rng = np.random.default_rng(5)
    workload = Workload(
        synthetic.poisson(count, 6.0, rng),
        synthetic.lognormal(count, 500, 0.8, rng, low=16, high=4000),
        synthetic.lognormal(count, 120, 0.8, rng, low=2, high=800),
    )
    site = resolve(
        Deployment(
            MODEL, GPU, max_num_seqs=64, max_num_batched_tokens=8192, kv_blocks=20000, engine="vllm", prefix_caching=False
        )
    )
    table = simulate(site, workload).requests
    lines = [HEAD]
    for i in range(count):
        arrival = workload.arrival_ns[i] / 1e9 + 50.0
        ttft, e2e = stretch * table["ttft_s"][i] * 1e3, stretch * table["e2e_s"][i] * 1e3
        lines.append(
            f"one,{arrival:.9f},{workload.prompt_tokens[i]},{workload.output_tokens[i]},{ttft:.6f},{e2e:.6f},"
            f"{MODEL},{GPU},vllm,0.19.0,64,20000"
        )
    return lines


def written(tmp_path, lines, name="replayed.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_of_the_simulator_itself_is_matched_request_by_request(tmp_path):
    lines = truth()
    path = written(tmp_path, [lines[0], *sorted(lines[1:], reverse=True)])  # the order of the lines says nothing
    (run,) = read_runs(path)
    (found,) = replays(run)
    assert found.reason == ""
    for metric, values in found.figures.items():
        assert values == pytest.approx(found.row.measured[metric], rel=2e-3), metric
    assert {"ttft_mean_ms", "ttft_p99_ms", "tpot_p50_ms", "e2e_p90_ms"} <= set(found.figures)
    matched = found.matches()
    assert matched["requests"] == 120
    assert matched["ttft_rank_correlation"] > 0.99
    assert matched["e2e_median_abs_error"] < 1e-3


def test_an_engine_half_as_fast_is_seen(tmp_path):
    (found,) = replays(read_runs(written(tmp_path, truth(stretch=2.0)))[0])
    assert found.matches()["e2e_median_abs_error"] == pytest.approx(0.5, abs=0.01)
    assert found.figures["e2e_mean_ms"] == pytest.approx(found.row.measured["e2e_mean_ms"] / 2, rel=1e-2)


def test_gzip_and_decode_ms_mean_the_same(tmp_path):
    lines = truth(count=30)
    plain = read_runs(written(tmp_path, lines))[0]
    rows = [line.split(",") for line in lines[1:]]
    other = [HEAD.replace("e2e_ms", "decode_ms")]
    other += [",".join([*row[:5], f"{float(row[5]) - float(row[4]):.6f}", *row[6:]]) for row in rows]
    path = tmp_path / "replayed.csv.gz"
    path.write_bytes(gzip.compress("\n".join(other).encode()))
    packed = read_runs(path)[0]
    np.testing.assert_allclose(packed.e2e_ms, plain.e2e_ms, atol=1e-5)
    assert packed.source == plain.source == "replayed"


def test_phases_are_simulated_together_and_scored_apart(tmp_path):
    lines = truth(count=60)
    phased = [lines[0] + ",phase"] + [f"{line},{'a' if i < 30 else 'b'}" for i, line in enumerate(lines[1:])]
    found = replays(read_runs(written(tmp_path, phased))[0])
    assert [one.row.row_id for one in found] == ["replayed/one|a", "replayed/one|b"]
    assert all(one.matches()["requests"] == 30 for one in found)
    assert all("ttft_p99_ms" not in one.row.measured for one in found)  # of 30 requests it is the maximum


def test_a_run_nothing_is_known_of_is_left_out_with_the_reason(tmp_path):
    lines = ["run,arrival_s,prompt_tokens,output_tokens,ttft_ms,e2e_ms", "mystery,0,10,10,5,50"]
    (found,) = replays(read_runs(written(tmp_path, lines))[0])
    assert not found.figures
    assert "model not stated" in found.reason


def test_without_arrivals_or_a_rate_there_is_no_replay(tmp_path):
    lines = [line.split(",") for line in truth(count=5)]
    path = written(tmp_path, [",".join([row[0], *row[2:]]) for row in lines])
    (found,) = replays(read_runs(path)[0])
    assert "arrival times" in found.reason


def test_first_tokens_sooner_than_the_peak_mean_prompts_that_repeat(tmp_path):
    lines = [truth(count=1)[0]]
    for i in range(50):
        ttft = 20 if i % 5 else 5  # 8000 tokens of an 8B model take 110 ms at an H100's bf16 peak
        lines.append(f"one,{i},8000,5,{ttft},500,{MODEL},{GPU},vllm,0.19.0,64,20000")
    (found,) = replays(read_runs(written(tmp_path, lines))[0])
    assert "prompts repeat" in found.reason


def test_a_later_prompt_of_a_session_contains_the_earlier(tmp_path):
    lines = ["run,arrival_s,prompt_tokens,output_tokens,ttft_ms,e2e_ms,user_id"]
    lines += ["s,0,64,5,5,50,7", "s,9,128,5,5,50,7", "s,10,128,5,5,50,8"]
    (run,) = read_runs(written(tmp_path, lines))
    first, second, other = perrequest.prefixes(run, 0)
    assert first.tolist() == second[:4].tolist()
    assert len(second) == 8
    assert not set(second.tolist()) & set(other.tolist())


def test_what_the_file_states_comes_before_the_shipped_entry():
    shipped = settings_of("RTX4090/Llama-3.1-8B", {})
    assert shipped["kv_blocks"] == 2588
    assert settings_of("RTX4090/Llama-3.1-8B", {"kv_blocks": 99})["kv_blocks"] == 99
    with pytest.raises(Unsimulated, match="second tier"):
        settings_of("exp-0/lmcache-llm-d-70b|sharegpt|1.0", {})


def test_every_shipped_entry_has_a_source_or_a_reason():
    for pattern, found in read_settings():
        assert found.get("source") or found.get("excluded"), pattern.pattern


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("- {match: x, speed: 3}", "speed"),
        ("- {match: x, tp: 0}", "tp"),
        ("- {match: x, tp: two}", "tp"),
        ("- {match: x, clock: moon}", "clock"),
        ("- {match: '('}", "match"),
        ("- {tp: 1}", "match"),
        ("{", ""),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path, text, field):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_settings(path)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        (["prompt_tokens,output_tokens", "1,2"], "ttft_ms"),
        (["prompt_tokens,output_tokens,ttft_ms", "1,2,3"], "e2e_ms"),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms"], ""),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms", "0,2,3,4"], "prompt_tokens"),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms", "1,2,nan,4"], "ttft_ms"),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms", "1,2,-1,4"], "ttft_ms"),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms", "1,2,3"], ""),
        (["prompt_tokens,output_tokens,ttft_ms,e2e_ms,tp", "1,2,3,4,x"], "tp"),
    ],
)
def test_a_malformed_file_ends_with_one_line(tmp_path, lines, field):
    with pytest.raises(InputError) as caught:
        read_runs(written(tmp_path, lines))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
