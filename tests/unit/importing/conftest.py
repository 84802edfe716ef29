"""`fovea import` in this process, on tiny graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from service import cli
from tests.support import tiny_models

LABELS = ("--labels", "red,green,blue")
UNIT = ("--preset", "unit")


class Said(NamedTuple):
    """How an import ended: exit code, report, error."""

    code: int
    out: str
    err: str


Import = Callable[..., Said]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def import_model(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    """Import a graph (or a file) as the model `mine`, with these flags."""

    def run(source: onnx.ModelProto | Path, *flags: str | Path) -> Said:
        path = source if isinstance(source, Path) else tiny_models.save(source, tmp_path / "source" / "model.onnx")
        code = cli.main(["import", str(path), "--name", "mine", "--model-repo", str(repository), *map(str, flags)])
        return Said(code, *capsys.readouterr())

    return run
