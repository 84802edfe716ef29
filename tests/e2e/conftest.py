"""What several process tests share."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.server_process import MODEL_REPO


@pytest.fixture(scope="session")
def patient_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models; `imagenet` lets its queue wait, so that a busy machine makes a test slow, not red."""
    root = tmp_path_factory.mktemp("patient") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    with (root / "imagenet" / "model.toml").open("a") as manifest:
        manifest.write("\n[batching]\nmax_queue_wait_ms = 30000\n")
    return root


def colored(folder: Path, truth: str, shown: str, count: int) -> None:
    (folder / truth).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / truth / f"{shown}-{number}.png").write_bytes(tiny_models.picture(shown))


@pytest.fixture(scope="session")
def color_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of colours in two versions; the second cannot tell green from blue."""
    root = tmp_path_factory.mktemp("evaluated") / "model_repo"
    tiny_models.write_model(root, "colors")
    blind = np.array([[4.0, 0, 0], [0, 0, 4], [0, 0, 4]])
    tiny_models.write_model(root, "colors", tiny_models.classifier(matrix=blind), version=2)
    return root


@pytest.fixture(scope="session")
def color_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each colour, and one red one that is called blue."""
    folder = tmp_path_factory.mktemp("pictures")
    for color in tiny_models.COLORS:
        colored(folder, color, color, 4)
    colored(folder, "blue", "red", 1)
    return folder
