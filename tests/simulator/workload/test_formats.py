"""Files of other tools: what they say comes out as arrivals and lengths, what is wrong is named."""

import gzip
import json

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.trace import read_trace


def write(tmp_path, content, name):
    path = tmp_path / name
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_mooncake_lines_have_milliseconds_and_blocks_of_512_tokens(tmp_path):
    lines = [
        {"timestamp": 0, "input_length": 1500, "output_length": 7, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 600, "output_length": 2, "hash_ids": [0, 9]},
    ]
    path = write(tmp_path, gzip.compress("\n".join(map(json.dumps, lines)).encode()), "moon.jsonl.gz")
    found = load_workload(path)
    assert found.arrival_ns.tolist() == [0, 3_000_000_000]
    assert found.prompt_tokens.tolist() == [1500, 600]
    assert found.hash_block_tokens == 512
    assert found.hashes(0, 256)[:2] == (0, 1)
    assert found.hashes(0, 256)[:2] == found.hashes(1, 256)


def test_vllm_results_keep_their_start_times_and_lose_failed_requests(tmp_path):
    content = {
        "input_lens": [10, 20, 30],
        "output_lens": [4, 5, 6],
        "start_times": [100.5, 100.0, 101.0],
        "errors": ["", "", "timeout"],
    }
    found = load_workload(write(tmp_path, content, "result.json"))
    assert found.arrival_ns.tolist() == [0, 500_000_000]
    assert found.prompt_tokens.tolist() == [20, 10]
    assert "1 failed" in found.name


def test_vllm_results_without_times_get_the_rate_and_burstiness_they_state(tmp_path):
    count = 4000
    content = {"input_lens": [9] * count, "output_lens": [3] * count, "request_rate": 8.0, "burstiness": 0.25}
    found = load_workload(write(tmp_path, content, "result.json"), seed=3)
    gaps = np.diff(found.arrival_ns) / 1e9
    assert abs(gaps.mean() * 8 - 1) < 0.1
    assert abs(gaps.std() / gaps.mean() - 2.0) < 0.15  # cv = burstiness ** -0.5
    assert (found.arrival_ns == load_workload(tmp_path / "result.json", seed=3).arrival_ns).all()


def test_vllm_results_at_infinite_rate_with_a_limit_are_a_closed_loop(tmp_path):
    content = {"input_lens": [9] * 5, "output_lens": [3] * 5, "request_rate": "inf", "max_concurrency": 2}
    assert load_workload(write(tmp_path, content, "result.json")).clients == 2


def test_guidellm_inference_perf_and_sharegpt(tmp_path):
    guide = {
        "benchmarks": [
            {
                "requests": {
                    "successful": [
                        {"prompt_tokens": 5, "output_tokens": 2, "start_time": 1000.0, "more": 1},
                        {"prompt_tokens": 6, "output_tokens": 3, "start_time": 1000.25},
                    ],
                    "errored": [{}],
                    "incomplete": [],
                }
            }
        ]
    }
    found = load_workload(write(tmp_path, guide, "guide.json"))
    assert (found.arrival_ns.tolist(), found.output_tokens.tolist()) == ([0, 250_000_000], [2, 3])
    assert "1 failed" in found.name
    perf = [
        {"start_time": 5.0, "end_time": 6.0, "info": {"input_tokens": 8, "output_tokens": 4}, "error": None},
        {"start_time": 4.0, "end_time": 6.0, "info": {"input_tokens": 7, "output_tokens": 4}, "error": None},
        {"start_time": 5.0, "end_time": 5.5, "info": {"input_tokens": 9, "output_tokens": 0}, "error": {"error_type": "x"}},
    ]
    assert load_workload(write(tmp_path, perf, "perf.json")).prompt_tokens.tolist() == [7, 8]
    chats = [
        {
            "conversations": [
                {"from": "human", "value": "a" * 40},
                {"from": "gpt", "value": "b" * 9},
                {"from": "human", "value": "c"},
            ]
        },
        {"conversations": [{"from": "gpt", "value": "speaks first"}]},
    ]
    found = load_workload(write(tmp_path, chats, "chats.json"))
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([10], [3])


def test_burstgpt_columns_lose_unanswered_requests(tmp_path):
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n118,GPT-4,417,276,693,API log\n"
    )
    found = read_trace(write(tmp_path, text, "burst.csv"))
    assert found.arrival_ns.tolist() == [5_000_000_000, 118_000_000_000]
    assert found.output_tokens.tolist() == [18, 276]
    assert "1 failed" in found.name


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", '{"input_lens": NaN}', "NaN"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", {"other": 1}, "no known format"),
        ("a.json", [], "no known format"),
        ("a.json", {"input_lens": [1], "output_lens": [1, 2]}, "output_lens"),
        ("a.json", {"input_lens": [1], "output_lens": [1]}, "request_rate"),
        ("a.json", {"input_lens": [-4], "output_lens": [1], "start_times": [0]}, "input_lens.0"),
        ("a.json", {"input_lens": [4], "output_lens": [1], "start_times": [1e400]}, "not"),
        ("a.json", {"input_lens": [4], "output_lens": [0], "start_times": [0]}, "no finished request"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 5, "output_length": 1}\n{"timestamp": 1,', "line 2"),
        ("a.jsonl", '{"timestamp": 0, "input_length": "five", "output_length": 1}', "0.input_length"),
        ("a.jsonl", "\n\n", "empty"),
        ("a.json.gz", b"\x1f\x8b\x08\x00broken", "gzip"),
        ("a.txt", "x", "must end in"),
    ],
)
def test_mistakes_are_named(tmp_path, name, content, told):
    with pytest.raises(InputError) as caught:
        load_workload(write(tmp_path, content, name))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    from llmlab.simulator.workload import text

    monkeypatch.setattr(text, "LARGEST_BYTES", 1000)
    path = write(tmp_path, gzip.compress(b"0" * 100_000), "bomb.csv.gz")
    with pytest.raises(InputError, match="split it"):
        load_workload(path)
