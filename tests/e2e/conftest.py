"""What several process tests share."""

import shutil
from pathlib import Path

import pytest

from tests.support.server_process import MODEL_REPO


@pytest.fixture(scope="session")
def patient_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models; `imagenet` lets its queue wait, so that a busy machine makes a test slow, not red."""
    root = tmp_path_factory.mktemp("patient") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    with (root / "imagenet" / "model.toml").open("a") as manifest:
        manifest.write("\n[batching]\nmax_queue_wait_ms = 30000\n")
    return root
