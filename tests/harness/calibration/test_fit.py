"""The fit recovers what made the timings, says honestly how far off it is, and refuses what it cannot read."""

import numpy as np
import pandas as pd
import pytest

from llmlab.harness.calibration.fit import KEYS, errors_of, fit, held_out
from llmlab.harness.calibration.tables import tidy
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import FLOATS, FORMS, Curve, Limits
from llmlab.simulator.hardware.device import Device, Peaks, load_device_sheet

DEVICE = Device("made", "test", 10**10, 1e12, {"bfloat16": 1e14, "float32": 1e13}, 100, 10**7)
LIMITS = Limits.of(DEVICE, "bfloat16")
SHAPES = {
    "gemm": {
        "m": [1, 3, 8, 16, 31, 64, 128, 300, 512, 1024, 4096],
        "n": [512, 4096, 14336],
        "k": [512, 2048, 8192],
    },
    "attention_decode": {
        "batch": [1, 2, 8, 32, 128, 500],
        "context_tokens": [16, 100, 512, 3000, 16000],
        "heads": [8, 32],
        "kv_heads": [1, 8],
        "head_width": [128],
        "window": [0],
    },
    "attention_prefill": {
        "batch": [1, 2, 8],
        "new_tokens": [2, 64, 300, 1024, 5000],
        "context_tokens": [0, 512, 4000],
        "heads": [8, 32],
        "kv_heads": [8],
        "head_width": [128],
        "window": [0],
    },
    "attention_decode_mla": {
        "batch": [1, 2, 8, 32, 128, 500],
        "context_tokens": [16, 100, 512, 3000, 16000],
        "heads": [8, 32, 128],
        "latent_width": [576],
        "window": [0],
    },
    "attention_prefill_mla": {
        "batch": [1, 2, 8],
        "new_tokens": [2, 64, 300, 1024, 5000],
        "context_tokens": [0, 512, 4000],
        "heads": [8, 32, 128],
        "head_width": [160],
        "latent_width": [576],
        "window": [0],
    },
    "memory": {"moved_bytes": list(np.geomspace(1e3, 1e10, 40))},
    "host": {"batch": list(range(1, 40))},
    "moe": {
        "tokens": [1, 4, 16, 100, 1000, 8000],
        "hidden": [2048, 4096],
        "inter": [768, 3072],
        "experts_per_token": [2, 8],
        "handled": [8],
        "experts": [8, 64, 128],
        "matrices": [2, 3],
        "ranks": [1, 8],
    },
    "all_reduce": {"ranks": [2, 4, 8], "message_bytes": list(np.geomspace(1e2, 1e9, 30))},
}
PINNED = [False, True, False, False, True, False, True, False, False, True, True, False]
"""Which of the rows 0.0, 1.0, ... 11.0 are held out: a shipped profile's error can only be reproduced while this stays."""
TRUTH = {
    "gemm": "gemm",
    "attention_decode": "attention_decode",
    "attention_prefill": "attention_prefill",
    "attention_decode_mla": "attention_decode_mla",
    "attention_prefill_mla": "attention_prefill_mla",
    "memory": "memory",
    "host": "host",
    "moe": "moe",
    "all_reduce": "collective",
}


def made_by(kind, form_name, noise=0.0, scale=1.3):
    """Timings that a formula with known parameters gives, on a grid of shapes."""
    grid = np.array(np.meshgrid(*SHAPES[kind].values(), indexing="ij"), dtype=float).reshape(len(SHAPES[kind]), -1)
    columns = dict(zip(SHAPES[kind], grid))
    form = FORMS[form_name]
    parameters = {name: min(high, guess * scale) for name, (guess, _, high) in form.parameters.items()}
    parameters |= {name: values[0] for name, values in form.choices.items()}
    seconds = np.asarray(form.seconds(parameters, LIMITS, columns, np))
    seconds = seconds * np.exp(noise * np.random.default_rng(5).standard_normal(len(seconds)))
    return parameters, tidy({"kind": kind, "dtype": "bfloat16", "kv_dtype": "bfloat16", **columns, "seconds": seconds})


@pytest.mark.parametrize("kind", TRUTH)
def test_timings_made_by_a_formula_are_predicted(kind):
    _, samples = made_by(kind, TRUTH[kind])
    profile = fit(samples, DEVICE)
    curve = profile.curve(kind, "bfloat16")
    assert curve.held_out["mean_absolute_error"] < 0.02
    assert abs(curve.residuals["0.5"] - 1) < 0.02


