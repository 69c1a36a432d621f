"""Whatever bytes a reader is given, it answers with a result or with one clear line, quickly and in bounded memory."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload

GOOD = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109\n",
    "plain.csv": "arrival_s,prompt_tokens,output_tokens,hash_ids\n0,1030,4,1 2\n0.5,600,2,1\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n",
    "moon.jsonl": '{"timestamp": 0, "input_length": 1500, "output_length": 7, "hash_ids": [0, 1, 2]}\n' * 2,
    "vllm.json": json.dumps({"input_lens": [5, 6], "output_lens": [1, 2], "start_times": [0.5, 1.5], "errors": ["", ""]}),
    "guide.json": json.dumps(
        {"benchmarks": [{"requests": {"successful": [{"prompt_tokens": 5, "output_tokens": 2, "start_time": 1.0}]}}]}
    ),
    "perf.json": json.dumps([{"start_time": 5.0, "info": {"input_tokens": 8, "output_tokens": 4}}]),
    "chat.json": json.dumps([{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "yes"}]}]),
    "spec.yaml": "requests: 20\narrivals: {process: gamma, rate_per_s: 6, cv: 2}\n"
    "prompt_tokens: {distribution: quantiles, at: [0, 0.5, 1], tokens: [1, 5, 9]}\n"
    "output_tokens: {distribution: fixed, tokens: 4}\nprefix: {kind: shared, groups: 2, tokens: 32}\n",
}


def survives(path):
    try:
        found = load_workload(path)
    except InputError as error:
        lines = str(error).splitlines()
    else:
        lines = [found.name]
        assert isinstance(found, Workload)
    assert len(lines) == 1, lines


def test_the_files_the_fuzz_starts_from_are_good(tmp_path):
    for name, text in GOOD.items():
        (tmp_path / name).write_text(text)
        assert len(load_workload(tmp_path / name)) >= 1


@pytest.mark.parametrize("name", sorted(GOOD))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files(tmp_path, name, data):
    content = bytearray(GOOD[name].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if how == "flip" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[place : place + data.draw(st.integers(1, 20))]
        elif how == "insert":
            words = [b"NaN", b"-1", b"1e999", b"99999999999999999999", b"\x00", b'"', b"\n", b"null", b"[", b"{", b"*a", b"&a"]
            content[place:place] = data.draw(st.sampled_from(words))
        else:
            content += content[place : place + 40]
    zipped = data.draw(st.booleans()) and not name.endswith(".yaml")
    path = tmp_path / (name + ".gz" if zipped else name)
    packed = bytearray(gzip.compress(bytes(content), mtime=0)) if zipped else content
    if zipped and data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(packed)
    survives(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["input_lens", "benchmarks", "info", "input_length", "conversations", "requests"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=JSON, lines=st.booleans())
def test_any_json(tmp_path, content, lines):
    path = tmp_path / ("any.jsonl" if lines else "any.json")
    path.write_text(json.dumps(content))
    survives(path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300), ending=st.sampled_from([".csv", ".json", ".jsonl", ".yaml", ".csv.gz"]))
def test_any_bytes(tmp_path, content, ending):
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    survives(path)


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("LLMLAB_DATA"), reason="LLMLAB_DATA is not set")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_real_traces(tmp_path, data):
    source = data.draw(st.sampled_from(["azure2023_conv.csv.gz", "sharegpt300_llama3.1-8b.csv.gz"]))
    whole = gzip.decompress((Path(os.environ["LLMLAB_DATA"]) / "traces" / source).read_bytes())
    content = bytearray(whole[: data.draw(st.integers(0, 60_000))])
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.csv"
    path.write_bytes(content)
    survives(path)
