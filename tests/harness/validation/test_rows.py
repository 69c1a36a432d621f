"""What the reader of measured rows accepts, and how it names what it refuses."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import pytest

from llmlab.harness.validation.rows import read_rows
from llmlab.reference.errors import InputError

HEADER = "row_id,source,model,gpu,load_mode,tp,batch_size,isl,osl,request_rate_rps,chunked_prefill,ttft_mean_ms,quality"
ROW = "a-1,a,meta-llama/Llama-2-7b,H100-SXM-80GB,static_batch,1,4,128,16,,True,12.5,A"


def _file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_row_keeps_what_is_stated_and_drops_what_is_empty(tmp_path: Path) -> None:
    (row,) = read_rows(_file(tmp_path, HEADER, ROW))
    assert row.measured == {"ttft_mean_ms": 12.5}
    assert row.stated == {"tp": 1.0, "batch_size": 4.0, "isl": 128.0, "osl": 16.0}
    assert row.flags == {"chunked_prefill": True}
    assert row.count("concurrency") is None
    assert row.scored


def test_a_gzip_reads_like_the_plain_file(tmp_path: Path) -> None:
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode()))
    (row,) = read_rows(packed)
    assert row.measured == read_rows(_file(tmp_path, HEADER, ROW))[0].measured


def test_an_endless_rate_is_a_rate(tmp_path: Path) -> None:
    (row,) = read_rows(_file(tmp_path, HEADER, ROW.replace("16,,True", "16,inf,True")))
    assert math.isinf(row.stated["request_rate_rps"])


def test_a_deployment_said_in_words_is_kept_for_its_reason(tmp_path: Path) -> None:
    (row,) = read_rows(_file(tmp_path, HEADER, ROW.replace(",1,4,", ",dp-attention 8,4,")))
    assert row.unread == {"tp": "dp-attention 8"}
    assert "tp" not in row.stated


def test_quality_c_is_read_and_not_scored(tmp_path: Path) -> None:
    (row,) = read_rows(_file(tmp_path, HEADER, ROW[:-1] + "C"))
    assert not row.scored


def test_a_closed_loop_that_contradicts_itself_is_not_scored(tmp_path: Path) -> None:
    header = "row_id,model,gpu,load_mode,concurrency,osl,ttft_mean_ms,tpot_mean_ms,req_per_s"
    lines = [f"{i},m,g,closed_loop_concurrency,64,101,{ttft},20,{rate}" for i, (ttft, rate) in enumerate(((1000, 21), (10, 5)))]
    full, idle = read_rows(_file(tmp_path, header, *lines))
    assert full.busy_clients == pytest.approx(21 * 3.0 / 64)
    assert full.scored
    assert idle.busy_clients == pytest.approx(5 * 2.01 / 64)
    assert not idle.scored


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ([], ""),
        ([HEADER], ""),
        (["row_id,model,gpu", "1,m,g"], "load_mode"),
        (["row_id,row_id,model,gpu,load_mode", "1,1,m,g,static_batch"], "row_id"),
        ([HEADER, ROW, ROW], "row_id"),
        ([HEADER, ROW + ",more"], ""),
        ([HEADER, ROW.replace("static_batch", "")], "load_mode"),
        ([HEADER, ROW.replace(",128,", ",-128,")], "isl"),
        ([HEADER, ROW.replace(",128,", ",many,")], "isl"),
        ([HEADER, ROW.replace(",128,", ",nan,")], "isl"),
        ([HEADER, ROW.replace(",1,4,", ",1,4.5,")], "batch_size"),
        ([HEADER, ROW.replace(",1,4,", ",-1,4,")], "tp"),
        ([HEADER, ROW.replace("16,,True", "16,-2,True")], "request_rate_rps"),
        ([HEADER, ROW.replace("True", "perhaps")], "chunked_prefill"),
        ([HEADER, ROW.replace("12.5", "nan")], "ttft_mean_ms"),
        ([HEADER, ROW.replace("12.5", "inf")], "ttft_mean_ms"),
        ([HEADER, ROW.replace("12.5", "fast")], "ttft_mean_ms"),
        ([HEADER, ROW.replace(",a,", ',"a,', 1)], ""),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, lines: list[str], field: str) -> None:
    path = _file(tmp_path, *lines) if lines else tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert error.value.field == field
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_truncated_and_binary_files_are_one_line(tmp_path: Path) -> None:
    truncated = tmp_path / "rows.csv.gz"
    truncated.write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode())[:-12])
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "absent.csv", truncated, binary, tmp_path):
        with pytest.raises(InputError, match=str(path.name)):
            read_rows(path)


@pytest.mark.data
@pytest.mark.skipif("LLMLAB_DATA" not in os.environ, reason="needs the measured data that LLMLAB_DATA points at")
def test_every_published_table_is_read() -> None:
    folder = Path(os.environ["LLMLAB_DATA"]) / "measured"
    tables = [path for path in sorted(folder.glob("*.csv.gz")) if not path.name.startswith(("perrequest", "vllm_"))]
    assert tables
    rows = [row for path in tables for row in read_rows(path)]
    assert len({row.row_id for row in rows}) == len(rows)
    assert sum(bool(row.measured) for row in rows) > len(rows) / 2
