"""How a Triton module says what to compile ahead of time: `AOT`, a module-level list of `Ahead`.

    AOT = [
        Ahead(_row, {"x_ptr": "*bf16", "out_ptr": "*bf16", "D": "i32"}, {"BLOCK": 4096}, divisible=("D",)),
        Ahead(_forward, {...}, {"TILE_T": 128, "WIDTH": 128}, num_warps=8, dot=True),
    ]

One entry per kernel and per tile shape that is really launched. `llmlab.harness.aot` compiles them for a GPU that need not be
there and reads registers, spills and instructions from the result; the tests walk every module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ahead:
    """One kernel with the types and constants it is compiled for.

    Attributes:
        kernel: the function under `@triton.jit`.
        signature: type of every run-time parameter by name: "*bf16", "*fp32", "*i64", "i32", "i64", "fp32". Parameters that are
            None at run time belong to `constants`.
        constants: value of every `tl.constexpr` parameter by name.
        divisible: integer parameters known to be multiples of 16 (pointers always are, as allocators align them).
        num_warps: as launched.
        num_stages: as launched.
        dot: the kernel has a `tl.dot` whose tiles are large enough for the tensor cores' widest instruction (at least 64 rows
            per warp group of 4 warps): on Hopper it must compile to warp-group matrix instructions.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    dot: bool = False
