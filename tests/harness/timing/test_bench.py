import dataclasses
import json

import numpy as np
import pytest

from llmlab.cli import main
from llmlab.harness.machine import describe
from llmlab.harness.parity import draw_dims
from llmlab.harness.roofline import Peaks
from llmlab.harness.timing import bench, results
from llmlab.harness.timing.beside import Rates, Reached
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
    registry.twins_of(SOFTMAX)  # import our own first: an import registers once only
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def add(function, name="theirs"):
        registry.register(Twin(SOFTMAX, "numba", function, ("float32",), source=name))

    return add


@pytest.fixture(autouse=True)
def fresh():
    """No exact result of another test is kept."""
    bench.forget_case()
    yield
    bench.forget_case()


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
    assert row["median"] == "WRONG"
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
    assert all(row["median"] == "-" for row in bench.table([], found))


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
    assert (rows[0]["ratio"], rows[0]["median"]) == ("1.00", "100 ms")
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
        (["bench", "--unlocked"], "--unlocked"),
    ],
)
def test_bad_options_end_with_one_line_and_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert list(tmp_path.iterdir()) == []


class Peers:
    """Unlocked libraries that need a tenth of a second, and remember what they were asked for."""

    needed, why_not = True, ""
    code_paths = {"torch": "MKL, vendor check overridden", "numpy": "same"}  # noqa: RUF012

    def __init__(self, log=None, answer=None):
        self.log, self.answer = log if log is not None else [], answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def differs(self, library):
        return library == "torch"

    def bench(self, request):
        self.log.append(f"{request['implementation']} (unlocked)")
        if self.answer:
            return self.answer
        component = load(request["component"])
        (one,) = [one for one in bench.implementations_of(component) if one.label == request["implementation"]]
        record = bench._record(component, request["shape"], {}, request["dtype"], one, True, 0.5, "timed shape")
        timing = summarize([0.1])
        cost = {"flops": 600.0, "moved_bytes": 960.0, "machine": "theirs", "code_path": "MKL, vendor check overridden"}
        return dataclasses.replace(bench._with_timing(record, timing), **cost)

    def rest(self):
        self.log.append("rest")


class Beside:
    """A machine that is measured before and after a case, and remembers when."""

    def __init__(self, log, reached):
        self.log, self.reached = log, reached

    def __call__(self, peaks, moved_bytes, dtype):
        self.log.append("before")
        return self

    def after(self):
        self.log.append("after")
        return self.reached


PEAKS = Peaks("cpu", "", [(1.0, 1e9)], {"float32": 1e12}, {}, 0.0, False)
AT_900_BYTES_PER_S = Reached(Rates(bandwidth=900.0, arithmetic=1e9), bandwidth_drift=0.1, arithmetic_drift=0.0)


def run_beside(log, *, peers=None, reached=AT_900_BYTES_PER_S, only=None):
    def timer(call, one):
        log.append(one.label)
        return summarize([0.4])

    return list(
        bench.bench_case(
            SOFTMAX,
            SMALL,
            "float32",
            effort=EFFORT,
            timer=timer,
            peaks_of=lambda device: PEAKS if device == "cpu" else None,
            beside=Beside(log, reached),
            peers=peers,
            only=only,
            backends=["numba", "torch"],
        )
    )


torch_on_the_processor = pytest.mark.skipif(
    bool(describe().accelerators) or describe().versions["torch"] == "absent", reason="needs torch on the processor"
)


@torch_on_the_processor
@pytest.mark.usefixtures("small")
def test_a_library_is_timed_unlocked_right_after_it_was_timed_as_shipped():
    log = []
    found = run_beside(log, peers=Peers(log))
    assert log[0] == "before"
    assert log[-1] == "after"
    assert log[1:-1] == ["numpy", "numba", "torch", "torch (unlocked)", "torch.softmax", "torch.softmax (unlocked)"]
    unlocked = [one for one in found if isinstance(one, results.Record) and one.unlocked]
    assert [one.label for one in unlocked] == ["torch (unlocked)", "torch.softmax (unlocked)"]
    assert {one.machine for one in unlocked} == {describe().digest}
    assert len({one.key for one in found}) == len(found)


@torch_on_the_processor
@pytest.mark.usefixtures("small")
def test_a_kernel_is_weighed_against_the_best_of_shipped_and_unlocked_peers():
    rows = {row["implementation"]: row for row in bench.table(run_beside([], peers=Peers()))}
    assert rows["numba"]["peer/this"] == rows["numpy"]["peer/this"] == "0.25"
    assert rows["torch (unlocked)"]["peer/this"] == rows["torch"]["peer/this"] == ""
    assert list(rows)[:2] == ["torch (unlocked)", "torch.softmax (unlocked)"]
    alone = {row["implementation"]: row for row in bench.table(run_beside([]))}
    assert alone["numba"]["peer/this"] == "1.00"


@torch_on_the_processor
@pytest.mark.usefixtures("small")
def test_somebodys_torch_kernel_is_weighed_against_torch_as_shipped(bring):
    registry.register(Twin(SOFTMAX, "torch", lambda x, *, axis=-1: x.softmax(axis), ("float32",), source="mine.py"))
    rows = {row["implementation"]: row for row in bench.table(run_beside([], peers=Peers()))}
    assert (rows["torch (mine.py)"]["peer/this"], rows["numba"]["peer/this"]) == ("1.00", "0.25")


