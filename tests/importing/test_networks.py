"""Every network of the tutorials, by Keras itself: saved, imported, served, and held to Keras' own `predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service import cli
from tests.importing import keras_networks
from tests.importing.keras_networks import NETWORKS, PICTURES
from tests.support import clips
from tests.support.bodies import PHOTOGRAPHS
from tests.support.server_process import serving

TOLERANCE = 1e-4
CUSTOM_LAYERS = ("binary_vit_b16",)  # saved with layers of its own, whose code is here: exported by `model.export`
LEGACY = ("cifar_cnn", "binary_cnn_batchnorm")  # saved as .h5


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any, Path]]:
    """Its name, the network itself, and the repository that it was imported into."""
    name = request.param
    built, _ = keras_networks.drawn_network(name, NETWORKS[name])
    source = tmp_path / f"model.{'onnx' if name in CUSTOM_LAYERS else 'h5' if name in LEGACY else 'keras'}"
    if name in CUSTOM_LAYERS:
        keras_networks.export(built, NETWORKS[name], source)
    else:
        built.save(source)
    repository = tmp_path / "repository"
    repository.mkdir()
    flags = keras_networks.import_flags(NETWORKS[name])
    assert cli.main(["import", str(source), "--name", name, "--model-repo", str(repository), *flags]) == 0
    source.unlink()
    yield name, built, repository
    for file in repository.rglob("*.onnx"):
        file.unlink()  # up to 340 MB each


def test_served_scores_are_those_of_predict(network: tuple[str, Any, Path]) -> None:
    name, built, repository = network
    with serving(repository) as server, httpx2.Client(base_url=server.url, timeout=60.0) as client:
        for picture in PICTURES:
            photograph = (PHOTOGRAPHS / picture).read_bytes()
            data = clips.animation(photograph) if NETWORKS[name].frames else photograph
            kind = "webp" if NETWORKS[name].frames else "png" if picture.endswith("png") else "jpeg"
            answer = client.post(
                f"/api/v1/models/{name}/classify?top_k=100", content=data, headers={"content-type": f"image/{kind}"}
            )
            assert answer.status_code == 200, answer.text
            served = {entry["index"]: entry["score"] for entry in answer.json()["results"][0]["predictions"]}
            own = keras_networks.predict(built, NETWORKS[name], picture).tolist()
            wanted = [1 - own[0], own[0]] if len(own) == 1 else own
            difference = max(abs(served[index] - score) for index, score in enumerate(wanted))
            print(f"{name} {picture}: {difference:.1e}")
            assert difference <= TOLERANCE


def test_the_two_class_network_has_the_parameters_of_its_tutorial() -> None:
    assert NETWORKS["binary_cnn"].build().count_params() == 7_392_449
