"""The process that the commands run in: threads, allocator, what the processor can do."""

from __future__ import annotations

import os
import platform
import sys

_ALLOCATOR = {
    # glibc gives large blocks back at every free and faults them in again at the next forward; keeping them is faster.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


def restart_with_tuned_allocator() -> None:
    """Run this very command again with glibc's allocator told to keep its memory; returns where that is done or does not apply.

    The variables are read by the C library when a process starts, so they cannot be set from within.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in (*_ALLOCATOR, "LD_PRELOAD")):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_ALLOCATOR})


def physical_cores() -> int:
    """Cores that this process may use, hardware threads counted once where the system says so."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as handle:
                cores.add(handle.read())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def helps_another() -> bool:
    """Whether this process was started to train beside a first one: by Fabric, torchrun or SLURM, with a rank above 0."""
    return any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); without it autocast is slower than float32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