@torch_on_the_processor
@pytest.mark.usefixtures("small")
def test_why_a_library_is_not_shown_unlocked_is_said():
    found = run_beside([], peers=Peers(answer="the unlocked process ended: no memory"))
    (row,) = [row for row in bench.table([], found) if row["implementation"] == "torch (unlocked)"]
    assert (row["median"], row["remarks"]) == ("-", "the unlocked process ended: no memory")


@torch_on_the_processor
@pytest.mark.usefixtures("small")
def test_one_unlocked_library_can_be_asked_for():
    (found,) = run_beside([], peers=Peers(), only="torch (unlocked)")
    assert (found.label, found.median_s) == ("torch (unlocked)", 0.1)
    (found,) = run_beside([], peers=Peers(), only="torch")
    assert (found.label, found.median_s) == ("torch", 0.4)


@torch_on_the_processor
def test_only_a_librarys_own_code_is_unlocked(bring):
    bring(right)
    registry.register(Twin(SOFTMAX, "torch", right, ("float32",), source="mine.py"))
    expanded = bench.with_unlocked(bench.implementations_of(SOFTMAX, ["numba", "torch"]))
    names = [one.name for one in expanded if one.unlocked]
    assert names == ["numpy (unlocked)", "torch (unlocked)", "torch.softmax (unlocked)"]
    elsewhere = [dataclasses.replace(one, device="cuda") for one in expanded if not one.unlocked]
    assert bench.with_unlocked(elsewhere) == elsewhere


@pytest.mark.usefixtures("small")
def test_the_limit_is_what_the_machine_reached_beside_the_case_and_stands_in_the_record():
    for one in run_beside([], only="numba"):
        assert (one.bandwidth, one.arithmetic, one.drift, one.bound) == (900.0, 1e9, 0.1, "memory")
        assert one.limit_s == max(one.moved_bytes / one.bandwidth, one.flops / one.arithmetic)
        assert one.fraction == pytest.approx(960 / 900 / 0.4)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("drift", "marked"), [(0.1, False), (0.2, True)])
def test_a_case_beside_which_the_machine_drifted_is_marked(drift, marked):
    reached = dataclasses.replace(AT_900_BYTES_PER_S, bandwidth_drift=drift)
    rows = bench.table(run_beside([], reached=reached))
    assert rows
    assert all(("memory drifted by 20%" in row["remarks"]) == marked for row in rows)


@pytest.mark.usefixtures("small")
def test_the_fraction_of_the_limit_comes_first_then_the_peer_then_best_and_median():
    head = ["component", "shape", "dtype", "implementation", "% of limit", "peer/this", "best", "median"]
    assert all(list(row)[:8] == head for row in bench.table(run_beside([])))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("noisy", "wait_s", "expected"), [(True, 9.0, [3.0]), (True, 2.0, [2.0]), (True, 0.0, []), (False, 9.0, [])]
)
def test_after_a_noisy_shape_the_run_waits_for_quiet_but_not_for_ever(monkeypatch, noisy, wait_s, expected):
    waits = []
    monkeypatch.setattr(bench, "wait_until_quiet", waits.append)
    monkeypatch.setattr(bench, "measure", lambda call, **_: summarize([1.0], noisy=noisy))
    bench.run_bench([SOFTMAX], backends=["numba"], effort=EFFORT, wait_s=wait_s)
    assert waits == expected


def report(**changes):
    fields = {"peaks": {}, "quiet": Quiet(0.0, 0.0, 0.0), "records": [], "skipped": [], "changes": [], "results": ""}
    return bench.Report(**({"machine": describe()} | fields | changes))


def test_the_report_tells_which_code_ran_or_why_libraries_are_shown_as_shipped_only():
    assert "torch (unlocked): MKL" in report(unlocked={"torch": "MKL"}).remarks()
    assert any("needs a C compiler" in line for line in report(why_not_unlocked="needs a C compiler").remarks())
    assert not any("unlocked" in line or "shipped" in line for line in report().remarks())


@pytest.mark.parametrize(("shipped", "said"), [(0.45, True), (0.8, False)])
def test_the_report_tells_of_a_slow_code_path_beside_the_fast_one(shipped, said):
    methods = {"float32": {"fma": 1e12, "torch": shipped * 1e12, "torch (unlocked)": 0.95e12}}
    lines = report(peaks={"cpu": dataclasses.replace(PEAKS, methods=methods)}).remarks()
    assert ("torch float32 GEMM reaches 45% of the arithmetic peak, a slow code path" in lines) == said
    assert ("torch (unlocked) float32 GEMM reaches 95% of the arithmetic peak" in lines) == said


@pytest.mark.usefixtures("bring")
def test_the_command_prints_stores_and_compares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "PeerProcess", lambda machine: Peers())
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
    assert {"machine", "peaks", "records", "skipped", "changes", "quiet", "unlocked"} <= document.keys()
    assert {record["implementation"] for record in document["records"]} >= {"numpy", "numba"}
    assert len(results.read(path)) == len(document["records"])
    printed.write_text(json.dumps(document))
    assert main([*common, "--compare", str(printed)]) == 0
    printed_tables = capsys.readouterr().out
    assert "verdict" in printed_tables
    assert printed_tables.index("% of limit") < printed_tables.index("peer/this") < printed_tables.index("best")
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
