"""The fit finds the constants that made the points, whatever a few bad ones say, and errs more on a model it has not seen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmlab.harness.validation import fit_vllm
from llmlab.harness.validation.fit_vllm import Point, errors, fit_points, left_out
from llmlab.reference.errors import InputError

TRUTH = {
    "host_step_s": 0.8e-3,
    "host_request_step_s": 6e-6,
    "scheduling_lag_steps": 1.4,
    "host_request_s": 3e-3,
}


def made(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    points = []
    for model, weights_s in (("a", 5e-3), ("b", 12e-3), ("c", 17e-3)):
        for requests in (2, 9, 30, 60, 110):
            device = weights_s + 3e-5 * requests
            step = (device + TRUTH["host_step_s"] + requests * TRUTH["host_request_step_s"]) * (1 + noise * rng.normal())
            ttft = (1.5 + TRUTH["scheduling_lag_steps"]) * step + TRUTH["host_request_s"]
            points.append(Point(model, device, requests, step, ttft))
    return points


def test_the_fit_finds_what_made_the_points():
    for name, value in fit_points(made()).items():
        assert value == pytest.approx(TRUTH[name], rel=1e-3), name


def test_one_bad_point_moves_it_little():
    points = made()
    points[7] = replace(points[7], step_s=3 * points[7].step_s)
    found = fit_points(points)
    assert found["host_step_s"] == pytest.approx(TRUTH["host_step_s"], rel=0.2)


def test_points_without_a_first_token_say_nothing_of_the_lag():
    points = [replace(point, ttft_s=float("nan")) if point.model == "a" else point for point in made()]
    assert fit_points(points)["scheduling_lag_steps"] == pytest.approx(1.4, rel=1e-3)


def test_a_model_with_a_host_of_its_own_is_exposed_when_left_out():
    points = [replace(point, step_s=point.step_s + 2e-3) if point.model == "a" else point for point in made()]
    (line,) = [line for line in left_out(points) if line["model"] == "a"]
    assert line["step_left_out"] > 1.2 * line["step_fitted"] > 0
    assert line["points"] == 5


def test_errors_of_the_truth_are_zero_and_of_another_are_not():
    assert errors(made(), TRUTH)["step"] == pytest.approx(0, abs=1e-12)
    assert errors(made(), TRUTH | {"host_step_s": 2e-3})["step"] > 0.05


def test_the_command_fits_a_step_file_and_refuses_an_empty_folder(tmp_path, capsys):
    with pytest.raises(InputError, match="points"):
        fit_vllm.main([str(tmp_path)])
    head = "experiment_id,cycle_us,prev_batch_prefill_tokens,prev_batch_num_decode_reqs,kv_usage_gpu_ratio,kv_blocks_total_gpu"
    lines = [head]
    for requests in (4, 12, 20, 28, 40, 56):
        lines += [f"x-llama-2-70b-tp4-y,{17000 + 45 * requests},0,{requests},{requests * 0.0013},31356"] * 6
    (tmp_path / "steps.csv").write_text("\n".join(lines) + "\n")
    stages = (
        "experiment,stage,metric,value,model,gpu,tp,engine,engine_version,arrival,rate_rps,prompt_len_mean,output_len_cfg\n"
    )
    for metric, value in (("ttft_mean", 25), ("tpot_mean_cfglen", 7.5), ("e2e_mean", 1890)):
        stages += f"e,1,{metric},{value},meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,vllm,0.15.1,constant,8,547,248\n"
    (tmp_path / "stages.csv").write_text(stages)
    assert fit_vllm.main([str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == 7
    assert {line["model"] for line in found["models"]} == {"llama-2-70b", "llama-3.1-8b"}
    assert found["constants"]["scheduling_lag_steps"] > 0
