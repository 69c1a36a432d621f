import json
import threading
from dataclasses import replace

import pytest

from llmlab.harness.timing import results
from llmlab.harness.timing.results import Record
from llmlab.reference.errors import InputError


def record(median=1.0, *, spread=0.02, **changes):
    times = dict.fromkeys(("median_s", "best_s", "lower_s", "upper_s"), median)
    if median is not None:
        times |= {"lower_s": median * (1 - spread / 2), "upper_s": median * (1 + spread / 2)}
    fields = {
        "component": "layers.softmax",
        "shape": "small",
        "dims": {"B": 2},
        "dtype": "float32",
        "implementation": "numba",
        "device": "cpu",
        "device_name": "some processor",
        "machine": "0123456789ab",
        "versions": {"numpy": "2.0"},
        "code_path": "LLVM",
        "threads": 2,
        "correct": median is not None,
        "error": 0.5,
        "checked": "timed shape",
        "flops": 10.0,
        "moved_bytes": 16.0,
        "rounds": 9,
        "calls": 1,
        "date": "2026-01-02T03:04:05+00:00",
    }
    return Record(**(fields | times | changes))


def test_records_come_back_as_they_were_appended(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    first, second = record(), record(None, error=None)
    results.append(path, [first])
    results.append(path, [second])
    assert results.read(path) == [first, second]


def test_writers_at_the_same_time_lose_no_line(tmp_path):
    path = tmp_path / "results.jsonl"
    writers = [threading.Thread(target=results.append, args=(path, [record(float(i + 1))] * 20)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [one.median_s for one in results.read(path)]
    assert sorted(found) == sorted([float(i + 1) for i in range(8)] * 20)


def test_a_printed_report_can_be_read_back(tmp_path):
    path = tmp_path / "printed.json"
    path.write_text(json.dumps({"records": [record().as_dict()], "skipped": []}))
    assert results.read(path) == [record()]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "line"),
        ("", "line"),
        ("[1]", "record"),
        ('{"component": "a.b"}', "shape"),
        (json.dumps(record().as_dict() | {"surprise": 1}), "surprise"),
        (json.dumps(record().as_dict() | {"median_s": "fast"}), "median_s"),
        (json.dumps(record().as_dict() | {"rounds": True}), "rounds"),
        (json.dumps(record().as_dict() | {"median_s": -1.0}), "layers.softmax"),
        (json.dumps(record().as_dict()).replace("10.0", "NaN"), "flops"),
        (json.dumps(record().as_dict() | {"correct": False}), "wrong kernel has no time"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, line, field):
    path = tmp_path / "results.jsonl"
    results.append(path, [record()])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"line 2") as caught:
        results.read(path)
    assert field in str(caught.value)


def test_missing_and_empty_files_are_said_to_be_so(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        results.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no record"):
        results.read(tmp_path / "empty.jsonl")


def test_a_results_file_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        results.append(tmp_path / "file" / "results.jsonl", [record()])


def test_a_wrong_kernel_never_has_a_time():
    with pytest.raises(ValueError, match="wrong kernel has no time"):
        record(1.0, correct=False)


def verdict(old, new):
    (change,) = results.compare(old, new)
    return change.verdict


def test_a_change_counts_when_it_exceeds_the_spread_of_both_sides():
    assert verdict([record(1.0)], [record(1.2)]) == "slower"
    assert verdict([record(1.2)], [record(1.0)]) == "faster"
    assert verdict([record(1.0)], [record(1.04)]) == "same"
    assert verdict([record(1.0, spread=0.3)], [record(1.2)]) == "same"
    assert verdict([record(1.0)], [record(1.2, spread=0.15, noisy=True)]) == "same"
    assert verdict([record(1.0)], [record(1.2, spread=0.15)]) == "slower"


def test_comparison_says_what_became_wrong_appeared_or_vanished():
    other = {"implementation": "torch"}
    assert verdict([record()], [record(None)]) == "now wrong"
    assert verdict([record(None)], [record()]) == "now right"
    assert verdict([record(None)], [record(None)]) == "wrong"
    assert sorted(c.verdict for c in results.compare([record()], [record(**other)])) == ["gone", "new"]


def test_only_the_latest_record_of_a_key_is_compared():
    (change,) = results.compare([record(9.0), record(1.0)], [record(7.0), record(2.0)])
    assert (change.old_s, change.new_s, change.ratio) == (1.0, 2.0, 2.0)


def test_a_library_as_shipped_and_unlocked_are_not_compared_with_each_other():
    shipped, unlocked = record(4.0, implementation="torch"), record(2.0, implementation="torch", unlocked=True)
    assert list(results.latest([shipped, unlocked]).values()) == [shipped, unlocked]
    changes = results.compare([shipped, unlocked], [shipped, replace(unlocked, median_s=3.0, upper_s=3.0)])
    assert [(change.label, change.verdict) for change in changes] == [("torch", "same"), ("torch (unlocked)", "slower")]
    assert [change.verdict for change in results.compare([shipped], [unlocked])] == ["gone", "new"]


def test_records_without_the_field_are_unlocked_where_their_run_overrode_the_vendor_check(tmp_path):
    overridden = {"machine": "unlocked run", "code_path": "MKL 2024.2, AVX2, vendor check overridden"}
    written = [
        record(implementation="torch", code_path="MKL 2024.2, AVX2"),
        record(implementation="numpy", machine="unlocked run", code_path="openblas Haswell"),
        record(implementation="torch", **overridden),
        record(implementation="numba", machine="unlocked run"),
    ]
    old = [{name: value for name, value in one.as_dict().items() if name != "unlocked"} for one in written]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    (tmp_path / "printed.json").write_text(json.dumps({"records": old}))
    for name in ("old.jsonl", "printed.json"):
        assert [one.unlocked for one in results.read(tmp_path / name)] == [False, True, True, False]
    results.append(tmp_path / "new.jsonl", [replace(record(implementation="torch", **overridden), unlocked=False)])
    assert [one.unlocked for one in results.read(tmp_path / "new.jsonl")] == [False]


def test_other_machines_versions_and_code_paths_are_noted():
    new = record(device_name="other processor")
    assert "other machine" in results.compare([record()], [new])[0].note
    assert "numpy 2.0 -> 2.1" in results.compare([record()], [record(versions={"numpy": "2.1"})])[0].note
    assert "code path was LLVM" in results.compare([record()], [replace(record(), code_path="Haswell")])[0].note
    assert results.compare([record()], [record()])[0].note == ""


def test_fraction_of_the_limit_follows_from_the_record():
    assert record(2.0, limit_s=0.5).fraction == 0.25
    assert record(2.0).fraction is None
    assert record(None).fraction is None
