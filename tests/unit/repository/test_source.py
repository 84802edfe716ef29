"""Scanning a folder: what counts as a model, a version, a change."""

import os
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.repository.source import FolderSource


def make(root: Path, name: str, *versions: str, manifest: bool = False) -> Path:
    folder = root / name
    folder.mkdir()
    for version in versions:
        (folder / version).mkdir()
        (folder / version / "model.onnx").write_bytes(b"graph")
    if manifest:
        (folder / "model.toml").write_text("schema = 1\n")
    return folder


def test_model_folders_are_found_with_their_versions(tmp_path: Path) -> None:
    make(tmp_path, "cats", "1", "12", manifest=True)
    make(tmp_path, "dogs.v2_final-3", "7")
    found = FolderSource(tmp_path).scan()
    assert {name: sorted(model.versions) for name, model in found.items()} == {"cats": [1, 12], "dogs.v2_final-3": [7]}
    assert found["cats"].folder == tmp_path / "cats"
    assert found["cats"].problem is None


@pytest.mark.parametrize("name", ["0", "01", "-1", "1.0", "v1", "1 ", "\u0661", "1" * 19, ".1", "+1"])
def test_a_folder_that_is_no_positive_integer_is_no_version(tmp_path: Path, name: str) -> None:
    make(tmp_path, "model", "1", name)
    assert list(FolderSource(tmp_path).scan()["model"].versions) == [1]


def test_a_file_named_like_a_version_is_none(tmp_path: Path) -> None:
    make(tmp_path, "model", "1")
    (tmp_path / "model" / "2").write_bytes(b"")
    assert list(FolderSource(tmp_path).scan()["model"].versions) == [1]


@pytest.mark.parametrize("name", [".git", "_drafts", ".hidden"])
def test_folders_that_start_with_a_dot_or_an_underscore_are_passed_over(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "1", manifest=True)
    assert FolderSource(tmp_path).scan() == {}


def test_a_folder_with_neither_manifest_nor_version_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "make.py").write_text("")
    (tmp_path / "README.md").write_text("")
    assert FolderSource(tmp_path).scan() == {}


def test_a_folder_with_versions_and_no_manifest_is_a_model(tmp_path: Path) -> None:
    make(tmp_path, "tensors", "1")
    assert FolderSource(tmp_path).scan()["tensors"].problem is None


def test_a_manifest_without_a_version_is_a_problem_that_says_where_the_file_goes(tmp_path: Path) -> None:
    make(tmp_path, "empty", manifest=True)
    assert "put the file at 1/model.onnx" in (FolderSource(tmp_path).scan()["empty"].problem or "")


@pytest.mark.parametrize("name", ["two words", "a" * 129, "caf\u00e9", "a:b", "semi;colon", "new\nline", "stats"])
def test_a_bad_folder_name_is_a_problem_of_that_model_only(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "1")
    make(tmp_path, "good", "1")
    found = FolderSource(tmp_path).scan()
    assert found["good"].problem is None
    assert "cannot be a model's name: rename the folder" in (found[name].problem or "")


def test_the_longest_name_allowed_is_allowed(tmp_path: Path) -> None:
    make(tmp_path, "a" * 128, "1")
    assert FolderSource(tmp_path).scan()["a" * 128].problem is None


def test_a_name_that_is_not_utf_8_is_shown_in_text_that_can_be_written_anywhere(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"bad\xff"), "1")
    (model,) = FolderSource(tmp_path).scan().values()
    assert model.problem is not None
    model.name.encode()
    model.problem.encode()


def test_a_repository_that_is_not_there_names_the_setting_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FolderSource(tmp_path / "nowhere").scan()
    message = str(caught.value)
    assert "repository.path" in message
    assert "nowhere" in message
    assert "No such file" in message
    assert "give a folder of model folders" in message


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Not a directory"):
        FolderSource(tmp_path / "file").scan()


def test_two_looks_at_the_same_files_agree(tmp_path: Path) -> None:
    make(tmp_path, "model", "1", "2", manifest=True)
    source = FolderSource(tmp_path)
    assert source.scan() == source.scan()


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("1/model.onnx", {1}),
        ("1/labels.txt", {1}),
        ("2/model.toml", {2}),
        ("labels.txt", {1, 2}),
        ("model.toml", {1, 2}),
    ],
)
def test_a_changed_file_changes_the_versions_it_belongs_to(tmp_path: Path, file: str, changed: set[int]) -> None:
    folder = make(tmp_path, "model", "1", "2", manifest=True)
    before = FolderSource(tmp_path).scan()["model"].versions
    (folder / file).write_bytes(b"something of another length")
    after = FolderSource(tmp_path).scan()["model"].versions
    assert {version for version in after if after[version] != before[version]} == changed


def test_a_file_rewritten_at_the_same_length_counts_as_changed(tmp_path: Path) -> None:
    folder = make(tmp_path, "model", "1")
    before = FolderSource(tmp_path).scan()["model"].versions[1]
    os.utime(folder / "1" / "model.onnx", ns=(1, 1))
    assert FolderSource(tmp_path).scan()["model"].versions[1] != before


def test_a_version_that_is_a_link_to_a_folder_is_a_version(tmp_path: Path) -> None:
    folder = make(tmp_path, "model", "1")
    (folder / "2").symlink_to(folder / "1")
    assert sorted(FolderSource(tmp_path).scan()["model"].versions) == [1, 2]


def test_links_that_lead_nowhere_hurt_nobody(tmp_path: Path) -> None:
    folder = make(tmp_path, "model", "1")
    (folder / "2").symlink_to(tmp_path / "nowhere")
    (folder / "1" / "data").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = FolderSource(tmp_path).scan()
    assert list(found) == ["model"]
    assert list(found["model"].versions) == [1]


def test_a_card_is_found_where_there_is_one(tmp_path: Path) -> None:
    (make(tmp_path, "cats", "1") / "README.md").write_text("# cats\n")
    make(tmp_path, "dogs", "1")
    (make(tmp_path, "mice", "1") / "README.md").mkdir()
    found = FolderSource(tmp_path).scan()
    assert {name: model.card for name, model in found.items()} == {
        "cats": tmp_path / "cats" / "README.md",
        "dogs": None,
        "mice": None,
    }