def test_physical_parameters_are_recovered():
    truth, samples = made_by("gemm", "gemm")
    found = fit(samples, DEVICE).curves["gemm.bfloat16"]
    assert found.form == "gemm"
    for name in ("latency_s", "efficiency", "bandwidth"):
        assert found.parameters[name] == pytest.approx(truth[name], rel=0.05)


def test_noise_shows_in_the_held_out_error_and_the_residuals():
    _, samples = made_by("gemm", "gemm", noise=0.1)
    curve = fit(samples, DEVICE).curves["gemm.bfloat16"]
    expected = 0.1 * np.sqrt(2 / np.pi)
    assert curve.held_out["mean_absolute_error"] == pytest.approx(expected, rel=0.35)
    assert 0.78 < curve.residuals["0.05"] < 0.92
    assert 1.1 < curve.residuals["0.95"] < 1.3


def test_few_outliers_do_not_move_the_curve():
    truth, samples = made_by("memory", "memory")
    samples.loc[::13, "seconds"] *= 20
    found = fit(samples, DEVICE).curves["memory"]
    assert found.parameters["bandwidth"] == pytest.approx(truth["bandwidth"], rel=0.05)


def test_the_better_formula_is_chosen_where_there_are_rows_enough():
    grid = {name: np.asarray(values, dtype=float) for name, values in SHAPES["gemm"].items()}
    grid["k"] = np.array([256.0, 512.0, 1024.0, 2048.0, 8192.0])
    m, n, k = (axis.ravel() for axis in np.meshgrid(*grid.values(), indexing="ij"))
    tiles = FORMS["gemm_tiles"]
    parameters = {name: guess for name, (guess, _, _) in tiles.parameters.items()} | {"quantization": 1.0}
    seconds = tiles.seconds(parameters, LIMITS, {"m": m, "n": n, "k": k}, np)
    samples = tidy({"kind": "gemm", "dtype": "bfloat16", "m": m, "n": n, "k": k, "seconds": seconds})
    found = fit(samples, DEVICE).curves["gemm.bfloat16"]
    assert found.form == "gemm_tiles"
    assert found.held_out["mean_absolute_error"] < 0.05
    assert fit(samples.iloc[:20], DEVICE).curves["gemm.bfloat16"].form == "gemm"


def test_half_is_held_out_and_always_the_same_half():
    shapes = np.array(np.meshgrid(np.arange(1, 40), np.arange(1, 40))).reshape(2, -1).T.astype(float)
    chosen = held_out(shapes)
    assert 0.45 < chosen.mean() < 0.55
    assert (held_out(shapes[::-1]) == chosen[::-1]).all()
    assert held_out(np.arange(12.0)[:, None]).tolist() == PINNED


def test_the_recorded_error_is_what_scoring_the_held_out_half_gives():
    _, samples = made_by("attention_decode", "attention_decode", noise=0.05)
    profile = fit(samples, DEVICE)
    (row,) = errors_of(profile, samples).to_dict("records")
    assert row["mean_absolute_error"] == pytest.approx(
        profile.curves["attention_decode.bfloat16"].held_out["mean_absolute_error"]
    )
    assert row["rows"] == profile.curves["attention_decode.bfloat16"].held_out["rows"]


def test_a_profile_that_is_wrong_scores_badly():
    _, samples = made_by("memory", "memory")
    profile = fit(samples, DEVICE)
    (row,) = errors_of(profile, samples.assign(seconds=samples.seconds * 2)).to_dict("records")
    assert row["mean_absolute_error"] == pytest.approx(0.5, abs=0.05)


def test_very_few_rows_are_all_fitted_and_claim_nothing():
    samples = tidy({"kind": "host", "batch": [1, 2, 4], "seconds": [1e-3, 1.1e-3, 1.3e-3]})
    curve = fit(samples, DEVICE).curves["host"]
    assert curve.held_out == {}
    assert curve.parameters["step_s"] == pytest.approx(0.9e-3, rel=0.1)


def test_a_fit_is_the_same_twice():
    _, samples = made_by("moe", "moe", noise=0.1)
    assert fit(samples, DEVICE).to_json() == fit(samples.sample(frac=1.0, random_state=3), DEVICE).to_json()


