"""Reading traces: what is right comes out exact, what is wrong is named with column, value and row."""

import gzip

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.trace import read_trace

GOOD = "arrival_s,prompt_tokens,output_tokens\n0.0,10,3\n0.25,20,1\n1.000000001,5,2\n"


def write(tmp_path, content, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_plain_and_gzipped_files_read_alike(tmp_path):
    plain = read_trace(write(tmp_path, GOOD))
    zipped = read_trace(write(tmp_path, gzip.compress(GOOD.encode()), "trace.csv.gz"))
    for workload in (plain, zipped):
        assert workload.arrival_ns.tolist() == [0, 250_000_000, 1_000_000_001]
        assert workload.prompt_tokens.tolist() == [10, 20, 5]
        assert workload.output_tokens.tolist() == [3, 1, 2]
        assert workload.block_hashes == ()


def test_azure_column_names_and_calendar_times(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:16:00,1,1\n"
    )
    workload = read_trace(write(tmp_path, text))
    assert workload.arrival_ns.tolist() == [0, 4_314_579_000, 13_319_410_000]
    assert workload.prompt_tokens.tolist() == [374, 396, 1]


def test_hash_columns_carry_their_block_size(tmp_path):
    text = "arrival_s,prompt_tokens,output_tokens,{}\n0,600,1,7 8\n1,40,1,\n"
    coarse = read_trace(write(tmp_path, text.format("hash_ids")))
    assert coarse.hash_block_tokens == 512
    assert [ids.tolist() for ids in coarse.block_hashes] == [[7, 8], []]
    assert read_trace(write(tmp_path, text.format("hash_ids16"))).hash_block_tokens == 16


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,10,3\n1,-5,3\n", r"prompt_tokens=-5: must be at least 1 \(row 2\)"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,0\n", r"output_tokens=0: must be at least 1 \(row 1\)"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,2.5\n", r"output_tokens=2.5: must be a whole number \(row 1\)"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,3\n1,nan,3\n", r"prompt_tokens='nan': must be a finite number \(row 2\)"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,inf\n", r"output_tokens='inf': must be a finite"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,1e300\n", r"output_tokens=1.*must be at most"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,\n", r"output_tokens='': must be a finite number \(row 1\)"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10\n", r"output_tokens='': must be a finite number \(row 1\)"),
        ("arrival_s,prompt_tokens,output_tokens\nNaN,10,3\n", r"arrival_s='NaN': must be a finite number \(row 1\)"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,10,3\n", r"arrival_s=-1.0: must lie in"),
        ("arrival_s,prompt_tokens,output_tokens\n5,10,3\n4,10,3\n", r"arrival_s='4': is before the row above it \(row 2\)"),
        ("arrival_s,prompt_tokens\n0,10\n", r"columns='arrival_s,prompt_tokens': has no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n", "has a header and no rows"),
        ("", "is empty"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2,3\n", "is not CSV"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2\n0,1,2,3\n", "is not CSV"),
        (b"\xff\xfe\x00garbage\x80", "is not text"),
        (b"a,b\x00\n1,2\n", "is not text"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", r"TIMESTAMP|arrival_s='yesterday': must be a date"),
        ("arrival_s,prompt_tokens,output_tokens,hash_ids\n0,10,3,1 x 2\n", r"hash_ids='1 x 2': must be whole numbers.*row 1"),
    ],
)
def test_bad_content_is_named(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as caught:
        read_trace(write(tmp_path, content))
    assert "trace.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_is_named(tmp_path):
    whole = gzip.compress(GOOD.encode() * 50)
    for content in (whole[: len(whole) // 2], whole[:-4] + b"\0\0\0\0", whole[:12] + b"\xaa" * 20, whole[:5]):
        with pytest.raises(InputError, match="damaged gzip"):
            read_trace(write(tmp_path, content, "trace.csv.gz"))
    with pytest.raises(InputError, match="is not gzip"):
        read_trace(write(tmp_path, GOOD, "plain.csv.gz"))


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="Is a directory"):
        read_trace(tmp_path)
    with pytest.raises(InputError, match="must end in"):
        load_workload(write(tmp_path, GOOD, "trace.txt"))


@pytest.mark.data
def test_real_traces_read_whole(data):
    azure = read_trace(data / "traces" / "azure2023_conv.csv.gz")
    assert len(azure) == 19366
    assert (np.diff(azure.arrival_ns) >= 0).all()
    for name, tokens in (("mooncake_conversation", 512), ("sharegpt300_llama3.1-8b", 16)):
        shared = read_trace(data / "traces" / f"{name}.csv.gz")
        assert shared.hash_block_tokens == tokens
        assert all(len(shared.hashes(i, 16)) <= shared.prompt_tokens[i] // 16 for i in range(0, len(shared), 37))
