"""`llmlab simulate pipeline`: bubble and activations beside their closed forms, picture, trace, one line for bad input."""

import json

import pytest

from llmlab.cli import main


def answer(capsys, *arguments):
    assert main(["simulate", "pipeline", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_schedule_is_an_object_with_its_closed_forms(capsys, tmp_path):
    files = tmp_path / "a.svg", tmp_path / "a.json"
    got = answer(capsys, "--schedule", "1f1b", "--ranks", "4", "--plot", str(files[0]), "--trace", str(files[1]))
    assert got["bubble"] == pytest.approx(3 / 11)
    assert got["bubble_closed_form"] == pytest.approx(got["bubble"])
    assert got["peak_activations"] == got["peak_activations_closed_form"] == [4, 3, 2, 1]
    assert all(file.stat().st_size > 1000 for file in files)


def test_several_schedules_are_a_list_and_the_loops_agree(capsys):
    given = ["--schedule", "interleaved", "--schedule", "zb_2p", "--schedule", "dualpipe", "--virtual", "2"]
    given += ["--input-ms", "1.3", "--hand-over-ms", "0.1", "--together", "0.9"]
    quick = answer(capsys, *given)
    assert [row["schedule"] for row in quick] == ["interleaved", "zb_2p", "dualpipe"]
    assert quick == answer(capsys, *given, "--path", "simpy")


def test_a_table_names_the_schedules(capsys):
    assert main(["simulate", "pipeline", "--schedule", "zb_v", "--schedule", "naive"]) == 0
    printed = capsys.readouterr().out
    assert "zb_v" in printed
    assert "naive" in printed


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--schedule", "fastest"], "fastest"),
        (["--schedule", "chimera", "--ranks", "3"], "num_ranks=3 must be even"),
        (["--schedule", "1f1b", "--ranks", "0"], "num_ranks=0 < 1"),
        (["--schedule", "1f1b", "--virtual", "2"], "virtual=2"),
        (["--schedule", "1f1b", "--forward-ms", "nan"], "forward_ms=nan"),
        (["--schedule", "1f1b", "--weight-ms", "-1"], "weight_ms=-1"),
        (["--schedule", "1f1b", "--together", "1"], "only dualpipe"),
        (["--schedule", "zb_2p", "--freed-by-input", "1.5"], "freed_by_input=1.5"),
        (["--schedule", "1f1b", "--plot", "a.txt"], "must end in .png"),
        (["--schedule", "1f1b", "--path", "fast"], "neither compiled nor simpy"),
        (["--schedule", "1f1b", "--schedule", "gpipe", "--trace", "a.json"], "takes one schedule"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "pipeline", *arguments]) == 2
    printed = capsys.readouterr()
    assert why in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not list(tmp_path.iterdir())
