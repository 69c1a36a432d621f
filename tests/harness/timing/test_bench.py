import dataclasses
import json

import numpy as np
import pytest

from llmlab.cli import main
from llmlab.harness.parity import draw_dims
from llmlab.harness.roofline import Peaks
from llmlab.harness.timing import bench, results
from llmlab.harness.timing.measure import Quiet, summarize
from llmlab.kernels import twin as registry
from llmlab.kernels.twin import Twin
from llmlab.reference.catalog import load
from llmlab.reference.errors import InputError

SOFTMAX = load("layers.softmax")
SMALL = "8k rows of 4k scores"
EFFORT = bench.Effort(budget_s=0.01, formula_s=1e9, check_s=1e-4)


@pytest.fixture
def bring(monkeypatch):
    """Register a NumPy function as somebody's numba twin of softmax, for one test."""
    registry.twins_of(SOFTMAX, ["numba"])  # import our own first: an import registers once only
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def add(function, name="theirs"):
        registry.register(Twin(SOFTMAX, "numba", function, ("float32",), source=name))

    return add


@pytest.fixture(autouse=True)
def fresh():
    """No exact result of another test is kept."""
    bench.checker_of.cache_clear()
    yield
    bench.checker_of.cache_clear()


@pytest.fixture
def small(monkeypatch):
    """Softmax with one tiny shape, so that nothing here takes long."""
    monkeypatch.setitem(SOFTMAX.__dict__, "shapes", {SMALL: {"B": 1, "T": 3, "S": 40}})


def right(x, *, axis=-1):
    return SOFTMAX.reference(x, axis=axis)


def slightly_wrong(x, *, axis=-1):
    return right(x, axis=axis) * x.dtype.type(1.001)


def run(only, timer=None):
    timer = timer or (lambda call, one: summarize([1.0, 1.0, 1.0]))
    return list(bench.bench_case(SOFTMAX, SMALL, "float32", effort=EFFORT, timer=timer, backends=["numba"], only=only))


@pytest.mark.usefixtures("small")
def test_a_wrong_kernel_shows_as_wrong_and_is_never_timed(bring):
    bring(slightly_wrong)

    def timer(call, one):
        raise AssertionError("timed a wrong kernel")

    (record,) = run("numba (theirs)", timer)
    assert not record.correct
    assert record.median_s is None
    assert record.error > 1
    (row,) = bench.table([record])
    assert row["time"] == "WRONG"
    assert row["ratio"] == row["% of limit"] == ""


@pytest.mark.usefixtures("small")
def test_a_kernel_that_raises_is_wrong_with_its_message(bring):
    def broken(x, *, axis=-1):
        raise RuntimeError("no such tile")

    bring(broken)
    (record,) = run("numba (theirs)")
    assert not record.correct
    assert "no such tile" in record.checked


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "answer", [lambda x: x[:0], lambda x: (x, x), lambda x: np.full_like(x, np.nan), lambda x: x.astype(np.int64)]
)
def test_a_result_of_another_shape_count_or_kind_is_wrong(bring, answer):
    bring(lambda x, *, axis=-1: answer(right(x, axis=axis)))
    (record,) = run("numba (theirs)")
    assert not record.correct


@pytest.mark.usefixtures("small")
def test_a_right_kernel_is_timed_and_its_limit_follows_from_the_cost(bring):
    bring(right)
    peaks = Peaks("cpu", "", [(1.0, 1e9)], {"float32": 1e15}, {}, 0.0, False)
    timer = lambda call, one: summarize([0.25, 0.5, 1.0])  # noqa: E731
    (record,) = bench.bench_case(
        SOFTMAX, SMALL, "float32", effort=EFFORT, timer=timer, only="numba (theirs)", peaks_of=lambda device: peaks
    )
    assert record.correct
    assert (record.median_s, record.best_s) == (0.5, 0.25)
    assert record.flops == 5 * 3 * 40
    assert record.moved_bytes == 2 * 3 * 40 * 4
    assert record.limit_s == pytest.approx(2 * 3 * 40 * 4 / 1e9)
    assert record.bound == "memory"
    assert record.fraction == pytest.approx(record.limit_s / 0.5)


