"""Protocols, runners, metrics, records and tables of the suite.

Importing this imports nothing heavy: protocols, records, statistics and tables need no torch. It
sets the instruction set that torch computes with, which torch reads once, so it comes before torch.
"""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"

# Left to themselves, torch (ATen), oneDNN and MKL choose kernels by the processor, and kernels of
# other widths add in other orders: one cell, other digits. AVX2 is what nearly every x86 processor
# has and costs 0-5 % of a training step where AVX-512 is there. Intel promises equal bits of MKL on
# its processors with AVX2; on others MKL knows AUTO and COMPATIBLE only and takes AUTO for AVX2.
# COMPATIBLE (SSE2 without FMA) is for both, but costs 35-65 % of a step with Semantic FPN, and
# nobody promises as much for oneDNN, so that it is left to users: `MKL_CBWR=COMPATIBLE make ...`.
INSTRUCTION_SET = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def pin_instruction_set(cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Set the variables of `INSTRUCTION_SET`, which processes that start from here inherit.

    What is set already stays. Nothing is set on a processor without AVX2, or where torch is loaded:
    a record would tell of variables that came too late.
    """
    if "torch" in sys.modules:
        return
    try:
        with cpu_info.open(encoding="utf-8", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return
    if "avx2" in flags.split():
        for name, value in INSTRUCTION_SET.items():
            os.environ.setdefault(name, value)


pin_instruction_set()
