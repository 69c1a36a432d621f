"""Peers without their handicap: libraries that choose slow code on processors of another vendor, told to choose the fast one.

MKL inside torch asks whether the processor is Intel's, and OpenBLAS inside numpy may fall back to an older kernel set. A
speed-up over such a peer measures the vendor check. The environment made here changes both, for a child process only
(`peer_process`): a preloaded library answers MKL's question with yes, and OPENBLAS_CORETYPE names the kernel set by
instruction set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llmlab.harness.machine import Machine

ANSWER = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def is_handicapped(machine: Machine) -> bool:
    """True where math libraries may choose slow code although the processor could run the fast one."""
    return machine.vendor == "AuthenticAMD" and "avx2" in machine.features


def why_not(machine: Machine) -> str:
    """Why there is nothing to unlock here, or the empty string."""
    if not is_handicapped(machine):
        return f"{machine.vendor} processors pass the vendor check: the libraries as shipped take their fast path"
    if shutil.which("cc") is None:
        return "needs a C compiler (cc) to build the library that is preloaded"
    return ""


def unlocked_environment(machine: Machine, folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a child process whose math libraries run their fast code; builds the preloaded library in `folder`.

    Raises:
        ValueError: there is nothing to unlock, or no compiler; `why_not` says which.
        OSError: the compiler failed.
    """
    if reason := why_not(machine):
        raise ValueError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "intel_cpu_true.so"
    built = subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=ANSWER.encode(), capture_output=True, check=False
    )
    if built.returncode:
        raise OSError(f"cc: {built.stderr.decode(errors='replace').strip()[:200]}")
    preloaded = [str(library), *filter(None, [environment.get("LD_PRELOAD", "")])]
    core = "SkylakeX" if "avx512f" in machine.features else "Haswell"
    return {**environment, "LD_PRELOAD": ":".join(preloaded), "OPENBLAS_CORETYPE": environment.get("OPENBLAS_CORETYPE", core)}
