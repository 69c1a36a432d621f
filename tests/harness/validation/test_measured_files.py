"""Files are recognised by their columns and answered together."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab import cli
from llmlab.harness.validation.engine_steps import bins, read_steps, step_rows
from llmlab.harness.validation.measured_files import kind_of, validate_files
from llmlab.harness.validation.perrequest import read_runs, replays
from llmlab.harness.validation.rows import read_rows
from llmlab.harness.validation.serving import weight_of
from llmlab.harness.validation.stages import read_stages
from llmlab.reference.errors import InputError

ROW = "row_id,model,gpu,n_gpus,tp,engine,engine_version,load_mode,batch_size,isl,osl,tpot_mean_ms\n"
ROW += "r-1,meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,1,vllm,0.19.0,static_batch,4,128,16,8.0\n"
REQUEST = "run,arrival_s,prompt_tokens,output_tokens,ttft_ms,e2e_ms,model,gpu,engine,engine_version\n"
REQUEST += "q,0,100,20,20,160,meta-llama/Llama-3.1-8B,H100-SXM-80GB,vllm,0.19.0\n"
REQUEST += "q,1,200,20,22,170,meta-llama/Llama-3.1-8B,H100-SXM-80GB,vllm,0.19.0\n"
STEP_HEAD = (
    "experiment_id,cycle_us,prev_batch_prefill_tokens,prev_batch_num_decode_reqs,kv_usage_gpu_ratio,kv_blocks_total_gpu\n"
)
STEPS = STEP_HEAD + "x-llama-2-70b-tp4-y,18000,0,20,0.025,31356\n" * 6 + "x-llama-2-70b-tp4-y,,,20,0.025,31356\n"


@pytest.fixture
def files(tmp_path):
    contents = {"rows": ROW, "requests": REQUEST, "steps": STEPS}
    contents["stages"] = "experiment,stage,metric,value,model,gpu,tp,arrival\ne,0,ttft_mean,30,m,g,1,sweep\n"
    for name, text in contents.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return {name: tmp_path / f"{name}.csv" for name in contents}


def test_a_file_is_recognised_by_its_columns(files):
    assert {name: kind_of(path) for name, path in files.items()} == {name: name for name in files}


def test_all_kinds_are_answered_together(files):
    result = validate_files(list(files.values()), workers=1)
    ids = {record["row_id"] for record in result["rows"]}
    assert ids == {"r-1", "requests/q", "steps/x-llama-2-70b-tp4-y|decode 17-24"}
    assert [line["row_id"] for line in result["excluded"]] == ["stages/e/0"]
    assert result["summary"]["rows"] == 4
    assert result["summary"]["simulated"] == 3
    assert [line["row_id"] for line in result["replays"]] == ["requests/q"]
    assert all(record["low"] <= record["predicted"] <= record["high"] for record in result["rows"])


def test_the_command_line_takes_any_of_them(files, capsys):
    assert cli.main(["validate", "serving", "--runs", str(files["requests"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replays"][0]["requests"] == 2
    assert cli.main(["validate", "serving", "--runs", str(files["requests"])]) == 0
    assert "rank" in capsys.readouterr().out


def test_a_row_in_two_files_is_refused(files, tmp_path):
    (tmp_path / "again.csv").write_text(ROW)
    with pytest.raises(InputError, match="is also in"):
        validate_files([files["rows"], tmp_path / "again.csv"], workers=1)


def test_a_step_costs_its_cycle_not_what_the_host_saw(files):
    ((row, figures, reason),) = step_rows(files["steps"])
    assert reason == ""
    assert row.measured == {"step_mean_ms": 18.0}
    assert 14 < figures["step_mean_ms"] < 22  # 138 GB of weights on 4 x 3.35 TB/s take 10 ms at the least


def test_shared_blocks_count_once_and_are_added_back(files):
    ((experiment, steps),) = read_steps(files["steps"]).items()
    (alone,) = bins(experiment, steps, {})
    (shared,) = bins(experiment, steps, {"shared_prefix_tokens": 96, "shared_prefix_groups": 10})
    assert shared.context_tokens - alone.context_tokens == 96 * (20 - 10)
    assert alone.steps == 6


def test_an_unknown_experiment_is_left_out_with_the_reason(tmp_path):
    path = tmp_path / "steps.csv"
    path.write_text(STEPS.replace("llama-2-70b-tp4", "mystery"))
    ((_, figures, reason),) = step_rows(path)
    assert not figures
    assert "model not stated" in reason


@pytest.mark.parametrize(("bad", "field"), [("18000", "x"), ("20", "-4")])
def test_a_malformed_step_file_is_named(tmp_path, bad, field):
    path = tmp_path / "steps.csv"
    path.write_text(STEPS.replace(bad, field, 1))
    with pytest.raises(InputError):
        read_steps(path)


def test_a_picture_needs_runs_of_single_requests(files, tmp_path, capsys):
    picture = tmp_path / "replays.png"
    command = ["validate", "serving", "--json", "--out-picture", str(picture), "--runs"]
    assert cli.main([*command, str(files["requests"])]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert cli.main([*command, str(files["steps"])]) == 2
    assert "no run of single requests" in capsys.readouterr().err
    assert not picture.exists()


STAGE = (
    "experiment,stage,metric,value,model,gpu,tp,n_gpu_per_replica,engine,engine_version,arrival,rate_rps,prompt_len_mean,"
    "output_len_cfg,n_requests,n_failed,n_prefix_groups,shared_prefix_len\n"
    "e,1,ttft_mean,25,meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,1,vllm,0.15.1,constant,8,100,10,40,0,10,16\n"
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, data):
    text = data.draw(st.sampled_from([ROW, REQUEST, STEPS, STAGE]))
    lines = [line.split(",") for line in text.strip().split("\n")]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.integers(0, len(lines) - 1))
        place = data.draw(st.integers(0, len(lines[line]) - 1))
        odd = st.sampled_from(["", "nan", "-1", "0", "1e300", "inf", "x", '"', "1;2", "0.5", "3.0", "99999999999999999999"])
        lines[line][place] = data.draw(odd)
    path = tmp_path / "damaged.csv"
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    message = ""
    try:
        kind = kind_of(path)
        if kind == "requests":
            assert all(replay.reason or replay.figures for run in read_runs(path) for replay in replays(run))
        elif kind == "steps":
            assert all(reason or figures for _, figures, reason in step_rows(path))
        else:
            assert all(weight_of(row) >= 0 for row in (read_stages if kind == "stages" else read_rows)(path))
    except InputError as error:
        message = str(error)
    assert "\n" not in message
