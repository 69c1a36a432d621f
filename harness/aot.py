"""Compile Triton kernels for a GPU that is not here, and read what came out: registers, spills, instructions.

Each Triton twin module exposes `AOT`, a list of `llmlab.kernels.ahead.Ahead`. Compiling needs Triton's own assembler only, no
driver. It must run in a process where TRITON_INTERPRET is unset, because that variable is read when kernels are decorated:

    python -m llmlab.harness.aot llmlab.kernels.layers.rms_norm_triton ...      prints one JSON list of facts
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmlab.kernels import twin
from llmlab.kernels.ahead import Ahead


@dataclass(frozen=True)
class Compiled:
    """Facts about one compiled kernel.

    Attributes:
        module: where its `AOT` entry stands.
        kernel: name of the kernel.
        constants: its compile-time constants, with the types of its pointers.
        target: "sm_90".
        num_warps: warps per program.
        registers: registers per thread.
        spills: machine instructions that store registers to or load them from local memory.
        stack_bytes: local memory per thread.
        shared_bytes: shared memory per program.
        wgmma: warp-group matrix instructions in the machine code (Hopper's HGMMA, QGMMA, IGMMA).
        mma: older matrix instructions (HMMA, QMMA, IMMA).
        dot: the entry says that its tiles are large enough for warp-group instructions.
    """

    module: str
    kernel: str
    constants: dict[str, Any]
    target: str
    num_warps: int
    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    dot: bool

    def problems(self) -> list[str]:
        """What a careful reader of the machine code would object to."""
        found = []
        if self.spills:
            found.append(f"{self.spills} spill instructions ({self.registers} registers, {self.stack_bytes} bytes of stack)")
        if self.dot and self.target.startswith("sm_9") and not self.wgmma:
            found.append(f"dot compiled to {self.mma} mma instructions and no wgmma")
        return found


def triton_modules() -> list[str]:
    """Import names of all Triton twin modules, found without importing them."""
    paths = sorted(path for path in twin.FLOOR.glob("*/*_triton.py") if not path.name.startswith("_"))
    return [f"llmlab.kernels.{path.parent.name}.{path.stem}" for path in paths]


def compile_ahead(entry: Ahead, *, capability: int = 90, module: str = "") -> Compiled:
    """Compile one entry for compute capability `capability` (90 is Hopper) and read the machine code.

    Raises:
        ValueError: TRITON_INTERPRET is set, or the entry does not name every parameter of its kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = entry.kernel
    while not hasattr(kernel, "arg_names") or not hasattr(kernel, "params"):  # unwrap autotune and heuristics
        if not hasattr(kernel, "fn") or type(kernel).__name__ == "InterpretedFunction":
            raise ValueError(f"kernel={kernel!r}: decorated for the interpreter; unset TRITON_INTERPRET before importing it")
        kernel = kernel.fn
    declared = {**entry.signature, **dict.fromkeys(entry.constants, "constexpr")}
    if set(declared) != set(kernel.arg_names):
        raise ValueError(f"kernel {kernel.__name__}: entry and kernel differ in {set(declared) ^ set(kernel.arg_names)}")
    signature = {name: declared[name] for name in kernel.arg_names}
    aligned = [index for index, (name, kind) in enumerate(signature.items()) if kind.startswith("*") or name in entry.divisible]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in entry.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    result = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": entry.num_warps, "num_stages": entry.num_stages},
    )
    facts = read_cubin(result.asm["cubin"])
    return Compiled(
        module=module,
        kernel=kernel.__name__,
        constants={**{k: v for k, v in entry.signature.items() if v.startswith("*")}, **entry.constants},
        target=f"sm_{capability}",
        num_warps=entry.num_warps,
        shared_bytes=int(result.metadata.shared),
        dot=entry.dot,
        **facts,
    )


def read_cubin(cubin: bytes) -> dict[str, int]:
    """Registers, stack and instruction counts of a compiled kernel, by the disassembler Triton brings."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def run(*command: str) -> str:
            return subprocess.run(
                [str(tools / command[0]), *command[1:], str(path)], capture_output=True, text=True, check=True
            ).stdout

        usage, code = run("cuobjdump", "-res-usage"), run("cuobjdump", "-sass")
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code)
    if not opcodes:
        raise RuntimeError("the disassembler printed no instruction")

    def count(*names: str) -> int:
        return sum(opcode in names for opcode in opcodes)

    def number(key: str) -> int:
        return max(int(value) for value in re.findall(rf"\b{key}:(\d+)", usage))

    return {
        "registers": number("REG"),
        "stack_bytes": number("STACK") + number("LOCAL"),
        "spills": count("STL", "LDL"),
        "wgmma": count("HGMMA", "QGMMA", "IGMMA"),
        "mma": count("HMMA", "QMMA", "IMMA", "DMMA"),
    }


def compile_modules(modules: Sequence[str], *, capability: int = 90) -> list[Compiled]:
    """Import Triton modules and compile every entry of their `AOT`.

    Raises:
        ValueError: a module has no `AOT`, or an empty one.
    """
    compiled = []
    for name in modules:
        entries = getattr(importlib.import_module(name), "AOT", [])
        if not entries:
            raise ValueError(f"{name}: has no AOT list of kernels to compile")
        compiled += [compile_ahead(entry, capability=capability, module=name) for entry in entries]
    return compiled


def compile_in_subprocess(modules: Sequence[str] | None = None, *, capability: int = 90) -> list[Compiled]:
    """The same in a process of its own, where kernels are decorated for compilation whatever this process interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "llmlab.harness.aot", f"--capability={capability}", *(modules or triton_modules())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"compiling ahead of time failed:\n{done.stderr[-4000:]}")
    return [Compiled(**row) for row in json.loads(done.stdout)]


def main(arguments: Sequence[str]) -> int:
    """Compile the named modules (all of them by default) and print the facts as JSON."""
    capability = next((int(a.partition("=")[2]) for a in arguments if a.startswith("--capability=")), 90)
    modules = [a for a in arguments if not a.startswith("--")] or triton_modules()
    json.dump([asdict(fact) for fact in compile_modules(modules, capability=capability)], sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