@pytest.mark.usefixtures("small")
def test_every_implementation_is_given_the_same_values(bring):
    seen = []

    def looking(x, *, axis=-1):
        seen.append(x.copy())
        return right(x, axis=axis)

    bring(looking, "first")
    bring(looking, "second")
    run("numba (first)", timer=lambda call, one: (call(), summarize([1.0]))[1])
    half = len(seen)
    run("numba (second)", timer=lambda call, one: (call(), summarize([1.0]))[1])
    assert half
    for one, other in zip(seen[:half], seen[half:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("small")
def test_a_dtype_nobody_claims_is_skipped_with_the_reason(bring):
    bring(right)
    found = list(bench.bench_case(SOFTMAX, SMALL, "float16", effort=EFFORT, backends=["numba"]))
    assert {one.why for one in found} == {"does not claim float16"}
    assert all(row["time"] == "-" for row in bench.table([], found))


def test_a_formula_that_would_take_minutes_is_skipped_and_said():
    gqa = load("attention.gqa")
    name, dims = next(iter(gqa.shapes.items()))
    assert bench.formula_seconds(gqa, dims) > 0.01
    effort = bench.Effort(budget_s=0.01, formula_s=0.01, check_s=1e-3)
    found = list(bench.bench_case(gqa, name, "float32", effort=effort, only="numpy"))
    assert "would take about" in found[0].why


def test_a_shape_larger_than_memory_is_skipped_and_said():
    effort = bench.Effort(memory=1e-12)
    found = list(bench.bench_case(SOFTMAX, next(iter(SOFTMAX.shapes)), "float32", effort=effort, only="numpy"))
    assert "GiB of memory" in found[0].why


def test_memory_counts_whole_inputs_not_only_what_is_read():
    embedding = load("layers.embedding")
    dims = dict.fromkeys(embedding.dims, 64)
    table = 64 * 64
    assert bench.memory_needed(embedding, dims, "float32") >= 12 * table
    larger = {**dims, "V": 64_000}
    assert bench.memory_needed(embedding, larger, "float32") >= 1000 * 12 * table


def test_timed_inputs_are_the_drawn_ones_in_the_dtype_they_are_held_in():
    dims = {"B": 2, "T": 3, "S": 5}
    drawn = SOFTMAX.make_inputs(dims, np.random.default_rng(0))["x_BTS"]
    held = bench.timed_inputs(SOFTMAX, dims, "bfloat16")["x_BTS"]
    assert held.dtype == np.float32
    np.testing.assert_array_equal(held, drawn.astype(np.float32))
    np.testing.assert_array_equal(bench.timed_inputs(SOFTMAX, dims, "float64")["x_BTS"], drawn)


@pytest.mark.parametrize("component_id", ["layers.softmax", "attention.gqa", "positions.rope"])
def test_long_axes_are_halved_until_the_formula_is_quick(component_id):
    op = load(component_id)
    for dims in op.shapes.values():
        small = bench.shrunk(op, dims, 0.01)
        assert bench.formula_seconds(op, small) <= 0.01
        assert small.keys() == dims.keys()
        assert all(1 <= small[axis] <= dims[axis] for axis in dims)
        assert bench.shrunk(op, small, 1e9) == small
        checked, inputs = bench.checkable_dims(op, dims, 0.01, "float32")
        op.reference(*inputs.values())
        assert bench.formula_seconds(op, checked) <= 0.01


def test_where_halving_breaks_the_op_small_random_sizes_are_checked(monkeypatch):
    def picky(dims, rng):
        if dims["T"] not in SOFTMAX.dims["T"]:
            raise ValueError("T must be small")
        return rng.standard_normal([dims[axis] for axis in "BTS"])

    monkeypatch.setitem(SOFTMAX.__dict__, "draw", {"x_BTS": picky})
    checked, inputs = bench.checkable_dims(SOFTMAX, {"B": 1, "T": 4096, "S": 4096}, 0.01, "float32")
    assert checked == draw_dims(SOFTMAX, np.random.default_rng(0))
    assert inputs["x_BTS"].shape == tuple(checked[axis] for axis in "BTS")


@pytest.mark.usefixtures("small")
def test_the_table_puts_the_fastest_first_and_gives_ratios(bring):
    bring(right)
    slow, fast = (summarize([seconds]) for seconds in (0.4, 0.1))
    times = {"numpy": slow, "numba (theirs)": fast}
    effort = bench.Effort(check_s=1e-3, formula_s=1e9)
    records = [
        record
        for record in bench.bench_case(
            SOFTMAX, SMALL, "float32", effort=effort, timer=lambda call, one: times.get(one.label, slow), backends=["numba"]
        )
        if isinstance(record, results.Record)
    ]
    rows = bench.table(records)
    assert rows[0]["implementation"] == "numba (theirs)"
    assert (rows[0]["ratio"], rows[0]["time"]) == ("1.00", "100 ms")
    assert {row["ratio"] for row in rows[1:]} == {"4.00"}
    ((title, cells),) = bench.tables(rows)
    assert title == f"layers.softmax, {SMALL}, float32"
    assert "component" not in cells[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "layers.nonsense"], "neither a component nor a family"),
        (["bench", "--backend", "cobol"], "is none of"),
        (["bench", "layers.softmax", "--dtype", "float12"], "is none of"),
        (["bench", "layers.softmax", "--shape", "no such shape"], "no shape's name"),
        (["bench", "layers.softmax", "--compare", "absent.json"], "cannot be read"),
        (["bench", "--kernel", "absent.py:f"], "needs --op"),
    ],
)
def test_bad_options_end_with_one_line_and_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("bring")
def test_the_command_prints_stores_and_compares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", EFFORT)
    monkeypatch.setattr(bench, "wait_until_quiet", lambda limit_s: Quiet(0.5, 0.0, 0.0))
    monkeypatch.setitem(SOFTMAX.__dict__, "shapes", {SMALL: {"B": 1, "T": 3, "S": 40}})
    monkeypatch.setattr(bench, "peaks", lambda device, **_: Peaks(device, "", [(1.0, 1e9)], {"float32": 1e12}, {}, 0.0, False))
    path, printed = tmp_path / "results.jsonl", tmp_path / "printed.json"
    ours = tmp_path / "mine.py"
    ours.write_text("import numpy as np\ndef f(x, *, axis=-1):\n    return np.zeros_like(x)\n")
    common = ["bench", "layers.softmax", "--backend", "numba", "--quick", "--results", str(path)]
    assert main([*common, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"machine", "peaks", "records", "skipped", "changes", "quiet"} <= document.keys()
    assert {record["implementation"] for record in document["records"]} >= {"numpy", "numba"}
    assert len(results.read(path)) == len(document["records"])
    printed.write_text(json.dumps(document))
    assert main([*common, "--compare", str(printed)]) == 0
    assert "verdict" in capsys.readouterr().out
    wrong = [
        "bench",
        "--kernel",
        f"{ours}:f",
        "--op",
        "layers.softmax",
        "--backend",
        "numba",
        "--quick",
        "--results",
        str(path),
    ]
    assert main(wrong) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_backend_that_is_not_installed_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(bench, "missing", lambda backend: f"needs {backend}")
    with pytest.raises(InputError, match="needs triton"):
        bench.check_runnable(["triton"])


@pytest.mark.usefixtures("small")
def test_the_table_weighs_kernels_against_the_fastest_library_and_libraries_against_nothing(bring):
    bring(right)
    times = {"numpy": 0.4, "numba (theirs)": 0.1}
    (ours, *_) = [
        record
        for record in bench.bench_case(
            SOFTMAX,
            SMALL,
            "float32",
            effort=bench.Effort(check_s=1e-3, formula_s=1e9),
            timer=lambda call, one: summarize([times.get(one.label, 0.4)]),
            backends=["numba"],
            only="numba (theirs)",
        )
        if isinstance(record, results.Record)
    ]
    libraries = [
        dataclasses.replace(ours, implementation=name, best_s=seconds)
        for name, seconds in (("torch", 0.3), ("torch.nn.functional.softmax", 0.2), ("numpy", 0.01))
    ]
    cells = {row["implementation"]: row["peer/this"] for row in bench.table([ours, *libraries])}
    assert cells == {"numba (theirs)": "2.00", "torch": "", "torch.nn.functional.softmax": "", "numpy": "20.00"}
    elsewhere = [dataclasses.replace(one, device="cuda") for one in libraries]
    assert bench.best_peer(ours, elsewhere) is None