def test_measured_peaks_or_a_listed_device_serve_as_limits():
    _, samples = made_by("memory", "memory")
    assert fit(samples, Peaks("own", 10**9, 1e10, {"float32": 1e11}, 2, 10**7)).device.name == "own"
    assert fit(samples, load_device_sheet("h100")).device.name == "H100-SXM-80GB"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "conv"}, "conv"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": np.nan}, "seconds"),
        ({"m": np.nan}, "missing in rows of kind gemm"),
    ],
)
def test_rows_that_cannot_be_are_refused(change, named):
    _, samples = made_by("gemm", "gemm")
    with pytest.raises(InputError, match=named):
        fit(samples.assign(**change), DEVICE)
    with pytest.raises(InputError, match="missing column"):
        fit(samples.drop(columns="seconds"), DEVICE)


def test_collectives_follow_the_messages_and_scale_with_the_link():
    _, samples = made_by("all_reduce", "collective")
    knots = Curve(
        "collective_knots", {"link_bytes_per_s": 32e9, "r2.1024": 1e-5, "r2.1048576": 1e-4, "r8.1024": 2e-5, "r8.1048576": 3e-4}
    )
    at = lambda ranks, message, limits=LIMITS: float(knots.seconds(limits, {"ranks": ranks, "message_bytes": message}))  # noqa: E731
    assert at(2, 1024) == pytest.approx(1e-5)
    assert at(2, 32768) == pytest.approx(np.sqrt(1e-5 * 1e-4))  # halfway in the logarithm
    assert at(4, 1024) == pytest.approx(np.sqrt(2) * 1e-5)
    assert at(2, 2 * 1048576) == pytest.approx(2e-4)
    assert at(2, 1) == pytest.approx(1e-5)
    many = knots.seconds(LIMITS, {"ranks": 4, "message_bytes": np.array([1024.0, 1048576.0])})
    assert many.tolist() == pytest.approx([at(4, 1024), at(4, 1048576)])
    slow = Limits.of(Device("slow", "test", 1, 1e12, {"bfloat16": 1e14}, 1, 1, link_bytes_per_s=16e9), "bfloat16")
    assert at(2, 1048576, slow) == pytest.approx(1e-5 + 2 * 9e-5)
    assert set(KEYS["all_reduce"]) == {"ranks", "message_bytes"}
    assert len(samples) == 90


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.parameters])
def test_a_formula_gives_the_same_for_arrays_and_for_numbers(name):
    form = FORMS[name]
    kind = {
        "gemm_tiles": "gemm",
        "gemm_tiles_eager": "gemm",
        "attention_prefill_tiles": "attention_prefill",
        "attention_decode_waves": "attention_decode",
    }
    shape = SHAPES["all_reduce" if name.startswith(("collective", "nccl", "all_reduce")) else kind.get(name, name)]
    parameters = Curve.prior(name).parameters
    for pick in range(3):
        columns = {key: values[pick % len(values)] for key, values in shape.items()}
        arrays = {key: np.array([float(value)]) for key, value in columns.items()}
        one = form.seconds(parameters, LIMITS, columns, FLOATS)
        assert one == pytest.approx(float(form.seconds(parameters, LIMITS, arrays, np)[0]), rel=1e-12)


def test_absent_columns_count_as_empty():
    frame = pd.DataFrame({"kind": ["memory"] * 20, "moved_bytes": np.geomspace(1e3, 1e9, 20)})
    frame["seconds"] = 1e-6 + frame.moved_bytes / 5e11
    assert fit(frame, DEVICE).curves["memory"].held_out["mean_absolute_error"] < 0.05


def test_an_all_reduce_changes_its_algorithm_with_the_message():
    made = Curve.prior("all_reduce_custom")
    sizes = np.array([2.0**17, 2.0**18 - 1, 2.0**18, 2.0**23 - 1, 2.0**23])
    few, many = (made.seconds(LIMITS, {"ranks": ranks, "message_bytes": sizes}) for ranks in (2, 8))
    assert few[2] == pytest.approx(few[1], rel=1e-4)  # two ranks read each other's values whatever the size
    assert many[1] > 1.5 * many[0]  # seven messages in one shot
    assert many[3] - many[2] == pytest.approx(2 * 7 / 8 * (2**23 - 2**18) / LIMITS.link_bytes_per_s / 0.6, rel=0.05)
    assert (np.diff(few[:4]) > 0).all()
