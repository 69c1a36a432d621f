"""Shared by every test: Triton's interpreter where there is no GPU, where measured data lie, reproducible Hypothesis."""

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def cuda_is_available() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


if not cuda_is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are decorated, so before any is imported

settings.register_profile(
    "llmlab", deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("llmlab")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No doctests of test files: a file that cannot be imported would be skipped as one, and then found half imported."""
    found = yield
    return [collector for collector in found if not isinstance(collector, DoctestModule)]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of measured data."""
    folder = Path(os.environ.get("LLMLAB_DATA", ""))
    if not os.environ.get("LLMLAB_DATA") or not folder.is_dir():
        pytest.skip("needs LLMLAB_DATA, the folder of measured data")
    return folder.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_is_available():
        return
    if os.environ.get("LLMLAB_REQUIRE_GPU"):
        raise pytest.UsageError("LLMLAB_REQUIRE_GPU is set and there is no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs cuda"))
