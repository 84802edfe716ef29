"""CPUs by affinity and cgroup quota, from files of the test's making."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.machine import cgroup_cpu_quota, usable_cpus


def v2(root: Path, text: str) -> Path:
    (root / "cpu.max").write_text(text)
    return root


def v1(root: Path, quota: str, period: str = "100000\n") -> Path:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period)
    return root


def test_without_a_cgroup_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_cpu_quota(tmp_path) is None
    assert cgroup_cpu_quota(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("text", "quota"),
    [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("5000 50000", 0.1), ("max 100000\n", None)],
)
def test_the_quota_of_cgroup_v2_is_its_share_of_a_period(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cgroup_cpu_quota(v2(tmp_path, text)) == quota


@pytest.mark.parametrize(("text", "quota"), [("250000\n", 2.5), ("100000\n", 1.0), ("-1\n", None)])
def test_the_quota_of_cgroup_v1_is_its_share_of_a_period(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cgroup_cpu_quota(v1(tmp_path, text)) == quota


@pytest.mark.parametrize("text", ["", "nonsense\n", "100000\n", "a b\n"])
def test_a_file_that_makes_no_sense_is_no_quota(tmp_path: Path, text: str) -> None:
    assert cgroup_cpu_quota(v2(tmp_path, text)) is None


def test_where_v2_says_nothing_v1_is_read(tmp_path: Path) -> None:
    assert cgroup_cpu_quota(v1(v2(tmp_path, "nonsense\n"), "300000\n")) == 3.0


@pytest.mark.parametrize(
    ("affinity", "text", "cpus"),
    [
        (8, "max 100000", 8),
        (8, "200000 100000", 2),
        (8, "250000 100000", 3),
        (8, "10000 100000", 1),
        (2, "800000 100000", 2),
        (1, "800000 100000", 1),
    ],
)
def test_usable_cpus_are_the_affinity_cut_to_the_quota_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, text: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    assert usable_cpus(v2(tmp_path, text)) == cpus


def test_without_affinity_all_cpus_of_the_machine_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


_A_NETWORK_GOES = """
import ctypes, sys
from contextlib import nullcontext
from service.machine import large_blocks_apart

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def block(mib):
    place = libc.malloc(mib * 2**20)
    ctypes.memset(place, 1, mib * 2**20)
    return place

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

libc.free(block(24))  # from now on glibc would take 24 MiB for a small block
before = resident_mib()
with large_blocks_apart() if sys.argv[1] == "apart" else nullcontext():
    network, small = block(20), block(1)
libc.free(network)
print(resident_mib() - before)
"""

_IMAGES_COME_AND_GO = """
import ctypes, resource
from service.machine import large_blocks_apart

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def image():
    place = libc.malloc(9 * 2**20)
    ctypes.memset(place, 1, 9 * 2**20)
    libc.free(place)

with large_blocks_apart():
    pass
image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    image()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="another C library decides for itself")
@pytest.mark.parametrize(("how", "kept"), [("apart", False), ("left alone", True)])
def test_the_memory_of_a_network_goes_when_it_goes_although_a_small_block_came_after_it(how: str, kept: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", _A_NETWORK_GOES, how], capture_output=True, text=True, check=True)
    assert (float(ran.stdout) > 15) is kept


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="another C library decides for itself")
def test_the_pixels_of_one_image_after_the_other_are_the_same_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", _IMAGES_COME_AND_GO], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 100  # pages of 2,304 that an image has
