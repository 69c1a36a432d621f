"""Sketches of latencies and the two columns of gaps."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.serving import sketch
from llmlab.simulator.serving.metrics import STATISTICS, weighted_statistics
from llmlab.simulator.serving.sketch import Exact, GapCounts, Sketch


def read(kind, parts, names=STATISTICS):
    kept = kind()
    for part in parts:
        kept.add(part)
    return kept.read(names)


def drawn(count=50_000):
    values = np.random.default_rng(1).lognormal(0, 1, count)
    values[::7] = np.nan
    return np.array_split(values, 9)


def test_a_sketch_is_close_and_its_mean_and_maximum_are_exact():
    pytest.importorskip("datasketches", reason="needs datasketches")
    exact, near = read(Exact, drawn(), (*STATISTICS, "p99.9")), read(Sketch, drawn(), (*STATISTICS, "p99.9"))
    assert near["max"] == exact["max"]
    assert near["mean"] == pytest.approx(exact["mean"], rel=1e-12)
    for name in ("p50", "p90", "p95", "p99", "p99.9"):
        assert near[name] == pytest.approx(exact[name], rel=0.01)


def test_equal_values_give_equal_sketches():
    pytest.importorskip("datasketches", reason="needs datasketches")
    assert read(Sketch, drawn()) == read(Sketch, drawn())


@pytest.mark.parametrize("kind", [Exact, Sketch])
def test_nothing_has_no_statistics(kind):
    if kind is Sketch:
        pytest.importorskip("datasketches", reason="needs datasketches")
    assert read(kind, [np.array([np.nan])]) == dict.fromkeys(STATISTICS)
    assert read(kind, []) == dict.fromkeys(STATISTICS)


def test_without_the_library_a_sketch_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sketch, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="datasketches"):
        Sketch()
    assert not sketch.available()


def test_gap_counts_are_the_mapping_they_stand_for():
    counts = {3: 7, 10**9: 1, 2 * 10**9: 5}
    columns = GapCounts(np.array(sorted(counts.items())))
    assert columns == counts
    assert counts == columns
    assert list(columns) == sorted(counts)
    assert weighted_statistics(columns) == weighted_statistics(counts)
    assert 4 not in columns
    with pytest.raises(KeyError):
        columns[3 * 10**9]
    assert weighted_statistics(GapCounts(np.zeros((0, 2), dtype=np.int64)))["p50"] is None
