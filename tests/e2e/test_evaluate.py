"""`fovea evaluate` and bulk `fovea classify` as their users run them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service import drift
from tests.e2e.conftest import colored
from tests.support import bodies, tiny_models
from tests.support.server_process import MODEL_REPO, run_fovea, serving


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


class TestEvaluate:
    def test_report_counts_what_was_right_and_shows_what_was_not(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        done = run_fovea("evaluate", "colors/1", color_pictures, "--model-repo", color_repository, "--output", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"red +0\.8000 +1\.0000 +0\.8889 +4", done.stdout)
        assert re.search(r"accuracy +0\.9231 +13", done.stdout)
        report = report_of(tmp_path)
        assert (report["model"], report["version"], report["images"]) == ("colors", "1", 13)
        assert report["accuracy"] == 12 / 13
        assert {"truth": "blue", "predicted": "red", "images": 1} in report["confusion"]
        (mistake,) = report["worst_mistakes"]
        assert (Path(mistake["file"]).name, mistake["truth"], mistake["predicted"]) == ("red-0.png", ["blue"], "red")
        page = (tmp_path / "report.html").read_text()
        assert "taken for red" in page
        assert page.count("data:image/png;base64,") == 1
        assert not re.search(r"(src|href)=\"?http", page)

    def test_server_is_evaluated_like_the_model_here(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        with serving(color_repository) as server:
            done = run_fovea(
                "evaluate", "colors/2", color_pictures, "--url", server.url, "--output", tmp_path / "there"
            )
        assert (done.returncode, done.stderr) == (0, "")
        here = run_fovea(
            "evaluate", "colors/2", color_pictures, "--model-repo", color_repository, "--output", tmp_path / "here"
        )
        assert here.returncode == 0
        assert report_of(tmp_path / "there") == report_of(tmp_path / "here")

    def test_two_versions_stand_beside_each_other(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        where = ("--model-repo", color_repository, "--output", tmp_path)
        done = run_fovea("evaluate", "colors/1", color_pictures, "--against", "2", *where)
        assert done.returncode == 0
        assert "colors/1 0.9231 against colors/2 0.6154: +30.77 points" in done.stdout
        against = report_of(tmp_path)["against"]
        assert (against["only_first_right"], against["only_second_right"]) == (4, 0)
        assert against["agreement"] == 9 / 13
        assert against["p_value"] == pytest.approx(0.125)

    def test_reference_of_a_version_is_written_as_the_server_reads_it(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        for color, count in (("red", 100), ("green", 60), ("blue", 40)):
            colored(tmp_path / "data", color, color, count)
        where = ("--model-repo", color_repository, "--output", tmp_path / "report")
        done = run_fovea("evaluate", "colors/2", tmp_path / "data", "--write-reference", *where)
        path = color_repository / "colors" / "2" / "reference.json"
        content = path.read_bytes()
        checked = run_fovea("check", "--model-repo", color_repository)
        path.unlink()
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(path))
        assert "1 models, 0 with errors" in checked.stdout
        assert drift.parse(content, 3).predictions == (100, 0, 100)  # the second version takes green for blue
        few = run_fovea("evaluate", "colors/2", color_pictures, "--write-reference", *where)
        assert (few.returncode, "a reference needs 200" in few.stderr) == (2, True)

    def test_temperature_is_fitted_for_scores_that_are_too_sure(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        where = ("--model-repo", color_repository, "--output", tmp_path)
        done = run_fovea("evaluate", "colors/1", color_pictures, "--fit", "temperature", *where)
        assert done.returncode == 0
        assert re.search(r"under \[output\]:\n +temperature = \d", done.stdout)
        assert report_of(tmp_path)["fitted"]["images"] == 13

    def test_evaluation_goes_on_where_it_was_cut_off(
        self, color_repository: Path, color_pictures: Path, tmp_path: Path
    ) -> None:
        arguments = ("evaluate", "colors/1", color_pictures, "--model-repo", color_repository, "--output", tmp_path)
        assert run_fovea(*arguments).returncode == 0
        rows = tmp_path / "predictions-colors-1.jsonl"
        lines = rows.read_text().splitlines(keepends=True)
        marked = lines[0].replace('"label":"blue"', '"label":"kept"')
        rows.write_text(marked + "".join(lines[1:5]) + lines[5][:9])
        assert run_fovea(*arguments, "--resume").returncode == 0
        assert rows.read_text().splitlines(keepends=True) == [marked, *lines[1:]]
        assert report_of(tmp_path)["images"] == 13

    def test_image_that_cannot_be_read_is_reported_and_not_counted(
        self, color_repository: Path, tmp_path: Path
    ) -> None:
        colored(tmp_path / "data", "red", "red", 3)
        (tmp_path / "data" / "red" / "torn.png").write_bytes(tiny_models.damaged_picture())
        done = run_fovea(
            "evaluate", "colors/1", tmp_path / "data", "--model-repo", color_repository, "--output", tmp_path / "report"
        )
        assert done.returncode == 1
        assert "torn.png: " in done.stderr
        report = report_of(tmp_path / "report")
        assert (report["images"], len(report["errors"]), report["accuracy"]) == (3, 1, 1.0)

    def test_fitting_through_a_server_says_what_to_do(self, color_pictures: Path) -> None:
        done = run_fovea("evaluate", "colors", color_pictures, "--url", "http://127.0.0.1:9", "--fit", "temperature")
        assert done.returncode == 2
        assert "leave out --url" in done.stderr

    def test_version_that_is_not_there_is_named(self, color_repository: Path, color_pictures: Path) -> None:
        done = run_fovea("evaluate", "colors/7", color_pictures, "--model-repo", color_repository)
        assert (done.returncode, "version 7" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    manifest = tiny_models.UNIT + '[output]\ntask = "multilabel"\n'
    tiny_models.write_model(root, "eager", tiny_models.classifier(bias=1.0), manifest=manifest)
    tiny_models.write_model(
        root, "one-unit", tiny_models.one_unit(ending=None), manifest=manifest.replace("multilabel", "binary"),
        labels=("dark", "bright"),
    )  # fmt: skip
    return root


class TestSeveralLabels:
    """A multilabel model that calls everything, until its thresholds are fitted."""

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        right = {"red": "red", "yellow": "red|green", "white": "red|green|blue", "black": "", "blue": "blue"}
        lines = ["file,label"]
        for number in range(2):
            for color, labels in right.items():
                (tmp_path / f"{color}{number}.png").write_bytes(tiny_models.picture(color))
                lines.append(f"{color}{number}.png,{labels}")
        (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "truth.csv"

    def test_thresholds_are_fitted_label_by_label(self, several: Path, table: Path, tmp_path: Path) -> None:
        arguments = ("evaluate", "eager", table, "--fit", "thresholds", "--model-repo", several)
        done = run_fovea(*arguments, "--output", tmp_path / "report")
        assert done.returncode == 0, done.stderr
        report = report_of(tmp_path / "report")
        assert report["accuracy"] == 0.2  # only white has all three
        (line,) = report["fitted"]["output"]
        manifest = several / "eager" / "model.toml"
        manifest.write_text(manifest.read_text() + line + "\n")
        again = run_fovea("evaluate", "eager", table, "--model-repo", several, "--output", tmp_path / "again")
        assert again.returncode == 0, again.stderr
        assert report_of(tmp_path / "again")["accuracy"] == 1.0
        assert re.search(r"exact match +1\.0000 +10", again.stdout)

    def test_binary_model_gets_one_threshold(self, several: Path, tmp_path: Path) -> None:
        colored(tmp_path / "data", "bright", "white", 5)
        colored(tmp_path / "data", "dark", "black", 5)
        arguments = ("evaluate", "one-unit", tmp_path / "data", "--fit", "thresholds", "--model-repo", several)
        done = run_fovea(*arguments, "--output", tmp_path / "report")
        assert done.returncode == 0, done.stderr
        assert report_of(tmp_path / "report")["accuracy"] == 1.0
        assert re.search(r"thresholds = \[0\.\d+\]", done.stdout)


class TestBulkClassify:
    @pytest.fixture
    def digits(self, tmp_path: Path) -> Path:
        for number, picture in enumerate(bodies.different_digits(30)):
            (tmp_path / f"{number:02d}.png").write_bytes(picture)
        return tmp_path

    def test_folder_goes_to_a_file_and_is_continued(self, digits: Path, tmp_path: Path) -> None:
        output = tmp_path / "out" / "rows.csv"
        arguments = ("classify", digits, "--model", "digits", "--model-repo", MODEL_REPO, "--output", output)
        done = run_fovea(*arguments)
        assert (done.returncode, done.stdout) == (0, f"{output}: 30 images, 0 failed\n")
        whole = output.read_bytes()
        assert whole.count(b"\n") == 31
        output.write_bytes(whole[: len(whole) // 2])
        assert run_fovea(*arguments, "--resume").returncode == 0
        assert output.read_bytes() == whole
