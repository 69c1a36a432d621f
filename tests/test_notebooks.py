"""The teaching notebooks run from top to bottom, in an empty folder, with nothing but this package."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
NEEDED = ("nbclient", "nbformat", "ipykernel", "matplotlib", "numba", "torch")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the notebook client's own libraries
]


def run(notebook: Any, folder: Path) -> None:
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    import nbformat

    run(nbformat.read(path, as_version=4), tmp_path)
    assert list(tmp_path.iterdir()) == [], "a notebook leaves no files behind"


def test_a_failing_cell_fails_the_run(tmp_path: Path) -> None:
    import nbformat
    from nbclient.exceptions import CellExecutionError

    cells = [nbformat.v4.new_code_cell("one = 1"), nbformat.v4.new_code_cell("assert one == 2")]
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run(nbformat.v4.new_notebook(cells=cells), tmp_path)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_stored_outputs_are_those_that_do_not_depend_on_the_machine(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "measured" in cell.metadata.get("tags", []):
            assert cell.outputs == [], "a cell tagged as measured stores no output"
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", "a stored output is a warning"


def test_notebooks_are_numbered_in_reading_order() -> None:
    numbers = [path.name[:3] for path in NOTEBOOKS]
    assert all(number[:2].isdigit() and number[2] == "_" for number in numbers)
    assert len(set(numbers)) == len(numbers), "two notebooks have one number"
