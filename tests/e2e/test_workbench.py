"""`fovea check` and `fovea classify` as their users run them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import bodies
from tests.support.answers import assert_same_predictions
from tests.support.bad_versions import write_sums
from tests.support.server_process import MODEL_REPO, ServerProcess, run_fovea


def broken_model(root: Path, name: str, *, manifest: str = "", labels: tuple[str, ...] = bodies.COLORS) -> Path:
    text = bodies.COLOR_MANIFEST + manifest
    return bodies.write_model(root / name, bodies.mean_color_model(), manifest=text, labels=labels)


class Report(NamedTuple):
    """What `fovea check` said. `about` holds the lines of each model."""

    code: int
    about: dict[str, str]
    text: str
    stderr: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a look at many broken models and a good one."""
    root = tmp_path_factory.mktemp("broken")
    broken_model(root, "good")
    broken_model(root, "unknown-key", manifest="sise = [8, 8]\n")
    broken_model(root, "wrong-value", manifest='[output]\ntask = "multiglass"\n')
    broken_model(root, "out-of-range", manifest="[batching]\nmax_batch_size = 0\n")
    broken_model(root, "wrong-tensor", manifest='[output]\ntensor = "probabilities"\n')
    broken_model(root, "too-few-labels", labels=("red", "green"))
    broken_model(root, "no-labels", labels=())
    broken_model(root, "unknown-provider", manifest='[execution]\nproviders = ["tpu"]\n')
    broken_model(root, "no-toml", manifest="[output\n")
    (broken_model(root, "no-onnx") / "1" / "model.onnx").write_bytes(b"none" * 100)
    (broken_model(root, "no-file") / "1" / "model.onnx").unlink()
    (root / "no-version").mkdir()
    (root / "no-version" / "model.toml").write_text("schema = 1\n")
    broken_model(root, "un named")
    unscaled = bodies.COLOR_MANIFEST.replace('preset = "unit"\n', "")
    bodies.write_model(root / "unscaled", bodies.mean_color_model(), manifest=unscaled, labels=bodies.COLORS)
    done = run_fovea("check", "--model-repo", root)
    about: dict[str, str] = {}
    for line in done.stdout.splitlines()[:-1]:
        verdict, _, rest = line.partition(" ")
        name = rest.strip().partition(":")[0].partition("/")[0]
        about[name] = about.get(name, "") + f"{verdict} {rest.strip()}\n"
    return Report(done.returncode, about, done.stdout, done.stderr)


class TestCheck:
    def test_committed_repository_is_in_order(self) -> None:
        done = run_fovea("check", "--model-repo", MODEL_REPO)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[-1] == "4 models, 0 with errors"
        for name, labels in (("digits", 10), ("fashion", 10), ("imagenet", 1000), ("imagenet-int8", 1000)):
            assert any(line.startswith(f"ok     {name}/1: {labels} labels, images") for line in lines), lines

    def test_any_error_is_exit_code_1(self, report: Report) -> None:
        assert report.code == 1
        assert report.text.splitlines()[-1] == "14 models, 13 with errors"

    def test_report_is_all_that_is_written(self, report: Report) -> None:
        assert report.stderr == ""

    def test_good_model_is_in_order(self, report: Report) -> None:
        assert report.about["good"].startswith("ok good/1: 3 labels, images, on cpu")

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            # file, field, value, reason, remedy
            ("unknown-key", ["unknown-key/model.toml", "input.sise", "[8, 8]", "not a known key", "remove it"]),
            ("wrong-value", ["wrong-value/model.toml", "output.task", "'multiglass'", "should be", "'multiclass'"]),
            ("out-of-range", ["out-of-range/model.toml", "batching.max_batch_size", "0", "greater than or equal to 1"]),
            ("wrong-tensor", ["model.toml", "output.tensor", "'probabilities'", "not in the graph", "it has logits"]),
            ("too-few-labels", ["labels.txt", "2 labels", "'logits'", "3 classes"]),
            ("no-labels", ["labels.txt", "is missing", "one label a line"]),
            (
                "unknown-provider",
                ["unknown-provider/model.toml", "execution", "'tpu'", "unknown provider", "known are"],
            ),
            ("no-toml", ["no-toml/model.toml", "at line 6"]),
            ("no-onnx", ["1/model.onnx", "no ONNX, or damaged"]),
            ("no-file", ["1/model.onnx", "is missing"]),
            ("no-version", ["no version folder", "1/model.onnx"]),
            ("un named", ["'un named'", "cannot be a model's name", "rename the folder"]),
            ("unscaled", ["model.toml", "[input]", "does not say how pixels are scaled", "preset"]),
        ],
    )
    def test_error_names_place_value_reason_and_remedy(self, report: Report, model: str, said: list[str]) -> None:
        line = report.about[model]
        assert line.startswith("ERROR ")
        assert [part for part in said if part not in line] == [], line
        assert line.count("\n") == 1
        assert "Traceback" not in line

    def test_empty_repository_is_an_error(self, tmp_path: Path) -> None:
        done = run_fovea("check", "--model-repo", tmp_path)
        assert done.returncode == 1
        assert str(tmp_path) in done.stdout

    def test_missing_repository_is_named(self, tmp_path: Path) -> None:
        done = run_fovea("check", "--model-repo", tmp_path / "nowhere")
        assert done.returncode in (1, 2)
        assert "nowhere" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    def test_wrong_setting_is_named(self) -> None:
        done = run_fovea("check", "--limits.max-images", "none")
        assert done.returncode != 0
        assert "--limits.max-images" in done.stderr

    def test_required_model_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        broken_model(tmp_path, "good")
        done = run_fovea("check", "--model-repo", tmp_path, "--repository.required", "good,other")
        assert done.returncode == 1
        assert "other" in done.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits, one of them deeper, beside something that is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    for digit in (2, 3, 7):
        (folder / f"{digit}.png").write_bytes(bodies.drawn_digit(digit))
    (folder / "deeper").mkdir()
    (folder / "deeper" / "8.PNG").write_bytes(bodies.drawn_digit(8))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(MODEL_REPO, "--server.drain-delay-s", "0") as process:
        yield process.wait_until_ready()


