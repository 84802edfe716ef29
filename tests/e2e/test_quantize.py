"""`fovea quantize` as its users run it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.support import bodies, tiny_models
from tests.support.server_process import run_fovea

UNSCALED = {"scale": 1.0, "mean": 0.0, "std": 1.0}
NETWORK_IMAGES = 240  # 40 to calibrate with, 200 to judge by


def network(stride: int = 1) -> Any:
    """Three layers, whose scores are colours; the first can be quantized if it strides."""
    random = np.random.default_rng(0)
    spread = np.concatenate([np.eye(3), np.eye(3)]).reshape(6, 3, 1, 1)
    mixed = np.eye(6).reshape(6, 6, 1, 1) + random.normal(0.0, 0.05, (6, 6, 1, 1))
    constants = {
        "w0": spread.astype(np.float32),
        "b0": np.zeros(6, np.float32),
        "w1": mixed.astype(np.float32),
        "b1": np.zeros(6, np.float32),
        "head": (4.0 * np.concatenate([np.eye(3), np.eye(3)])).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], strides=[stride, stride]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    sides = {"image": ("float32", ("N", 3, 8, 8))}, {"scores": ("float32", ("N", 3))}
    return tiny_models.graph(nodes, *sides, constants)


@pytest.fixture
def quantizable(tmp_path: Path) -> Path:
    root = tmp_path / "model_repo"
    tiny_models.write_model(root, "net", network())
    (root / "net" / "README.md").write_text("# net\n\nKnows colours.\n")
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough labelled pictures of noisy colours to calibrate with and to judge by."""
    folder, random = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for number in range(NETWORK_IMAGES):
        color = number % 3
        pixels = random.integers(0, 200, (8, 8, 3), np.uint8)
        pixels[:, :, color] += 40
        place = folder / tiny_models.COLORS[color] / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bodies.encoded(bodies.Image.fromarray(pixels)))
    return folder


class TestQuantize:
    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    def test_copy_that_passes_is_a_model_of_its_own_with_its_gate_in_the_card(
        self, quantizable: Path, many: Path, precision: str
    ) -> None:
        done = run_fovea("quantize", "net", "--images", many, "--precision", precision, "--model-repo", quantizable)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.splitlines()[-1] == str(quantizable / f"net-{precision}")
        card = (quantizable / f"net-{precision}" / "README.md").read_text()
        assert "passed: top-1 may fall by 0.5 points" in card
        assert "images that calibration did not see" in card
        assert "[net](../net/README.md)" in card
        checked = run_fovea("check", "--model-repo", quantizable)
        assert "2 models, 0 with errors" in checked.stdout
        assert sorted(path.name for path in quantizable.iterdir()) == ["net", f"net-{precision}"]

    @pytest.mark.parametrize("scaling", ['preset = "unit"', "scale = 1.0\nmean = [127, 127, 127]\nstd = 128.0"])
    def test_copy_with_a_striding_first_layer_takes_pixels_and_says_so(
        self, tmp_path: Path, many: Path, scaling: str
    ) -> None:
        root = tmp_path / "model_repo"
        tiny_models.write_model(root, "net", network(stride=2))
        manifest = (root / "net" / "model.toml").read_text()
        (root / "net" / "model.toml").write_text(re.sub(r'preset = "\w+"', f'{scaling}\nlayout = "nchw"', manifest))
        done = run_fovea("quantize", "net", "--images", many, "--model-repo", root)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        table = tomllib.loads((root / "net-int8" / "model.toml").read_text())["input"]
        assert table["layout"] == "nhwc"
        assert table.get("preset", "raw") == "raw"
        assert [table.get(key, unscaled) for key, unscaled in UNSCALED.items()] == [*UNSCALED.values()]
        checked = run_fovea("check", "--model-repo", root)
        assert "2 models, 0 with errors" in checked.stdout
        as_version = run_fovea("quantize", "net", "--images", many, "--as-version", "--model-repo", root)
        assert as_version.returncode == 0, as_version.stdout
        assert not (root / "net" / "2" / "model.toml").exists(), "a version takes what the others take"

    def test_copy_of_a_manifest_that_cannot_be_changed_takes_what_the_original_takes(
        self, tmp_path: Path, many: Path
    ) -> None:
        root = tmp_path / "model_repo"
        manifest = 'input = { preset = "unit", layout = "nchw" }\n'
        tiny_models.write_model(root, "net", network(stride=2), manifest=manifest)
        done = run_fovea("quantize", "net", "--images", many, "--model-repo", root)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert (root / "net-int8" / "model.toml").read_text() == manifest

    def test_copy_may_become_the_next_version(self, quantizable: Path, many: Path) -> None:
        done = run_fovea("quantize", "net", "--images", many, "--as-version", "--model-repo", quantizable)
        assert done.returncode == 0, done.stderr
        assert (quantizable / "net" / "2" / "model.onnx").is_file()
        card = (quantizable / "net" / "README.md").read_text()
        assert card.startswith("# net\n\nKnows colours.\n")
        assert "## Version 2: int8 of net/1" in card

    def test_copy_that_fails_the_gate_leaves_no_trace(self, quantizable: Path, many: Path) -> None:
        done = run_fovea(
            "quantize", "net", "--images", many, "--max-drop", "-50", "--model-repo", quantizable
        )  # demands to be better by half
        assert done.returncode == 1
        assert "refused: nothing was written" in done.stdout
        assert [path.name for path in quantizable.iterdir()] == ["net"]

    def test_without_labels_the_originals_answers_are_the_truth(
        self, quantizable: Path, many: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "flat").mkdir()
        for place, picture in enumerate(sorted(many.rglob("*.png"))):
            (tmp_path / "flat" / f"{place}.png").write_bytes(picture.read_bytes())
        done = run_fovea("quantize", "net", "--images", tmp_path / "flat", "--model-repo", quantizable)
        assert done.returncode == 0, done.stdout
        assert "98.0% must agree with the original's top-1" in done.stdout

    def test_too_few_images_are_named(self, quantizable: Path, color_pictures: Path) -> None:
        done = run_fovea("quantize", "net", "--images", color_pictures, "--model-repo", quantizable)
        assert done.returncode == 2
        assert re.search("0 images to calibrate with beside 13 to judge by; give at least 16 and 200", done.stderr)

    def test_model_that_is_there_is_not_overwritten(self, quantizable: Path, many: Path) -> None:
        (quantizable / "net-int8").mkdir()
        done = run_fovea("quantize", "net", "--images", many, "--model-repo", quantizable)
        assert (done.returncode, "--replace" in done.stderr) == (2, True)

    def test_replaced_model_keeps_what_people_wrote_on_its_card(self, quantizable: Path, many: Path) -> None:
        arguments = ("quantize", "net", "--images", many, "--replace", "--model-repo", quantizable)
        assert run_fovea(*arguments).returncode == 0
        card = quantizable / "net-int8" / "README.md"
        card.write_text(card.read_text().replace("passed: ", "old: ") + "\n## Limits\n\nOurs.\n")
        assert run_fovea(*arguments).returncode == 0
        assert "passed: " in card.read_text()
        assert "old: " not in card.read_text()
        assert card.read_text().endswith("\n## Limits\n\nOurs.\n")
        assert sorted(path.name for path in quantizable.iterdir()) == ["net", "net-int8"]
