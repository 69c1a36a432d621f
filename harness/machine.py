"""What a measurement was taken on: processor, caches, memory, accelerators, versions and BLAS code paths.

No host names, no paths, nothing that changes between two calls: the digest of a description names the machine in results.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "torch", "triton", "pandas", "simpy")
SPEED_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "neon", "asimd", "sve", "sve2", "bf16", "i8mm")
"""Instruction sets that decide how fast arithmetic can be; every `avx512*` and `amx*` counts too."""


@dataclass(frozen=True)
class Cache:
    """One cache level: bytes of all its instances together, and how many there are."""

    level: str
    total_bytes: int
    instances: int


@dataclass(frozen=True)
class Accelerator:
    """One GPU as its driver describes it."""

    name: str
    memory_bytes: int
    compute_capability: str
    multiprocessors: int
    runtime: str


@dataclass(frozen=True)
class Machine:
    """Description of a machine; JSON-able by `as_dict`, named by `digest`.

    Attributes:
        cpu: brand string of the processor.
        vendor: who made it, as it says itself ("GenuineIntel"); math libraries choose their code by it.
        features: instruction sets that decide arithmetic speed, sorted.
        cores: physical cores.
        threads: hardware threads this process may run on.
        caches: data caches, smallest level first; empty where the system does not tell.
        memory_gib: main memory, rounded to whole GiB.
        governor: frequency governor, "unknown" where it cannot be read (most virtual machines).
        virtual: the processor says it runs under a hypervisor, so neighbours may share it unseen.
        huge_pages: transparent huge page policy, "unknown" where it cannot be read.
        accelerators: GPUs, in driver order.
        system: operating system, architecture and C library.
        versions: Python and the packages that compute.
        code_paths: per implementation, which compiled code does the arithmetic here.
    """

    cpu: str
    vendor: str
    features: tuple[str, ...]
    cores: int
    threads: int
    caches: tuple[Cache, ...]
    memory_gib: int
    governor: str
    virtual: bool
    huge_pages: str
    accelerators: tuple[Accelerator, ...]
    system: str
    versions: Mapping[str, str]
    code_paths: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change when anything in the description does."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def cache_bytes(self, level: str) -> int:
        """Bytes of a cache level over all instances, 0 when unknown."""
        return sum(one.total_bytes for one in self.caches if one.level == level)

    def device_name(self, device: str) -> str:
        """What people call the device a record was timed on."""
        return self.accelerators[0].name if device == "cuda" and self.accelerators else self.cpu


@cache
def describe() -> Machine:
    """Describe this machine, once per process.

    >>> describe().digest == describe().digest and describe().threads >= 1
    True
    """
    info = _processor()
    flags = info.get("flags", [])
    return Machine(
        cpu=str(info.get("brand_raw") or platform.processor() or platform.machine()),
        vendor=str(info.get("vendor_id_raw") or "unknown"),
        features=speed_features(flags),
        cores=_cores(),
        threads=usable_threads(),
        caches=_caches(info),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        governor=_first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        virtual="hypervisor" in flags,
        huge_pages=_chosen(_first_line("/sys/kernel/mm/transparent_hugepage/enabled")),
        accelerators=_accelerators(),
        system=" ".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        versions={"python": platform.python_version(), **_versions(PACKAGES)},
        code_paths=_code_paths(),
    )


def _processor() -> dict[str, Any]:
    """What py-cpuinfo tells; without it (a bare image) the brand, vendor and flags of Linux's own list."""
    if importlib.util.find_spec("cpuinfo") is not None:
        import cpuinfo

        return dict(cpuinfo.get_cpu_info())
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {"brand_raw": told.get("model name"), "vendor_id_raw": told.get("vendor_id"), "flags": told.get("flags", "").split()}