HERE = ["--model-repo", str(MODEL_REPO)]


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestClassify:
    def test_folder_is_classified_file_by_file_and_alike_here_and_through_a_server(
        self, pictures: Path, server: ServerProcess
    ) -> None:
        here, there = (
            run_fovea("classify", pictures, "--model", "digits", "--json", *where)
            for where in (HERE, ["--url", server.url])
        )
        for done in (here, there):
            assert (done.returncode, done.stderr) == (0, "")
            found = {Path(row["file"]).name: row["predictions"][0]["label"] for row in rows(done.stdout)}
            assert found == {"2.png": "2", "3.png": "3", "7.png": "7", "8.PNG": "8"}
        for one, other in zip(rows(here.stdout), rows(there.stdout), strict=True):
            assert one["file"] == other["file"]
            assert len(one["predictions"]) == 5
            assert_same_predictions(one["predictions"], other["predictions"], tolerance=1e-5)

    def test_files_are_printed_for_people(self, pictures: Path) -> None:
        files = [pictures / "7.png", pictures / "3.png"]
        done = run_fovea("classify", *files, "--model", "digits", "--top-k", "2", *HERE)
        assert (done.returncode, done.stderr) == (0, "")
        first, second = done.stdout.splitlines()
        assert re.fullmatch(re.escape(str(files[0])) + r": 7 0\.99\d, \d 0\.0\d\d", first)
        assert re.fullmatch(re.escape(str(files[1])) + r": 3 1\.000, \d 0\.000", second)

    def test_file_that_is_no_image_takes_nothing_from_the_others(self, pictures: Path) -> None:
        files = [pictures / "7.png", pictures / "notes.txt", pictures / "3.png"]
        done = run_fovea("classify", *files, "--model", "digits", *HERE)
        assert done.returncode == 1
        assert len(done.stdout.splitlines()) == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{files[1]}: ")
        assert "not an image" in line

    def test_errors_are_rows_too_in_json(self, pictures: Path, server: ServerProcess) -> None:
        files = [pictures / "notes.txt", pictures / "7.png"]
        done = run_fovea("classify", *files, "--model", "digits", "--json", "--url", server.url)
        assert (done.returncode, done.stderr) == (1, "")
        bad, good = rows(done.stdout)
        assert bad.keys() == {"file", "error"}
        assert good["predictions"][0]["label"] == "7"

    def test_imagenet_is_asked_where_no_model_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "cup.png").write_bytes(bodies.photograph("coffee.png"))
        done = run_fovea("classify", tmp_path / "cup.png", "--model-repo", MODEL_REPO)
        assert done.returncode == 0
        assert "espresso 0.9" in done.stdout

    @pytest.mark.parametrize("where", ["in-process", "through-a-server"])
    def test_unknown_model_is_named(self, pictures: Path, server: ServerProcess, where: str) -> None:
        place = HERE if where == "in-process" else ["--url", server.url]
        done = run_fovea("classify", pictures / "7.png", "--model", "nothing", *place)
        assert done.returncode in (1, 2)
        assert "'nothing'" in done.stderr
        assert "Traceback" not in done.stderr

    def test_file_that_is_not_there_is_named(self, pictures: Path) -> None:
        done = run_fovea("classify", pictures / "9.png", "--model", "digits", *HERE)
        assert done.returncode == 2
        assert "9.png: no such file" in done.stderr

    def test_folder_without_images_is_named(self, tmp_path: Path) -> None:
        done = run_fovea("classify", tmp_path)
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr

    def test_server_that_is_not_there_is_named(self, pictures: Path, unused_tcp_port: int) -> None:
        url = f"http://127.0.0.1:{unused_tcp_port}"
        done = run_fovea("classify", pictures / "7.png", "--model", "digits", "--url", url)
        assert done.returncode != 0
        assert url in done.stderr
        assert "Traceback" not in done.stderr

    def test_model_that_does_not_load_says_why(self, pictures: Path, tmp_path: Path) -> None:
        shutil.copytree(MODEL_REPO / "digits", tmp_path / "digits")
        (tmp_path / "digits" / "labels.txt").write_text("0\n1\n2\n")
        done = run_fovea("classify", pictures / "7.png", "--model", "digits", "--model-repo", tmp_path)
        assert done.returncode == 2
        assert "3 labels" in done.stderr

    @pytest.mark.parametrize("top_k", ["0", "101"])
    def test_top_k_out_of_bounds_is_a_usage_error(self, pictures: Path, top_k: str) -> None:
        done = run_fovea("classify", pictures / "7.png", "--top-k", top_k)
        assert done.returncode == 2
        assert "--top-k" in done.stderr


