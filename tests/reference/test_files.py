"""Files are written whole or not at all, and a place that cannot be written is named in one line."""

import pytest

from llmlab.reference import files
from llmlab.reference.errors import InputError
from llmlab.reference.files import check_ending, write_atomic


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_atomic(tmp_path / "new" / "a.txt", "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_what_stood_there_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "old")

    def full(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(InputError, match=r"a\.txt: file name='a\.txt': cannot be written: No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomic(tmp_path / "a" / "b.txt", "new")


def test_an_ending_is_looked_at_in_the_whole_name():
    check_ending("x/run.json.gz", (".json", ".json.gz"))
    with pytest.raises(InputError, match=r"must end in \.json or \.json\.gz"):
        check_ending("x/run.gz", (".json", ".json.gz"))
