"""Photographs that everybody can name: whether the whole chain, from the file to the label, gets them right."""

import httpx2
import pytest

from tests.support import bodies
from tests.support.answers import predictions_of

_CATS = {"tabby", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat", "lynx"}


@pytest.mark.parametrize(
    ("name", "labels", "among"),
    [
        ("chelsea.png", _CATS, 1),
        ("coffee.png", {"espresso"}, 1),
        ("rocket.jpg", {"missile", "projectile"}, 3),
        ("motorcycle_left.png", {"moped"}, 1),
    ],
)
def test_photograph_is_named(client: httpx2.Client, name: str, labels: set[str], among: int) -> None:
    media_type = bodies.JPEG if name.endswith("jpg") else bodies.PNG
    answer = client.post(
        "/api/v1/models/imagenet/classify",
        content=bodies.photograph(name),
        headers={"content-type": media_type},
    )
    best = [prediction["label"] for prediction in predictions_of(answer)[:among]]
    assert any(label.split(",")[0] in labels for label in best), best


def test_cup_of_coffee_is_as_certain_as_it_should_be(client: httpx2.Client) -> None:
    answer = client.post(
        "/api/v1/models/imagenet/classify",
        content=bodies.photograph("coffee.png"),
        headers={"content-type": bodies.PNG},
    )
    assert predictions_of(answer)[0]["score"] == pytest.approx(0.95, abs=0.03)
