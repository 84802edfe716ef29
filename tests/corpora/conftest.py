"""The corpora as `fetch.sh` left them, and one real server for all of them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.abuse.standing import Baseline
from tests.support import bodies
from tests.support.server_process import ServerProcess, serving

_PROJECT = Path(__file__).resolve().parents[2]
CORPORA = _PROJECT / "build" / "corpora"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves digits, and two models that see how red, green and blue a picture is, by either way of decoding."""
    repository = tmp_path_factory.mktemp("corpora") / "model_repo"
    shutil.copytree(_PROJECT / "model_repo" / "digits", repository / "digits")
    for name, decode in (("exact", 'decode = "exact"\n'), ("fast", "")):
        bodies.write_model(
            repository / name,
            bodies.mean_color_model(),
            manifest=bodies.COLOR_MANIFEST + decode,
            labels=bodies.COLORS,
        )
    with serving(repository) as process:
        yield process


@pytest.fixture(scope="session")
def baseline(server: ServerProcess) -> Baseline:
    return Baseline(server)


def pytest_configure(config: pytest.Config) -> None:
    if not CORPORA.is_dir():
        raise pytest.UsageError("the corpora are missing: make test-corpora fetches them")
