"""The index against what is known of it: nothing for the same traffic, much for another, whatever the classes."""

import json

import numpy as np
import pytest

from service import drift
from service.drift import DriftWindow, Reference, Tally
from service.errors import ModelLoadError

WINDOW = 2000


def reference(shares: np.ndarray, images: int, seed: int = 0) -> Reference:
    random = np.random.default_rng(seed)
    tally = Tally(len(shares))
    for index in random.choice(len(shares), images, p=shares):
        tally.add(int(index), float(random.beta(8, 1)))
    return tally.reference()


def indices(
    known: Reference, shares: np.ndarray, seed: int, images: int = WINDOW, sure: float = 8
) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    window = DriftWindow(known, WINDOW)
    for index in random.choice(len(shares), images, p=shares):
        window.add(int(index), float(random.beta(sure, 1)))
    found = window.indices()
    assert found is not None
    return found


def shares_of(classes: int) -> np.ndarray:
    return np.random.default_rng(classes).dirichlet(np.full(classes, 5.0))


@pytest.mark.parametrize(("classes", "images"), [(2, 1000), (10, 5000), (1000, 5000), (1000, 50_000)])
def test_the_same_traffic_is_no_drift(classes: int, images: int) -> None:
    shares = shares_of(classes)
    known = reference(shares, images)
    for seed in range(10):
        of_classes, of_confidence = indices(known, shares, 100 + seed)
        assert of_classes < 0.1
        assert of_confidence < 0.1


@pytest.mark.parametrize(("classes", "images"), [(10, 5000), (1000, 5000)])
def test_three_in_ten_images_that_go_to_one_class_are_drift_within_one_window(classes: int, images: int) -> None:
    shares = shares_of(classes)
    moved = shares * 0.7
    moved[0] += 0.3
    for seed in range(5):
        assert indices(reference(shares, images), moved, seed)[0] > 0.2


def test_doubt_is_drift_of_the_confidence_alone() -> None:
    shares = shares_of(10)
    of_classes, of_confidence = indices(reference(shares, 5000), shares, 1, sure=3)
    assert of_classes < 0.1
    assert of_confidence > 0.2


def test_the_index_is_the_sum_over_the_shares() -> None:
    expected, seen = np.array([500, 500]), np.array([800, 200])
    p, q = (expected + 0.5) / 1001, (seen + 0.5) / 1001
    assert drift.psi(expected, seen) == pytest.approx(sum((q - p) * np.log(q / p)))
    assert drift.psi(expected, expected) == 0


def test_nothing_is_said_before_the_window_is_full_and_only_the_last_images_count() -> None:
    known = reference(np.array([0.5, 0.5]), 1000)
    window = DriftWindow(known, 200)
    for number in range(199):
        window.add(0, 0.9)
        assert window.indices() is None, number
    window.add(0, 0.9)
    found = window.indices()
    assert found is not None
    assert found[0] > 1
    random = np.random.default_rng(3)
    for index in random.choice(2, 200):
        window.add(int(index), 0.9)
    found = window.indices()
    assert found is not None
    assert found[0] < 0.1


def test_a_reference_is_what_was_written() -> None:
    known = reference(shares_of(5), 300)
    assert drift.parse(known.to_json(), 5) == known


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, '"schema": 1'),
        ({"images": 301}, "add up"),
        ({"predictions": [1] * 6}, "6 counts; 5 were expected"),
        ({"predictions": [-1, 301, 0, 0, 0]}, "list of counts"),
        ({"predictions": "many"}, "list of counts"),
        ({"confidence": None}, "list of counts"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(change: dict[str, object], says: str) -> None:
    tree = json.loads(reference(shares_of(5), 300).to_json()) | change
    with pytest.raises(ModelLoadError, match=says):
        drift.parse(json.dumps(tree).encode(), 5)


@pytest.mark.parametrize(
    ("score", "place"), [(0.0, 0), (0.1, 0), (0.100001, 1), (0.99, 10), (1.0, 11), (1.0000001, 11)]
)
def test_a_score_falls_into_the_bucket_that_it_does_not_exceed(score: float, place: int) -> None:
    assert drift.bucket_of(score) == place
