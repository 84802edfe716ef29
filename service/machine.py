"""What this process may use of the machine: CPUs by affinity and by cgroup quota; and memory given back to it.

Knows nothing of what they are used for.
"""

import ctypes
import gc
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MIB = 2**20
_LARGE_BLOCK = 4 * _MIB  # of a network
_LARGEST_KEPT = 32 * _MIB  # above the pixels of a telephone's photograph; glibc takes no larger bound
_FREE_KEPT = 24 * _MIB  # at the end of a heap: what a thread works with on such a photograph
_loads_lock = threading.Lock()
_loads = 0  # under way


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


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """While a network is loaded, blocks of 4 MiB and more come from the kernel and go back to it when they are freed.

    Else they would lie among small things that outlive them and stay when the network goes: glibc raises its bound with
    the first large block that is freed. Afterwards the bound is high again: a photograph's pixels are taken and freed
    for every request, and fetching their pages from the kernel each time took a seventh of its way.
    """
    global _loads  # the bounds are the process's
    with _loads_lock:
        _loads += 1
        _bounds(_LARGE_BLOCK, _LARGE_BLOCK)
    try:
        yield
    finally:
        with _loads_lock:
            _loads -= 1
            if not _loads:
                _bounds(_LARGEST_KEPT, _FREE_KEPT)


def _bounds(mapped: int, trimmed: int) -> None:
    """From how many bytes on a block is mapped by itself, and how many free ones a heap keeps at its end."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mapped)
        libc.mallopt(_M_TRIM_THRESHOLD, trimmed)
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
