"""The pipeline picture has a box per action, on one scale of time, and is refused where there is nothing."""

import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._orders import make_schedule
from llmlab.reports.pipeline_figure import pipeline_figure, save_pipeline
from llmlab.simulator.training.replay import even, replay


def timeline(name, ranks=2, microbatches=3, **options):
    schedule = make_schedule(name, ranks, microbatches)
    return replay(schedule, even(schedule, 3_000_000, 2_000_000, 1_000_000, **options))


def test_every_action_is_a_box_with_its_microbatch():
    axes = pipeline_figure([timeline("zb_h1")]).axes[0]
    assert len(axes.collections) == 2 + 2 * 3 * 3
    assert sorted(text.get_text() for text in axes.texts) == sorted("012" * 6)
    assert sum(path.get_extents().width for bar in axes.collections[2:] for path in bar.get_paths()) == pytest.approx(2 * 18)
    assert axes.get_title(loc="left").startswith("zb_h1   bubble ")


def test_panels_share_their_scale_and_show_activations():
    axes = pipeline_figure([timeline("gpipe"), timeline("naive")]).axes
    assert axes[0].get_xlim() == axes[2].get_xlim()
    assert [text.get_text().strip() for text in axes[1].texts] == ["3", "3"]
    assert [text.get_text().strip() for text in axes[3].texts] == ["1", "1"]


def test_a_forward_beside_a_backward_shares_its_height():
    axes = pipeline_figure([timeline("dualpipe", 2, 6, pair_permille=1000)]).axes[0]
    heights = {round(path.get_extents().height, 2) for bar in axes.collections for path in bar.get_paths()}
    assert heights == {0.84, 0.42}


def test_a_file_is_written_whole_and_bad_ones_are_refused(tmp_path):
    assert save_pipeline([timeline("1f1b")], tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")
    assert save_pipeline([timeline("1f1b")], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"must end in \.png"):
        save_pipeline([timeline("1f1b")], tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no timelines"):
        pipeline_figure([])
