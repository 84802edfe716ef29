"""The networks of the tutorials, frozen: imported, served by the real server, and held to Keras' own scores."""

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service import cli
from tests.support import clips, frozen_networks
from tests.support.bodies import PHOTOGRAPHS, image_part, multipart
from tests.support.server_process import ServerProcess, serving
from tests.support.tiny_models import save

TOLERANCE = 1e-4
NAMES = frozen_networks.names()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serving all of them, each imported with the flags of its tutorial."""
    repository = tmp_path_factory.mktemp("repository")
    for name in NAMES:
        source = save(frozen_networks.thawed(name), tmp_path_factory.mktemp(name) / "model.onnx")
        flags = frozen_networks.facts(name)["flags"]
        assert cli.main(["import", str(source), "--name", name, "--model-repo", str(repository), *flags]) == 0
        source.unlink()
        with (repository / name / "model.toml").open("a") as manifest:  # less to warm up; the answers are the same
            manifest.write("[batching]\nmax_batch_size = 1\n")
    with serving(repository) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{server.url}/api/v1/models", timeout=30.0) as client:
        yield client


def scores(answer: httpx2.Response) -> list[float]:
    """By label's index, of the one result."""
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    ranked = result["predictions"]
    return [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])]


def keras_scores(name: str, picture: str) -> list[float]:
    """As Keras gave them, with both sides of a sigmoid."""
    found = frozen_networks.facts(name)["scores"][picture]
    return [1 - found[0], found[0]] if len(found) == 1 else found


def test_every_network_of_the_tutorials_is_here() -> None:
    assert len(NAMES) == 13


@pytest.mark.parametrize("name", [name for name in NAMES if not frozen_networks.facts(name)["frames"]])
def test_served_scores_are_those_of_keras(client: httpx2.Client, name: str) -> None:
    for picture in frozen_networks.facts(name)["scores"]:
        data = (PHOTOGRAPHS / picture).read_bytes()
        kind = {"content-type": f"image/{'png' if picture.endswith('png') else 'jpeg'}"}
        answer = client.post(f"/{name}/classify?top_k=100", content=data, headers=kind)
        assert scores(answer) == pytest.approx(keras_scores(name, picture), abs=TOLERANCE)


@pytest.mark.parametrize("picture", frozen_networks.facts("binary_clip_lstm")["scores"])
def test_a_clip_is_served_from_an_animation_and_from_its_frames(client: httpx2.Client, picture: str) -> None:
    photograph = (PHOTOGRAPHS / picture).read_bytes()
    wanted = pytest.approx(keras_scores("binary_clip_lstm", picture), abs=TOLERANCE)
    animated = client.post(
        "/binary_clip_lstm/classify", content=clips.animation(photograph), headers={"content-type": "image/webp"}
    )
    assert scores(animated) == wanted
    parts = [image_part(frame, file_name=f"{place}.png") for place, frame in enumerate(clips.frames(photograph))]
    content_type = {"content-type": "multipart/form-data; boundary=fovea-test-boundary"}
    frames = client.post("/binary_clip_lstm/classify", content=multipart(parts), headers=content_type)
    assert scores(frames) == wanted
    assert frames.json()["results"][0]["name"] == "0.png"
    assert frames.json()["results"][0]["image"] == {"format": "png", "width": 96, "height": 96}


def test_a_clip_goes_through_the_tensor_protocols_too(server: ServerProcess) -> None:
    """An instance is an encoded image there, so a clip is an animation."""
    clip = base64.b64encode(clips.animation((PHOTOGRAPHS / "coffee.png").read_bytes())).decode()
    answer = httpx2.post(
        f"{server.url}/v1/models/binary_clip_lstm:predict", json={"instances": [{"b64": clip}, {"b64": clip}]}
    )
    assert answer.status_code == 200, answer.text
    (wanted,) = frozen_networks.facts("binary_clip_lstm")["scores"]["coffee.png"]
    assert answer.json()["predictions"] == [[pytest.approx(wanted, abs=TOLERANCE)]] * 2


def test_no_weights_are_kept_in_the_checkout() -> None:
    assert sum(path.stat().st_size for path in Path(frozen_networks.FOLDER).iterdir()) < 3_000_000
