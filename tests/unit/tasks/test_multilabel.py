"""Any number of right labels."""

import numpy as np

from service.tasks.base import TaskSpec
from service.tasks.multilabel import Multilabel

LABELS = ("sky", "sea", "sand")
SCORES = np.array([0.6, 0.9, 0.3], np.float32)


def labels(task: Multilabel, top_k: int = 5, threshold: float | None = None) -> list[str]:
    return [prediction.label for prediction in task.predictions(SCORES, top_k, threshold)]


def test_each_score_is_a_sigmoid_of_its_own() -> None:
    scores = Multilabel(TaskSpec(LABELS, "sigmoid")).scores(np.array([[0.0, 30.0, -30.0]], np.float32))
    np.testing.assert_allclose(scores, [[0.5, 1.0, 0.0]], atol=1e-6)


def test_only_labels_at_or_above_the_manifests_threshold_are_predicted() -> None:
    assert labels(Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.5,)))) == ["sea", "sky"]


def test_a_score_at_the_threshold_is_predicted() -> None:
    assert labels(Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.6,)))) == ["sea", "sky"]


def test_each_label_has_a_threshold_of_its_own() -> None:
    assert labels(Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.7, 0.95, 0.2)))) == ["sand"]


def test_a_callers_threshold_replaces_the_manifests() -> None:
    task = Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.99,)))
    assert labels(task, threshold=0.25) == ["sea", "sky", "sand"]


def test_top_k_counts_what_is_left_after_the_thresholds() -> None:
    task = Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.5, 0.95, 0.2)))
    assert labels(task, top_k=1) == ["sky"]


def test_no_label_may_be_right() -> None:
    assert labels(Multilabel(TaskSpec(LABELS, "sigmoid", thresholds=(0.95,)))) == []
