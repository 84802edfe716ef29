"""What every task must do, over the table of tasks. A task added to TASKS is tested without a word here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import EngineFailed
from service.tasks import TASKS, Task, TaskSpec
from service.tasks.base import Scores

LABELS = ("ant", "bee")  # two: the one number of labels that every task takes
NAMES = sorted(TASKS)
finite = st.floats(-30, 30, width=32)


def make(name: str, activation: str | None = None, **rest: object) -> Task:
    return TASKS[name](TaskSpec(LABELS, activation or TASKS[name].default_activation, **rest))  # type: ignore[arg-type]


def rows_for(task: Task, count: int = 3) -> Scores:
    return np.random.default_rng(0).normal(size=(count, task.width())).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_row_for_each_image_with_a_score_for_each_label(name: str) -> None:
    task = make(name)
    scores = task.scores(rows_for(task))
    assert scores.shape == (3, len(LABELS))
    assert scores.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_scores_are_between_nought_and_one(name: str, data: st.DataObject) -> None:
    task = make(name, temperature=data.draw(st.floats(0.1, 10)))
    row = data.draw(st.lists(finite, min_size=task.width(), max_size=task.width()))
    scores = task.scores(np.array([row], np.float32))
    assert (scores >= 0).all()
    assert (scores <= 1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_raw_outputs_of_any_float_type_are_taken(name: str, dtype: type) -> None:
    task = make(name)
    rows = rows_for(task)
    np.testing.assert_allclose(task.scores(rows.astype(dtype)), task.scores(rows), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_raw_outputs_with_more_dimensions_are_flattened(name: str) -> None:
    task = make(name)
    rows = rows_for(task)
    np.testing.assert_array_equal(task.scores(rows[:, :, None, None]), task.scores(rows))


@pytest.mark.parametrize("name", NAMES)
def test_an_output_of_another_width_is_refused_with_both_numbers(name: str) -> None:
    task = make(name)
    with pytest.raises(EngineFailed, match=f"gave 7 numbers an image; {task.width()} were expected"):
        task.scores(np.zeros((2, 7), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    task = make(name)
    rows = rows_for(task)
    rows[1, 0] = bad
    with pytest.raises(EngineFailed, match="not a finite number"):
        task.scores(rows)


@pytest.mark.parametrize("name", NAMES)
def test_scores_leave_the_raw_output_as_it_was(name: str) -> None:
    task = make(name, temperature=2.0)
    rows = rows_for(task)
    before = rows.copy()
    task.scores(rows)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("name", NAMES)
@given(scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), top_k=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_predictions_carry_the_label_and_score_of_their_index(name: str, scores: list[float], top_k: int) -> None:
    predictions = make(name).predictions(np.array(scores, np.float32), top_k, None)
    assert len(predictions) <= min(top_k, len(LABELS))
    assert len({prediction.index for prediction in predictions}) == len(predictions)
    for prediction in predictions:
        assert prediction.label == LABELS[prediction.index]
        assert prediction.score == scores[prediction.index]
        assert type(prediction.index) is int
        assert type(prediction.score) is float


@pytest.mark.parametrize("name", NAMES)
@given(scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), threshold=st.floats(0, 1, width=32))
@settings(max_examples=60, deadline=None)
def test_the_callers_threshold_drops_exactly_what_scores_below_it(
    name: str, scores: list[float], threshold: float
) -> None:
    predictions = make(name).predictions(np.array(scores, np.float32), 5, threshold)
    expected = {index for index, score in enumerate(scores) if score >= threshold}
    assert {prediction.index for prediction in predictions} == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_default_activation_is_one_that_a_manifest_may_name(name: str) -> None:
    assert TASKS[name].default_activation in ("softmax", "sigmoid", "none")
