from dataclasses import replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError

pytest.importorskip("torch", reason="needs torch")

from llmlab.harness.calibration import here
from llmlab.harness.machine import Cache, describe
from llmlab.harness.roofline import Peaks
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model

TINY = here.Grid(
    models=("karpathy/stories260K",),
    rows=(1, 4),
    emitted=(1, 2),
    prompts=((4, 0), (4, 16)),
    batches=(1, 2),
    contexts=(5, 20),
    call_s=1e-4,
    passes=1,
    limit_s=0.0,
)
MEASURED = Peaks("cpu", "0123456789ab", [(1e6, 9e10), (1e9, 3e10)], {"float32": 2e11}, {}, 1e-6, False)


@pytest.fixture(scope="module")
def samples():
    return here.measure_here(TINY)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(here, "peaks", lambda device, **_: MEASURED)
    patch.setattr(here, "COPIES_BYTES", 1 << 20)
    path = tmp_path_factory.mktemp("calibration") / "machine.json"
    said = []
    fitted = here.calibrate_here(out=path, grid=TINY, progress=lambda *what: said.append(what))
    patch.undo()
    return path, fitted, said


def test_every_operator_of_a_step_is_measured_at_every_shape(samples):
    counts = samples.groupby(["kind", "operator"]).size().to_dict()
    assert counts == {
        ("gemm", ""): 4 * 2 + 2,
        ("memory", "norm"): 2,
        ("memory", "rope"): 2,
        ("memory", "activation"): 2,
        ("memory", "embedding"): 2,
        ("memory", "sampling"): 2,
        ("attention_prefill", ""): 2,
        ("attention_decode", ""): 4,
        ("host", ""): 2,
    }
    assert (samples["seconds"] > 0).all()
    assert np.isfinite(samples["seconds"]).all()


def test_measured_work_is_what_the_simulator_prices(samples):
    """The same bytes and sizes as the model description's operators at the same row counts."""
    operators = {
        one.name: one for one in load_model("karpathy/stories260K").operators(1, weight_dtype="float32") if hasattr(one, "name")
    }
    moved = samples[samples.kind == "memory"]
    for name in ("norm", "rope", "activation", "embedding", "sampling"):
        one = operators[name]
        expected = {
            one.elements_per_row * one.itemsize * rows
            for rows in (1, TINY.emitted[-1] if name == "sampling" else TINY.rows[-1])
        }
        assert set(moved[moved.operator == name]["moved_bytes"]) == expected, name
    products = {(int(n), int(k)) for n, k in samples[samples.kind == "gemm"][["n", "k"]].to_numpy()}
    assert products == {(operators[name].n, operators[name].k) for name in ("qkv", "o", "gate_up", "down", "lm_head")}


def test_the_quicker_pass_counts(monkeypatch):
    seconds = iter([3.0, 2.0, 5.0, 1.0, 4.0, 9.0])
    shapes = [({"kind": "gemm", "m": m, "n": 1, "k": 1}, lambda: None) for m in (1, 2)]
    monkeypatch.setattr(here, "_products", lambda *_: iter(shapes))
    for name in ("_rows_of_model", "_prefill", "_decode", "_host"):
        monkeypatch.setattr(here, name, lambda *_: iter(()))
    monkeypatch.setattr(here, "_timed", lambda found, *_: ((columns, next(seconds), False) for columns, _ in found))
    frame = here.measure_here(replace(TINY, passes=3, limit_s=60.0))
    assert frame[["m", "seconds"]].to_numpy().tolist() == [[1.0, 3.0], [2.0, 1.0]]


def test_operands_are_visited_in_turn():
    import torch

    following = here._in_turn(torch.zeros(here.COPIES_BYTES // 12))
    seen = [following().data_ptr() for _ in range(6)]
    assert len(set(seen[:3])) == 3
    assert seen[3:] == seen[:3]


def test_each_call_attends_in_the_next_layer():
    import torch

    config = load_model("karpathy/stories260K").config
    pages = here._Pages(config, [20, 7], "cpu", torch.float32)
    with torch.inference_mode():
        call = pages.attending(1)
        out, again = call(), call()
    assert out.shape == (2, config.num_attention_heads, config.head_dim)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, again)


def test_a_profile_is_written_that_the_simulator_reads(profile):
    path, fitted, said = profile
    read = load_device(path)
    assert read.curves.keys() == fitted.curves.keys()
    assert {"gemm.float32", "attention_prefill.float32", "attention_decode.float32", "memory", "host"} <= read.curves.keys()
    assert read.device.hbm_bytes_per_s == 3e10
    assert read.device.name == describe().cpu
    assert read.provenance["machine"]["digest"] == describe().digest
    assert said[-1][0] == "fitting"
    engine = here.engine_here(read)
    assert engine.host_step_s == pytest.approx(read.curve("host").parameters["step_s"])
    step = StepCost(load_model("llmlab/llama-100m"), read, weight_dtype="float32", kv_dtype="float32", engine=engine)
    few, many = (step.seconds(BatchShape((), n, 100 * n, n)) for n in (1, 64))
    assert 0 < few <= many


def test_measured_peaks_become_a_device_of_the_simulator():
    machine = replace(describe(), caches=(Cache("L2", 1 << 20, 2), Cache("L3", 1 << 25, 1)), memory_gib=8, threads=3)
    device = here.simulator_peaks(machine, MEASURED).device()
    assert (device.hbm_bytes, device.cores, device.last_level_cache_bytes) == (8 << 30, 3, 1 << 25)
    assert device.peak_flops_per_s("float32") == 2e11
    assert device.fitted


def test_a_profile_that_cannot_be_written_is_an_error(tmp_path, profile):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        profile[1].save(tmp_path / "file" / "machine.json")
