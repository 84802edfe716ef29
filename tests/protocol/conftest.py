"""One real server for the whole session, with good, broken, slow and tensor-only models behind one port."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import bodies
from tests.support.answers import assert_same_predictions, predictions_of
from tests.support.scrape import Scrape
from tests.support.server_process import MODEL_REPO, ServerProcess, serving

_ONE_AT_A_TIME = "[batching]\nmax_batch_size = 1\nmax_queue_wait_ms = 20000\n{more}[execution]\ninstances = 1\n"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models, and beside them:

    colors      versions 1 and 2 in service, 3 not named by the policy; labels differ between 1 and 2
    tensors     no manifest: takes tensors only
    broken      an unknown key in model.toml; a card that is not all UTF-8
    damaged     a model.onnx that is no ONNX; a card of more than a MiB
    slow        one image at a time, more than 100 ms each
    crowded     as slow, with room for two in its queue
    """
    root = tmp_path_factory.mktemp("served") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    colors = bodies.mean_color_model()
    manifest = bodies.COLOR_MANIFEST
    folder = bodies.write_model(
        root / "colors", colors, manifest=manifest.replace("\n", "\nversion_policy = [1, 2]\n", 1), labels=bodies.COLORS
    )
    for version in ("2", "3"):
        shutil.copytree(folder / "1", folder / version)
    (folder / "2" / "labels.txt").write_text("rouge\nvert\nbleu\n")
    bodies.write_model(root / "tensors", colors)
    bodies.write_model(root / "broken", colors, manifest=manifest + 'sise = "large"\n', labels=bodies.COLORS)
    bodies.write_model(root / "damaged", colors, manifest=manifest, labels=bodies.COLORS)
    (root / "broken" / "README.md").write_bytes(b"# broken\n\nWhat became of it: caf\xe9.\n")
    (root / "damaged" / "1" / "model.onnx").write_bytes(b"this is no graph" * 100)
    (root / "damaged" / "README.md").write_bytes(b"x" * (1024 * 1024 + 1))
    slow = bodies.slow_model()
    bodies.write_model(root / "slow", slow, manifest=manifest + _ONE_AT_A_TIME.format(more=""), labels=bodies.COLORS)
    crowded = manifest + _ONE_AT_A_TIME.format(more="max_queue_size = 2\n")
    bodies.write_model(root / "crowded", slow, manifest=crowded, labels=bodies.COLORS)
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository) as process:
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="session")
def document(client: httpx2.Client) -> dict[str, Any]:
    """The OpenAPI document, as the server publishes it."""
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    published: dict[str, Any] = answer.json()
    return published


@pytest.fixture(scope="session")
def scrape(client: httpx2.Client) -> Callable[[], Scrape]:
    return lambda: Scrape.parse(client.get("/metrics").text)


@pytest.fixture(scope="session")
def assert_serves_on(client: httpx2.Client) -> Callable[[], None]:
    """That the server lives, and gives the golden request its golden answer."""
    picture = bodies.drawn_digit(3)

    def ask() -> list[dict[str, Any]]:
        answer = client.post("/api/v1/models/digits/classify", content=picture, headers={"content-type": bodies.PNG})
        return predictions_of(answer)

    golden = ask()
    assert golden[0]["label"] == "3"
    assert golden[0]["score"] > 0.99

    def check() -> None:
        assert client.get("/livez").status_code == 200
        assert_same_predictions(ask(), golden, tolerance=1e-5)

    return check
