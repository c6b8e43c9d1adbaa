"""Which kernels the numerical libraries choose: the same on every x86 processor with AVX2, as far as they can be told.

torch, oneDNN, MKL and OpenBLAS look at the processor and take the widest instructions that it has. Other widths add in
another order, so that the same training would end with other bytes on a processor with AVX-512. The variables here
choose AVX2 everywhere. The libraries read them when they are loaded or first used, so they are set before torch is
imported, as soon as `benchmarks` is; processes that are started later inherit them. They change nothing but the choice:
MKL_CBWR=AVX2 costs no time, while COMPATIBLE, which would hold on still older processors, would halve the speed of some
networks (docs/design.md).

A variable that is set already is left as it is. Other machines than x86 with AVX2 have other kernels, and the variables
are not set there: some would force instructions on a processor that lacks them.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",  # the older name of the same
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
"""The values that are chosen, by the name of the variable."""


def pin() -> None:
    """Set the variables of `PINNED` in the environment, where they are not set and this processor has AVX2."""
    if _has_avx2():
        for name, value in PINNED.items():
            os.environ.setdefault(name, value)


def effective() -> dict[str, str]:
    """The value of every variable of `PINNED` in this process; empty where it is not set."""
    return {name: os.environ.get(name, "") for name in PINNED}


def departures() -> dict[str, str]:
    """The effective values that are not those of `PINNED`; none on a processor on which nothing is pinned."""
    if not _has_avx2():
        return {}
    return {name: value for name, value in effective().items() if value != PINNED[name]}


def _has_avx2() -> bool:
    """Whether this is x86 with AVX2, as far as the system tells; x86 without /proc/cpuinfo is taken to have it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "avx2" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return True
