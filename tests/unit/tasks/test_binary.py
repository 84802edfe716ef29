"""One unit, two labels."""

import numpy as np
import pytest

from service.tasks.base import TaskSpec
from service.tasks.binary import Binary

LABELS = ("fine", "broken")


def make(threshold: float = 0.5, activation: str = "sigmoid") -> Binary:
    return Binary(TaskSpec(LABELS, activation, thresholds=(threshold,)))  # type: ignore[arg-type]


def test_one_number_becomes_the_scores_of_two_labels() -> None:
    scores = make(activation="none").scores(np.array([[0.8], [0.1]], np.float32))
    np.testing.assert_allclose(scores, [[0.2, 0.8], [0.9, 0.1]], rtol=1e-6)


def test_a_logit_is_taken_through_a_sigmoid() -> None:
    np.testing.assert_allclose(make().scores(np.array([[0.0]], np.float32)), [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("probability", "threshold", "first"),
    [(0.6, 0.5, "broken"), (0.4, 0.5, "fine"), (0.5, 0.5, "broken"), (0.6, 0.7, "fine"), (0.2, 0.1, "broken")],
)
def test_the_label_that_the_manifests_threshold_decides_for_comes_first(
    probability: float, threshold: float, first: str
) -> None:
    task = make(threshold, "none")
    (scores,) = task.scores(np.array([[probability]], np.float32))
    predictions = task.predictions(scores, 2, None)
    assert [prediction.label for prediction in predictions] == [first, next(x for x in LABELS if x != first)]
    assert task.predictions(scores, 1, None) == predictions[:1]


def test_with_a_threshold_for_each_label_that_of_the_second_decides_for_it() -> None:
    task = Binary(TaskSpec(LABELS, "none", thresholds=(0.9, 0.2)))
    (scores,) = task.scores(np.array([[0.5]], np.float32))
    assert [prediction.label for prediction in task.predictions(scores, 2, None)] == ["broken", "fine"]


def test_a_callers_threshold_only_drops() -> None:
    task = make(0.7, "none")
    (scores,) = task.scores(np.array([[0.6]], np.float32))
    assert [prediction.label for prediction in task.predictions(scores, 2, 0.3)] == ["fine", "broken"]
    assert [prediction.label for prediction in task.predictions(scores, 2, 0.5)] == ["broken"]
    assert task.predictions(scores, 2, 0.9) == ()