class TestBaselines:
    """What `fovea check` writes of a version's answers."""

    def model(self, root: Path) -> Path:
        return bodies.write_model(
            root / "colors", bodies.mean_color_model(), manifest=bodies.COLOR_MANIFEST, labels=bodies.COLORS
        )

    def test_golden_answers_are_written_and_hold_until_the_answers_change(self, tmp_path: Path) -> None:
        version = self.model(tmp_path) / "1"
        write_sums(version)
        done = run_fovea("check", "--model-repo", tmp_path, "--write-golden")
        assert (done.returncode, done.stdout) == (0, "wrote  colors/1/golden.json\n")
        assert [case["seed"] for case in json.loads((version / "golden.json").read_bytes())["cases"]] == [1, 2, 3]
        assert "golden.json" in (version / "SHA256SUMS").read_text()
        assert run_fovea("check", "--model-repo", tmp_path).returncode == 0
        (version.parent / "model.toml").write_text(bodies.COLOR_MANIFEST.replace("unit", "raw"))
        assert "golden.json: seed 1: " in run_fovea("check", "--model-repo", tmp_path).stdout
        assert run_fovea("check", "--model-repo", tmp_path, "--write-golden", "--model", "colors").returncode == 0
        assert run_fovea("check", "--model-repo", tmp_path).returncode == 0

    def test_pictures_of_the_version_are_its_golden_inputs(self, tmp_path: Path) -> None:
        version = self.model(tmp_path) / "1"
        (version / "red.png").write_bytes(bodies.plain_color("red"))
        assert run_fovea("check", "--model-repo", tmp_path, "--write-golden").returncode == 0
        (case,) = json.loads((version / "golden.json").read_bytes())["cases"]
        assert (case["file"], case["predictions"][0]["label"]) == ("red.png", "red")

    def test_a_reference_is_written_of_a_folder_of_images(self, tmp_path: Path) -> None:
        version = self.model(tmp_path) / "1"
        images = tmp_path / "images"
        images.mkdir()
        for number in range(210):
            (images / f"{number}.png").write_bytes(bodies.plain_color("red" if number < 140 else "blue"))
        (images / "bad.png").write_bytes(b"no picture")
        done = run_fovea("check", "--model-repo", tmp_path, "--write-reference", images)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "left out" in done.stdout
        tree = json.loads((version / "reference.json").read_bytes())
        assert (tree["images"], tree["predictions"]) == (210, [140, 0, 70])
        assert run_fovea("check", "--model-repo", tmp_path).returncode == 0

    def test_too_few_images_are_no_reference(self, tmp_path: Path) -> None:
        self.model(tmp_path)
        (tmp_path / "one.png").write_bytes(bodies.plain_color("red"))
        done = run_fovea("check", "--model-repo", tmp_path, "--write-reference", tmp_path / "one.png")
        assert done.returncode == 2
        assert "a reference needs 200" in done.stderr