def _cores() -> int:
    if importlib.util.find_spec("psutil") is None:
        return os.cpu_count() or 1
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def usable_threads() -> int:
    """Hardware threads this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def speed_features(flags: Sequence[str]) -> tuple[str, ...]:
    """Keep the processor flags that decide arithmetic speed.

    >>> speed_features(["fpu", "fma", "avx512_vnni", "avx512vnni", "amx_tile", "ht"])
    ('amx_tile', 'avx512vnni', 'fma')
    """
    kept = {flag for flag in flags if flag in SPEED_FEATURES or flag.startswith(("avx512", "amx"))}
    return tuple(sorted({flag.replace("avx512_", "avx512") for flag in kept}))  # systems spell them either way


def vendor_check_is_overridden() -> bool:
    """True when a preloaded library answers MKL's question for an Intel processor with yes."""
    try:
        return bool(ctypes.CDLL(None).mkl_serv_intel_cpu_true())
    except (AttributeError, OSError, TypeError):
        return False


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().split("\n")[0].strip() or "unknown"
    except OSError:
        return "unknown"


def _chosen(policy: str) -> str:
    """The bracketed word of a kernel setting such as `always [madvise] never`."""
    return policy.partition("[")[2].partition("]")[0] or policy


def _caches(info: Mapping[str, Any]) -> tuple[Cache, ...]:
    """Data caches from sysfs, counting each shared instance once; else what the processor reports itself."""
    instances: dict[str, dict[str, int]] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        kind, level = _first_line(f"{index}/type"), _first_line(f"{index}/level")
        size, shared = _first_line(f"{index}/size"), _first_line(f"{index}/shared_cpu_list")
        if kind in ("Data", "Unified") and size.endswith("K"):
            name = f"L{level}d" if level == "1" else f"L{level}"
            instances.setdefault(name, {})[shared] = int(size[:-1]) * 1024
    if instances:
        return tuple(Cache(name, sum(sizes.values()), len(sizes)) for name, sizes in sorted(instances.items()))
    known = (("L1d", "l1_data_cache_size"), ("L2", "l2_cache_size"), ("L3", "l3_cache_size"))
    return tuple(Cache(name, info[key], 1) for name, key in known if isinstance(info.get(key), int))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _accelerators() -> tuple[Accelerator, ...]:
    if importlib.util.find_spec("torch") is None:
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    all_properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(
        Accelerator(
            one.name,
            one.total_memory,
            f"{one.major}.{one.minor}",
            one.multi_processor_count,
            f"cuda {torch.version.cuda}" if torch.version.cuda else f"hip {torch.version.hip}",
        )
        for one in all_properties
    )


def _code_paths() -> dict[str, str]:
    paths = {"numpy": _numpy_blas()}
    if importlib.util.find_spec("numba") is not None:
        import llvmlite.binding as llvm

        paths["numba"] = f"LLVM {'.'.join(map(str, llvm.llvm_version_info))} for {llvm.get_host_cpu_name()}"
    if importlib.util.find_spec("torch") is not None:
        paths["torch"] = _torch_blas()
    return paths


def _numpy_blas() -> str:
    import numpy as np

    libraries: list[dict[str, Any]] = []
    if importlib.util.find_spec("threadpoolctl") is not None:
        from threadpoolctl import threadpool_info

        libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in libraries if "numpy" in str(library.get("filepath"))] or libraries
    if own:
        library = own[0]
        parts = (library["internal_api"], library.get("version"), library.get("architecture"))
        return " ".join(str(part) for part in parts if part)
    built_with = np.show_config(mode="dicts") or {}
    blas = built_with.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown BLAS')} {blas.get('version', '')}".strip()


def _torch_blas() -> str:
    import torch

    lines = [line.strip(" -") for line in torch.__config__.show().split("\n")]
    math = next((line for line in lines if "Math Kernel Library" in line), "")
    deep = next((line for line in lines if "MKL-DNN" in line), "")
    parts = [
        "MKL " + math.partition("Version ")[2].partition("-")[0] if math else "",
        "oneDNN " + deep.partition("MKL-DNN ")[2].partition(" ")[0] if deep else "",
        torch.backends.cpu.get_cpu_capability(),
        "vendor check overridden" if math and vendor_check_is_overridden() else "",
    ]
    return ", ".join(part for part in parts if part)
