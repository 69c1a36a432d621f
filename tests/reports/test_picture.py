"""Pictures are written whole or not at all, the same figure as the same bytes."""

import pytest
from matplotlib.figure import Figure

from llmlab.reference.errors import InputError
from llmlab.reports.picture import UNDATED, write_picture


def line():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0], label="falls")
    return figure


@pytest.mark.parametrize("ending", UNDATED)
def test_equal_figures_give_equal_files(tmp_path, ending):
    one, two = (write_picture(line, tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
    assert one == two
    assert one.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])


def test_a_bad_name_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png or \.svg or \.pdf"):
        write_picture(lambda: pytest.fail("drawn"), tmp_path / "a.gif")


def test_a_figure_that_fails_leaves_no_file_and_a_bad_place_is_one_line(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_picture(lambda: 1 / 0, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png.*directory"):
        write_picture(line, tmp_path / "a.png")
