"""Where labelled images come from, and how names find their places in the output."""

from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.workbench.labelled import Labelled, is_labelled, read

LABELS = ("hot dog", "T-shirt/top", "cat")


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(b"")
    return root


def truths(images: list[Labelled]) -> dict[str, tuple[int, ...]]:
    return {Path(image.file).parent.name: image.truth for image in images}


def test_class_folders_are_named_by_label(tmp_path: Path) -> None:
    assert truths(read(folder_of(tmp_path, "cat", "hot dog"), LABELS)) == {"cat": (2,), "hot dog": (0,)}


def test_names_may_be_written_as_file_names_are(tmp_path: Path) -> None:
    assert truths(read(folder_of(tmp_path, "Hot_Dog", "t-shirt-top"), LABELS)) == {"Hot_Dog": (0,), "t-shirt-top": (1,)}


def test_folders_of_numbers_are_places_in_the_output(tmp_path: Path) -> None:
    assert truths(read(folder_of(tmp_path, "00", "02"), LABELS)) == {"00": (0,), "02": (2,)}


def test_all_wordnet_ids_stand_in_the_order_of_the_classes(tmp_path: Path) -> None:
    ids = ("n02085620", "n01440764", "n04325704")
    assert truths(read(folder_of(tmp_path, *ids), LABELS)) == {name: (at,) for at, name in enumerate(sorted(ids))}


def test_unknown_class_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'dog' not among the 3 labels .*'hot dog'.*by label or by place"):
        read(folder_of(tmp_path, "dog", "cat"), LABELS)


def test_labels_that_differ_in_signs_only_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'a b'"):
        read(folder_of(tmp_path, "a b"), ("a-b", "a_b"))


def test_table_names_files_beside_it(tmp_path: Path) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("file,label\nx/1.png,cat\n2.png,hot dog|cat\n", encoding="utf-8")
    assert read(table, LABELS) == [
        Labelled(str(tmp_path / "x/1.png"), (2,)),
        Labelled(str(tmp_path / "2.png"), (0, 2)),
    ]


def test_image_without_a_label_is_refused_where_the_task_has_one(tmp_path: Path) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("file,label\n1.png,\n2.png,cat\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"1\.png: no label"):
        read(table, LABELS)
    assert [image.truth for image in read(table, LABELS, several=True)] == [(), (2,)]


@pytest.mark.parametrize(("text", "said"), [("path,label\n1.png,cat\n", "no column file"), ("", "no column")])
def test_table_without_its_columns_is_named(tmp_path: Path, text: str, said: str) -> None:
    table = tmp_path / "truth.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        read(table, LABELS)


def test_place_without_labelled_images_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    assert not is_labelled(tmp_path)
    with pytest.raises(ConfigurationError, match="one folder a class, or a CSV file"):
        read(tmp_path, LABELS)
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        read(tmp_path / "nowhere", LABELS)
