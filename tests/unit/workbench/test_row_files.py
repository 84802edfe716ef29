"""Files of rows: what is whole stays, what is torn or failed is asked again."""

import csv
import json
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.workbench.row_files import RowFile


def row(file: str, score: float = 0.5) -> dict[str, object]:
    return {"file": file, "predictions": [{"label": 'a "b", c', "index": 0, "score": score}]}


def failed(file: str) -> dict[str, object]:
    return {"file": file, "error": "not an image, at all"}


def written(path: Path, *rows: dict[str, object], resume: bool = False) -> None:
    with RowFile(path, 2, resume=resume) as file:
        for each in rows:
            file.write(each)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_file_is_continued_after_it_was_torn_anywhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    written(path, row("1.png"), row("2.png"), row("3,\n.png"))
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 3), len(whole)):
        path.write_bytes(whole[:length])
        with RowFile(path, 2, resume=True) as file:
            for name in ("1.png", "2.png", "3,\n.png"):
                if name not in file.done:
                    file.write(row(name))
        assert path.read_bytes() == whole, length


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_failed_image_is_asked_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    written(path, row("1.png"), failed("2.png"))
    with RowFile(path, 2, resume=True) as file:
        assert file.done == {"1.png"}
        file.write(row("2.png"))
    assert "not an image" not in path.read_text()


def test_rows_can_be_read_back(tmp_path: Path) -> None:
    written(tmp_path / "rows.jsonl", row("1.png"), failed("2.png"))
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        row("1.png"),
        failed("2.png"),
    ]
    written(tmp_path / "rows.csv", row("1.png", 0.123456789), failed("2.png"))
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "file": "1.png", "error": "", "label_1": 'a "b", c', "score_1": "0.123457", "label_2": "", "score_2": ""
    }  # fmt: skip
    assert (second["file"], second["error"], second["label_1"]) == ("2.png", "not an image, at all", "")


def test_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path / "rows.csv", row("1.png"))
    with pytest.raises(ConfigurationError, match="--resume"):
        written(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("name", "text"), [("rows.csv", "a,b\n1,2\n"), ("rows.jsonl", "no json\n"), ("a.jsonl", "{}\n")]
)
def test_file_of_something_else_is_left_as_it_is(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=name):
        RowFile(tmp_path / name, 2, resume=True)
    assert (tmp_path / name).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_unknown_suffix_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.jsonl and \.csv"):
        RowFile(tmp_path / "rows.xlsx", 2, resume=False)
