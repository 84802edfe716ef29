"""Training and transfer learning from a folder of class folders, to a model that is served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.bodies import PHOTOGRAPHS
from tests.support.server_process import MODEL_REPO, run_fovea

SUBJECTS = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
RECIPES = MODEL_REPO / "recipes"


def crops(folder: Path, subjects: tuple[str, ...], count: int) -> Path:
    """A class folder for each photograph, with random crops of it."""
    random = np.random.default_rng(28)
    for name in subjects:
        image = Image.open(PHOTOGRAPHS / name).convert("RGB")
        place = folder / Path(name).stem
        place.mkdir(parents=True)
        for number in range(count):
            side = int(min(image.size) * random.uniform(0.5, 1.0))
            left, top = (int(random.integers(0, extent - side + 1)) for extent in image.size)
            crop = image.crop((left, top, left + side, top + side)).resize((160, 160))
            crop.save(place / f"{number}.jpg", quality=88)
    return folder


def recipe(name: str, *arguments: str | Path, timeout_seconds: float = 300.0) -> str:
    done = subprocess.run(
        [sys.executable, RECIPES / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env=os.environ | {"PYTHONPATH": str(RECIPES)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def served_labels(repository: Path, model: str, folder: Path) -> list[bool]:
    """Whether each picture gets the name of its folder, by `fovea classify`."""
    done = run_fovea("classify", folder, "--model", model, "--model-repo", repository, "--json", "--top-k", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [row["predictions"][0]["label"] == Path(row["file"]).parent.name for row in rows]


def test_imagenets_features_learn_new_classes_from_a_few_pictures(tmp_path: Path, repository: Path) -> None:
    photos = crops(tmp_path / "photos", SUBJECTS, 30)
    said = recipe("transfer", "--data", photos, "--name", "shots", "--model-repo", repository)
    assert "accuracy 1.000" in said
    right = served_labels(repository, "shots", crops(tmp_path / "others", SUBJECTS, 8))
    assert np.mean(right) >= 0.95
    assert "accuracy" in (repository / "shots/README.md").read_text()


def test_a_tutorials_network_is_trained_on_a_folder_and_served(tmp_path: Path, repository: Path) -> None:
    photos = crops(tmp_path / "photos", SUBJECTS[:2], 40)
    said = recipe(
        "tutorial",
        "--network",
        "binary_cnn",
        "--data",
        photos,
        "--name",
        "two",
        "--epochs",
        "2",
        "--model-repo",
        repository,
    )
    assert "Epoch 2/2" in said
    assert (repository / "two/curves.svg").read_text().startswith("<svg")
    assert "precision" in (repository / "two/README.md").read_text()
    assert (repository / "two/labels.txt").read_text().split() == ["chelsea", "coffee"]
    assert len(served_labels(repository, "two", photos)) == 80


def test_data_that_does_not_fit_is_refused_with_what_to_do(tmp_path: Path, repository: Path) -> None:
    crops(tmp_path / "photos", SUBJECTS, 1)
    for arguments, words in (
        (["--network", "binary_cnn"], "--data FOLDER is needed"),
        (["--network", "binary_cnn", "--data", str(tmp_path / "photos")], "has 4 classes, and binary_cnn 2"),
        (["--network", "binary_cnn", "--data", str(tmp_path / "nowhere")], "no such folder"),
    ):
        done = subprocess.run(
            [sys.executable, RECIPES / "tutorial.py", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr
