"""Every Triton kernel compiles for Hopper without a GPU, keeps to its registers and uses warp-group matrix instructions."""

import dataclasses

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="needs triton")

from llmlab.harness import aot

MATMUL = """
import triton
import triton.language as tl
from llmlab.kernels.ahead import Ahead


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, K, DEPTH):
        k = first + tl.arange(0, DEPTH)
        total += tl.dot(tl.load(a_ptr + m[:, None] * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n[None, :]))
    tl.store(c_ptr + m[:, None] * N + n[None, :], total)


TYPES = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "M": "i32", "N": "i32", "K": "i32"}


def entry(rows, columns, depth, warps):
    return Ahead(
        matmul, TYPES, {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}, ("M", "N", "K"), num_warps=warps, dot=True
    )
"""


@pytest.fixture(scope="module")
def compiled() -> list[aot.Compiled]:
    return aot.compile_in_subprocess()


def test_every_triton_module_is_compiled(compiled: list[aot.Compiled]) -> None:
    assert {fact.module for fact in compiled} == set(aot.triton_modules())


def test_no_kernel_spills_and_large_dots_use_warp_group_instructions(compiled: list[aot.Compiled]) -> None:
    objections = [
        f"{fact.module.split('.')[-1]}.{fact.kernel} {fact.constants}: {problem}"
        for fact in compiled
        for problem in fact.problems()
    ]
    assert not objections, "\n".join(objections)


def test_registers_and_shared_memory_fit_a_hopper_multiprocessor(compiled: list[aot.Compiled]) -> None:
    for fact in compiled:
        assert 0 < fact.registers <= 255
        assert fact.registers * fact.num_warps * 32 <= 65536, fact
        assert fact.shared_bytes <= 227 * 1024, fact


def test_kernels_that_spill_or_miss_the_tensor_cores_are_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "matmul_good.py").write_text(MATMUL + "\nAOT = [entry(128, 128, 64, 8)]\n")
    (tmp_path / "matmul_bad.py").write_text(MATMUL + "\nAOT = [entry(256, 256, 64, 4), entry(16, 32, 32, 4)]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    good, spilling, narrow = aot.compile_in_subprocess(["matmul_good", "matmul_bad"])
    assert good.problems() == []
    assert good.wgmma > 0
    assert spilling.spills > 0
    assert "spill" in spilling.problems()[0]
    assert narrow.wgmma == 0
    assert "no wgmma" in narrow.problems()[0]
    assert dataclasses.replace(narrow, dot=False).problems() == []


def test_a_module_without_entries_and_a_wrong_entry_are_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "nothing_here.py").write_text("")
    (tmp_path / "wrong_entry.py").write_text(MATMUL + "\nAOT = [Ahead(matmul, {}, {'ROWS': 16})]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nothing_here: has no AOT"):
        aot.compile_in_subprocess(["nothing_here"])
    with pytest.raises(RuntimeError, match="kernel matmul: entry and kernel differ in"):
        aot.compile_in_subprocess(["wrong_entry"])
