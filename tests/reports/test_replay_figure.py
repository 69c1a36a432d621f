"""The picture of replays draws what it is given, thins many runs, and is refused where there is nothing."""

import pytest

from llmlab.reports.replay_figure import MOST_RUNS, replay_figure, save_replays


def replay(name, factor=1.1):
    measured = [10.0 * 1.2**i for i in range(21)]
    curve = {"measured": measured, "simulated": [factor * value for value in measured]}
    curve["pairs"] = [[value, factor * value] for value in measured]
    line = {"row_id": f"set/{name}", "requests": 21, "scored": True}
    for metric in ("ttft", "e2e"):
        line |= {f"{metric}_rank_correlation": 1.0, f"{metric}_median_abs_error": 0.1}
    return line | {"curves": {"row_id": f"set/{name}", "ttft": curve, "e2e": curve}}


def test_every_run_is_a_row_of_two_distributions_and_two_scatters():
    axes = replay_figure([replay("a"), replay("b")]).axes
    assert len(axes) == 8
    measured, simulated = axes[0].lines
    assert simulated.get_xdata()[-1] == pytest.approx(1.1 * measured.get_xdata()[-1])
    assert axes[2].get_title(loc="left") == "median error 10.0 %, rank 1.00"
    assert "b (21 requests)" in axes[4].get_title(loc="left")


def test_many_runs_are_thinned():
    assert len(replay_figure([replay(str(i)) for i in range(3 * MOST_RUNS)]).axes) == 4 * MOST_RUNS


def test_a_file_is_written_whole_and_nothing_is_refused(tmp_path):
    written = save_replays([replay("a")], tmp_path / "a.svg")
    assert written.read_text().rstrip().endswith("</svg>")
    with pytest.raises(ValueError, match="no replayed runs"):
        save_replays([], tmp_path / "b.svg")
    assert not (tmp_path / "b.svg").exists()
