"""What is shipped: one import name, every floor in the wheel, each file once in the source archive."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("reference", "kernels", "simulator", "harness", "reports")


def build(target: str, folder: Path) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.iterdir()
    return archive


def test_wheel_holds_every_floor_under_one_import_name(tmp_path: Path) -> None:
    names = zipfile.ZipFile(build("wheel", tmp_path)).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"llmlab"}
    for floor in FLOORS:
        sources = {f"llmlab/{path.relative_to(ROOT)}" for path in (ROOT / floor).rglob("*.py")}
        assert sources
        assert sources <= set(names), sorted(sources - set(names))[:5]
    assert "llmlab/py.typed" in names
    assert any(name.startswith("llmlab/simulator/hardware/profiles/") for name in names)
    assert any(name.startswith("llmlab/reports/templates/") for name in names)


def test_source_archive_holds_each_file_once(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert len(names) == len(set(names))
    for wanted in ("README.md", "LICENSE", "constraints.txt", "tests/test_ops.py", "llmlab/reference/op.py"):
        assert wanted in names
    assert not any(name.startswith(FLOORS) for name in names)


def test_a_test_file_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_broken.py").write_text("from llmlab.reference.op import nothing_such\n\ndef test_it():\n    pass\n")
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *settings, str(tmp_path / "test_broken.py")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0
    assert "nothing_such" in found.stdout
