"""What this process may use of the machine: CPUs by affinity and by cgroup quota; and memory given back to it.

Knows nothing of what they are used for.
"""

import ctypes
import gc
import math
import os
import threading
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BLOCK = 4 * 2**20  # bytes: above the pixels of a usual photograph, below a network's working memory


def cgroup_cpu_quota(root: Path = _CGROUP) -> float | None:
    """CPUs that the cgroup grants this process, or None where there is no quota.

    Reads `cpu.max` (cgroup v2) or `cpu/cpu.cfs_*_us` (v1) as a container sees them, at the mount's root.
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None


def affinity() -> set[int]:
    """The CPUs that this process may run on; empty where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def usable_cpus(root: Path = _CGROUP) -> int:
    """CPUs worth a thread each: the affinity mask, cut to the cgroup's quota (rounded up), at least 1."""
    allowed = len(affinity()) or os.cpu_count() or 1
    quota = cgroup_cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def step_back() -> None:
    """Let other threads go before this one, as far as that may be said here: loading a version can wait for answers."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # a tenth of what others get, where all are busy
    except (AttributeError, OSError):  # not Linux, or a sandbox that forbids it
        pass


def keep_large_blocks_apart() -> None:
    """Once a process, before it grows: memory of 4 MiB and more comes from the kernel and goes back when it is freed.

    Left alone, glibc raises that bound to 32 MiB with the first such block. A network's memory then lies among small
    things that outlive it, and stays when the network goes: 86 to 119 MiB over eight reloads, 88 to 95 with this.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BLOCK)
    except (AttributeError, OSError):  # another C library, which decides for itself
        pass


def give_back_memory() -> None:
    """Free what refers to itself alone, as a version that went does, and hand the kernel what is free.

    Python's collector would come for it late, set as it is to spare the requests; glibc would keep it. Blocking; with
    what the server had at its start out of the collector's sight it takes milliseconds.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library, which decides for itself
        pass
