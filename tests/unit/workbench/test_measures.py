"""Figures against scikit-learn's to the last digit, and against cases that can be counted by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import classification_report

from service.messages import Prediction
from service.workbench.measures import (
    Tally,
    fit_temperature,
    fit_threshold,
    mcnemar,
    negative_log_likelihood,
)

LABELS = tuple(f"label {index}" for index in range(12))


def tally_of(truth: list[tuple[int, ...]], predicted: list[list[tuple[int, float]]], *, several: bool = False) -> Tally:
    tally = Tally(LABELS, several=several)
    for place, (right, answer) in enumerate(zip(truth, predicted, strict=True)):
        tally.add(f"{place}.png", right, [Prediction(LABELS[index], index, score) for index, score in answer])
    return tally


def assert_is_report(tally: Tally, report: dict[str, dict[str, float]]) -> None:
    for score in [*tally.classes, *tally.averages]:
        theirs = report[score.label]
        assert score.precision == theirs["precision"]
        assert score.recall == theirs["recall"]
        assert score.f1 == theirs["f1-score"]
        assert score.support == theirs["support"]


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn_to_the_last_digit(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 10, 500)  # two classes never occur, and one is only predicted
    predicted = np.where(random.random(500) < 0.7, truth, random.integers(0, 11, 500))
    tally = tally_of([(int(right),) for right in truth], [[(int(best), 0.5)] for best in predicted])
    names = [LABELS[index] for index in sorted({*truth.tolist(), *predicted.tolist()})]
    report = classification_report(truth, predicted, target_names=names, output_dict=True, zero_division=0)
    assert tally.accuracy == report["accuracy"]
    assert {score.label for score in tally.classes} == set(names)
    assert_is_report(tally, report)


def test_several_labels_an_image_are_counted_as_by_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, answers = random.random((200, 12)) < 0.2, random.random((200, 12)) < 0.25
    truth[:, 11] = answers[:, 11] = True
    tally = tally_of(
        [tuple(np.flatnonzero(row).tolist()) for row in truth],
        [[(index, 0.9) for index in np.flatnonzero(row).tolist()] for row in answers],
        several=True,
    )
    report = classification_report(truth, answers, target_names=LABELS, output_dict=True, zero_division=0)
    assert_is_report(tally, report)
    assert tally.accuracy == np.mean((truth == answers).all(axis=1))


def test_image_with_several_right_names_is_right_with_any_of_them() -> None:
    tally = tally_of([(1, 2), (1, 2), (1, 2)], [[(2, 0.9)], [(3, 0.9), (2, 0.1)], [(1, 0.9)]])
    assert tally.accuracy == 2 / 3
    assert tally.top_k_accuracy == 1.0
    assert tally.confusion == {(2, 2): 1, (1, 3): 1, (1, 1): 1}


def test_calibration_error_is_the_distance_of_confidence_from_accuracy() -> None:
    sure = [[(0, 0.95)]] * 10
    tally = tally_of([(0,)] * 5 + [(1,)] * 5, sure)
    (only,) = tally.bins
    assert (only.images, only.accuracy) == (10, 0.5)
    assert tally.expected_calibration_error == pytest.approx(0.45)


def test_worst_mistakes_are_the_surest() -> None:
    tally = tally_of([(0,)] * 100, [[(1, place / 100)] for place in range(100)])
    scores = [mistake.score for mistake in tally.mistakes]
    assert scores == [place / 100 for place in range(99, 75, -1)]
    assert tally.mistakes[0].file == "99.png"


def test_nothing_evaluated_is_no_division_by_zero() -> None:
    tally = tally_of([], [])
    assert (tally.accuracy, tally.top_k_accuracy, tally.expected_calibration_error, tally.averages) == (0, 0, 0, [])


def test_mcnemar_is_the_sign_test_on_what_only_one_got_right() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 5) == pytest.approx(2 * 7 / 2**6)


def test_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0.0, 2.0, (4000, 10))
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    truth = np.array([random.choice(10, p=row) for row in chances])
    fitted = fit_temperature(logits * 3.0, truth)
    assert fitted == pytest.approx(3.0, rel=0.05)
    assert negative_log_likelihood(logits * 3.0, truth, fitted) < negative_log_likelihood(logits * 3.0, truth, 1.0)


def test_threshold_with_the_best_f1_lies_between_the_scores() -> None:
    scores, positive = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True])
    assert fit_threshold(scores, positive) == pytest.approx(0.25)
    assert fit_threshold(scores, np.zeros(4, bool)) == 0.5
    assert fit_threshold(np.full(4, 0.7), positive) == pytest.approx(0.35)  # equal scores cannot be parted


def test_likelihood_is_that_of_the_formula() -> None:
    assert negative_log_likelihood(np.array([[0.0, 0.0]]), np.array([1]), 1.0) == pytest.approx(math.log(2.0))
