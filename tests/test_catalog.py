"""The house: every component is complete, links are links, floors are floors."""

import inspect
import os
import subprocess
from pathlib import Path

import pytest

from llmlab.harness.listing import listing, notebook_of
from llmlab.harness.oracle import oracles_of
from llmlab.kernels.twin import FLOOR as KERNELS
from llmlab.kernels.twin import Twin, backends_of, load_kernel, missing, twins_of
from llmlab.reference import catalog
from llmlab.reference.catalog import component_ids, components
from llmlab.reference.op import Cost, Op, Procedure

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = (ROOT / ".git").exists()


def what_is_missing(component: Op | Procedure) -> list[str]:
    """Names of the parts a component still lacks."""
    lacks = []
    module = inspect.getmodule(component.reference)
    module_doc, doc = (module.__doc__ or "") if module else "", component.reference.__doc__ or ""
    if not module_doc.strip():
        lacks.append("module docstring")
    if not doc.strip():
        lacks.append("docstring")
    if not any(word in module_doc + doc for word in ("arXiv", "doi", "(19", "(20", "http", "20", "19")):
        lacks.append("source in the docstring")
    if isinstance(component, Op):
        lacks += [section for section in ("Raises:", ">>>") if section not in doc]
        if not component.shapes:
            lacks.append("benchmark shape")
    if not component.paper:
        lacks.append("paper")
    if component.cost is None and isinstance(component, Op):
        lacks.append("cost")
    if not oracles_of(component):
        lacks.append("oracle")
    family, name = component.id.split(".")
    if CHECKOUT and not (ROOT / "tests" / "reference" / family / f"test_{name}.py").is_file():
        lacks.append("tests of its own")
    return lacks


@pytest.mark.parametrize("component_id", component_ids())
def test_component_is_complete(component_id: str) -> None:
    lacks = what_is_missing(components()[component_id])
    assert not lacks, f"{component_id} lacks {', '.join(lacks)}"


def test_completeness_names_what_is_missing() -> None:
    def bare(x_BD):
        return x_BD

    lacks = what_is_missing(Op(reference=bare, cost=lambda d: Cost(1, 1, 1), dims={}, shapes={}, paper=""))
    assert {"docstring", "paper", "oracle", "Raises:", ">>>", "benchmark shape"} <= set(lacks)


@pytest.mark.parametrize("component_id", component_ids())
def test_twin_files_register_what_their_path_says(component_id: str) -> None:
    for backend in backends_of(component_id):
        if not missing(backend):
            assert any(twin.backend == backend for twin in twins_of(components()[component_id]))


def test_every_kernel_file_belongs_to_a_component() -> None:
    known = set(component_ids())
    for path in KERNELS.glob("*/*.py"):
        if not path.name.startswith("_"):
            name, _, backend = path.stem.rpartition("_")
            assert f"{path.parent.name}.{name}" in known, f"kernels/{path.parent.name}/{path.name} has no reference"
            assert backend in ("numba", "torch", "triton")


def test_listing_has_a_row_per_component_with_the_promised_keys() -> None:
    rows = listing()
    assert [row["id"] for row in rows] == component_ids()
    assert {"id", "family", "paper", "kind", "twins", "oracle", "cost", "gradient", "notebook"} == set(rows[0])


def test_a_notebook_shows_what_it_names_and_not_what_merely_begins_so() -> None:
    texts = {
        "01.ipynb": "from llmlab.kernels.models.llama_torch import x",
        "02.ipynb": "llmlab.reference.models.llama, `positions.rope`",
    }
    assert notebook_of("models.llama", texts) == "02.ipynb"
    assert notebook_of("positions.rope", texts) == "02.ipynb"
    assert notebook_of("positions.rope_yarn", texts) is None


def test_a_new_component_is_found_without_any_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "brand_new.py").write_text("")
    (tmp_path / "layers" / "_shared.py").write_text("")
    monkeypatch.setattr(catalog, "FLOOR", tmp_path)
    assert catalog.component_ids() == ["layers.brand_new"]


def test_unknown_component_is_named() -> None:
    with pytest.raises(ValueError, match=r"attention\.nonsense"):
        catalog.load("attention.nonsense")


def test_somebody_elses_kernel_registers_from_a_file(tmp_path: Path) -> None:
    op = next(component for component in components().values() if isinstance(component, Op))
    (tmp_path / "mine.py").write_text("def kernel(*arrays, **options):\n    return arrays[0]\n")
    twin = load_kernel(f"{tmp_path / 'mine.py'}:kernel", op, "numba")
    assert isinstance(twin, Twin)
    assert twin.source == "mine.py"
    with pytest.raises(ValueError, match="nothing"):
        load_kernel(f"{tmp_path / 'mine.py'}:nothing", op, "numba")
    with pytest.raises(ValueError, match=r"absent\.py"):
        load_kernel("absent.py:kernel", op, "numba")


@pytest.mark.skipif(not CHECKOUT, reason="needs a git checkout")
def test_floors_are_links_to_the_root_folders() -> None:
    for floor in ("reference", "kernels", "simulator", "harness", "reports"):
        assert os.readlink(ROOT / "llmlab" / floor) == f"../{floor}"
        assert not (ROOT / floor / "__init__.py").exists()
    listed = subprocess.run(["git", "ls-files", "-s", "llmlab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sum(line.startswith("120000") for line in listed.splitlines()) == 5


def test_lower_floors_never_import_higher_ones() -> None:
    pytest.importorskip("importlinter", reason="needs import-linter")
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS
