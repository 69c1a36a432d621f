"""The shipped profiles' recorded errors are what their tables give, where the tables are at hand."""

import json
import os
from pathlib import Path

import pytest

from llmlab.cli import main
from llmlab.harness.calibration.fit import errors_of
from llmlab.harness.calibration.from_tables import primary
from llmlab.harness.calibration.tables import read_tables
from llmlab.simulator.hardware.profile import PROFILES, load_profile

FOLDER = Path(os.environ.get("LLMLAB_DATA", "/nonexistent")) / "operators"
needs_tables = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the operator tables that LLMLAB_DATA points at")


@needs_tables
@pytest.mark.data
@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.json")))
def test_recorded_errors_are_reproduced(name):
    profile = load_profile(PROFILES / f"{name}.json")
    samples = read_tables(FOLDER, name)
    found = errors_of(profile, samples[primary(samples)]).set_index("curve")
    assert set(found.index) == {key for key, curve in profile.curves.items() if not curve.source.startswith("borrowed")}
    for curve, row in found.iterrows():
        recorded = profile.curves[curve].held_out
        if recorded:
            assert row["rows"] == recorded["rows"]
            for key in ("mean_absolute_error", "median_absolute_error", "bias"):
                assert row[key] == pytest.approx(recorded[key], rel=1e-3, abs=2e-5), (curve, key)


HEADER = "gemm_dtype,m,n,k,latency_ms"


def test_the_command_fits_tables_and_prints_the_error(tmp_path, capsys):
    rows = [
        f"bfloat16,{m},4096,{k},{0.003 + m * k * 1e-9 + k * 2e-6}" for m in (1, 8, 64, 512, 2048) for k in (512, 1024, 4096)
    ]
    (tmp_path / "h100_sxm_x_gemm_perf.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    out = tmp_path / "own.json"
    assert main(["calibrate", "--tables", str(tmp_path), "--device", "h100", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["device"] == "H100-SXM-80GB"
    assert printed["curves"]["gemm.bfloat16"]["rows"] == 15
    assert printed["provenance"]["tables"][0]["repository"] == "ai-dynamo/aiconfigurator"
    assert load_profile(out).curves["gemm.bfloat16"].held_out["rows"] > 0
    assert main(["calibrate", "--tables", str(tmp_path), "--device", "h100", "--out", str(out)]) == 0
    assert "held-out mean error %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tables", "/nonexistent/tables", "--device", "h100"], "no such folder"),
        (["--tables", ".", "--device", "h999"], "h999"),
        (["--device", "h100"], "belong together"),
        (["--tables", ".", "--device", "b200"], "no operator tables"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(tmp_path, capsys, arguments, named):
    out = tmp_path / "own.json"
    assert main(["calibrate", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not out.exists()
