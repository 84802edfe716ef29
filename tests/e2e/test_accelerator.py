"""The accelerator's benchmark, played through on a CPU: every line of its table, and what it says without a device."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from tests.support.server_process import PROJECT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "loadtests" / "accelerator.py"), *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


def test_the_whole_of_it_on_a_cpu(tmp_path: Path) -> None:
    """Asked for more than there can be, it says so at the end."""
    short = ["--rounds", "1", "--seconds", "0.2", "-c", "4", "-b", "1", "-b", "3", "--least", "100"]
    finished = run("--provider", "cpu", *short, "--reports", str(tmp_path))
    assert finished.returncode == 1, finished.stderr
    assert "MISSED: at least 100 of the ceiling" in finished.stdout
    assert all(line in finished.stdout for line in ("device", "decoding", "in-process", "served", "the same label"))
    found = json.loads((tmp_path / "accelerator.json").read_text())
    assert found["provider"] == "cpu"
    assert sorted(found["device"]) == ["1", "3"]
    assert found["ceiling_batch"] in (1, 3)
    assert min(found["decoding"], found["ceiling"], found["served"]["4"]["rate"]) > 0
    assert found["served"]["4"]["failed"] == 0
    assert found["agreement"] == {"images": 16, "same_label": 16, "largest_difference": 0.0}


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="about a machine without CUDA")
def test_without_a_device_it_says_what_to_install() -> None:
    finished = run("--provider", "cuda")
    assert finished.returncode == 1
    assert "install the extra `gpu`" in finished.stderr
    assert "Traceback" not in finished.stderr
