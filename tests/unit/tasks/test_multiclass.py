"""One right label."""

import numpy as np
import pytest

from service.tasks.base import TaskSpec
from service.tasks.multiclass import Multiclass

LABELS = ("ant", "bee", "cat", "dog")


def test_scores_of_a_row_add_up_to_one() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(Multiclass(TaskSpec(LABELS)).scores(rows).sum(axis=1), np.ones(5), rtol=1e-6)


def test_no_activation_leaves_the_graphs_own_probabilities() -> None:
    rows = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    np.testing.assert_array_equal(Multiclass(TaskSpec(LABELS, "none")).scores(rows), rows)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.5), (0.5, 0.25), (2.0, 1.0)])
def test_a_temperature_divides_the_logits(temperature: float, expected: float) -> None:
    rows = np.array([[expected, 0.0, 0.0, 0.0]], np.float32)
    scores = Multiclass(TaskSpec(LABELS, temperature=temperature)).scores(rows)
    reference = Multiclass(TaskSpec(LABELS)).scores(np.array([[0.5, 0.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(scores, reference, rtol=1e-6)


def test_predictions_come_best_first() -> None:
    scores = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    predictions = Multiclass(TaskSpec(LABELS)).predictions(scores, 3, None)
    assert [prediction.label for prediction in predictions] == ["bee", "dog", "cat"]


def test_ties_go_to_the_lower_index() -> None:
    scores = np.array([0.1, 0.3, 0.3, 0.3], np.float32)
    predictions = Multiclass(TaskSpec(LABELS)).predictions(scores, 2, None)
    assert [prediction.index for prediction in predictions] == [1, 2]


def test_more_than_there_are_gives_all_there_are() -> None:
    scores = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    assert len(Multiclass(TaskSpec(LABELS)).predictions(scores, 100, None)) == 4


def test_a_threshold_above_the_best_leaves_nothing() -> None:
    scores = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    assert Multiclass(TaskSpec(LABELS)).predictions(scores, 4, 0.5) == ()
